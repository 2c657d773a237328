"""What a batch function is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

__all__ = ["BatchFn", "fixed"]

#: ``batch_fn(step) -> (X (n, ...), y (n,) or (n, d_out))``, what a batch function returns.
BatchFn: TypeAlias = Callable[[int], tuple[Tensor, Tensor]]


def fixed(X: Tensor, y: Tensor) -> BatchFn:
    """Return the batch_fn that gives the same X and y at every step: offline training's."""

    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        return X, y

    return batch_fn
