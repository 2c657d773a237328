"""The order in which a plan has the points of a product: those of equal shapes in one range.

The axes that change the shapes of tensors come first, those whose configs can share a pack after
them. Points of a zipped axis may have equal shapes too, wherever they stand on it: they are a
*class*, and the classes of all such axes come before the points within them. The configs of one
class of each axis are a *group*: one range of the plan order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["PlanOrder"]

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class PlanOrder:
    """A permutation of the points of a product.

    Attributes:
        shape: points per axis of the product.
        axes: the axes in plan order, outermost first.
        outside: how many of them, from the outermost, distinguish the groups.
        classes: of an axis outside, the class of each of its points, (points,), numbered from 0
            in order of their first points; where none is given, every point is a class.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    outside: int
    classes: Mapping[int, Indices] = field(default_factory=dict, repr=False)

    @cached_property
    def _class_sizes(self) -> dict[int, Indices]:
        """By axis, how many points each class has."""
        return {axis: np.bincount(classes) for axis, classes in self.classes.items()}

    @cached_property
    def _sorted_points(self) -> dict[int, Indices]:
        """By axis, its points, class by class."""
        return {axis: np.argsort(c, kind="stable") for axis, c in self.classes.items()}

    @cached_property
    def group_shape(self) -> tuple[int, ...]:
        """The number of classes of each axis outside, in plan order."""
        sizes = self._class_sizes
        return tuple(
            len(sizes[axis]) if axis in sizes else self.shape[axis]
            for axis in self.axes[: self.outside]
        )

    @cached_property
    def group_sizes(self) -> Indices:
        """How many points each group has, (groups,)."""
        inside = math.prod(self.shape[axis] for axis in self.axes[self.outside :])
        sizes = np.full(self.group_shape, inside, dtype=np.int64)
        for place, axis in enumerate(self.axes[: self.outside]):
            if axis in self.classes:
                along = [1] * self.outside
                along[place] = -1
                sizes *= self._class_sizes[axis].reshape(along)
        return sizes.reshape(-1)

    @cached_property
    def _starts(self) -> Indices:
        """The place in plan order at which each group starts, (groups,)."""
        return np.cumsum(self.group_sizes) - self.group_sizes

    def group_counts(self, kept: NDArray[np.bool_]) -> Indices:
        """Return how many of the points of each group are kept, (groups,).

        Args:
            kept: (size,) of the points in plan order.
        """
        return np.asarray(np.add.reduceat(kept, self._starts, dtype=np.int64))

    @property
    def _divided(self) -> list[int]:
        """The places of the axes outside whose points have classes."""
        return [n for n, axis in enumerate(self.axes[: self.outside]) if axis in self.classes]

    def places(self, flat: Indices) -> Indices:
        """Return the places in plan order of points, which are flat indices into the product."""
        if not self.shape:
            return flat
        points = np.unravel_index(flat, self.shape)
        of_axis = [points[axis] for axis in self.axes]
        columns, members = list(of_axis[: self.outside]), np.zeros_like(flat)
        for place in self._divided:
            axis = self.axes[place]
            sizes = self._class_sizes[axis]
            columns[place] = classes = self.classes[axis][of_axis[place]]
            ranks = np.empty_like(self._sorted_points[axis])
            ranks[self._sorted_points[axis]] = np.arange(len(ranks))
            member = ranks[of_axis[place]] - (np.cumsum(sizes) - sizes)[classes]
            members = members * sizes[classes] + member
        for place in range(self.outside, len(self.axes)):
            members = members * self.shape[self.axes[place]] + of_axis[place]
        groups = np.ravel_multi_index(columns, self.group_shape) if columns else 0
        return np.asarray(self._starts[groups] + members, dtype=np.int64)

    def points(self, places: Indices) -> Indices:
        """Return the points, as flat indices into the product, at places in plan order."""
        if not self.shape:
            return places
        groups = np.searchsorted(self._starts, places, side="right") - 1
        members = places - self._starts[groups]
        of_axis: dict[int, Indices] = {}
        for axis in reversed(self.axes[self.outside :]):
            members, of_axis[axis] = np.divmod(members, self.shape[axis])
        columns = np.unravel_index(groups, self.group_shape) if self.group_shape else ()
        of_axis.update(zip(self.axes, columns, strict=False))
        for place in reversed(self._divided):
            axis = self.axes[place]
            sizes, classes = self._class_sizes[axis], columns[place]
            members, member = np.divmod(members, sizes[classes])
            starts = np.cumsum(sizes) - sizes
            of_axis[axis] = self._sorted_points[axis][starts[classes] + member]
        by_axis = [of_axis[axis] for axis in range(len(self.shape))]
        return np.asarray(np.ravel_multi_index(by_axis, self.shape), dtype=np.int64)
