"""Targets of a classification as class numbers, however they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.errors import SpecError

__all__ = ["classes_of"]

#: Maps class numbers (n,) back to targets as they were written.
Write: TypeAlias = Callable[[NDArray[np.int64]], NDArray[Any]]


def classes_of(
    caller: str, instead: str, y: NDArray[Any], y_test: NDArray[Any] | None = None
) -> tuple[NDArray[np.int64], tuple[int, Write]]:
    """Return targets as class numbers from 0, how many classes there are, and how to write them.

    Classes are written as integers or booleans (n,), as two different real numbers such as -1 and
    +1, (n,) or (n, 1), or one-hot (n, C), of any two values.

    Args:
        caller, instead: of messages: who asks, and what to try where these are no classes.
        y: the targets.
        y_test: further ones whose classes count, too.

    Raises:
        SpecError: if there are not two classes or more.
    """
    column = y.ndim == 1 or y.shape[1] == 1
    everything = y if y_test is None else np.concatenate([y, y_test])
    values = np.unique(everything)
    if not column:
        high = values[-1]
        hot = y == high
        if len(values) == 2 and (hot.sum(axis=1) == 1).all():
            table = np.where(np.eye(y.shape[1], dtype=bool), high, values[0]).astype(y.dtype)
            return hot.argmax(axis=1), (y.shape[1], lambda classes: table[classes])
    elif len(values) >= 2 and (y.dtype.kind in "iub" or len(values) == 2):
        numbers = np.searchsorted(values, y.reshape(-1))
        return numbers, (
            len(values),
            lambda classes: values[classes].astype(y.dtype).reshape(-1, *y.shape[1:]),
        )
    shown = ", ".join(f"{value:.4g}" for value in values[:4])
    more = ", ..." if len(values) > 4 else ""
    raise SpecError(
        f"{caller}: the targets, of shape {y.shape} with the values {shown}{more}, are not "
        "classes; valid are two or more integers, two real numbers such as -1 and 1, or one-hot "
        f"rows; try {instead}"
    )
