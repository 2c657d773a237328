"""One figure of a run: its loss curves, or without traces how long the sweep took to learn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpsubmit.errors import UserError
from mlpsubmit.files import published, without_leftovers
from mlpsubmit.results.axes import (
    PlotAxis,
    final_values,
    finished,
    has_threshold,
    loss_clock,
    shown_axes,
    threshold_suffixes,
)
from mlpsubmit.results.dataset import load_empty
from mlpsubmit.results.export import check_target
from mlpsubmit.results.names import threshold_label
from mlpsubmit.results.origin import MARK
from mlpsubmit.results.panels import GREY, Panels, plain, spread
from mlpsubmit.results.source import Array

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot"]

FORMATS = (".png", ".pdf", ".svg")
MAX_LINES = 12  # per panel and colour
MAX_STEPS = 600  # per line: more than a panel has pixels across


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


def plot(dataset: xr.Dataset, path: str | Path, *, force: bool = False) -> Path:
    """Draw a run's results, and return the path of the figure.

    With traces: loss against step, a colour per value of the first axis, a panel per value of the
    second, a thin line per config of all further axes (the trials among them), dashed for the test
    loss where it is not the train loss. Without: the time to the last threshold that anything
    crossed (of the train loss, else of METRIC_THRESHOLDS), else the final test loss or (if that is
    not evaluated) the final train loss, against the first numeric axis; a line through the means
    for each value of the next axis, a panel for each of the one after. A mean is over the configs
    that crossed the threshold, and its marker is hollow if some of those that have finished did
    not. Axes of a single value are left out; of long ones at most 8 colours and 6 panels are drawn,
    evenly spread.

    Args:
        dataset: from `to_dataset`, or opened from a file; of traces, only those drawn are read.
            Its attribute ``sweep``, if it has one, is in the title.
        path: ends in .png, .pdf or .svg; appears complete or not at all. It replaces an existing
            figure of the same run (the dataset's attribute ``run``, if it has one).
        force: replace any existing file.

    Raises:
        UserError: another ending; a folder that cannot be written to; another file is there.
    """
    from matplotlib.figure import Figure

    path, run = Path(path), dataset.attrs.get("run")
    check_figure(path, None if force else run)
    with without_leftovers(path), published(path) as temporary:
        # No pyplot: its figures are global state, and may want a display.
        figure = Figure(layout="constrained")
        axes = [axis for axis in shown_axes(load_empty(dataset)) if len(axis.labels) > 1]
        losses = [dataset[name] for name in ("train_loss", "test_loss") if name in dataset]
        has_traces = any(map(loss_clock, losses))
        (_draw_curves if has_traces else _draw_summary)(figure, dataset, axes)
        # The name of a field for text that each of the formats has.
        kind = path.suffix[1:].lower()
        field = {"png": "Source", "svg": "Source", "pdf": "Keywords"}[kind]
        origin = {} if run is None else {field: MARK.format(run)}
        figure.savefig(temporary, format=kind, dpi=160, metadata=origin)
    return path


def _draw_curves(figure: Figure, dataset: xr.Dataset, axes: list[PlotAxis]) -> None:
    from matplotlib.lines import Line2D

    colours, panels, *_ = [*axes, None, None]
    grid = Panels.of(dataset, colours, panels)
    has_test = False
    for position, panel in grid.divide(figure).items():
        panel.set_xscale("log")
        panel.set_yscale("log")
        for colour, points in grid.coloured(position):
            style = {"color": colour, "linewidth": 1.3 if len(points) == 1 else 0.7}
            for point in points[spread(len(points), MAX_LINES)]:
                has_test |= _draw_config(panel, dataset.isel(grid.indexer(point)), style)
        _note_if_empty(panel)
    figure.supxlabel("step + 1", fontsize=9)
    figure.supylabel("loss", fontsize=9)
    styles = [Line2D([], [], color=GREY, label="train")]
    styles += [Line2D([], [], color=GREY, linestyle="--", label="test")]
    grid.add_legends(figure, styles if has_test else [])
    _head(figure, dataset, "")


def _draw_config(panel: Axes, config: xr.Dataset, style: dict[str, Any]) -> bool:
    """Draw the traces of one config, and return whether it has a test loss of its own."""
    train, test = config["train_loss"], config.get("test_loss")
    _draw_trace(panel, train, style)
    if test is None or np.array_equal(train.values, test.values, equal_nan=True):
        return False
    return _draw_trace(panel, test, {**style, "linestyle": (0, (4, 2))})


def _draw_trace(panel: Axes, loss: xr.DataArray, style: dict[str, Any]) -> bool:
    """Draw what a logarithmic panel can show of a trace, and return whether there was any."""
    clock = loss_clock(loss)
    if clock is None:
        return False
    steps, values = loss[clock].values, loss.values
    drawable = np.isfinite(values) & (values > 0)
    steps, values = steps[drawable] + 1, values[drawable]
    if len(steps) > MAX_STEPS:
        wanted = np.geomspace(steps[0], steps[-1], MAX_STEPS)
        chosen = np.unique(np.searchsorted(steps, wanted).clip(max=len(steps) - 1))
        steps, values = steps[chosen], values[chosen]
    if len(steps):
        panel.plot(steps, values, marker="." if len(steps) == 1 else "", **style)
    return bool(len(steps))


def _draw_summary(figure: Figure, dataset: xr.Dataset, axes: list[PlotAxis]) -> None:
    from matplotlib.lines import Line2D

    across = next((axis for axis in axes if axis.numbers is not None), axes[0] if axes else None)
    colours, panels, *_ = [*(axis for axis in axes if axis is not across), None, None]
    grid = Panels.of(dataset, colours, panels)
    values, expected, label, note = _quantity(dataset)
    has_hollow = False
    for position, panel in grid.divide(figure).items():
        for colour, points in grid.coloured(position):
            points = points[np.array([expected[tuple(point)] for point in points], dtype=np.bool_)]
            here = np.array([values[tuple(point)] for point in points], dtype=np.float64)
            has_hollow |= _draw_means(panel, grid, across, points, here, colour)
        _note_if_empty(panel)
        _scale(panel, across)
    if across is not None:
        name = across.title if across.numbers is None else across.number_name
        figure.supxlabel(plain(name), fontsize=9)
    figure.supylabel(plain(label), fontsize=9)
    hollow = Line2D([], [], color=GREY, marker="o", markersize=4, markerfacecolor="white")
    hollow.set_label("not all crossed" if label.startswith("steps") else "not all finite")
    grid.add_legends(figure, [hollow] if has_hollow else [])
    _head(figure, dataset, note)


def _quantity(dataset: xr.Dataset) -> tuple[Array, Array, str, str]:
    """Return what the figure is of, which points should have it, its label, and a remark on it.

    The first two have the shape of `status`. Where a point that should have a value has none, it is
    NaN: the point has finished, and has the threshold, but did not cross it.
    """
    done = finished(dataset["status"].values)
    suffixes = threshold_suffixes(dataset)
    for suffix in suffixes:
        along, of = f"threshold{suffix}", suffix[1:].replace("_", " ") or "threshold"
        timekeys = dataset[f"timekeys{suffix}"].transpose(..., along).values
        for position in reversed(range(timekeys.shape[-1])):
            steps = timekeys[..., position]
            if not np.isnan(steps).all():
                threshold = threshold_label(float(dataset[along].values[position]))
                own = has_threshold(dataset, suffix).transpose(..., along).values[..., position]
                never = int((own & done & np.isnan(steps)).sum())
                note = f"{never} never crossed {threshold}" if never else ""
                return steps, own & done, f"steps to {of} {threshold}", note
    any_threshold = any(dataset.sizes[f"threshold{suffix}"] for suffix in suffixes)
    note = "no threshold was crossed" if any_threshold else ""
    name = (
        "test_loss"
        if "test_loss" in dataset and dataset["test_loss"].notnull().any()
        else "train_loss"
    )
    return final_values(dataset[name]), done, f"final {name.replace('_', ' ')}", note


def _draw_means(
    panel: Axes, grid: Panels, across: PlotAxis | None, points: Array, values: Array, colour: Any
) -> bool:
    """Draw the points, and a line through the means of those at the same place.

    Returns:
        Whether a mean leaves out points, whose values are NaN; the marker of such a one is hollow.
    """
    positions = np.zeros(len(points), int) if across is None else grid.position(points, across)
    finite = np.isfinite(values)
    partial = np.unique(positions[~finite])
    positions, values = positions[finite], values[finite]
    places, inverse, counts = np.unique(positions, return_inverse=True, return_counts=True)
    if not len(places):
        return False
    x = places if across is None or across.numbers is None else across.numbers[places]
    means = np.bincount(inverse, weights=values) / counts
    order = np.argsort(x)
    panel.plot(x[order], means[order], color=colour, marker="o", markersize=4, linewidth=1.2)
    hollow = np.isin(places, partial)
    if hollow.any():
        panel.scatter(x[hollow], means[hollow], 16, "white", edgecolors=[colour], zorder=3)
    if counts.max() > 1:
        panel.plot(x[inverse], values, ".", color=colour, markersize=3, alpha=0.5)
    return bool(hollow.any())


def _scale(panel: Axes, across: PlotAxis | None) -> None:
    """Make axes logarithmic whose values span half a decade or more, and name text values."""
    from matplotlib.ticker import FixedLocator, NullFormatter

    if across is None:
        panel.set_xticks([])
    elif across.numbers is None:
        panel.set_xticks(range(len(across.labels)), [plain(label) for label in across.labels])
        panel.tick_params(axis="x", labelrotation=30)
    elif _is_wide(across.numbers):
        panel.set_xscale("log")
        if len(across.numbers) <= 6:
            panel.xaxis.set_major_locator(FixedLocator(np.sort(across.numbers).tolist()))
            panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            panel.xaxis.set_minor_formatter(NullFormatter())
    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in panel.lines]
    if drawn and _is_wide(np.concatenate(drawn)):
        panel.set_yscale("log")


def _is_wide(values: Array) -> bool:
    return bool(values.min() > 0 and values.max() / values.min() >= 3)


def _note_if_empty(panel: Axes) -> None:
    if not panel.lines:
        middle = panel.annotate("nothing to draw", (0.5, 0.5), xycoords="axes fraction")
        middle.set(color=GREY, fontsize=8, ha="center")


def _head(figure: Figure, dataset: xr.Dataset, note: str) -> None:
    """Say above the panels what the figure is of, and how much of it there is."""
    status = dataset["status"].values
    done = int(np.isin(status, ("done", "diverged")).sum())
    parts = [f"{done:,} of {int((status != 'excluded').sum()):,} configs finished"]
    diverged = int((status == "diverged").sum())
    parts += [f"{diverged:,} diverged"] if diverged else []
    parts += [note] if note else []
    name = plain(str(dataset.attrs.get("sweep", "")))
    figure.suptitle(f"{name}: {', '.join(parts)}" if name else ", ".join(parts), fontsize=9)
