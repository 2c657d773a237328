"""``mlpsubmit ls``: all runs, the latest first."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlpsubmit.cli.options import json_option, runs_dir_option
from mlpsubmit.display.output import echo

if TYPE_CHECKING:
    from mlpsubmit.runs.overview import RunRow

__all__ = ["ls"]

#: Colours of states; all others are yellow.
_COLOURS = {
    "done": "green",
    "running": "cyan",
    **dict.fromkeys(("failed", "crashed", "damaged"), "red"),
}


@click.command()
@click.argument("which", required=False, metavar="[NAME|FOLDER|RUN]")
@click.option(
    "-n", "--newest", type=click.IntRange(min=1), metavar="N", help="Only the N newest runs."
)
@json_option
@runs_dir_option
def ls(which: str | None, newest: int | None, as_json: bool, runs_dir: Path | None) -> None:
    """List all runs, the one last launched or resumed first.

    NAME lists the runs of one sweep, FOLDER those in another folder of runs.
    """
    from mlpsubmit.display.json_output import echo_json
    from mlpsubmit.runs.locate import selected_runs
    from mlpsubmit.runs.overview import overview

    folder, paths = selected_runs(which, runs_dir)
    rows = overview(paths)
    shown = rows[:newest]
    if as_json:
        echo_json("ls/1", {"folder": folder.absolute(), "runs": [row.to_json() for row in shown]})
    elif not rows:
        echo(f"{folder}: contains no runs; launch one (mlpsubmit launch spec.py)")
    else:
        _show(shown, rows)
        if len(shown) < len(rows):
            echo(f"... and {len(rows) - len(shown):,} older")


def _show(rows: Sequence[RunRow], every: Sequence[RunRow]) -> None:
    from mlpsubmit.display.columns import Column, print_columns
    from mlpsubmit.display.console import Console
    from mlpsubmit.display.text import duration, file_size
    from mlpsubmit.jobs.store.owners import this_user

    console = Console()
    now = time.time()
    yellow = {_state(row): "yellow" for row in rows}
    wide = not console.is_terminal or console.width >= 120
    # Of copies, which have one id, only paths are unique.
    ends = Counter(run.rpartition("-")[2] for run in {row.run for row in every})
    ages = ["" if row.launched is None else duration(max(0.0, now - row.launched)) for row in rows]
    columns = [
        Column("name", [row.name for row in rows]),
        Column("run", [row.run if wide or ends[_end(row)] > 1 else _end(row) for row in rows]),
        Column("state", [_state(row) for row in rows], styles=yellow | _COLOURS),
        Column("done", [_done(row) for row in rows], right=True),
        Column("size", [file_size(row.size) for row in rows], right=True, rank=2),
        Column("age", ages, right=True, rank=1),
        Column("overridden", [_changes(row) for row in rows]),
    ]
    if {row.user for row in every} - {"", this_user()}:
        columns.insert(2, Column("user", [row.user for row in rows]))
    print_columns(columns, console)


def _end(row: RunRow) -> str:
    """Return the last part of an id, by which commands find the run if no other has the same."""
    return row.run.rpartition("-")[2]


def _state(row: RunRow) -> str:
    """Return the state of a run; of one in another format, that: ``format 6``."""
    return row.error.partition(";")[0] if row.state == "other format" else row.state


def _done(row: RunRow) -> str:
    return "" if row.done is None else f"{row.done}/{row.configs}"


def _changes(row: RunRow) -> list[str]:
    """Return what the launch of a run changed, or what is wrong with the run."""
    if row.error:
        return [row.error.partition("; ")[2] or row.error]
    return [f"{name}={value}" for name, value in row.overrides.items()]
