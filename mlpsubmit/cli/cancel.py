"""``mlpsubmit cancel``: stop a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlpsubmit.cli.options import open_selected, run_argument, runs_dir_option
from mlpsubmit.display.output import echo
from mlpsubmit.display.text import counted

if TYPE_CHECKING:
    from mlpsubmit.runs.run import Run

__all__ = ["cancel"]


@click.command()
@run_argument
@runs_dir_option
def cancel(run: str | None, runs_dir: Path | None) -> None:
    """Stop a RUN.

    Every task saves its state first; finished results are kept.
    """
    from mlpsubmit.cli import terminal

    opened = open_selected(run, runs_dir)
    current = opened.status()
    if not (current.running or current.busy):
        echo(f"run {opened.id} is not running{_others(opened)}")
        return
    status = terminal.cancel_and_wait(opened)
    if status.running:  # Ctrl-C has ended the wait
        echo(f"run {opened.id} is stopping; see: mlpsubmit status {opened.id}")
        return
    echo(
        f"stopped; {status.done} of {counted(status.configs, 'config')} done; continue with: "
        f"mlpsubmit resume {opened.id}"
    )


def _others(run: Run) -> str:
    """Return which others of the runs from which this one was selected are running."""
    from mlpsubmit.runs.overview import overview

    running = [row.run for row in overview(run.selected.among) if row.state == "running"]
    if not running:
        return ""
    return f"; these are: {', '.join(running)}; stop one with: mlpsubmit cancel {running[0]}"
