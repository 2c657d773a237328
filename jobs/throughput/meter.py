"""How fast a task trains: lately, in all, and with each kind of pack."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlpsubmit.jobs.throughput.speeds import Speed
from mlpsubmit.jobs.throughput.workload import Workload

__all__ = ["ThroughputMeter"]

#: Seconds that the speed in a heartbeat looks back on.
RECENT_SECONDS = 10.0

#: Kinds of packs whose speeds a heartbeat keeps: it is written every few seconds.
KEPT_KINDS = 64


@dataclass(frozen=True)
class _Mark:
    """What had been made at some time."""

    at: float
    steps: int
    ideal: float


@dataclass
class _Computed:
    """Model-steps of whole stacks, and the seconds that they took."""

    steps: int = 0
    seconds: float = 0.0

    def add(self, steps: int, seconds: float) -> None:
        self.steps += steps
        self.seconds += seconds

    @property
    def per_step(self) -> float:
        return self.seconds / self.steps if self.steps else 0.0


class ThroughputMeter:
    """Counts the model-steps of one life of a task, and the time that they take.

    Time that does not pass between :meth:`trains` and :meth:`rests` counts as beside the training.

    Args:
        clock: returns seconds.

    Attributes:
        model_steps: gradient steps of single networks so far.
        ideal: seconds in which the device would make them if it did nothing but their matrix
            products, at the rate of large ones; None once that is not known of some.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.model_steps = 0
        self.ideal: float | None = 0.0
        self._step_ideal: float | None = None
        self._recent = deque([_Mark(clock(), 0, 0.0)])
        self._since, self._training = clock(), False
        self._at_begin = 0
        self._beside = 0.0
        self._looked, self._fresh = clock(), True
        self._first, self._later = _Computed(), _Computed()
        self._speeds: dict[Workload, Speed] = {}

    def trains(self, step_ideal: float | None) -> None:
        """Note that a stack begins to train.

        Args:
            step_ideal: seconds in which the device could make one model-step of it, or None.
        """
        self._switch(training=True)
        self._looked, self._fresh = self._since, True
        self._step_ideal, self._at_begin = step_ideal, self.model_steps

    def made(self, steps: int) -> None:
        """Note how many model-steps the stack has made since it began to train."""
        fresh = self._at_begin + steps - self.model_steps
        self.model_steps += fresh
        if self._step_ideal is None or self.ideal is None:
            self.ideal = None
        else:
            self.ideal += fresh * self._step_ideal
        self._recent.append(_Mark(self._clock(), self.model_steps, self.ideal or 0.0))
        while self._recent[-1].at - self._recent[1].at >= RECENT_SECONDS:
            self._recent.popleft()

    def computed(self, steps: int, *, whole: bool) -> None:
        """Note what the device has computed since the last time, or since the stack began.

        Args:
            steps: model-steps, those of configs that have stopped but are still in the stack
                included: they take as long.
            whole: whether the stack had its full size.
        """
        now = self._clock()
        if whole:
            (self._first if self._fresh else self._later).add(steps, now - self._looked)
        self._looked, self._fresh = now, False

    def rests(self) -> None:
        """Note that the stack has come to its end, or the task to that of its training."""
        self._switch(training=False)

    def finished(self, kind: Workload) -> None:
        """Note that a pack has a result: what went before since the last one was its.

        Its speed is that of whole stacks: how fast smaller ones are says little of them. What the
        first steps took longer than others, a compilation for one, counts as beside the training.
        """
        self._switch(training=False)
        setup, usual = self._beside, self._later if self._later.steps else self._first
        setup += max(0.0, self._first.seconds - self._first.steps * usual.per_step)
        speed = Speed(kind, 1, usual.steps, usual.seconds, setup)
        if kind in self._speeds or len(self._speeds) < KEPT_KINDS:
            earlier = self._speeds.get(kind)
            self._speeds[kind] = speed if earlier is None else earlier + speed
        self.discard()

    def discard(self) -> None:
        """Forget the time of a pack that has no result."""
        self._switch(training=False)
        self._beside = 0.0
        self._first, self._later = _Computed(), _Computed()

    def fields(self) -> dict[str, Any]:
        """Return what a heartbeat says of it: the speed now, and the sums so far."""
        first, last = self._recent[0], self._recent[-1]
        seconds = last.at - first.at
        speed = (last.steps - first.steps) / seconds if seconds > 0 else 0.0
        share = (last.ideal - first.ideal) / seconds if seconds > 0 else 0.0
        return {
            "speed": max(0.0, speed),  # below 0 where less was made than had been guessed
            "matmul_utilization": None if self.ideal is None else max(0.0, share),
            "model_steps": self.model_steps,
            "ideal_seconds": self.ideal,
        }

    def speeds(self) -> list[dict[str, Any]]:
        """Return what a heartbeat says of the kinds of packs that have finished."""
        return [speed.to_json() for speed in self._speeds.values()]

    def _switch(self, *, training: bool) -> None:
        now = self._clock()
        if not self._training:
            self._beside += now - self._since
        self._since, self._training = now, training
