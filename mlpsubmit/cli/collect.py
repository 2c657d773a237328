"""``mlpsubmit collect``: one labelled dataset."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlpsubmit.cli.options import runs_dir_option
from mlpsubmit.display.output import echo, inline
from mlpsubmit.display.text import counted, crossed_at_start
from mlpsubmit.results.export import FORMATS, with_ending

if TYPE_CHECKING:
    import xarray as xr

    from mlpsubmit.jobs.status import Status
    from mlpsubmit.runs.run import Run

__all__ = ["collect"]

#: Rows of the table in a pipe, at most; a terminal gets fewer.
PIPED_ROWS = 1000


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help=f"File to write: {', '.join(FORMATS)}; default: NAME.nc, of several runs joined.nc.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Figure to draw: .png, .pdf or .svg.")
@click.option("--force", is_flag=True, help="Replace files that are not of these runs.")
@click.option("--table/--no-table", default=True, help="Print a table of the results.")
@runs_dir_option
def collect(
    runs: tuple[str, ...],
    out: Path | None,
    plot: Path | None,
    force: bool,
    table: bool,
    runs_dir: Path | None,
) -> None:
    """Collect the results of a RUN in one dataset; several are joined along their axes.

    Settings that differ between the runs become axes. A config that several runs have finished
    must have the same results in all. Missing points are masked. A run in progress can be
    collected, too. The exit code is 1 if points are missing. Files that exist are replaced only if
    they are of the same runs.
    """
    from mlpsubmit.results._plot import check_figure
    from mlpsubmit.results.join import joined_id
    from mlpsubmit.runs.join import collect_runs
    from mlpsubmit.runs.run import open_run

    opened = [open_run(run, runs_dir) for run in runs or (None,)]
    for run in opened:
        if run.selected.among:
            echo(run.selected)
    if plot:
        check_figure(plot, None if force else joined_id([run.id for run in opened]))
    written = out or Path("joined.nc" if opened[1:] else f"{opened[0].name}.nc")
    written = with_ending(written, ".nc")
    with collect_runs(opened, written, force=force) as dataset:
        if table:
            _print_table(dataset)
        if early := int((dataset["timekeys"] == 0).any("threshold").sum()):
            echo(crossed_at_start(early), err=True)
        if plot:
            _draw(dataset, plot, force)
        configs = int(dataset.attrs["n_configs"])
        done = int(dataset.attrs["n_done"] + dataset.attrs["n_diverged"])
        if mixed := dataset.attrs.get("bit_identity"):
            echo(f"results were {inline(mixed)}", err=True)
    statuses = [run.status() for run in opened]
    if opened[1:]:
        of_runs = f"{counted(configs, 'config')} of {len(opened)} runs"
        echo(f"results: {written} ({done} of {of_runs})")
    else:
        echo(f"results: {written} ({statuses[0].done} of {counted(configs, 'config')})")
    complete = [_report(run, status) for run, status in zip(opened, statuses, strict=True)]
    if not all(complete):
        sys.exit(1)


def _print_table(dataset: xr.Dataset) -> None:
    """Print the table of results: a terminal gets fewer rows, and the columns that fit.

    Steps to thresholds are left out first, then further losses, then the first axes, which tell
    joined runs apart.
    """
    from mlpsubmit import results
    from mlpsubmit.display.console import Console
    from mlpsubmit.results.axes import shown_axes

    console = Console()
    rows = {} if console.is_terminal else {"max_rows": PIPED_ROWS}
    table = results.summary_table(dataset, **rows)
    columns = table.columns
    axes = sum(len(axis.columns) for axis in shown_axes(dataset))
    optional = [*reversed(columns[axes + 2 :]), *columns[: max(axes - 1, 0)]]
    left_out = []
    endless = console.options.update(max_width=1 << 20)
    while (width := console.measure(table, options=endless).maximum) > console.width:
        if not console.is_terminal:
            console = Console(width=width)
        elif optional:
            left_out.append(optional.pop(0))
            columns.remove(left_out[-1])
        else:
            break
    for column in columns:
        column.no_wrap = True
    console.print(table)
    if left_out:
        names = ", ".join(inline(column.header) for column in left_out)
        echo(f"not shown, as this terminal is narrow: {names}")


def _report(run: Run, status: Status) -> bool:
    """Print what of a run has failed or is missing; return whether it is complete."""
    from mlpsubmit.cli import terminal

    for group in status.failure_groups[:3]:
        echo(f"failed: {group}" + (f"; {group.place}" if group.place else ""), err=True)
    if status.damage:
        echo(inline(status.damage), err=True)
    for problem in status.unreadable[:3]:
        echo(f"cannot be read: {inline(problem)}", err=True)
    if status.complete:
        return True
    if status.running:
        echo(f"the run is in progress; see: mlpsubmit status {run.id}", err=True)
    elif status.state == "unknown":
        echo(terminal.unknown_line(status), err=True)
    else:
        echo(f"to train the missing points: mlpsubmit resume {run.id}", err=True)
    return False


def _draw(dataset: xr.Dataset, path: Path, force: bool) -> None:
    """Draw what suits the sweep; that there is nothing to draw yet is no error here."""
    from mlpsubmit.results._plot import plot_to_file
    from mlpsubmit.results.figures.request import NothingToDraw, Request

    try:
        drawn = plot_to_file(dataset, Request(), path, force=force)
    except NothingToDraw as error:
        echo(f"no plot: {error}")
        return
    for note in drawn.notes:
        echo(inline(note), err=True)
    echo(f"plot: {path}")
