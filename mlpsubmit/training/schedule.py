"""At which steps something is done: every n steps, or at N log-spaced ones."""

from __future__ import annotations

import numpy as np

from mlpsubmit.hyperparameters import log_spaced
from mlpsubmit.training.trained import Array

__all__ = ["schedule_steps"]


def schedule_steps(schedule: int | str, max_iter: int) -> Array:
    """Return the steps, increasing and distinct, that RECORD_EVERY and the like stand for.

    Args:
        schedule: ``n`` for 0, n, 2n, ... and the last step; or ``"log:N"`` for
            ``round(max_iter ** (j / (N - 1))) - 1`` with j = 0, ..., N - 1: evenly spaced in the
            logarithm of the number of steps made, from step 0 to the last. Duplicates that
            rounding makes among the earliest are dropped, so there may be fewer than N.
        max_iter: number of steps; the last is ``max_iter - 1``.

    Returns:
        (R,) int64; the first is always 0 and the last always ``max_iter - 1``.
    """
    count = log_spaced(schedule)
    last = np.array([max_iter - 1])
    if count is None:
        return np.union1d(np.arange(0, max_iter, int(schedule), dtype=np.int64), last)
    made = np.round(np.geomspace(1, max_iter, count)).astype(np.int64)
    steps: Array = np.unique(np.concatenate([[0], made - 1, last]).astype(np.int64))
    return steps
