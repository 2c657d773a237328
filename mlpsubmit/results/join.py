"""The results of several runs joined into one dataset, along their axes.

The joined dataset is that of a launch of the union of their sweeps: it is assembled from the packs
of all runs as that of one run is, so that it can be written to files of any size.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlpsubmit.errors import UserError
from mlpsubmit.results.dataset import to_dataset
from mlpsubmit.results.dataset_source import aligned, check_dataset, source_of
from mlpsubmit.results.join_axes import (
    JoinedAxis,
    Part,
    config_text,
    equal_settings,
    joined_axes,
    places,
)
from mlpsubmit.results.join_source import Difference, JoinedSource
from mlpsubmit.results.labels import Labels, common_start
from mlpsubmit.results.source import Layout, Scalar, Thresholds

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["JOINED", "Part", "join", "joined", "joined_id"]

#: The attribute of what differs between the runs: JSON of a list of mappings.
JOINED = "joined"
#: What the last bits of results depend on, beside the settings.
_ENVIRONMENT = (
    *("python", "mlpsubmit", "torch", "numpy", "blas", "cuda", "device", "cpu", "threads"),
    *("instructions", "c_functions"),
)
#: The most characters of an attribute: HDF5 stores up to 64 KB.
_MOST = 1 << 14
#: The most configs that a message lists.
_LISTED = 5


def join(datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return the datasets of several runs as one, in memory.

    Its axes are the unions of theirs. What is an axis of one and a fixed setting of another has the
    values of both; settings that differ between the datasets become axes. Points that are in none
    have the status "excluded".

    Args:
        datasets: of :meth:`mlpsubmit.Run.collect`, or opened from files that were written by it.

    Raises:
        UserError: a config has different results in several of them, or a dataset lacks what is an
            axis of another.
    """
    if not datasets:
        raise UserError("join: got no datasets; give at least one")
    if len(datasets) == 1:
        return datasets[0]
    for number, dataset in enumerate(datasets):
        check_dataset(dataset, number)
    return to_dataset(
        *joined([source_of(dataset, n) for n, dataset in enumerate(aligned(datasets))])
    )


def joined_id(runs: Sequence[str]) -> str:
    """Return what files of joined runs call them: their ids, whatever their order."""
    return "+".join(sorted(runs))


def joined(parts: Sequence[Part]) -> tuple[Layout, JoinedSource]:
    """Return the layout and the results of the union of runs.

    Raises:
        UserError: as :func:`join`.
    """
    axes = joined_axes(parts)
    at = places(parts, axes)
    layouts = [part.layout for part in parts]
    names = dict.fromkeys(t.of for layout in layouts for t in layout.all_thresholds)
    thresholds = {of: _thresholds(of, parts, axes) for of in names}
    widths = {own.array: len(own.values) for own in thresholds.values()}
    source = JoinedSource(parts, at, widths)
    if source.differences:
        raise UserError(_different_text(source.differences, parts, axes))
    _warn_of_functions(parts)
    _warn_of_data(parts, axes)
    own = thresholds.pop("")
    size = math.prod(len(axis.points) for axis in axes)
    on_axes = {name for axis in axes for name in axis.names}
    layout = Layout(
        dimensions=tuple(axis.dimension for axis in axes),
        thresholds=own.values,
        threshold_axis=own.axis,
        attributes=_attributes(parts, on_axes),
        included=_included(layouts, at, size),
        tested=any(layout.tested for layout in layouts),
        online=_online(layouts, at, size),
        labels=_labels(parts),
        metrics=tuple(dict.fromkeys(name for layout in layouts for name in layout.metrics)),
        metric_thresholds=tuple(thresholds.values()),
        texts={k: v for layout in reversed(layouts) for k, v in layout.texts.items()},
        settings={
            name: setting
            for layout in reversed(layouts)
            for name, setting in layout.settings.items()
            if name not in on_axes and equal_settings([one.settings.get(name) for one in layouts])
        },
        functions={k: v for layout in reversed(layouts) for k, v in layout.functions.items()},
        own_clocks=frozenset[str]().union(*(layout.own_clocks for layout in layouts)),
    )
    return layout, source


def _equal(values: Sequence[Any]) -> bool:
    return all(value == values[0] for value in values)


def _thresholds(of: str, parts: Sequence[Part], axes: Sequence[JoinedAxis]) -> Thresholds:
    """Return the thresholds of the union; if they differ, along the axis of the setting."""
    own = [next((t for t in part.layout.all_thresholds if t.of == of), None) for part in parts]
    first = own[0]
    if first is not None and all(
        t is not None and t.axis is first.axis is None and t.values == first.values for t in own
    ):
        return first
    settings = {"metric_thresholds"} if of else {"loss_checkpoints", "percent_thresholds"}
    axis = next((axis for axis in axes if not settings.isdisjoint(axis.names)), None)
    no_setting = UserError(
        f"cannot join: the runs have different thresholds on {of or 'train_loss'}, and no "
        "setting that differs; collect them again, or separately"
    )
    if axis is None:
        raise no_setting
    lists: list[Sequence[float]] = [()] * len(axis.points)
    for number, (part, found) in enumerate(zip(parts, own, strict=True)):
        if found is None:
            continue
        positions, dims = axis.positions[number], axis.dims[number]
        if found.axis is None:
            for position in positions.ravel():
                lists[position] = found.values
            continue
        name, of_points = found.axis
        own_dims = [part.layout.dimensions[d].name for d in dims]
        if name not in own_dims:
            raise no_setting
        along = own_dims.index(name)
        for point, values in enumerate(of_points):
            for position in positions.take(point, axis=along).ravel():
                lists[position] = values
    count = max(map(len, lists))
    return Thresholds(of, tuple(map(float, range(count))), (axis.name, lists))


def _included(
    layouts: Sequence[Layout], at: Sequence[npt.NDArray[np.int64]], size: int
) -> npt.NDArray[np.bool_] | None:
    """Return the points that any of the runs has."""
    found = np.zeros(size, dtype=np.bool_)
    for layout, own in zip(layouts, at, strict=True):
        found[own[layout.included_points()]] = True
    return None if found.all() else found


def _online(
    layouts: Sequence[Layout], at: Sequence[npt.NDArray[np.int64]], size: int
) -> bool | npt.NDArray[np.bool_]:
    """Return which points train online."""
    values = [layout.online for layout in layouts]
    if all(isinstance(value, bool) for value in values) and len({*map(bool, values)}) == 1:
        return bool(values[0])
    found = np.zeros(size, dtype=np.bool_)
    for layout, own in zip(layouts, at, strict=True):
        found[own] = np.broadcast_to(layout.online, layout.shape).ravel()
    return found


def _labels(parts: Sequence[Part]) -> dict[str, Labels]:
    """Return the labels of all grabs: the first, with the longest coordinates of each dimension.

    A dimension along which runs have other values has no coordinates, as if an axis set them.

    Raises:
        UserError: a grab has other units in another run.
    """
    found: dict[str, Labels] = {}
    for grab in dict.fromkeys(name for part in parts for name in part.layout.labels):
        own = {part.run: part.layout.labels[grab] for part in parts if grab in part.layout.labels}
        first = next(iter(own.values()))
        for run, labels in own.items():
            if labels.units != first.units:
                raise UserError(
                    f"cannot join: the units of grab {grab!r} are {first.units or 1!r} in run "
                    f"{next(iter(own))}, and {labels.units or 1!r} in run {run}; collect these "
                    "runs separately"
                )
        coords = {}
        for dim in dict.fromkeys(dim for labels in own.values() for dim in labels.coords):
            values = [labels.coords[dim] for labels in own.values() if dim in labels.coords]
            if (longest := common_start(values)) is not None:
                coords[dim] = longest
        found[grab] = replace(first, coords=coords)
    return found


def _warn_of_functions(parts: Sequence[Part]) -> None:
    """Warn of grabs that are other functions in some of the runs, and of those that some lack."""
    grabs = dict.fromkeys(name for part in parts for name in part.layout.functions)
    lacking: dict[str, list[str]] = {}
    for grab in grabs:
        having = [part for part in parts if grab in part.layout.functions]
        first = having[0]
        other = [
            part.run
            for part in having
            if part.layout.functions[grab] != first.layout.functions[grab]
        ]
        if other:
            warnings.warn(
                f"grab {grab!r} is another function in run {', '.join(other)} than in run "
                f"{first.run}; its values are joined all the same",
                stacklevel=4,
            )
        if runs := ", ".join(part.run for part in parts if part not in having):
            lacking.setdefault(runs, []).append(grab)
    for runs, lacked in lacking.items():
        named, their = ", ".join(map(repr, lacked)), "their" if lacked[1:] else "its"
        warnings.warn(
            f"run {runs} has no grab {named}: {their} values are missing there", stacklevel=4
        )


def _warn_of_data(parts: Sequence[Part], axes: Sequence[JoinedAxis]) -> None:
    """Warn of runs that were trained on different data, if no setting tells them apart."""
    if any(not dims for axis in axes for dims in axis.dims):  # what one run has fixed may be why
        return
    first, *others = [_data_hashes(part.layout.attributes.get("data_hash", "")) for part in parts]
    other = [
        part.run
        for part, own in zip(parts[1:], others, strict=True)
        if any(own[name] != first[name] for name in own.keys() & first.keys())
    ]
    if other:
        warnings.warn(
            f"run {', '.join(other)} was trained on other data than run {parts[0].run}, by equal "
            "settings (data_hash); they are joined all the same",
            stacklevel=4,
        )


def _data_hashes(text: Scalar) -> dict[str, str]:
    """Return the hashes of an attribute ``data_hash`` by arguments: one hash by none."""
    try:
        found = json.loads(str(text))
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"": str(text)}


# ---- messages and attributes ---------------------------------------------------------------------


def _different_text(
    differences: Sequence[Difference], parts: Sequence[Part], axes: Sequence[JoinedAxis]
) -> str:
    """Return the message about configs with different results in several runs."""
    lines = []
    for pair in dict.fromkeys(found.parts for found in differences):
        own = [found for found in differences if found.parts == pair]
        one, two = (parts[number] for number in pair)
        count = "1 config" if len(own) == 1 else f"{len(own):,} configs"
        lines.append(f"run {one.run} and run {two.run} have different results for {count}:")
        lines += [f"  {config_text(axes, found.index)}: {found.arrays}" for found in own[:_LISTED]]
        if len(own) > _LISTED:
            lines.append(f"  and {len(own) - _LISTED:,} more")
        before, after = one.layout.attributes, two.layout.attributes
        made = [
            f"{name} {before[name]} and {after[name]}"
            for name in _ENVIRONMENT
            if name in before and name in after and before[name] != after[name]
        ]
        if made:
            lines.append(f"  they were made with {', '.join(made)}")
    return (
        "cannot join:\n"
        + "\n".join(lines)
        + "\na joined dataset has one result per config; collect these runs separately, or, in "
        "Python, drop such configs from one of their datasets and join these: "
        "mlpsubmit.results.join.join([first, second.drop_sel(...)])"
    )


def _attributes(parts: Sequence[Part], on_axes: set[str]) -> dict[str, Scalar]:
    """Return the attributes: what is equal in all runs, and of each run what is not."""
    every = [dict(part.layout.attributes) for part in parts]
    names = dict.fromkeys(name for own in every for name in own if name not in ("run", "sweep"))
    equal = {name: every[0].get(name) for name in names if _equal([o.get(name) for o in every])}
    other = [name for name in names if name not in equal]
    sweeps = dict.fromkeys(str(own["sweep"]) for own in every if "sweep" in own)
    found: dict[str, Scalar] = {"sweep": "+".join(sweeps)} if sweeps else {}
    found["run"] = joined_id([part.run for part in parts])
    found |= {name: value for name, value in equal.items() if value is not None}
    unequal = [name for name in _ENVIRONMENT if name in other]
    if unequal:
        found["bit_identity"] = (
            f"joined of runs with different {', '.join(unequal)}: they are not bit-identical to "
            "results that were all made with one of these"
        )
    records = []
    for part, own in zip(parts, every, strict=True):
        record = {"run": part.run} | {n: own[n] for n in ("sweep", *other) if n in own}
        settings = part.layout.settings
        # What no result depends on, and differs; the others are axes.
        record |= {
            name: setting.value
            for name, setting in settings.items()
            if name not in on_axes
            and not equal_settings([p.layout.settings.get(name) for p in parts])
        }
        records.append(record)
    text = json.dumps(records, default=str)
    if len(text) > _MOST:
        text = json.dumps([{"run": part.run} for part in parts])
    found[JOINED] = text if len(text) <= _MOST else f"{len(parts)} runs"
    return found
