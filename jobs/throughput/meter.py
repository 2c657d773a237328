"""The throughput of a task: recently, in total, and for each workload."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlpsubmit.jobs.throughput.speeds import Speed
from mlpsubmit.jobs.throughput.workload import Workload

__all__ = ["PackMeter", "ThroughputMeter"]

#: The speed in a heartbeat is the mean over these seconds.
RECENT_SECONDS = 10.0

#: Workloads whose speeds a heartbeat keeps at most, as it is written every few seconds.
KEPT_WORKLOADS = 64


@dataclass(frozen=True)
class _Sample:
    """The totals at some time."""

    at: float
    steps: int
    ideal: float


@dataclass
class _Block:
    """Model-steps of stacks of full size, and the seconds that they took."""

    steps: int = 0
    seconds: float = 0.0

    def add(self, steps: int, seconds: float) -> None:
        self.steps += steps
        self.seconds += seconds


class ThroughputMeter:
    """Counts the model-steps of one attempt of a task, and the time that they take.

    Args:
        clock: returns seconds.

    Attributes:
        model_steps: gradient steps so far, summed over models.
        ideal_seconds: how long their matrix products alone would take at the device's measured
            matmul rate; None once that is unknown for some.
        packs: in training now.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.packs = clock, 0
        self.model_steps = 0
        self.ideal_seconds: float | None = 0.0
        self._recent = deque([_Sample(clock(), 0, 0.0)])
        self._speeds: dict[Workload, Speed] = {}
        #: When the last pack ended, or the task began.
        self._last_end = clock()

    def begin_pack(self) -> PackMeter:
        """Return a meter for the next pack: it also counts the time since the last one ended."""
        self.packs += 1
        return PackMeter(self, self.clock() if self.packs > 1 else self._last_end)

    def end_pack(self, workload: Workload | None, speed: Speed | None) -> None:
        """Keep the speed of a pack; None for one that has no result."""
        self.packs, self._last_end = self.packs - 1, self.clock()
        if workload is None or speed is None:
            return
        if workload in self._speeds:
            self._speeds[workload] += speed
        elif len(self._speeds) < KEPT_WORKLOADS:
            self._speeds[workload] = speed

    def add(self, steps: int, step_ideal: float | None) -> None:
        """Add model-steps, and their ideal seconds each; fewer than none correct a guess."""
        self.model_steps += steps
        if step_ideal is None or self.ideal_seconds is None:
            self.ideal_seconds = None
        else:
            self.ideal_seconds += steps * step_ideal
        self._recent.append(_Sample(self.clock(), self.model_steps, self.ideal_seconds or 0.0))
        while self._recent[-1].at - self._recent[1].at >= RECENT_SECONDS:
            self._recent.popleft()

    def fields(self) -> dict[str, Any]:
        """Return its heartbeat fields: the recent speed, and the totals."""
        first, last = self._recent[0], self._recent[-1]
        seconds = last.at - first.at
        speed = (last.steps - first.steps) / seconds if seconds > 0 else 0.0
        utilization = (last.ideal - first.ideal) / seconds if seconds > 0 else 0.0
        return {
            "speed": max(0.0, speed),  # negative after a guess that was too high
            "matmul_utilization": None if self.ideal_seconds is None else max(0.0, utilization),
            "model_steps": self.model_steps,
            "ideal_seconds": self.ideal_seconds,
        }

    def speeds(self) -> list[dict[str, Any]]:
        """Return the speeds of the finished packs' workloads, as a heartbeat stores them."""
        return [speed.to_json() for speed in self._speeds.values()]


class PackMeter:
    """Counts the model-steps of one pack; get one from :meth:`ThroughputMeter.begin_pack`.

    All time outside of :meth:`start` and :meth:`stop` counts as setup. Of packs that train side by
    side each gets an equal share of the time, so that their seconds add up to those of the task.

    Args:
        task: to add to.
        since: when the pack began.
    """

    def __init__(self, task: ThroughputMeter, since: float) -> None:
        self._task = task
        self._step_ideal: float | None = None
        self._since, self._running = since, False
        #: Model-steps since the start.
        self._steps = 0
        self._setup = 0.0
        self._last_record, self._is_first = since, True
        self._first, self._later = _Block(), _Block()

    def start(self, step_ideal: float | None) -> None:
        """Start the time of a stack's training.

        Args:
            step_ideal: ideal seconds of one of its model-steps, or None if unknown.
        """
        self._switch(running=True)
        self._last_record, self._is_first = self._since, True
        self._step_ideal, self._steps = step_ideal, 0

    def update(self, steps: int) -> None:
        """Set the number of model-steps since :meth:`start`; it may correct an earlier guess."""
        self._task.add(steps - self._steps, self._step_ideal)
        self._steps = steps

    def record(self, steps: int, *, full_size: bool) -> None:
        """Record the steps that the device has computed since the last record or the start.

        Args:
            steps: model-steps, including finished configs that are still in the stack: their
                steps take as long.
            full_size: whether the stack had not shrunk.
        """
        now = self._task.clock()
        if full_size:
            seconds = (now - self._last_record) / self._task.packs
            (self._first if self._is_first else self._later).add(steps, seconds)
        self._last_record, self._is_first = now, False

    def stop(self) -> None:
        """Stop the time of a stack's training."""
        self._switch(running=False)

    def finish(self, workload: Workload) -> None:
        """End a pack that has a result.

        Its speed is that of stacks of full size; that of smaller ones is not representative. If its
        first block of steps took longer than the others, by compiling for example, the difference
        counts as setup.
        """
        self._switch(running=False)
        usual = self._later if self._later.steps else self._first
        step = usual.seconds / usual.steps if usual.steps else 0.0
        setup = self._setup + max(0.0, self._first.seconds - self._first.steps * step)
        self._task.end_pack(workload, Speed(workload, 1, usual.steps, usual.seconds, setup))

    def discard(self) -> None:
        """End a pack that has no result: its steps are not representative."""
        self._task.end_pack(None, None)

    def fields(self) -> dict[str, Any]:
        """Return the heartbeat fields of the task."""
        return self._task.fields()

    def _switch(self, *, running: bool) -> None:
        now = self._task.clock()
        if not self._running:
            self._setup += (now - self._since) / self._task.packs
        self._since, self._running = now, running
