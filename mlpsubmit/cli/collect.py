"""``mlpsubmit collect``: one labelled dataset."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlpsubmit.cli.options import run_argument, runs_dir_option
from mlpsubmit.display.output import echo, inline
from mlpsubmit.display.text import counted, crossed_at_start
from mlpsubmit.results.export import FORMATS

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["collect"]


@click.command()
@run_argument
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help=f"File to write: {', '.join(FORMATS)}; default: NAME.nc.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Figure to draw: .png, .pdf or .svg.")
@click.option("--force", is_flag=True, help="Replace files that are not of this run.")
@click.option("--table/--no-table", default=True, help="Print a table of the results.")
@runs_dir_option
def collect(
    run: str | None,
    out: Path | None,
    plot: Path | None,
    force: bool,
    table: bool,
    runs_dir: Path | None,
) -> None:
    """Collect the results of a RUN in one dataset.

    Missing points are masked. A run in progress can be collected, too. The exit code is 1 if points
    are missing. Files that exist are replaced only if they are of the same run.
    """
    from mlpsubmit import results
    from mlpsubmit.cli import terminal
    from mlpsubmit.display.console import Console
    from mlpsubmit.results._plot import check_figure
    from mlpsubmit.runs.run import open_run

    opened = open_run(run, runs_dir)
    if opened.selected.among:
        echo(opened.selected)
    if plot:
        check_figure(plot, None if force else opened.id)
    written = out or Path(f"{opened.name}.nc")
    written = written if written.suffix else written.with_suffix(".nc")
    with opened.collect(written, force=force) as dataset:
        if table:
            Console().print(results.summary_table(dataset))
        if early := int((dataset["timekeys"] == 0).any("threshold").sum()):
            echo(crossed_at_start(early), err=True)
        if plot:
            echo(_drawn(dataset, plot, force))
    current = opened.status()
    echo(f"results: {written} ({current.done} of {counted(current.configs, 'config')})")
    for group in current.failure_groups[:3]:
        echo(f"failed: {group}" + (f"; {group.place}" if group.place else ""), err=True)
    if current.damage:
        echo(inline(current.damage), err=True)
    for problem in current.unreadable[:3]:
        echo(f"cannot be read: {inline(problem)}", err=True)
    if current.complete:
        return
    if current.running:
        echo(f"the run is in progress; see: mlpsubmit status {opened.id}", err=True)
    elif current.state == "unknown":
        echo(terminal.unknown_line(current), err=True)
    else:
        echo(f"to train the missing points: mlpsubmit resume {opened.id}", err=True)
    sys.exit(1)


def _drawn(dataset: xr.Dataset, path: Path, force: bool) -> str:
    """Draw what suits the sweep, and return a line on it; nothing to draw is no error here."""
    from mlpsubmit.results._plot import plot_to_file
    from mlpsubmit.results.figures.request import NothingToDraw, Request

    try:
        plot_to_file(dataset, Request(), path, force=force)
    except NothingToDraw as error:
        return f"no plot: {error}"
    return f"plot: {path}"
