"""KEEP_STATE: the states that a longer training, or one with further thresholds, continues from.

A larger MAX_ITER changes no step before the last one, which is evaluated and recorded in any case.
Further thresholds change nothing until a config has stopped at one. So two states are kept: the
last one before the last step, and the last one before any config had stopped at a threshold. When
that will be is not known beforehand: states are kept less and less often, after 1, 2, 4, ... steps
of the first block, then after every block, and from the fourth on each at most a quarter later than
the one before, so that of a long training at most a fifth of the steps is repeated.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlpsubmit.protocol import DONE

__all__ = ["KeptSteps", "is_uncrossed"]

#: From one kept state to the next, as a factor of the steps.
_GROWTH = 1.25


class KeptSteps:
    """The numbers of steps after which a state is kept.

    Args:
        keep: KEEP_STATE.
        max_iter: number of steps.
        block: steps of a block, after which all is read back.
    """

    def __init__(self, keep: bool, max_iter: int, block: int) -> None:
        self._max_iter, self._counts = max_iter, list[int]()
        if not keep:
            return
        early = [1 << n for n in range((block - 1).bit_length())]
        self._counts = [steps for steps in early if steps < max_iter - 1]
        blocks = 1
        while blocks * block < max_iter - 1:
            self._counts.append(blocks * block)
            blocks = max(blocks + 1, int(blocks * _GROWTH))
        if max_iter > 1:
            self._counts.append(max_iter - 1)

    def __contains__(self, steps: int) -> bool:
        at = bisect_left(self._counts, steps)
        return at < len(self._counts) and self._counts[at] == steps

    def next_look(self, step: int) -> int:
        """Return the first step from this one on after which a state is kept."""
        at = bisect_left(self._counts, step + 1)
        return self._counts[at] - 1 if at < len(self._counts) else self._max_iter


def is_uncrossed(state: Mapping[str, Any]) -> bool:
    """Return whether no config had stopped at a threshold, by a state of the training."""
    history = state["parts"]["history"]
    stopped = ~history["_active"].numpy() & np.isfinite(history["_train_loss"].numpy())
    return not stopped.any() and not (history["status"] == DONE).any()
