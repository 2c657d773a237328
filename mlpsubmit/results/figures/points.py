"""The values of a quantity, one entry per config, with the level of each on every axis shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlpsubmit.protocol import DIVERGED, STATUSES
from mlpsubmit.results.figures.axis import Axis, Codes
from mlpsubmit.results.figures.quantities import Quantity
from mlpsubmit.results.figures.roles import Roles
from mlpsubmit.results.source import Array

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Points", "points_of", "split"]


@dataclass(frozen=True, eq=False)
class Points:
    """The n points of a quantity that are expected to have a value.

    Args:
        values: shape (n,), or (n, T) of traces.
        levels: by role, of each point, shape (n,).
        last: the last step of each config, shape (n,); NaN if that is not known.
        diverged: which configs diverged, shape (n,).
        beside: the values of what goes across, where that is no axis but measured, shape (n,).
    """

    values: Array
    levels: Mapping[str, Codes]
    last: Array
    diverged: npt.NDArray[np.bool_]
    beside: Array | None = None

    def __len__(self) -> int:
        return len(self.values)

    def at(self, which: Array) -> Points:
        """Return some of the points, given as a mask or as positions."""
        return Points(
            self.values[which],
            {role: codes[which] for role, codes in self.levels.items()},
            self.last[which],
            self.diverged[which],
            None if self.beside is None else self.beside[which],
        )


def points_of(
    dataset: xr.Dataset, quantity: Quantity, roles: Roles, beside: Quantity | None = None
) -> Points:
    """Return the points of a quantity.

    Args:
        beside: another quantity, whose dimensions are among those of the first.
    """
    shape = quantity.expected.shape
    spread: dict[str, Array] = {}
    for role, axis in roles.axes.items():
        spread[role] = _spread(axis.codes, (axis.dim,), quantity.dims, shape)
    status = dataset["status"]
    done = tuple(str(dim) for dim in status.dims)
    diverged = _spread(status.values == STATUSES[DIVERGED], done, quantity.dims, shape)
    steps = dataset["steps"].transpose(*done).values if "steps" in dataset else None
    if steps is None:
        steps = np.full(status.shape, np.nan)
    last = _spread(steps - 1.0, done, quantity.dims, shape)
    kept = quantity.expected.ravel().copy()
    for role in roles.thinned:
        kept &= np.isin(spread[role], roles.shown(role))
    values = quantity.values.reshape(kept.size, *quantity.values.shape[len(shape) :])
    across = None
    if beside is not None:
        across = _spread(beside.values, beside.dims, quantity.dims, shape)
    return Points(values, spread, last, diverged, across).at(np.flatnonzero(kept))


def _spread(values: Array, own: Sequence[str], dims: Sequence[str], shape: Sequence[int]) -> Array:
    """Return values along some dimensions as one per point of all, flat."""
    order = [own.index(dim) for dim in dims if dim in own]
    sizes = [size if dim in own else 1 for dim, size in zip(dims, shape, strict=True)]
    return np.broadcast_to(values.transpose(order).reshape(sizes), shape).ravel()


def split(points: Points, roles: Sequence[str]) -> Iterator[tuple[dict[str, int], Points]]:
    """Yield the points by their levels of some roles; a role without an axis has level 0."""
    if not len(points):
        return
    zeros = np.zeros(len(points), dtype=np.int64)
    codes = np.stack([points.levels.get(role, zeros) for role in roles])
    distinct, group = np.unique(codes, axis=1, return_inverse=True)
    group = group.ravel()
    order = np.argsort(group, kind="stable")
    ends = np.flatnonzero(np.diff(group[order])) + 1
    for levels, members in zip(distinct.T, np.split(order, ends), strict=True):
        yield dict(zip(roles, map(int, levels), strict=True)), points.at(members)


def level_values(axis: Axis) -> Array:
    """Return where the levels of an axis are: the numbers, or 0, 1, ... of others."""
    return axis.levels.astype(np.float64) if axis.numeric else np.arange(float(axis.size))
