"""The cartesian product of axes, by index arithmetic: it is never materialised."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.spec.fingerprint import digest

__all__ = ["Axis", "Product"]


@dataclass(frozen=True)
class Axis:
    """One dimension of a sweep: one name with its values, or several names zipped.

    Attributes:
        names: the names that move along this dimension together; a plain axis has one.
        points: the values, one tuple per point with one entry per name.
    """

    names: tuple[str, ...]
    points: tuple[tuple[Any, ...], ...]

    def __len__(self) -> int:
        return len(self.points)

    @property
    def dimension(self) -> str:
        """The name of the dimension in results: zipped names are joined by ``_``."""
        return "_".join(self.names)

    def values(self, name: str) -> tuple[Any, ...]:
        """Return the values that one name takes along this axis."""
        column = self.names.index(name)
        return tuple(point[column] for point in self.points)

    def repeats(self) -> list[tuple[Any, ...]]:
        """Return the points that stand more than once, compared by content.

        Raises:
            TypeError: where a value has no content to compare (an open file, a lock).
        """
        values = itertools.chain.from_iterable(self.points)
        plain = all(isinstance(value, (int, float, str)) for value in values)
        if plain and len(set(self.points)) == len(self.points):
            return []  # the quick way
        seen: set[bytes] = set()
        return [point for point in self.points if _met(digest(point), seen)]


def _met(key: bytes, seen: set[bytes]) -> bool:
    if key in seen:
        return True
    seen.add(key)
    return False


@dataclass(frozen=True)
class Product:
    """The product of axes in C order: the last axis varies fastest."""

    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """How many points each axis has."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def names(self) -> frozenset[str]:
        """The names on all axes."""
        return frozenset(name for axis in self.axes for name in axis.names)

    @property
    def size(self) -> int:
        """How many points the product has; 1 where there is no axis."""
        return math.prod(self.shape)

    def positions(self, index: int) -> tuple[int, ...]:
        """Return the position along each axis of one flat index."""
        positions = []
        for length in reversed(self.shape):
            index, position = divmod(index, length)
            positions.append(position)
        return tuple(reversed(positions))

    def point(self, index: int) -> dict[str, Any]:
        """Return the value of every name at one flat index."""
        return {
            name: value
            for axis, position in zip(self.axes, self.positions(index), strict=True)
            for name, value in zip(axis.names, axis.points[position], strict=True)
        }

    def points(self) -> Iterator[dict[str, Any]]:
        """Iterate over all points in order, several times as fast as index by index."""
        names = [name for axis in self.axes for name in axis.names]
        for values in itertools.product(*(axis.points for axis in self.axes)):
            yield dict(zip(names, itertools.chain.from_iterable(values), strict=True))

    def transposed(self, flat: NDArray[np.int64], order: Sequence[int]) -> NDArray[np.int64]:
        """Renumber flat indices of this product for the product of its axes in another order.

        Args:
            flat: (n,) int64, indices into this product.
            order: which axis of this product stands at each place of the other.
        """
        if not self.axes:
            return flat
        columns = np.unravel_index(flat, self.shape)
        other = tuple(self.shape[place] for place in order)
        ranks = np.ravel_multi_index([columns[place] for place in order], other)
        return np.asarray(ranks, dtype=np.int64)
