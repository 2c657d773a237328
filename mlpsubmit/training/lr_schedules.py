"""Learning rates that change from step to step: LR_SCHEDULE, WARMUP_STEPS and LR_FINAL_FACTOR.

The learning rates of step i are those of the config times a factor f(i). For W = WARMUP_STEPS,
f(i) = (i + 1) / W where i < W. After that a callable gives f(i), and otherwise

    f(i) = e + (1 - e) s,  t = (i - W) / (MAX_ITER - W),  e = LR_FINAL_FACTOR,

with s = 1 (constant), 1 - t (linear) or (1 + cos(pi t)) / 2 (cosine).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from mlpsubmit.arguments import function_name
from mlpsubmit.errors import SpecError, shown
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.setting_types import python_number
from mlpsubmit.training.culprits import FAILURES, raise_attributed
from mlpsubmit.training.stack import Stack

__all__ = ["LRSchedule", "check_lr_schedule", "lr_factor"]

T = TypeVar("T")


def lr_factor(h: Hyperparameters, step: int) -> float:
    """Return the factor of the learning rates of a config at a step.

    Raises:
        SpecError: where a callable returns no finite number >= 0.
    """
    W, e = h.warmup_steps, h.lr_final_factor
    if step < W:
        return (step + 1) / W
    if callable(h.lr_schedule):
        return _called(h.lr_schedule, step)
    if h.lr_schedule == "constant":
        return 1.0
    t = (step - W) / (h.max_iter - W)
    s = 1 - t if h.lr_schedule == "linear" else (1 + math.cos(math.pi * t)) / 2
    return e + (1 - e) * s


def _called(schedule: Callable[[int], object], step: int) -> float:
    value = python_number(schedule(step))
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and 0 <= value < math.inf):
        raise SpecError(
            f"LR_SCHEDULE: {function_name(schedule)}({step}) gave {shown(value)}; valid is a "
            "finite number >= 0, the factor of LR at this step"
        )
    return float(value)


def check_lr_schedule(h: Hyperparameters) -> None:
    """Call a callable LR_SCHEDULE for the first and the last step that it decides on.

    Raises:
        SpecError: where it returns no finite number >= 0, or another one when it is called again.
    """
    if not callable(h.lr_schedule):
        return
    for step in (min(h.warmup_steps, h.max_iter - 1), h.max_iter - 1):
        first, again = (lr_factor(h, step) for _ in range(2))
        if first != again:
            raise SpecError(
                f"LR_SCHEDULE: {function_name(h.lr_schedule)}({step}) gave {first:g} and then "
                f"{again:g}; steps are asked for in any order, so compute the factor from the step "
                "alone, without random numbers or state"
            )


class LRSchedule:
    """The factors of K configs, on the device: those of a block of steps are uploaded at once.

    So a recorded step reads its own, without the host.

    Args:
        hyperparameters: of the K configs.
        stack: their networks.

    Raises:
        SpecError: for a callable that returns no finite number >= 0 at the first or last step.
    """

    def __init__(self, hyperparameters: Sequence[Hyperparameters], stack: Stack) -> None:
        self._settings, self._stack = hyperparameters, stack
        self._changes = any(h.has_lr_schedule for h in hyperparameters)
        first = stack.parameters[0]
        self._table = torch.zeros(0, 0, dtype=first.dtype, device=first.device)
        self._column = torch.zeros(1, dtype=torch.int64, device=first.device)
        if self._changes:
            self._by_config(range(len(hyperparameters)), check_lr_schedule)

    def load(self, step: int, block: int, rows: Sequence[int]) -> None:
        """Upload the factors from a step to the end of its block: a copy to the device.

        Args:
            step: the next one to be made.
            block: steps of a block.
            rows: those of the stack that are still in training.
        """
        if not self._changes:
            return
        first = step % block
        steps = range(step, min(step - first + block, self._settings[0].max_iter))
        configs = [self._stack.configs[row] for row in rows]
        found = self._by_config(configs, lambda h: [lr_factor(h, i) for i in steps])
        table = torch.zeros(len(self._stack), block, dtype=torch.float64)
        for row, config in zip(rows, configs, strict=True):
            table[row, first : first + len(steps)] = torch.tensor(found[config], dtype=table.dtype)
        # In place, where a recorded step reads it.
        if self._table.shape != table.shape:
            self._table = self._table.new_empty(table.shape)
        self._table.copy_(table)
        self._column.fill_(first)

    def next(self) -> Tensor | None:
        """Return the factors (K, 1) of the next step, and go on; None where all are always 1."""
        if not self._changes:
            return None
        factors = self._table.index_select(1, self._column)
        # Around the end, where steps are tried that are not kept: while a stride is recorded.
        self._column.add_(1).remainder_(self._table.shape[1])
        return factors

    @property
    def buffers(self) -> list[Tensor]:
        """What a step changes in place."""
        return [self._column] if self._changes else []

    def _by_config(
        self, configs: Sequence[int], function: Callable[[Hyperparameters], T]
    ) -> dict[int, T]:
        """Return the results of a function by config, called once for equal schedules.

        Errors are attributed to their configs.
        """
        found, errors = dict[Any, T](), dict[int, BaseException]()
        keys = {config: _key(self._settings[config]) for config in configs}
        for config, key in keys.items():
            try:
                if key not in found:
                    found[key] = function(self._settings[config])
            except FAILURES as error:
                errors[config] = error
        if errors:
            raise_attributed(errors)
        return {config: found[key] for config, key in keys.items()}


def _key(h: Hyperparameters) -> tuple[Any, ...]:
    """Return what the factors of a config depend on; a callable by its identity."""
    schedule = id(h.lr_schedule) if callable(h.lr_schedule) else h.lr_schedule
    return schedule, h.warmup_steps, h.lr_final_factor
