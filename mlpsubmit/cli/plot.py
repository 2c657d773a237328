"""``mlpsubmit plot``: a figure of a run, or of a collected file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlpsubmit.cli.options import open_selected, runs_dir_option
from mlpsubmit.display.output import echo, inline
from mlpsubmit.errors import UserError
from mlpsubmit.results.export import FORMATS

if TYPE_CHECKING:
    from mlpsubmit.results.figures.figure import Drawn
    from mlpsubmit.results.figures.request import Request
    from mlpsubmit.runs.run import Run

__all__ = ["plot"]

NAME = "NAME"


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option(
    "--y", multiple=True, metavar=NAME, help="Variable to draw; several times for several."
)
@click.option("--x", metavar=NAME, help="Axis across, or step; for a scatter also a variable.")
@click.option("--hue", metavar=NAME, help="Axis of the colours; of a heatmap the one upwards.")
@click.option("--col", metavar=NAME, help="Axis with a column of panels per value.")
@click.option("--row", metavar=NAME, help="Axis with a row of panels per value.")
@click.option("--mean", multiple=True, metavar=NAME, help="Axis to average, besides the trials.")
@click.option(
    "--sel",
    multiple=True,
    metavar="NAME=VALUE",
    help="What to draw: noise=0.3, width=64,128 or lr=0.01:0.1.",
)
@click.option("--kind", metavar="line|heatmap|scatter", help="Default: what suits the sweep.")
@click.option(
    "--errorbar",
    default="se",
    metavar="se|sd|range|ci|none",
    help="Band over trials: standard error (the default), standard deviation, range, 95% "
    "confidence interval, or none.",
)
@click.option(
    "--context", default="paper", metavar="paper|talk", help="Sizes for a column or for a slide."
)
@click.option("--xscale", metavar="linear|log", help="Default: what suits the values.")
@click.option("--yscale", metavar="linear|log", help="Default: what suits the values.")
@click.option("--title", metavar="TEXT", help="Instead of the selected values.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File: .png, .pdf or .svg; default: NAME.png, of several runs joined.png.",
)
@click.option("--force", is_flag=True, help="Replace a file that is not of this run.")
@runs_dir_option
def plot(
    runs: tuple[str, ...],
    sel: tuple[str, ...],
    out: Path | None,
    force: bool,
    runs_dir: Path | None,
    **options: Any,
) -> None:
    """Draw a figure of a RUN, or of a collected file (.nc); several runs are joined, as by collect.

    Every axis of the sweep becomes a colour or a panel, or is averaged; the legend says which. A
    run in progress can be drawn, too.
    """
    from mlpsubmit.results.figures.selection import parse

    request = _request(*parse(sel), options)
    files = [Path(run) for run in runs if _is_file(Path(run))]
    if files and runs[1:]:
        raise UserError(
            f"{files[0]}: plot joins runs, and draws one file; join files in Python: "
            "mlpsubmit.results.plot(mlpsubmit.results.join.join([...]))"
        )
    if files:
        path = out or Path(files[0].with_suffix(".png").name)
        drawn = _from_file(files[0], request, path, force)
    else:
        opened = [open_selected(run, runs_dir) for run in runs or (None,)]
        path = out or Path("joined.png" if opened[1:] else f"{opened[0].name}.png")
        drawn = _from_runs(opened, request, path, force)
    for note in filter(None, (drawn.status, *drawn.notes)):
        echo(inline(note), err=True)
    echo(f"plot: {path}")


def _request(selection: dict[str, str], errors: list[str], options: dict[str, Any]) -> Request:
    from mlpsubmit.results._plot import requested

    roles = {role: options.pop(role) for role in ("x", "hue", "col", "row")}
    y, mean = (_names(options.pop(name)) for name in ("y", "mean"))
    order = ("kind", "errorbar", "context", "xscale", "yscale", "title")
    others = (options[name] for name in order)
    return requested(y, roles, mean, selection, *others, problems=errors)


def _is_file(path: Path) -> bool:
    """Return whether a path is that of a collected file, and of no run."""
    return path.suffix in FORMATS and not (path / "sweep.json").exists()


def _names(given: tuple[str, ...]) -> list[str]:
    """Return names that are given in several options, or with commas in one."""
    return [name.strip() for text in given for name in text.split(",")]


def _from_runs(runs: Sequence[Run], request: Request, out: Path, force: bool) -> Drawn:
    from mlpsubmit.results._plot import needed, plot_to_file
    from mlpsubmit.runs.join import partial_runs

    return plot_to_file(partial_runs(runs, needed(request)), request, out, force=force)


def _from_file(path: Path, request: Request, out: Path, force: bool) -> Drawn:
    from mlpsubmit.results._plot import plot_to_file
    from mlpsubmit.results.netcdf_zarr import open_netcdf

    if path.suffix != ".nc":  # reading a .pkl could run anything
        raise UserError(f"{path}: plot reads .nc files; write one with mlpsubmit collect --out")
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a collected .nc file, or a run")
    try:
        dataset = open_netcdf(path)
    except Exception as error:  # of h5py and xarray, many kinds
        raise UserError(f"{path}: cannot be read as a netCDF file ({error})") from None
    with dataset:
        return plot_to_file(dataset, request, out, force=force)
