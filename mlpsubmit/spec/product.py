"""The cartesian product of axes, by index arithmetic: it is never held in memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.spec.fingerprint import setting_digest

__all__ = ["Axis", "Product"]


@dataclass(frozen=True)
class Axis:
    """One dimension of a sweep: one name with its values, or several names zipped.

    Attributes:
        names: one name, or several that are zipped.
        points: the values, one tuple per point with one entry per name.
        zipped_as: the name of the dimension of zipped names; by default these, joined by ``_``.
    """

    names: tuple[str, ...]
    points: tuple[tuple[Any, ...], ...]
    zipped_as: str = ""

    def __len__(self) -> int:
        return len(self.points)

    @property
    def dimension(self) -> str:
        """The name of the dimension in results."""
        return (len(self.names) > 1 and self.zipped_as) or "_".join(self.names)

    def values(self, name: str) -> tuple[Any, ...]:
        """Return the values that one name takes along this axis."""
        column = self.names.index(name)
        return tuple(point[column] for point in self.points)

    def repeats(self) -> list[tuple[Any, ...]]:
        """Return the points that repeat an earlier one, compared as keys compare values.

        Raises:
            TypeError: if a value has no content to compare (an open file, a lock).
        """
        values = itertools.chain.from_iterable(self.points)
        plain = all(isinstance(v, (int, float, str)) and v == v for v in values)  # without nan
        if plain and len(set(self.points)) == len(self.points):
            return []  # the fast path
        first: dict[bytes, int] = {}
        digests = map(setting_digest, self.points)
        return [
            p
            for n, (p, d) in enumerate(zip(self.points, digests, strict=True))
            if first.setdefault(d, n) != n
        ]


@dataclass(frozen=True)
class Product:
    """The product of axes in C order: the last axis varies fastest."""

    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of points of each axis."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def names(self) -> frozenset[str]:
        """The names on all axes."""
        return frozenset(name for axis in self.axes for name in axis.names)

    @property
    def size(self) -> int:
        """The number of points; 1 without axes."""
        return math.prod(self.shape)

    def point(self, index: int) -> dict[str, Any]:
        """Return the value of every name at one flat index."""
        point: dict[str, Any] = {}
        for axis, number in zip(self.axes, self.numbers(index), strict=True):
            point.update(zip(axis.names, axis.points[number], strict=True))
        return point

    def numbers(self, index: int) -> tuple[int, ...]:
        """Return the number of the point on each axis at one flat index."""
        numbers = []
        for axis in reversed(self.axes):
            index, number = divmod(index, len(axis))
            numbers.append(number)
        return tuple(reversed(numbers))

    def indices_along(
        self, names: Collection[str], indices: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return, for flat indices (n,), those among the axes that have any of the names, (n,).

        Points that differ along other axes alone have the same.
        """
        own = [number for number, axis in enumerate(self.axes) if set(names) & set(axis.names)]
        if not own:
            return np.zeros_like(indices)
        columns = np.unravel_index(indices, self.shape)
        shape = [len(self.axes[number]) for number in own]
        along = np.ravel_multi_index([columns[number] for number in own], shape)
        return np.asarray(along, dtype=np.int64)

    def points(self) -> Iterator[dict[str, Any]]:
        """Iterate over all points in order, several times faster than by index."""
        names = [name for axis in self.axes for name in axis.names]
        for values in itertools.product(*(axis.points for axis in self.axes)):
            yield dict(zip(names, itertools.chain.from_iterable(values), strict=True))
