"""Batches of the items of a PyTorch data set."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from mlpsubmit.batchfns._arrays import as_numpy, bound
from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import BatchFn

__all__ = ["from_dataset"]


def from_dataset(dataset: Any, test_dataset: Any = None) -> functools.partial[BatchFn]:
    """Return the batch function ``sample`` with the items of a ``torch.utils.data.Dataset``.

    Every item is read once, here, and kept in memory, so random transforms are applied once. Inputs
    become float32. Targets become float32 too, except that integers and booleans become int64:
    class labels, for LOSS="cross_entropy". PIL images are converted like torchvision's ToTensor
    does: (channels, height, width), bytes divided by 255.

    Args:
        dataset: map-style, with ``len(dataset)``, and ``dataset[i]`` a pair (x, y): x an array,
            tensor, list of numbers (d, ...) or an image, y a number or a vector (d_out,).
        test_dataset: the data set of test samples, which offline training needs.

    Returns:
        ``sample`` with arrays X (n, d, ...) and y (n,) or (n, d_out), for ``Sweep(batchfn=...)``;
        as ``Sweep(data=...)`` the data entries for another batch function, as with ``arrays``.

    Raises:
        SpecError: listing every error: a data set that is not map-style or has no items, items
            that are not pairs of numbers or differ in shape, by their index, and NaN.

    Example:
        >>> batchfn = from_dataset(torch.utils.data.TensorDataset(torch.ones(8, 2), torch.ones(8)))
    """
    errors: list[str] = []
    given = dict(zip(("X", "y"), _columns("dataset", dataset, errors), strict=True))
    if test_dataset is not None:
        test = _columns("test_dataset", test_dataset, errors)
        given |= zip(("X_test", "y_test"), test, strict=True)
    if errors:
        raise SpecError([f"from_dataset: {message}" for message in errors])
    return bound("from_dataset", given)


def _columns(name: str, dataset: Any, errors: list[str]) -> tuple[Any, Any]:
    """Return all x and all y of a data set, each as one array; add an error if it is invalid."""
    if message := _no_dataset(dataset):
        errors.append(f"{name} is {message}")
        return None, None
    items = [dataset[index] for index in range(len(dataset))]
    for index, item in enumerate(items):
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            length = f" and length {len(item)}" if isinstance(item, (tuple, list)) else ""
            errors.append(
                f"item {index} of {name} is of type {type(item).__name__}{length}; valid is a "
                "pair (x, y); try from_dataset([(x, y), ...])"
            )
            return None, None
    X, y = zip(*items, strict=True)
    return _column(f"x of {name}", X, errors), _column(f"y of {name}", y, errors)


def _no_dataset(dataset: Any) -> str:
    """Return why something is not a map-style data set with items, or "" if it is one."""
    kind = type(dataset).__name__
    if isinstance(dataset, IterableDataset):
        return (
            f"of type {kind}, an IterableDataset, whose items have no index; valid is a "
            "map-style data set; try from_dataset(list(dataset))"
        )
    numbered = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not numbered or isinstance(dataset, (Mapping, str, bytes)):
        return f"of type {kind}; valid is a data set with len(dataset) and dataset[i] -> (x, y)"
    return "" if len(dataset) else f"of type {kind}, without items"


def _column(what: str, values: tuple[Any, ...], errors: list[str]) -> NDArray[Any] | None:
    """Return the x or the y of all items as one array; add an error if they are not numbers."""
    rows: list[NDArray[Any]] = []
    for index, value in enumerate(values):
        row = _row(value)
        if row is None:
            errors.append(
                f"the {what}, item {index}, is of type {type(value).__name__}; valid are numbers: "
                "an array, a tensor, a list of the same length in every item, or an image"
            )
            return None
        if row.shape != (rows or [row])[0].shape:
            errors.append(
                f"the {what} has the shape {row.shape} in item {index}, but {rows[0].shape} in "
                "item 0; they should agree; try a transform that crops, resizes or pads"
            )
            return None
        rows.append(row)
    return np.stack(rows)


def _row(value: Any) -> NDArray[Any] | None:
    """Return one x or y as an array of numbers, or None if it is not one."""
    try:
        row = as_numpy(value)
    except ValueError:  # a list of lists of different lengths
        return None
    if type(value).__module__.partition(".")[0] == "PIL":
        pixels = np.atleast_3d(row).transpose(2, 0, 1)
        row = pixels.astype(np.float32) / 255 if pixels.dtype == np.uint8 else pixels
    return row if row.dtype.kind in "fiub" else None
