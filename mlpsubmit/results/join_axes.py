"""The axes of runs that are joined: the union of the values of each, and where every point goes.

An axis of one run may be a fixed setting of another, whose results are then at that value. A
setting that differs between the runs becomes an axis; several that differ become one axis each if
the runs have all combinations of their values, and else one zipped axis. Values are the same if
their hashes are (:func:`mlpsubmit.results.values.identity`), whatever their labels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlpsubmit.errors import UserError
from mlpsubmit.results.source import Array, Dimension, FixedSetting, Layout, ResultSource, Scalar
from mlpsubmit.results.values import (
    identity,
    plain_value,
    shared_texts,
    text_of,
    without_suffix,
)

__all__ = ["JoinedAxis", "Part", "config_text", "equal_settings", "joined_axes", "places"]

#: Axes of trials are the last, as they are in sweeps.
_LAST = "trial"
#: The most points of the product of the axes.
_MOST_POINTS = 1 << 27
#: A setting that a run does not have.
_UNSET = FixedSetting("None")
#: Two ways to set one thing: at most one of them is set.
_THRESHOLDS = ("loss_checkpoints", "percent_thresholds")
#: The characters of a hash that tells equal labels apart.
_SHOWN = 8

#: The identities of the values of some names.
Point = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Part:
    """One of the runs that are joined.

    Args:
        run: its id, for messages.
    """

    run: str
    layout: Layout
    source: ResultSource


@dataclass(frozen=True, eq=False)
class JoinedAxis:
    """An axis of the joined dataset.

    Args:
        name: of the dimension.
        names: of its coordinates.
        points: the labels of these at each position.
        dims: of each part, the numbers of its dimensions that are on this axis.
        positions: of each part, the position of each of its points on those dimensions, of the
            shape of these.
        hashes: as those of a dimension.
    """

    name: str
    names: tuple[str, ...]
    points: tuple[tuple[Scalar, ...], ...]
    dims: tuple[tuple[int, ...], ...]
    positions: tuple[npt.NDArray[np.int64], ...]
    hashes: Mapping[str, tuple[str, ...]]

    @property
    def dimension(self) -> Dimension:
        """The dimension of the joined layout."""
        labels = dict(zip(self.names, zip(*self.points, strict=True), strict=True))
        return Dimension(self.name, labels, self.hashes)


def joined_axes(parts: Sequence[Part]) -> list[JoinedAxis]:
    """Return the axes of the union of the runs.

    Raises:
        UserError: a run lacks what is an axis of another one, or there would be too many points.
    """
    groups = _groups(parts)
    errors = [text for names in groups for text in _lacking(names, parts)]
    if errors:
        raise UserError("cannot join: " + "\n".join(errors))
    axes = [_axis(names, parts) for names in groups]
    if (points := math.prod(len(axis.points) for axis in axes)) > _MOST_POINTS:
        sizes = ", ".join(f"{axis.name} {len(axis.points):,}" for axis in axes)
        raise UserError(
            f"cannot join: the product of the axes ({sizes}) would have {points:,} points; at most "
            f"{_MOST_POINTS:,} can be collected; join runs that have more of their axes in common"
        )
    return axes


def places(parts: Sequence[Part], axes: Sequence[JoinedAxis]) -> list[npt.NDArray[np.int64]]:
    """Return the joined flat index of every point of each part, (layout.size,)."""
    found: list[npt.NDArray[np.int64]] = []
    for number, part in enumerate(parts):
        total: npt.NDArray[np.int64] = np.zeros(part.layout.shape, dtype=np.int64)
        for axis in axes:
            own = axis.dims[number]
            along = [size if d in own else 1 for d, size in enumerate(part.layout.shape)]
            total = total * len(axis.points) + axis.positions[number].reshape(along)
        found.append(total.ravel())
    return found


def _groups(parts: Sequence[Part]) -> list[tuple[str, ...]]:
    """Return the names on each axis, in the order of the axes: new ones come first."""
    on_axes = [
        tuple(dimension.coordinates) for part in parts for dimension in part.layout.dimensions
    ]
    every = [*_differing(parts, {name for names in on_axes for name in names}), *on_axes]
    if {name for names in every for name in names}.issuperset(_THRESHOLDS):
        every.append(_THRESHOLDS)
    merged, first = _merged(every), _on_axes(parts[0])
    new = [names for names in merged if first.isdisjoint(names)]
    kept = [names for names in merged if not first.isdisjoint(names)]
    return sorted([*new, *kept], key=lambda names: names == (_LAST,))


def _merged(groups: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the groups, those that share names together."""
    found: list[tuple[str, ...]] = []
    for names in groups:
        sharing = [other for other in found if not set(other).isdisjoint(names)]
        together = tuple(dict.fromkeys([name for own in (*sharing, names) for name in own]))
        at = found.index(sharing[0]) if sharing else len(found)
        found = [other for other in found if other not in sharing]
        found.insert(at, together)
    return found


def _differing(parts: Sequence[Part], on_axes: set[str]) -> list[tuple[str, ...]]:
    """Return the fixed settings that differ between the runs, as axes."""
    settings = [part.layout.settings for part in parts]
    names = dict.fromkeys(name for own in settings for name in own if own[name].counts)
    columns = {
        name: [_identity(own.get(name, _UNSET)) for own in settings]
        for name in names
        if name not in on_axes
    }
    differing = [name for name, column in columns.items() if len(set(column)) > 1]
    both = [name for name in differing if name in _THRESHOLDS]
    groups = _merged([*((name,) for name in differing), *([tuple(both)] if both else [])])
    points = {names: [*zip(*(columns[name] for name in names), strict=True)] for names in groups}
    combinations = len(set(zip(*points.values(), strict=True)))
    if len(groups) < 2 or combinations == math.prod(len(set(column)) for column in points.values()):
        return groups
    return [tuple(differing)]


def _identity(setting: FixedSetting) -> str:
    return identity(setting.value, setting.hash)


def equal_settings(settings: Sequence[FixedSetting | None]) -> bool:
    """Return whether settings have the same value, or none of them one."""
    return len({None if one is None else _identity(one) for one in settings}) == 1


def _lacking(names: Sequence[str], parts: Sequence[Part]) -> Iterator[str]:
    """Yield which runs have no value of one of these names."""
    for name in names:
        having = [part for part in parts if name in _on_axes(part)]
        for part in parts:
            if having and part not in having and name not in part.layout.settings:
                yield (
                    f"run {having[0].run} has the axis {name}, and run {part.run} neither that "
                    f"axis nor a setting {name}; launch it with {name}=VALUE, or join other runs"
                )


def _on_axes(part: Part) -> set[str]:
    return {name for dimension in part.layout.dimensions for name in dimension.coordinates}


def _axis(names: tuple[str, ...], parts: Sequence[Part]) -> JoinedAxis:
    dims = [_dims(names, part.layout) for part in parts]
    columns = {name: [_column(name, part) for part in parts] for name in names}
    keyed = []
    for number, (part, on) in enumerate(zip(parts, dims, strict=True)):
        own = {name: columns[name][number].identities for name in names}
        keyed.append(list(_counted(_points(part.layout, on, own))))
    labels = {name: _labels(own) for name, own in columns.items()}
    order = {key: n for n, key in enumerate(_ordered(keyed, [*labels.values()]))}
    positions = [
        np.array([order[key] for key in keys], dtype=np.int64).reshape(
            [part.layout.shape[d] for d in on]
        )
        for part, on, keys in zip(parts, dims, keyed, strict=True)
    ]
    shown = {name: [labels[name][point[n]] for point, _ in order] for n, name in enumerate(names)}
    hashes = {
        name: tuple(
            "" if identity(label) == point[n] else point[n]
            for label, (point, _) in zip(shown[name], order, strict=True)
        )
        for n, name in enumerate(names)
    }
    return JoinedAxis(
        _dimension_name(names, parts),
        names,
        tuple(zip(*shown.values(), strict=True)),
        tuple(dims),
        tuple(positions),
        {name: own for name, own in hashes.items() if any(own)},
    )


def _dims(names: Sequence[str], layout: Layout) -> tuple[int, ...]:
    """Return the numbers of the dimensions that have these names."""
    return tuple(
        number
        for number, dimension in enumerate(layout.dimensions)
        if not set(names).isdisjoint(dimension.coordinates)
    )


@dataclass(frozen=True)
class _Column:
    """The values of a name in one of the runs: along its axis, or the fixed one.

    Args:
        labels: without what told them apart there.
    """

    labels: tuple[Scalar, ...]
    identities: tuple[str, ...]


def _column(name: str, part: Part) -> _Column:
    along = [one for one in part.layout.dimensions if name in one.coordinates]
    if along:
        labels = along[0].coordinates[name]
        hashes = along[0].hashes.get(name, ("",) * len(labels))
    else:
        setting = part.layout.settings.get(name, _UNSET)
        labels, hashes = (setting.value,), (setting.hash,)
    pairs = [*zip(labels, hashes, strict=True)]
    return _Column(
        tuple(without_suffix(*pair) for pair in pairs), tuple(identity(*pair) for pair in pairs)
    )


def _labels(columns: Sequence[_Column]) -> dict[str, Scalar]:
    """Return the label of each value by its identity; equal ones with hashes that differ."""
    found: dict[str, Scalar] = {}
    for column in columns:
        for label, own in zip(column.labels, column.identities, strict=True):
            found.setdefault(own, label)
    shared = shared_texts([*found.values()], [*found])
    if not shared:
        return found
    return {
        own: f"{label} ({own[:_SHOWN]})" if text_of(label) in shared else label
        for own, label in found.items()
    }


def _points(
    layout: Layout, dims: Sequence[int], values: Mapping[str, Sequence[str]]
) -> list[Point]:
    """Return the values of each point of a part on some of its dimensions, in C order.

    Args:
        values: by name, the identities of those along the dimension, or of the fixed one.
    """
    shape = [layout.shape[d] for d in dims]
    size = math.prod(shape)
    grid = np.unravel_index(np.arange(size), shape) if dims else ()
    at = {
        name: along
        for d, along in zip(dims, grid, strict=True)
        for name in layout.dimensions[d].coordinates
    }
    fixed = np.zeros(size, dtype=np.int64)
    columns = ([own[i] for i in at.get(name, fixed)] for name, own in values.items())
    return list(zip(*columns, strict=True))


def _counted(points: Iterable[Point]) -> Iterator[tuple[Point, int]]:
    """Yield each point with how often it was there before: zipped axes may repeat values."""
    seen: Counter[Point] = Counter()
    for point in points:
        yield point, seen[point]
        seen[point] += 1


def _ordered(
    keyed: Sequence[Sequence[tuple[Point, int]]], labels: Sequence[Mapping[str, Scalar]]
) -> list[tuple[Point, int]]:
    """Return the union: sorted if every run's values are, else in order of appearance.

    Args:
        labels: of the values of each name.
    """
    union = list(dict.fromkeys(key for keys in keyed for key in keys))
    if len(labels) > 1:
        return union
    numbers = {own: plain_value(label) for own, label in labels[0].items()}
    if any(isinstance(number, (str, bool)) for number in numbers.values()):
        return union

    def number(key: tuple[Point, int]) -> tuple[Scalar, int]:
        (own,), count = key
        return numbers[own], count

    for reverse in (False, True):
        if all(list(keys) == sorted(keys, key=number, reverse=reverse) for keys in keyed):
            return sorted(union, key=number, reverse=reverse)
    return union


def _dimension_name(names: Sequence[str], parts: Sequence[Part]) -> str:
    found = {
        dimension.name
        for part in parts
        for dimension in part.layout.dimensions
        if set(dimension.coordinates) == set(names)
    }
    return found.pop() if len(found) == 1 else "_".join(names)


def _value_at(axis: JoinedAxis, position: int) -> str:
    """Return the values of the coordinates at a position as text."""
    pairs = zip(axis.names, axis.points[position], strict=True)
    return ", ".join(f"{name}={value}" for name, value in pairs)


def config_text(axes: Sequence[JoinedAxis], index: int) -> str:
    """Return the values of the axes at a joined flat index as text."""
    if not axes:
        return "the only config"
    at: Array = np.array(np.unravel_index(index, [len(axis.points) for axis in axes]))
    return ", ".join(_value_at(axis, int(i)) for axis, i in zip(axes, at, strict=True))
