"""How long a pack takes to train, found out by training it for a short while."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mlpsubmit.assembly.assemble import StackInputs, assemble, named_grabs
from mlpsubmit.assembly.probe import SMOKE_TEST_STEPS, smoke_test_grabs
from mlpsubmit.jobs.throughput.roofline import wait_for
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.monitor import SilentMonitor
from mlpsubmit.training.oom import ran_out_of_memory, release_memory
from mlpsubmit.training.result import Array
from mlpsubmit.training.schedules import Schedule

__all__ = ["timed"]

#: Steps at most from one evaluation of the test set, and from one call of the grabs, to the next:
#: a short while must see several. What they cost is then counted as often as they come in earnest.
EVAL_EVERY, GRAB_EVERY = 4, 6

#: How many times as long as asked to go on at most, for what has only been seen in the first step.
PATIENCE = 4

#: The part of the time whose steps warm up what the others use.
WARMING_UP = 0.2

#: Seconds between two looks at a GPU, which each make it wait for the next step.
LOOK_SECONDS = 0.1

Entries = Callable[[Config], Mapping[str, Any]]


def timed(
    sweep: Sweep,
    configs: Sequence[Config],
    entries: Entries,
    device: torch.device,
    seconds: float,
) -> tuple[float, float]:
    """Train a pack for a short while.

    Args:
        configs: of the pack. Where they do not fit into the memory together, half of them train, as
            a task does it.
        entries: returns what the data function gives for a config.
        seconds: how long to train after the first step, which may hold a compilation; longer
            where that has only shown rare steps by then. A step is never broken off.

    Returns:
        Seconds per model-step, evaluations and grabs included, and seconds beside all steps.
    """
    while True:
        try:
            return _timed(sweep, configs, entries, device, seconds)
        except Exception as error:
            if len(configs) == 1 or not ran_out_of_memory(error):
                raise
        release_memory()
        configs = configs[: (len(configs) + 1) // 2]


def _timed(
    sweep: Sweep,
    configs: Sequence[Config],
    entries: Entries,
    device: torch.device,
    seconds: float,
) -> tuple[float, float]:
    begun = time.perf_counter()
    own = [entries(config) for config in configs]
    setup, begun = time.perf_counter() - begun, time.perf_counter()
    smoke_test_grabs(sweep, configs[0], own[0], device)
    rehearsal = time.perf_counter() - begun
    setup += rehearsal * (1 + _final_grabs(sweep, configs))
    begun = time.perf_counter()
    stacks = assemble(sweep, list(map(_thinned, configs)), own, device)
    setup += time.perf_counter() - begun
    step = 0.0
    for stack in stacks:
        h = configs[stack.rows[0]].hyperparameters
        stack_step, stack_setup = _stack_timed(stack, h, device, seconds / len(stacks))
        step += stack_step / len(configs)
        setup += stack_setup
    return step, setup


def _final_grabs(sweep: Sweep, configs: Sequence[Config]) -> int:
    """Return how often all grabs are called at the end, each time for as long as a rehearsal."""
    h = configs[0].hyperparameters
    rehearsed = h.onlythresholds and h.max_iter >= SMOKE_TEST_STEPS and named_grabs(sweep)
    return len(configs) if rehearsed else 0


def _thinned(config: Config) -> Config:
    """Return a config that stops at no threshold, and whose rare steps come often."""
    h = config.hyperparameters
    return config.replaced(
        loss_checkpoints=(),
        percent_thresholds=None,
        eval_every=_at_most(h.eval_every, EVAL_EVERY),
        grab_every=_at_most(h.grab_every, GRAB_EVERY),
    )


def _at_most(every: int | str, most: int) -> int:
    return most if isinstance(every, str) else min(every, most)


def _stack_timed(
    stack: StackInputs, h: Hyperparameters, device: torch.device, seconds: float
) -> tuple[float, float]:
    """Return seconds per step of a whole stack, and seconds beside its steps.

    Args:
        h: as the configs train in earnest.
    """
    watch = _Stopwatch(stack, device, seconds)
    with contextlib.suppress(_Enough):
        stack.train(watch)
    plain, evaluation, grabs = watch.costs()
    step = plain
    if not h.online:
        step += evaluation * Schedule(h.eval_every, h.max_iter).count / h.max_iter
    if not h.onlythresholds:
        step += grabs * Schedule(h.grab_every, h.max_iter).count / h.max_iter
    return step, max(0.0, watch.until_first - step)


class _Enough(Exception):
    """Ends a training that has been timed."""


@dataclass(frozen=True)
class _Row:
    """What happened between two looks at the clock.

    Attributes:
        counts: (3,), how many steps, evaluations of the test set and calls of all grabs.
        seconds: how long that took.
        began: seconds from the end of the first step to its beginning; the first step's is below 0.
    """

    counts: Array
    seconds: float
    began: float


class _Stopwatch(SilentMonitor):
    """Takes the time of steps, a few at a time where nothing rare happens in them.

    Attributes:
        until_first: seconds from the beginning of the training to the end of its first step.
    """

    def __init__(self, stack: StackInputs, device: torch.device, seconds: float) -> None:
        h = stack.hyperparameters[0]
        self._rare = (
            Schedule(h.eval_every, h.max_iter if not h.online else 0),
            Schedule(h.grab_every, h.max_iter if stack.grabs and not h.onlythresholds else 0),
        )
        self._device, self._seconds = device, seconds
        self._step = 0
        self._counts = np.zeros(3)
        self._rows: list[_Row] = []
        self.until_first = 0.0

    def restore(self) -> None:
        """Start the watch."""
        self._begun = self._since = time.perf_counter()

    def due(self) -> bool:
        """Take note of a step; never ask for the state."""
        self._counts += [1, *self._happening(self._step)]
        self._step += 1
        rare = self._counts[1:].any() or any(self._happening(self._step))
        if self._step == 1 or rare or time.perf_counter() - self._since > LOOK_SECONDS:
            self._look()
        return False

    def _happening(self, step: int) -> list[bool]:
        return [step in schedule for schedule in self._rare]

    def _look(self) -> None:
        wait_for(self._device)
        now = time.perf_counter()
        if not self._rows:
            self.until_first = now - self._begun
        passed = now - self._begun - self.until_first
        taken = now - self._since
        self._rows.append(_Row(self._counts, taken, passed - taken))
        self._counts, self._since = np.zeros(3), now
        seen = _happened(self._rows[1:]) >= _happened(self._rows)
        if passed > self._seconds * (1 if seen.all() else PATIENCE):
            raise _Enough

    def costs(self) -> tuple[float, float, float]:
        """Return the seconds of a step by itself, of an evaluation, and of a call of all grabs.

        The first steps, which set things up, count only for what was not seen later.
        """
        if not self._rows:
            return 0.0, 0.0, 0.0
        warm = [row for row in self._rows if row.began >= WARMING_UP * self._seconds]
        happened, later = _happened(self._rows), self._rows[1:]
        rows = next(
            (rows for rows in (warm, later) if (_happened(rows) == happened).all()), self._rows
        )
        counts, seconds = np.stack([r.counts for r in rows]), np.array([r.seconds for r in rows])
        costs: Array = np.linalg.lstsq(counts, seconds, rcond=None)[0].clip(min=0.0)
        plain, evaluation, grabs = costs.tolist()
        return plain, evaluation, grabs


def _happened(rows: Sequence[_Row]) -> Array:
    """Return (3,) bool, whether there were steps, evaluations and calls of grabs."""
    return np.asarray(np.sum([row.counts for row in rows], axis=0) > np.zeros(3))
