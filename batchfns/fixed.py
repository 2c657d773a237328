"""The batch_fn of offline training."""

from __future__ import annotations

from torch import Tensor

from mlpsubmit.protocol import BatchFn

__all__ = ["fixed"]


def fixed(X: Tensor, y: Tensor) -> BatchFn:
    """Return the batch_fn that gives the same X and y at every step."""

    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        return X, y

    return batch_fn
