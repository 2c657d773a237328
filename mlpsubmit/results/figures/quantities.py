"""What a figure shows: the variables, chosen by what the sweep is, as values per config."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlpsubmit.errors import did_you_mean
from mlpsubmit.protocol import DIVERGED, STATUSES
from mlpsubmit.results.axes import final_values, finished, has_threshold, threshold_suffixes
from mlpsubmit.results.figures.text import title_of
from mlpsubmit.results.names import CLOCKS, TOGETHER, spaced, threshold_label
from mlpsubmit.results.source import Array

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Quantity", "clock_of", "default_names", "drawable", "quantity", "threshold_dim"]

#: The largest value that is drawn as it is.
_LARGEST = 1e100

#: The names of variables that have no values to draw.
_WORDS = ("status", "error")
#: What a config that diverged has, too, besides thresholds that it crossed before.
_OF_DIVERGED = ("steps", "seconds", TOGETHER)


@dataclass(frozen=True, eq=False)
class Quantity:
    """The values of one variable.

    Args:
        name: of the variable.
        title: what it is, for the axis of the figure.
        values: float64, shape the sizes of ``dims``, and with a clock the steps after them. NaN
            where there is none, such as at a threshold that was not crossed.
        dims: the dimensions along which it varies, without that of the clock.
        expected: which points should have a value: those of configs that have finished (and have
            the threshold), shape as ``dims``.
        steps: of a trace, shape (T,); None for values that are no traces.
        of_steps: whether the values are steps to a threshold, which are NaN if it was not crossed.
        is_share: whether it lies between 0 and 1, as an accuracy does: shown on a linear scale.
        threshold: the text of the threshold that was chosen by default, if one was.
    """

    name: str
    title: str
    values: Array
    dims: tuple[str, ...]
    expected: Array
    steps: Array | None = None
    of_steps: bool = False
    is_share: bool = False
    threshold: str = ""


def clock_of(variable: xr.DataArray) -> str | None:
    """Return the dimension of a variable along which it is a trace, if there is one."""
    return next((str(dim) for dim in variable.dims if dim in CLOCKS), None)


def threshold_dim(variable: xr.DataArray) -> str | None:
    """Return the dimension of a variable along its thresholds, if there is one."""
    name = str(variable.name)
    for start in ("timekeys", "crossed"):
        dim = name.replace(start, "threshold", 1)
        if name.startswith(start) and dim in variable.dims:
            return dim
    return None


def drawable(dataset: xr.Dataset) -> list[str]:
    """Return the names of the variables that a figure can show."""
    variables = dataset.data_vars.items()
    names = [str(name) for name, own in variables if own.dtype.kind in "biuf" and own.size]
    return [name for name in names if name not in _WORDS]


def check_names(dataset: xr.Dataset, names: Collection[str], errors: list[str]) -> None:
    """Append a message for each name that is no variable, or of one that cannot be drawn."""
    valid = drawable(dataset)
    for name in names:
        if name in valid:
            continue
        listed = f"valid are {', '.join(valid)}"
        if name not in dataset.data_vars:
            wrong = f"no variable{did_you_mean(name, valid)}"
            if name in dataset.coords:
                wrong = "an axis; give it to x, hue, col or row"
            errors.append(f"y: {name!r} is {wrong}; {listed}")
        elif not dataset[name].size:
            empty = next(str(dim) for dim, size in dataset[name].sizes.items() if not size)
            errors.append(f"y: {name!r} has no values, as there is no {empty}; {listed}")
        elif dataset[name].dtype.kind == "c":
            errors.append(f"y: {name!r} has complex values, which have no order; {listed}")
        else:
            errors.append(f"y: {name!r} is text; {listed}")


def default_names(dataset: xr.Dataset, curves: bool, named: Collection[str]) -> list[str]:
    """Return what a figure shows if nothing else is asked for.

    That is with traces the losses, the test loss only where it is not the train loss. Without, the
    steps to the thresholds of which something was crossed, those of the train loss before those of
    metrics, else the final test loss or, if that is not evaluated, the train loss.

    Args:
        curves: whether the figure may show traces.
        named: names of axes; if they have the thresholds among them, their steps are shown.
    """
    losses = [name for name in ("train_loss", "test_loss") if name in dataset]
    for name in named:
        if name.startswith("threshold") and name.replace("threshold", "timekeys") in dataset:
            return [name.replace("threshold", "timekeys")]
    if curves and any(clock_of(dataset[name]) for name in losses):
        if len(losses) == 2 and dataset[losses[0]].dims == dataset[losses[1]].dims:
            train, test = (dataset[name].values for name in losses)
            if np.array_equal(train, test, equal_nan=True):
                return losses[:1]
        return losses
    for suffix in threshold_suffixes(dataset):
        if dataset[f"timekeys{suffix}"].notnull().any():
            return [f"timekeys{suffix}"]
    evaluated = [name for name in losses if dataset[name].notnull().any()]
    return [*evaluated[-1:], *losses[-1:]][:1] or drawable(dataset)[:1]


def quantity(dataset: xr.Dataset, name: str, kept: Collection[str], curves: bool) -> Quantity:
    """Return the values of a variable.

    Configs that diverged have no final loss, metric or grab; their traces are drawn alone.

    Args:
        kept: dimensions that are axes of the figure, or of which several values are selected: a
            clock or the thresholds among them stay. Otherwise values of a trace are the final ones,
            and the threshold the last that half of the configs crossed.
        curves: whether to keep traces.
    """
    status = dataset["status"]
    title, chosen, steps = title_of(name, dataset[name].attrs), "", None
    variable, expected = _with_all_dims(dataset[name], status)
    kind, suffix = _threshold_words(dataset, name)
    if kind:
        variable, title, chosen = _at_threshold(dataset, variable, kept)
        expected = expected & _owns(dataset, suffix, variable)
    clock = clock_of(variable)
    if clock is not None and clock not in kept:
        variable = variable.transpose(..., clock)
        if curves:
            steps = variable[clock].values
        else:
            title = title if title.startswith("final ") else f"final {title}"
            variable = variable.isel({clock: 0}, drop=True).copy(data=final_values(variable))
    dims = tuple(str(dim) for dim in variable.dims if steps is None or dim != clock)
    one = variable if steps is None else variable.isel({clock: 0})
    values = variable.values.astype(np.float64)
    finite = np.isfinite(values)
    # Means, limits and ticks of larger values overflow; none of them can be told apart.
    np.clip(values, -_LARGEST, _LARGEST, out=values, where=finite)
    if steps is None and not kind and name not in _OF_DIVERGED:
        diverged = status.copy(data=status.values == STATUSES[DIVERGED])
        values[diverged.broadcast_like(one).transpose(*dims).values] = np.nan
    return Quantity(
        name,
        title,
        values,
        dims,
        expected.broadcast_like(one).transpose(*dims).values,
        steps,
        kind == "timekeys",
        variable.dtype.kind == "b" or "accuracy" in (variable.attrs.get("metric"), name),
        chosen,
    )


def _threshold_words(dataset: xr.Dataset, name: str) -> tuple[str, str]:
    """Return ``timekeys`` or ``crossed``, and what follows it; of other variables nothing."""
    for kind in ("timekeys", "crossed"):
        suffix = name.removeprefix(kind)
        if name.startswith(kind) and f"threshold{suffix}" in dataset.coords:
            return kind, suffix
    return "", ""


def _at_threshold(
    dataset: xr.Dataset, variable: xr.DataArray, kept: Collection[str]
) -> tuple[xr.DataArray, str, str]:
    """Return a variable of thresholds at one of them, unless all are kept; its title and text."""
    name = str(variable.name)
    kind, suffix = _threshold_words(dataset, name)
    title = ("steps to " if kind == "timekeys" else "share that crossed ") + _of(suffix)
    along = threshold_dim(dataset[name])
    if along in kept:
        return variable, title, ""
    position, chosen = _threshold(dataset, suffix, along)
    variable = variable if along is None else variable.isel({along: position})
    return variable, f"{title} {chosen}", chosen


def _with_all_dims(
    variable: xr.DataArray, status: xr.DataArray
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return a variable with all dimensions of the sweep, and which points have finished."""
    done = status.copy(data=finished(status.values))
    missing = [dim for dim in status.dims if dim not in variable.dims]
    if missing:
        variable = variable.expand_dims({dim: status.sizes[dim] for dim in missing})
    return variable.transpose(*status.dims, ...), done


def _of(suffix: str) -> str:
    return spaced(suffix[1:]) or "threshold"


def _threshold(dataset: xr.Dataset, suffix: str, along: str | None) -> tuple[int, str]:
    """Return the position of the last threshold that half of the configs crossed, and its text.

    If there is none, it is that which most of them crossed.

    Args:
        along: the dimension of the thresholds; None if one of them is selected already.
    """
    position = -1
    if along is not None:
        timekeys = dataset[f"timekeys{suffix}"].transpose(..., along).values
        crossed = (~np.isnan(timekeys)).reshape(-1, timekeys.shape[-1]).sum(axis=0)
        half = np.flatnonzero(2 * crossed >= finished(dataset["status"].values).sum())
        position = int(half[-1] if half.size else np.argmax(crossed))
    number = f"threshold{suffix}"
    value = f"threshold_value{suffix}"
    if value in dataset.coords:  # the thresholds are an axis: there are several of one number
        own = dataset[value] if along is None else dataset[value].isel({along: position})
        distinct = np.unique(own.values[~np.isnan(own.values)])
        if len(distinct) != 1:
            which = dataset[number] if along is None else dataset[number].isel({along: position})
            return position, f"number {int(which.values)}"
        return position, threshold_label(float(distinct[0]))
    own = dataset[number] if along is None else dataset[number].isel({along: position})
    return position, threshold_label(float(own.values))


def _owns(dataset: xr.Dataset, suffix: str, variable: xr.DataArray) -> xr.DataArray:
    """Return which points have the threshold, dims as far as those of the variable."""
    owns = has_threshold(dataset, suffix)
    extra = [dim for dim in owns.dims if dim not in variable.dims]
    for dim in extra:
        scalar = variable.coords.get(dim)
        positions = dataset[str(dim)].values
        at = 0 if scalar is None else int(np.argmax(positions == scalar.values))
        owns = owns.isel({dim: at}, drop=True)
    return owns
