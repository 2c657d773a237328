"""A collected dataset as what it was assembled from: a layout, and its results as one pack."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mlpsubmit.errors import UserError
from mlpsubmit.protocol import STATUSES
from mlpsubmit.results.axes import finished, threshold_suffixes
from mlpsubmit.results.grab_arrays import array_name
from mlpsubmit.results.join_axes import Part
from mlpsubmit.results.labels import Labels, common_start
from mlpsubmit.results.names import (
    CLOCKS,
    RESERVED,
    SEVERAL,
    TOGETHER,
    TRAINED_BY,
    TRAINED_ON,
    device_kind,
)
from mlpsubmit.results.results_hash import RESULTS_HASH
from mlpsubmit.results.settings import (
    SETTINGS,
    VALUE_HASHES,
    attribute_names,
    fixed_settings,
    hashes_of,
)
from mlpsubmit.results.source import (
    Array,
    Dimension,
    Failure,
    FinishedPack,
    FixedSetting,
    Layout,
    Text,
    Thresholds,
)

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["aligned", "check_dataset", "source_of"]

#: Attributes that are computed anew.
_COMPUTED = {SETTINGS, VALUE_HASHES, RESULTS_HASH, "Conventions", "n_configs"}


def aligned(datasets: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """Return datasets whose traces have the same steps and whose grabs have the same sizes.

    What is added is NaN, so that one config has equal values in all of them.
    """
    for clock in CLOCKS[1:]:
        if any(clock in dataset.dims for dataset in datasets):
            datasets = [_with_clock(dataset, clock) for dataset in datasets]
    found = list(datasets)
    for clock in CLOCKS:
        own = [one[clock].values for one in found if clock in one.coords]
        if own and not all(np.array_equal(steps, own[0]) for steps in own):
            union = np.unique(np.concatenate(own))
            found = [
                _as_floats(one, clock).reindex({clock: union}) if clock in one.coords else one
                for one in found
            ]
    for dim in {str(dim) for one in found for grab in _grabs(one) for dim in _grab_dims(one, grab)}:
        most = max(one.sizes.get(dim, 0) for one in found)
        values = [tuple(one[dim].values.tolist()) for one in found if dim in one.coords]
        if values and common_start(values) is None:
            found = [one.drop_vars(dim, errors="ignore") for one in found]
        found = [
            _as_floats(one, dim).drop_vars(dim, errors="ignore").pad({dim: (0, most - size)})
            if 0 <= (size := one.sizes.get(dim, most)) < most
            else one
            for one in found
        ]
    return found


def _with_clock(dataset: xr.Dataset, clock: str) -> xr.Dataset:
    """Return a dataset whose test losses or grabs have their own steps, if they have traces."""
    if clock == "eval_step":
        names = [str(name) for name in dataset.data_vars if str(name).startswith("test_")]
        names = [n for n in names if n == "test_loss" or "metric" in dataset[n].attrs]
    else:
        names = _grabs(dataset)
    own = [name for name in names if "step" in dataset[name].dims]
    return dataset.assign({name: dataset[name].rename(step=clock) for name in own})


def _as_floats(dataset: xr.Dataset, dim: str) -> xr.Dataset:
    """Return a dataset whose integers along a dimension may be missing."""
    return dataset.assign(
        {
            name: own.astype(np.float64)
            for name, own in dataset.data_vars.items()
            if dim in own.dims and own.dtype.kind in "biu"
        }
    )


def _grabs(dataset: xr.Dataset) -> list[str]:
    names = {str(name) for name in dataset.data_vars}
    return sorted(names - RESERVED - _of_metrics(dataset))


def _grab_dims(dataset: xr.Dataset, grab: str) -> list[str]:
    """Return the dimensions of a grab besides those of the sweep and of traces."""
    others = (*dataset["status"].dims, *CLOCKS)
    return [str(dim) for dim in dataset[grab].dims if dim not in others]


def check_dataset(dataset: xr.Dataset, number: int) -> None:
    """Check that a dataset is whole, as :meth:`mlpsubmit.Run.collect` returns it.

    Raises:
        UserError: it is not.
    """
    name = _name(dataset, number)
    lacking = [one for one in ("status", "steps", "train_loss") if one not in dataset]
    if lacking:
        raise UserError(
            f"cannot join: dataset {name} has no {', '.join(lacking)}; give whole datasets of "
            "run.collect(), or selections of them that keep all dimensions and variables"
        )
    lost = [str(dim) for dim in dataset["status"].dims if not _coordinates(dataset, str(dim))]
    if lost:
        raise UserError(
            f"cannot join: dataset {name} has no values along {', '.join(lost)}; keep the "
            "coordinates of its dimensions"
        )


def source_of(dataset: xr.Dataset, number: int) -> Part:
    """Return the layout and the results of a dataset of :meth:`mlpsubmit.Run.collect`.

    Args:
        number: what it is called if it has no attribute ``run``.
    """
    grabs = _grabs(dataset)
    source = _DatasetSource(dataset, grabs)
    return Part(_name(dataset, number), _layout(dataset, grabs), source)


def _name(dataset: xr.Dataset, number: int) -> str:
    return str(dataset.attrs.get("run", f"number {number}"))


def _coordinates(dataset: xr.Dataset, dim: str) -> dict[str, Array]:
    return {str(n): c.values for n, c in dataset.coords.items() if c.dims == (dim,)}


def _dimension(dataset: xr.Dataset, dim: str) -> Dimension:
    values = {name: tuple(own.tolist()) for name, own in _coordinates(dataset, dim).items()}
    hashes = {name: hashes_of(own, dataset[name].attrs) for name, own in values.items()}
    return Dimension(dim, values, {name: own for name, own in hashes.items() if any(own)})


def _of_metrics(dataset: xr.Dataset) -> set[str]:
    """Return the variables of metrics, and of thresholds on them."""
    metrics = {str(name) for name, own in dataset.data_vars.items() if "metric" in own.attrs}
    suffixes = threshold_suffixes(dataset)
    return metrics | {f"{kind}{own}" for kind in ("timekeys", "crossed") for own in suffixes}


def _layout(dataset: xr.Dataset, grabs: Sequence[str]) -> Layout:
    status = dataset["status"]
    dimensions = tuple(_dimension(dataset, str(dim)) for dim in status.dims)
    settings = {**fixed_settings(dataset.attrs), **_selected(dataset)}
    taken = {*_COMPUTED, *attribute_names(dataset.attrs).values()}
    taken |= {f"n_{name}" for name in STATUSES}
    thresholds = {own: _thresholds(dataset, own) for own in threshold_suffixes(dataset)}
    loss = thresholds.pop("", Thresholds("", ()))
    online: bool | Array = settings.get("online", FixedSetting(False)).value is True
    if "online" in dataset.coords:
        online = dataset["online"].broadcast_like(status).transpose(*status.dims).values
    metrics = (own.attrs["metric"] for own in dataset.data_vars.values() if "metric" in own.attrs)
    return Layout(
        dimensions=dimensions,
        thresholds=loss.values,
        threshold_axis=loss.axis,
        attributes={k: v for k, v in dataset.attrs.items() if k not in taken},
        included=status.values != "excluded",
        tested="test_loss" in dataset,
        online=online,
        labels={name: _labels(dataset, name) for name in grabs},
        metrics=tuple(dict.fromkeys(metrics)),
        metric_thresholds=tuple(thresholds.values()),
        texts={str(name): _text(own) for name, own in dataset.coords.items()},
        settings=settings,
        functions={
            name: FixedSetting(attrs["function"], attrs.get("function_hash", ""))
            for name in grabs
            if "function" in (attrs := dataset[name].attrs)
        },
        own_clocks=frozenset(CLOCKS[1:]) & {*map(str, dataset.dims)},
    )


def _selected(dataset: xr.Dataset) -> dict[str, FixedSetting]:
    """Return the values of axes of which one point was selected: ``dataset.sel(width=64)``."""
    found = {str(name): own for name, own in dataset.coords.items() if own.ndim == 0}
    timed = [str(name) for name in dataset.data_vars if str(name).startswith("timekeys")]
    of_thresholds = {
        name.replace("timekeys", kind, 1)
        for name in ("timekeys", *timed)
        for kind in ("threshold", "threshold_value")
    }
    return {
        name: FixedSetting(own.item(), hashes_of([own.item()], own.attrs)[0])
        for name, own in found.items()
        if name not in CLOCKS and name not in of_thresholds
    }


def _text(coordinate: xr.DataArray) -> Text:
    found = [str(coordinate.attrs.get(name, "")) for name in ("long_name", "description", "units")]
    return Text(found[0] or str(coordinate.name), found[1], found[2])


def _thresholds(dataset: xr.Dataset, suffix: str) -> Thresholds:
    of = suffix.removeprefix("_")
    values = tuple(dataset[f"threshold{suffix}"].values.tolist())
    if (name := f"threshold_value{suffix}") not in dataset.coords:
        return Thresholds(of, values)
    own = dataset[name].transpose(..., f"threshold{suffix}")
    lists = [row[~np.isnan(row)].tolist() for row in own.values]
    return Thresholds(of, values, (str(own.dims[0]), lists))


def _labels(dataset: xr.Dataset, name: str) -> Labels:
    grab = dataset[name]
    dims = tuple(_grab_dims(dataset, name))
    coords = {dim: tuple(dataset[dim].values.tolist()) for dim in dims if dim in dataset.coords}
    units, long_name = (str(grab.attrs.get(one, "")) for one in ("units", "long_name"))
    return Labels(dims, coords, units, long_name)


def _has_values(dataset: xr.Dataset, name: str) -> bool:
    return name in dataset and bool(dataset[name].notnull().any())


class _DatasetSource:
    """The results of a dataset, as one pack."""

    def __init__(self, dataset: xr.Dataset, grabs: Sequence[str]) -> None:
        self._pack = _DatasetPack(dataset, grabs)
        self._dataset = dataset

    def packs(self) -> Iterator[FinishedPack]:
        yield self._pack

    def failures(self) -> Iterable[Failure]:
        if "error" not in self._dataset:
            return []
        failed = np.flatnonzero(self._dataset["status"].values.ravel() == "failed")
        errors = self._dataset["error"].values.ravel()
        return [Failure(np.array([index]), str(errors[index]), "") for index in failed]


class _DatasetPack:
    """The finished configs of a dataset, in C order."""

    name = "dataset"

    def __init__(self, dataset: xr.Dataset, grabs: Sequence[str]) -> None:
        self._dataset = dataset
        self._dims = dataset["status"].dims
        self._index = np.flatnonzero(finished(dataset["status"].values.ravel()))
        fixed = ["status", "steps", "seconds", "train_loss", "test_loss", TOGETHER]
        fixed += [TRAINED_ON, TRAINED_BY]
        # Without any value the test set was not evaluated, and so not at any steps.
        fixed = [one for one in fixed if one != "test_loss" or _has_values(dataset, one)]
        self._variables = {name: name for name in fixed if name in dataset}
        self._variables |= {
            f"metric.{name}": str(name)
            for name, own in dataset.data_vars.items()
            if "metric" in own.attrs
        }
        self._variables |= {
            f"timekeys.{own[1:]}" if own else "timekeys": f"timekeys{own}"
            for own in threshold_suffixes(dataset)
        }
        self._clocks = {
            clock: dim for clock, dim in self._find_clocks(grabs) if dim in dataset.coords
        }
        self._variables |= {array_name(name, None): name for name in grabs}

    def _find_clocks(self, grabs: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield the steps of each kind of trace, and the dimension along which they are."""
        for clock, names in zip(CLOCKS, (["train_loss"], ["test_loss"], grabs), strict=True):
            for name in names:
                if name in self._dataset:
                    yield from ((clock, dim) for dim in CLOCKS if dim in self._dataset[name].dims)

    def arrays(self) -> Sequence[str]:
        return list(dict.fromkeys(["index", *self._variables, *self._clocks, *self._origin]))

    @property
    def _origin(self) -> dict[str, str]:
        """What trained its configs, where all were trained on one device."""
        device = device_kind(self._dataset.attrs)
        if TRAINED_ON in self._variables or not device or SEVERAL in device:
            return {}
        return {TRAINED_ON: device, TRAINED_BY: str(self._dataset.attrs.get("run", ""))}

    def __getitem__(self, array: str) -> Array:
        if array == "index":
            return self._index
        if array in self._origin:
            return np.full(len(self._index), self._origin[array], dtype=object)
        if array in self._clocks:
            return self._dataset[self._clocks[array]].values
        variable = self._dataset[self._variables[array]].transpose(*self._dims, ...)
        sweep, own = variable.shape[: len(self._dims)], variable.shape[len(self._dims) :]
        values = variable.values.reshape(math.prod(sweep), *own)[self._index]
        if array == "status":
            return np.array([STATUSES.index(str(one)) for one in values], dtype=np.uint8)
        if array.startswith("timekeys"):
            return np.where(np.isnan(values), -1, values).astype(np.int64)
        return values.astype(np.int64) if array == "steps" else values
