"""The time that a pack takes to train, measured by training it for a short while."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mlpsubmit.assembly.assemble import StackInputs, assemble, named_grabs
from mlpsubmit.assembly.probe import SMOKE_TEST_STEPS, smoke_test_grabs
from mlpsubmit.jobs.throughput.roofline import wait_for
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.comparison import StackingError
from mlpsubmit.training.monitor import Monitor
from mlpsubmit.training.oom import ran_out_of_memory, release_memory
from mlpsubmit.training.result import Array
from mlpsubmit.training.schedules import Schedule

__all__ = ["time_pack"]

#: Steps at most between two evaluations of the test set, and between two calls of the grabs: a
#: short while should have several. Their cost is then counted as often as the sweep schedules them.
EVAL_EVERY, GRAB_EVERY = 4, 6

#: How many times longer than asked to go on at most, until evaluations and grabs have been seen
#: after the first step too.
PATIENCE = 4

#: The part of the time that counts as warm-up.
WARM_UP = 0.2

#: Seconds between two measurements, each of which synchronises with the GPU.
MEASURE_SECONDS = 0.1

Entries = Callable[[Config], Mapping[str, Any]]


def time_pack(
    sweep: Sweep,
    configs: Sequence[Config],
    entries: Entries,
    device: torch.device,
    seconds: float,
) -> tuple[float, float]:
    """Train a pack for a short while, and return how fast that was.

    Args:
        configs: of the pack. If they do not fit in memory together, half of them train, as in a
            task.
        entries: returns the entries of the data function for a config.
        seconds: how long to train after the first step, which may include a compilation; longer
            if evaluations or grabs have not been seen by then. A step is always completed.

    Returns:
        Seconds per model-step, including evaluations and grabs, and seconds besides all steps.
    """
    while True:
        try:
            return _time_pack(sweep, configs, entries, device, seconds)
        except StackingError:  # its configs will train one by one, or nearly so
            configs = configs[:1]
            continue
        except Exception as error:
            if len(configs) == 1 or not ran_out_of_memory(error):
                raise
        release_memory()
        configs = configs[: (len(configs) + 1) // 2]


def _time_pack(
    sweep: Sweep,
    configs: Sequence[Config],
    entries: Entries,
    device: torch.device,
    seconds: float,
) -> tuple[float, float]:
    begun = time.perf_counter()
    own = [entries(config) for config in configs]
    data_end = time.perf_counter()
    smoke_test_grabs(sweep, configs[0], own[0], device)
    smoke_test = time.perf_counter() - data_end
    stacks = assemble(sweep, list(map(_frequent, configs)), own, device)
    setup = time.perf_counter() - begun + smoke_test * _final_calls(sweep, configs)
    step = 0.0
    for stack in stacks:
        h = configs[stack.rows[0]].hyperparameters
        stack_step, stack_setup = _time_stack(stack, h, device, seconds / len(stacks))
        step += stack_step / len(configs)
        setup += stack_setup
    return step, setup


def _final_calls(sweep: Sweep, configs: Sequence[Config]) -> int:
    """Return how often all grabs are called at the end, each time for as long as a smoke test."""
    h = configs[0].hyperparameters
    tested = h.onlythresholds and h.max_iter >= SMOKE_TEST_STEPS and named_grabs(sweep)
    return len(configs) if tested else 0


def _frequent(config: Config) -> Config:
    """Return a config that stops at no threshold, with frequent evaluations and grabs."""
    h = config.hyperparameters
    return config.replaced(
        loss_checkpoints=(),
        percent_thresholds=None,
        eval_every=None if h.test_every is None else _at_most(h.test_every, EVAL_EVERY),
        grab_every=_at_most(h.grab_every, GRAB_EVERY),
    )


def _at_most(every: int | str, most: int) -> int:
    return most if isinstance(every, str) else min(every, most)


def _time_stack(
    stack: StackInputs, h: Hyperparameters, device: torch.device, seconds: float
) -> tuple[float, float]:
    """Return seconds per step of a whole stack, and seconds besides its steps.

    Args:
        h: the sweep's own hyperparameters of the configs.
    """
    watch = _Stopwatch(stack, device, seconds)
    with contextlib.suppress(_Enough):
        stack.train(watch)
    plain, evaluation, grabs = watch.costs()
    step = plain + evaluation * Schedule(h.test_every, h.max_iter).count / h.max_iter
    if not h.onlythresholds:
        step += grabs * Schedule(h.grab_every, h.max_iter).count / h.max_iter
    return step, max(0.0, watch.until_first - step)


class _Enough(Exception):
    """Ends a training that has been timed."""


class _Stopwatch(Monitor):
    """Times steps; those with evaluations or grabs one by one, the others several at a time.

    Attributes:
        until_first: seconds from the start of the training to the end of its first step.
    """

    def __init__(self, stack: StackInputs, device: torch.device, seconds: float) -> None:
        h = stack.hyperparameters[0]
        self._rare = (
            Schedule(h.test_every, h.max_iter),
            Schedule(h.grab_every if stack.grabs and not h.onlythresholds else None, h.max_iter),
        )
        self._device, self._seconds = device, seconds
        self._step = 0
        self._counts = np.zeros(3)  # steps, evaluations of the test set, calls of all grabs
        #: A row per interval between two measurements: its counts, how long it took, and its start,
        #: both in seconds; the start is relative to the end of the first step.
        self._intervals: list[list[float]] = []
        self.until_first = 0.0

    def restore(self) -> None:
        """Start the watch."""
        self._since = time.perf_counter()

    def due(self, step: int) -> bool:
        """Count steps, which end with a scheduled one if they have any; never request the state."""
        self._counts += [step + 1 - self._step, *self._scheduled(step)]
        self._step = step + 1
        rare = self._counts[1:].any() or any(self._scheduled(self._step))
        if step == 0 or rare or time.perf_counter() - self._since > MEASURE_SECONDS:
            self._measure()
        return False

    def _scheduled(self, step: int) -> list[bool]:
        return [step in schedule for schedule in self._rare]

    def _measure(self) -> None:
        wait_for(self._device)
        now = time.perf_counter()
        taken = now - self._since
        if not self._intervals:
            self.until_first, self._first_end = taken, now
        self._intervals.append([*self._counts, taken, self._since - self._first_end])
        self._counts, self._since = np.zeros(3), now
        seen = _occurred(self._intervals[1:]) >= _occurred(self._intervals)
        if now - self._first_end > self._seconds * (1 if seen.all() else PATIENCE):
            raise _Enough

    def costs(self) -> tuple[float, float, float]:
        """Return the seconds of a step by itself, of an evaluation, and of a call of all grabs.

        Warm-up steps count only for what did not occur later.
        """
        if not self._intervals:
            return 0.0, 0.0, 0.0
        every, later = self._intervals, self._intervals[1:]
        warm = [interval for interval in every if interval[4] >= WARM_UP * self._seconds]
        enough = (some for some in (warm, later) if (_occurred(some) == _occurred(every)).all())
        used = np.array(next(enough, every))
        costs: Array = np.linalg.lstsq(used[:, :3], used[:, 3], rcond=None)[0].clip(min=0.0)
        plain, evaluation, grabs = costs.tolist()
        return plain, evaluation, grabs


def _occurred(intervals: Sequence[Sequence[float]]) -> Array:
    """Return (3,) bool, whether there were steps, evaluations and calls of grabs."""
    return np.asarray(np.array(intervals).reshape(-1, 5)[:, :3].any(axis=0))
