"""``mlpsubmit status``: the progress of a run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mlpsubmit.cli.options import json_option, open_selected, run_argument, runs_dir_option
from mlpsubmit.errors import UserError

__all__ = ["status"]


@click.command()
@run_argument
@click.option("--watch", is_flag=True, help="Refresh in place until the run ends.")
@json_option
@runs_dir_option
def status(run: str | None, watch: bool, as_json: bool, runs_dir: Path | None) -> None:
    """Show the progress of a RUN and the time that remains."""
    if watch and as_json:
        raise UserError("--json: prints one object, once; leave out --watch")
    opened = open_selected(run, runs_dir)
    current = opened.status()
    if as_json:
        from mlpsubmit.display.json_output import echo_json

        echo_json("status/1", current.to_json())
    else:
        from mlpsubmit.cli import terminal
        from mlpsubmit.display.console import Console

        if watch and current.running:
            current = terminal.watch(opened)
        else:
            console = Console()
            console.print(terminal.render(current), soft_wrap=not console.is_terminal)
    sys.exit(0 if current.running or current.complete else 1)
