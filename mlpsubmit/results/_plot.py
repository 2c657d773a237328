"""One figure of a dataset, in matplotlib or in a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpsubmit.errors import SpecError, UserError, shown
from mlpsubmit.files import published, without_leftovers
from mlpsubmit.results.dataset import load_empty
from mlpsubmit.results.export import check_target
from mlpsubmit.results.figures.figure import Drawn, draw
from mlpsubmit.results.figures.page import CONTEXTS
from mlpsubmit.results.figures.plan import planned
from mlpsubmit.results.figures.request import Request
from mlpsubmit.results.figures.selection import checked
from mlpsubmit.results.origin import MARK

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from mlpsubmit.results.source import Array

__all__ = ["FORMATS", "check_figure", "drawn_into", "needed", "plot", "plot_to_file", "requested"]

FORMATS = (".png", ".pdf", ".svg")


def check_figure(path: Path, run: object = None) -> None:
    """Check that a figure can be written to a path.

    Args:
        run: the run that it will be of; None if it may replace any.

    Raises:
        UserError: another ending; a folder that cannot be written to; another file is there.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(
            f"cannot draw {path.name}: unknown ending {path.suffix!r}; valid are "
            f"{', '.join(FORMATS)}"
        )
    check_target(path, run)


def plot(
    dataset: xr.Dataset,
    y: str | Sequence[str] | None = None,
    x: str | None = None,
    *,
    hue: str | None = None,
    col: str | None = None,
    row: str | None = None,
    mean: str | Sequence[str] = (),
    sel: Mapping[str, Any] | None = None,
    kind: str | None = None,
    errorbar: str | None = "se",
    context: str = "paper",
    xscale: str | None = None,
    yscale: str | None = None,
    title: str | None = None,
    out: str | Path | None = None,
    force: bool = False,
) -> Array:
    """Draw the results of a run, and return the panels, matplotlib's axes of shape (rows, columns).

    Axes without a role get a free one in their order, so that each has a colour, a panel or, if
    none is left, is averaged; the legend says over what means are. Trials are averaged. A mean is
    over the configs that have finished and have a value: of steps to a threshold those that crossed
    it. Its marker is hollow if others did not, and where none did, there is a cross at the top.
    Curves end where their configs stopped, and means of curves where the first of them did.

    Args:
        dataset: of `to_dataset` or `Run.collect`, or opened from a file; of traces, only those
            drawn are read.
        y: a variable, or several; by default the losses of a run with traces, else the steps to the
            last threshold that anything crossed, else the final loss.
        x: the axis across, or ``step``; for a scatter also a variable. By default steps for traces,
            else the axis with most numbers.
        hue: the axis of the colours; of a heatmap the one upwards.
        col: the axis with a column of panels per value.
        row: the axis with a row of panels per value.
        mean: axes to average, besides the trials.
        sel: what to draw, by name: a value, a list of values, or a slice, whose ends are included.
        kind: ``line``, ``scatter`` (a point per config) or ``heatmap`` (means over x and hue).
        errorbar: the band around means: ``se``, the standard error (default), ``sd``, the standard
            deviation, ``range``, ``ci``, the 95% confidence interval (Student's t distribution), or
            None (or ``none``) for no band.
        context: ``paper`` (a column or the width of a page) or ``talk`` (a slide).
        xscale: ``log`` or ``linear``; by default what suits the values.
        yscale: the same.
        title: instead of the selected values.
        out: a file to write, .png, .pdf or .svg. It appears complete or not at all, and replaces an
            existing figure of the same run (the dataset's attribute ``run``, if it has one).
            Without, the figure is one of pyplot's, which a notebook displays.
        force: replace any existing file.

    Raises:
        SpecError: with a message per name and value that does not fit.
        UserError: there is nothing to draw; or the file has another ending, is in a folder that
            cannot be written to, or is another one.
    """
    roles = {"x": x, "hue": hue, "col": col, "row": row}
    request = requested(y, roles, mean, sel, kind, errorbar, context, xscale, yscale, title)
    if out is not None:
        return plot_to_file(dataset, request, Path(out), force=force).axes
    import matplotlib.pyplot as plt

    figure = plt.figure()
    try:
        return drawn_into(dataset, request, figure).axes
    except BaseException:
        plt.close(figure)
        raise


def requested(
    y: Any,
    roles: Mapping[str, Any],
    mean: Any,
    sel: Any = None,
    *others: Any,
    problems: Sequence[str] = (),
) -> Request:
    """Return a request of names that are given alone, as a list or not at all.

    Args:
        others: the further fields of a request, in their order.
        problems: what was found to be wrong before.
    """
    found = list(problems)
    given = {role: _names(role, name, found) for role, name in roles.items() if name is not None}
    named = {role: names[0] for role, names in given.items() if names}
    names, averaged = _names("y", y, found), _names("mean", mean, found)
    request = Request(names, named, averaged, checked(sel, found), *others)
    return replace(request, problems=tuple(found))


def _names(word: str, given: Any, errors: list[str]) -> tuple[str, ...]:
    """Return names that are given alone, as a list or not at all."""
    several = isinstance(given, Iterable) and not isinstance(given, str)
    names = tuple(given) if several else () if given is None else (given,)
    errors += [
        f"{word}: got {shown(name)}; should be a name"
        for name in names
        if not isinstance(name, str)
    ]
    return tuple(name for name in names if isinstance(name, str))


def needed(request: Request) -> set[str]:
    """Return the variables that a request may draw, as far as they have many values per config."""
    return {*request.y, *request.roles.values(), "train_loss", "test_loss"}


def plot_to_file(
    dataset: xr.Dataset, request: Request, path: Path, *, force: bool = False
) -> Drawn:
    """Draw a dataset into a file, as :func:`plot` does."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    run = dataset.attrs.get("run")
    _check(dataset, request, path, None if force else run)
    # No pyplot: its figures are global state, and may want a display.
    figure = Figure()
    drawn = drawn_into(dataset, request, figure)
    kind = path.suffix[1:].lower()
    # The name of a field for text that each of the formats has, and none for the time.
    field = {"png": "Source", "svg": "Source", "pdf": "Keywords"}[kind]
    metadata: dict[str, Any] = {} if run is None else {field: MARK.format(run)}
    metadata |= {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    settings: Any = CONTEXTS[request.context].settings
    with mpl.rc_context(settings), without_leftovers(path), published(path) as temporary:
        figure.savefig(temporary, format=kind, metadata=metadata)
    return drawn


def _check(dataset: xr.Dataset, request: Request, path: Path, run: object) -> None:
    """Check that a figure can be written; if not, say what else is wrong with it, too."""
    try:
        check_figure(path, run)
    except UserError as refusal:
        try:
            planned(load_empty(dataset), request)
        except SpecError as error:
            raise SpecError([*error.errors, str(refusal)]) from None
        except UserError:
            pass  # there is nothing to draw, which may change
        raise


def drawn_into(dataset: xr.Dataset, request: Request, figure: Figure) -> Drawn:
    """Draw a dataset into an empty figure, with the settings of its context."""
    import matplotlib as mpl

    settings: Any = CONTEXTS.get(
        request.context, CONTEXTS["paper"]
    ).settings  # a wrong one is an error
    with mpl.rc_context(settings):
        return draw(dataset, request, figure)
