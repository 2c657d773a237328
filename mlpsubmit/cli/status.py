"""``mlpsubmit status``: the progress of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from mlpsubmit.cli.options import open_selected, run_argument, runs_dir_option
from mlpsubmit.display.output import echo

__all__ = ["status"]


@click.command()
@run_argument
@click.option("--watch", is_flag=True, help="Refresh in place until the run ends.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@runs_dir_option
def status(run: str | None, watch: bool, as_json: bool, runs_dir: Path | None) -> None:
    """Show the progress of a RUN and the time that remains."""
    opened = open_selected(run, runs_dir)
    current = opened.status()
    if as_json:
        echo(json.dumps(current.to_json(), indent=1))
    else:
        from mlpsubmit.cli import terminal
        from mlpsubmit.display.console import Console

        if watch and current.running:
            current = terminal.watch(opened)
        else:
            console = Console()
            console.print(terminal.render(current), soft_wrap=not console.is_terminal)
    sys.exit(0 if current.running or current.complete else 1)
