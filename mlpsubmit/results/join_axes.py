"""The axes of runs that are joined: the union of the values of each, and where every point goes.

An axis of one run may be a fixed setting of another, whose results are then at that value. A
setting that differs between the runs becomes an axis; several that differ become one axis each if
the runs have all combinations of their values, and else one zipped axis.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlpsubmit.errors import UserError
from mlpsubmit.results.source import Array, Dimension, FixedSetting, Layout, ResultSource, Scalar
from mlpsubmit.results.values import is_text, plain_value, text_of

__all__ = ["JoinedAxis", "Part", "config_text", "joined_axes", "places"]

#: Axes of trials are the last, as they are in sweeps.
_LAST = "trial"
#: The most points of the product of the axes.
_MOST_POINTS = 1 << 27
#: A setting that a run does not have.
_UNSET = FixedSetting("None")

Point = tuple[Scalar, ...]


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
        points: the values of these at each position.
        dims: of each part, the numbers of its dimensions that are on this axis.
        positions: of each part, the position of each of its points on those dimensions, of the
            shape of these.
        codes: by name, the hash of each value, by its text.
    """

    name: str
    names: tuple[str, ...]
    points: tuple[Point, ...]
    dims: tuple[tuple[int, ...], ...]
    positions: tuple[npt.NDArray[np.int64], ...]
    codes: Mapping[str, Mapping[str, str]]

    @property
    def dimension(self) -> Dimension:
        """The dimension of the joined layout."""
        values = dict(zip(self.names, zip(*self.points, strict=True), strict=True))
        codes = {
            name: tuple(self.codes[name].get(text_of(value), "") for value in own)
            for name, own in values.items()
        }
        return Dimension(self.name, values, {n: own for n, own in codes.items() if any(own)})


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
    every = _merged(
        tuple(dimension.coordinates) for part in parts for dimension in part.layout.dimensions
    )
    first = _on_axes(parts[0])
    new = [names for names in every if first.isdisjoint(names)]
    kept = [names for names in every if not first.isdisjoint(names)]
    differing = _differing(parts, {name for names in every for name in names})
    return sorted([*differing, *new, *kept], key=lambda names: names == (_LAST,))


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
    differing = {name: column for name, column in columns.items() if len(set(column)) > 1}
    combinations = len(set(zip(*differing.values(), strict=True)))
    if len(differing) < 2 or combinations == math.prod(
        len(set(column)) for column in differing.values()
    ):
        return [(name,) for name in differing]
    return [tuple(differing)]


def _identity(setting: FixedSetting) -> tuple[str, str]:
    value = plain_value(setting.value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (str(float(value)) if number else f"text {value}", setting.code)


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
    values = {name: _told_apart(name, parts) for name in names}
    own = [
        _points(part.layout, on, {name: values[name][number][0] for name in names})
        for number, (part, on) in enumerate(zip(parts, dims, strict=True))
    ]
    own = _of_one_type(own)
    keyed = [list(_counted(points)) for points in own]
    order = {key: n for n, key in enumerate(_ordered(keyed))}
    positions = [
        np.array([order[key] for key in keys], dtype=np.int64).reshape(
            [part.layout.shape[d] for d in on]
        )
        for part, on, keys in zip(parts, dims, keyed, strict=True)
    ]
    points = tuple(point for point, _ in order)
    codes = {
        name: {text_of(value): code for one in own_values for value, code in zip(*one, strict=True)}
        for name, own_values in values.items()
    }
    dimension = _dimension_name(names, parts)
    return JoinedAxis(dimension, names, points, tuple(dims), tuple(positions), codes)


def _dims(names: Sequence[str], layout: Layout) -> tuple[int, ...]:
    """Return the numbers of the dimensions that have these names."""
    return tuple(
        number
        for number, dimension in enumerate(layout.dimensions)
        if not set(names).isdisjoint(dimension.coordinates)
    )


def _told_apart(name: str, parts: Sequence[Part]) -> list[tuple[list[Scalar], Sequence[str]]]:
    """Return the values of a name in each part, along its axis or the fixed one, and their hashes.

    Functions of one name and different code have their hashes in their values.
    """
    found: list[tuple[Sequence[Scalar], Sequence[str]]] = []
    for part in parts:
        along = [one for one in part.layout.dimensions if name in one.coordinates]
        if along:
            values = along[0].coordinates[name]
            found.append((values, along[0].codes.get(name, [""] * len(values))))
        else:
            setting = part.layout.settings.get(name, _UNSET)
            found.append(([setting.value], [setting.code]))
    codes: dict[Scalar, set[str]] = defaultdict(set)
    for value, code in (pair for own in found for pair in zip(*own, strict=True)):
        codes[value].add(code)
    return [
        (
            [
                f"{value} ({code or 'library'})" if len(codes[value]) > 1 else value
                for value, code in zip(*own, strict=True)
            ],
            own[1],
        )
        for own in found
    ]


def _points(
    layout: Layout, dims: Sequence[int], values: Mapping[str, Sequence[Scalar]]
) -> list[Point]:
    """Return the values of each point of a part on some of its dimensions, in C order.

    Args:
        values: by name, those along the dimension, or the fixed one.
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


def _of_one_type(own: Sequence[list[Point]]) -> list[list[Point]]:
    """Return the points with the values of a name as text if they will be that together."""
    every = [point for points in own for point in points]
    columns = list(zip(*every, strict=True))
    texts = [is_text(column) for column in columns]
    return [
        [
            tuple(
                text_of(value) if text else _number(value)
                for value, text in zip(point, texts, strict=True)
            )
            for point in points
        ]
        for points in own
    ]


def _number(value: Scalar) -> Scalar:
    """Return a number; NaN as one object, which is equal to itself in a tuple."""
    plain = plain_value(value)
    return math.nan if plain != plain else plain


def _counted(points: Iterable[Point]) -> Iterator[tuple[Point, int]]:
    """Yield each point with how often it was there before: zipped axes may repeat values."""
    seen: Counter[tuple[str, ...]] = Counter()
    for point in points:
        key = tuple(map(repr, point))
        yield point, seen[key]
        seen[key] += 1


def _ordered(keyed: Sequence[Sequence[tuple[Point, int]]]) -> list[tuple[Point, int]]:
    """Return the union: sorted if every run's values are, else in order of appearance."""
    union = list(dict.fromkeys(key for keys in keyed for key in keys))
    if any(len(point) > 1 or isinstance(point[0], (str, bool)) for point, _ in union):
        return union
    for reverse in (False, True):
        if all(list(keys) == sorted(keys, reverse=reverse) for keys in keyed):
            return sorted(union, reverse=reverse)
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
