"""A run's results as a table for the terminal."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from mlpsubmit.results.axes import (
    TRIAL,
    final_values,
    finished,
    has_threshold,
    shown_axes,
    threshold_suffixes,
)
from mlpsubmit.results.dataset import load_empty
from mlpsubmit.results.names import spaced, threshold_label
from mlpsubmit.results.source import Array

if TYPE_CHECKING:
    import xarray as xr
    from rich.table import Table

__all__ = ["summary_table"]

NOTHING = "–"
SPREAD = "±"


def summary_table(dataset: xr.Dataset, max_rows: int = 24) -> Table:
    """Return a table with a row per point of the sweep; trials share a row.

    Losses and metrics are final ones, of trials that did not diverge; timekeys are the first steps
    at a threshold, of trials that crossed it: the mean and (over several) the sample standard
    deviation, as the caption says. If only some finished trials crossed, the cell has their share:
    ``297 (1/2)``.

    Args:
        dataset: from `to_dataset`, or opened from a file; only the rows shown are read.
        max_rows: the most rows; the caption has the number of further ones, too.
    """
    from rich.table import Table
    from rich.text import Text

    axes = shown_axes(load_empty(dataset))
    dims = [axis.dim for axis in axes]
    shape = tuple(dataset.sizes[dim] for dim in dims)
    status = dataset["status"].transpose(*dims, ...).values
    trials = status.reshape(int(np.prod(shape)), -1)
    rows = np.flatnonzero((trials != "excluded").any(axis=1))
    table = Table()
    for axis in axes:
        for name in axis.columns:
            table.add_column(Text(name), justify="right")
    for name in ("done", *(spaced(name) for name in _values(dataset))):
        table.add_column(Text(name), justify="right")
    for suffix in threshold_suffixes(dataset):
        of = f"{suffix[1:].replace('_', ' ')} " if suffix else ""
        numbered = f"threshold_value{suffix}" in dataset.coords  # an axis has other thresholds
        of += "number " if numbered else ""
        for threshold in dataset[f"threshold{suffix}"].values:
            label = threshold_label(float(threshold))
            table.add_column(Text(f"steps to {of}{label}"), justify="right")
    for row in rows[:max_rows]:
        where = np.unravel_index(row, shape)
        point = dataset.isel({dim: int(i) for dim, i in zip(dims, where, strict=True)})
        values = [c[i] for a, i in zip(axes, where, strict=True) for c in a.columns.values()]
        table.add_row(*(Text(cell) for cell in [*values, *_cells(point)]))
    notes = [f"and {len(rows) - max_rows:,} more rows"] if len(rows) > max_rows else []
    if any(SPREAD in str(cell) for column in table.columns for cell in column.cells):
        notes.append(f"{SPREAD}: standard deviation over trials (n - 1)")
    table.caption = "\n".join(notes) or None
    return table


def _values(dataset: xr.Dataset) -> list[str]:
    """Return the losses, and the metrics: those of the test set, if there are any."""
    losses = [name for name in ("train_loss", "test_loss") if name in dataset]
    metrics = [str(name) for name, v in dataset.data_vars.items() if "metric" in v.attrs]
    return losses + ([name for name in metrics if name.startswith("test_")] or metrics)


def _cells(point: xr.Dataset) -> list[str]:
    """Return the cells after the coordinates, for a dataset without dimensions but trials."""
    trial = [TRIAL] if TRIAL in point["status"].dims else []
    status = np.atleast_1d(point["status"].values)
    done = finished(status)
    cells = [_status(status)]
    for name in _values(point):
        losses = np.atleast_1d(final_values(point[name].transpose(*trial, ...)))
        # Not of those that diverged: their last finite loss may be of any size.
        own = losses[status == "done"]
        evaluated = done.any() and not np.isnan(own).any()
        cells.append(_mean(own) if evaluated else NOTHING)
    for suffix in threshold_suffixes(point):
        along = f"threshold{suffix}"
        timekeys = point[f"timekeys{suffix}"].transpose(along, *trial).values
        own = has_threshold(point, suffix).transpose(along, *trial).values
        for steps, has in zip(timekeys, own, strict=True):
            cells.append(_timekey(np.atleast_1d(steps)[done & has]))
    return cells


def _status(status: Array) -> str:
    """Return e.g. "3/4" or "2/4, 1 diverged, 1 failed"; diverged points count as done."""
    counts = Counter(status.tolist())
    total = sum(counts.values()) - counts["excluded"]
    others = [f"{counts[name]} {name}" for name in ("diverged", "failed") if counts[name]]
    return ", ".join([f"{counts['done'] + counts['diverged']}/{total}", *others])


def _mean(values: Array) -> str:
    if values.size == 0:
        return "nan"
    if values.size == 1:
        return f"{values[0]:.4g}"
    return f"{values.mean():.4g} {SPREAD} {values.std(ddof=1):.2g}"


def _timekey(steps: Array) -> str:
    """Return the mean step of crossing, and how many trials crossed if not all did.

    Args:
        steps: of the finished trials that have the threshold; NaN if they did not cross it.
    """
    if steps.size == 0:
        return NOTHING
    crossed = steps[~np.isnan(steps)]
    if crossed.size == 0:
        return "never"
    share = "" if crossed.size == steps.size else f" ({crossed.size}/{steps.size})"
    return _count(crossed) + share


def _count(steps: Array) -> str:
    mean = f"{steps.mean():,.0f}"
    return mean if steps.size == 1 else f"{mean} {SPREAD} {steps.std(ddof=1):,.0f}"
