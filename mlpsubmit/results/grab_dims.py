"""The dimensions that grabs name: their sizes in a dataset, and their coordinates."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlpsubmit.results.grab_arrays import grab_of, result_name
from mlpsubmit.results.labels import NO_LABELS, Labels, Scalar
from mlpsubmit.results.names import grab_dim_names
from mlpsubmit.results.source import Layout

__all__ = ["GrabDims", "grab_dims"]


@dataclass(frozen=True)
class GrabDims:
    """The named dimensions of all grabs, under their names in the dataset.

    Attributes:
        of_array: those of each array of the packs that has some.
        sizes: of the largest array along each, and at least the number of its coordinates.
        coordinates: the values along those that have some.
    """

    of_array: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, int]
    coordinates: Mapping[str, tuple[Scalar, ...]]


def grab_dims(shapes: Mapping[str, Sequence[tuple[int, ...]]], layout: Layout) -> GrabDims:
    """Return the named dimensions of the arrays of grabs.

    Args:
        shapes: of each array, its shapes in the packs. An array of another number of dimensions
            than its labels name (of a run that reuses older results) keeps ``<grab>_dim0`` and so
            on, with a warning.
    """
    of_array: dict[str, tuple[str, ...]] = {}
    sizes: dict[str, int] = {}
    coords: dict[str, tuple[Scalar, ...]] = {}
    for array, own in shapes.items():
        labels, dims = _labels(array, layout, len(own[0]) if own else 0)
        if dims is None:
            continue
        if any(len(shape) != len(dims) for shape in own):
            grab, key = grab_of(array) or (array, None)
            warnings.warn(
                f"grab {result_name(grab, key)!r} has results of the shape {own[0]}, and its dims "
                f"{dims} are not as many; correct its dims and launch the spec again, which reuses "
                "all results",
                stacklevel=2,
            )
            continue
        of_array[array] = dims
        for axis, dim in enumerate(dims):
            sizes[dim] = max([sizes.get(dim, 0), *(shape[axis] for shape in own)])
            if dim in labels.coords:
                coords.setdefault(dim, labels.coords[dim])
    sizes = {dim: max(size, len(coords.get(dim, ()))) for dim, size in sizes.items()}
    names = grab_dim_names(sizes, layout)
    return GrabDims(
        {array: tuple(names[dim] for dim in dims) for array, dims in of_array.items()},
        {names[dim]: size for dim, size in sizes.items()},
        {names[dim]: values for dim, values in coords.items() if len(values) == sizes[dim]},
    )


def _labels(array: str, layout: Layout, count: int) -> tuple[Labels, tuple[str, ...] | None]:
    grab, key = grab_of(array) or (array, None)
    labels = layout.labels.get(grab, NO_LABELS)
    return labels, labels.dims_of(key, count)
