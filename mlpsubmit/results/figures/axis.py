"""An axis of a sweep as a figure shows it: its distinct values, in order, with their texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlpsubmit.results.figures.text import label, title_of
from mlpsubmit.results.shown_values import number_texts
from mlpsubmit.results.source import Array

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Along", "Axis", "Codes", "along", "is_wide"]

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Axis:
    """A coordinate along one dimension.

    Args:
        name: of the coordinate, or of the dimension if that has none of its own.
        dim: its dimension.
        codes: the level of each position along the dimension, shape (size of dim,).
        levels: the distinct values: numbers in order, others as they come.
        parts: the texts of each level: its own, and those of members of a zipped axis.
        title: its name for people.
        numeric: whether the levels are finite numbers.
    """

    name: str
    dim: str
    codes: Codes
    levels: Array
    parts: tuple[tuple[str, ...], ...]
    title: str
    numeric: bool

    @property
    def size(self) -> int:
        """The number of levels."""
        return len(self.levels)

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of each level, in one line."""
        return tuple(map(", ".join, self.parts))

    @property
    def ticks(self) -> list[str]:
        """The label of a tick at each level, with a line per member of a zipped axis."""
        return ["\n".join(label(part, 16) for part in parts) for parts in self.parts]

    @property
    def is_wide(self) -> bool:
        """Whether a logarithmic scale suits the levels: positive, and over half a decade."""
        return self.numeric and is_wide(self.levels, 3)

    @property
    def is_wide_above_zero(self) -> bool:
        """Whether the levels are 0 and others over a decade and a half, as weight decays are."""
        return self.numeric and self.levels[0] == 0 and is_wide(self.levels[1:], 30)

    def with_members(self, others: Sequence[Axis]) -> Axis:
        """Return the axis with the values of further coordinates of its dimension in its texts.

        They must be equal at all positions of a level.
        """
        parts = [
            sum((other.parts[other.codes[self._first(i)]] for other in others), own)
            for i, own in enumerate(self.parts)
        ]
        title = ", ".join([self.title, *(other.title for other in others)])
        return replace(self, parts=tuple(parts), title=title)

    def determines(self, other: Axis) -> bool:
        """Return whether another coordinate of the dimension has one value at each level."""
        pairs = np.unique(np.stack([self.codes, other.codes]), axis=1)
        return pairs.shape[1] == self.size

    def _first(self, level: int) -> int:
        return int(np.argmax(self.codes == level))


def is_wide(values: Array, ratio: float) -> bool:
    """Return whether values are positive, the largest at least ``ratio`` times the least."""
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0 and values.max() / ratio >= values.min())


@dataclass(frozen=True, eq=False)
class Along:
    """The axes along one dimension.

    Args:
        members: one per coordinate; those of a zipped axis vary together.
        whole: the axis of the dimension's name: of a zipped one with all members in its texts.
    """

    members: tuple[Axis, ...]
    whole: Axis

    @property
    def size(self) -> int:
        """The number of positions along the dimension."""
        return len(self.whole.codes)

    @property
    def named(self) -> dict[str, Axis]:
        """All axes, by name."""
        return {axis.name: axis for axis in (*self.members, self.whole)}

    @property
    def is_search(self) -> bool:
        """Whether this looks like a random search: many points, several numbers of each."""
        return sum(axis.numeric and axis.size > 10 for axis in self.members) > 1


def along(dataset: xr.Dataset, dim: str) -> Along:
    """Return the axes along a dimension."""
    names = [str(name) for name, own in dataset.coords.items() if own.dims == (dim,)]
    axes = {name: _axis(dataset, name, dim) for name in names or [dim]}
    if dim in axes:
        return Along(tuple(axes.values()), axes[dim])
    members, positions = tuple(axes.values()), np.arange(dataset.sizes[dim])
    parts = tuple(tuple(axis.texts[axis.codes[i]] for axis in members) for i in positions)
    title = ", ".join(axis.title for axis in members)
    whole = Axis(dim, dim, positions, positions, parts, title, numeric=False)
    return Along(members, whole)


def _axis(dataset: xr.Dataset, name: str, dim: str) -> Axis:
    if name not in dataset.coords:
        positions = np.arange(dataset.sizes[dim])
        texts, title = _alone(map(str, positions)), title_of(name, {})
        return Axis(name, dim, positions, positions, texts, title, numeric=True)
    coordinate = dataset[name]
    values = coordinate.values
    title = title_of(name, coordinate.attrs)
    if values.dtype.kind in "iuf":
        levels, codes = np.unique(values, return_inverse=True)
        texts = _alone(number_texts(levels))
        numeric = bool(np.isfinite(levels).all())  # infinity has no place on a scale
        return Axis(name, dim, codes.astype(np.int64), levels, texts, title, numeric)
    strings = [str(value) for value in values.tolist()]
    distinct = list(dict.fromkeys(strings))
    codes = np.array([distinct.index(text) for text in strings], dtype=np.int64)
    return Axis(name, dim, codes, np.array(distinct), _alone(distinct), title, numeric=False)


def _alone(texts: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    return tuple((text,) for text in texts)
