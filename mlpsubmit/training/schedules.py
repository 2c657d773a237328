"""Schedules of steps: every n steps, or N log-spaced ones."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from mlpsubmit.spec.setting_types import log_spaced
from mlpsubmit.training.result import Array

__all__ = ["Schedule"]


class Schedule:
    """The steps of RECORD_EVERY, EVAL_EVERY or GRAB_EVERY: the first, the last, and some between.

    ``step in schedule`` takes no memory for an interval, however many steps there are, and that of
    N steps for ``"log:N"``.

    Args:
        every: ``n`` for 0, n, 2n, ... and the last step; or ``"log:N"`` for
            ``round(max_iter ** (j / (N - 1))) - 1`` with j = 0, ..., N - 1: evenly spaced in the
            logarithm of the step count, from step 0 to the last. Rounding makes duplicates among
            the earliest, which are dropped, so there may be fewer than N.
            None for no steps at all.
        max_iter: number of steps; the last is ``max_iter - 1``.
    """

    def __init__(self, every: int | str | None, max_iter: int) -> None:
        self._every, self._max_iter = every, max_iter

    def __contains__(self, step: int) -> bool:
        if isinstance(self._every, str):
            return step in self._log_spaced
        if self._every is None:
            return False
        last = self._max_iter - 1
        return step == last or (0 <= step < last and step % self._every == 0)

    def next_from(self, step: int) -> int:
        """Return the first scheduled step from this one on, ``max_iter`` where there is none."""
        if isinstance(self._every, str):
            position = int(self.steps.searchsorted(step))
            return int(self.steps[position]) if position < len(self.steps) else self._max_iter
        if self._every is None or step >= self._max_iter:
            return self._max_iter
        return min(-(-step // self._every) * self._every, self._max_iter - 1)

    def since_previous(self, step: int) -> int:
        """Return the number of steps from the last scheduled one before a step to that step.

        Args:
            step: from 1 to ``max_iter - 1``, scheduled or not.
        """
        if isinstance(self._every, str):
            return step - int(self.steps[self.steps.searchsorted(step) - 1])
        return (step - 1) % int(self._every or 1) + 1

    @property
    def count(self) -> int:
        """The number of scheduled steps; for an interval computed without listing them."""
        if self._every is None or isinstance(self._every, str):
            return len(self.steps)
        return -(-(self._max_iter - 1) // self._every) + 1

    @cached_property
    def steps(self) -> Array:
        """All scheduled steps, (R,) int64, increasing and distinct; listed on first use."""
        if self._every is None:
            return np.zeros(0, np.int64)
        count = log_spaced(self._every)
        if count is None:
            steps = np.arange(0, self._max_iter, int(self._every), dtype=np.int64)
        else:
            steps = np.round(np.geomspace(1, self._max_iter, count)).astype(np.int64) - 1
        return np.union1d(steps, [0, self._max_iter - 1])

    @cached_property
    def _log_spaced(self) -> frozenset[int]:
        return frozenset(self.steps.tolist())
