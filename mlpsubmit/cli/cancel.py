"""``mlpsubmit cancel``: stop a run; what is done stays."""

from __future__ import annotations

from pathlib import Path

import click

from mlpsubmit.cli.options import run_argument, runs_dir_option

__all__ = ["cancel"]


@click.command()
@run_argument
@runs_dir_option
def cancel(run: str | None, runs_dir: Path | None) -> None:
    """Stop every task of a RUN; each saves its state, and what is done stays."""
    from mlpsubmit.cli import terminal
    from mlpsubmit.runs.run import open_run

    opened = open_run(run, runs_dir)
    if not opened.status().running:
        click.echo(f"run {opened.id} is not running")
        return
    status = terminal.stop(opened)
    if status.running:  # Ctrl-C has ended the waiting
        click.echo(f"run {opened.id} was told to stop; see: mlpsubmit status {opened.id}")
        return
    click.echo(
        f"stopped; {status.done} of {status.configs} configs are done; go on with: "
        f"mlpsubmit resume {opened.id}"
    )
