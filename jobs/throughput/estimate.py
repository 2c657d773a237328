"""How long the tasks of a launch will take, and their cost, from measured speeds.

Estimates are upper bounds: thresholds may end a config early, and saved states spare their steps.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.jobs.plan import Plan, Range
from mlpsubmit.jobs.throughput.speeds import Speeds
from mlpsubmit.jobs.throughput.workload import Workloads

__all__ = ["Estimate", "estimate_tasks"]


@dataclass(frozen=True)
class Estimate:
    """How long the tasks of a launch will take at most.

    Attributes:
        seconds: (tasks,) of each task, from the start of its processes to the end of the last.
        startup: how much of that passes before its first pack, in seconds.
        max_concurrent: how many tasks run at once.
        workloads: the number of workloads to train.
        measured: how many of them were measured themselves; the others are scaled from those.
        source: the origin of the speeds, for people.
        device: the one that the speeds were measured on.
    """

    seconds: NDArray[np.float64] = field(repr=False)
    startup: float
    max_concurrent: int
    workloads: int
    measured: int
    source: str
    device: str = ""

    @property
    def wall_seconds(self) -> float:
        """Seconds until the last task ends, if as many as allowed run concurrently throughout.

        As soon as one ends the next one starts, in order, as under the executors.
        """
        ends = [0.0] * self.max_concurrent
        for seconds in self.seconds.tolist():
            heapq.heapreplace(ends, ends[0] + seconds)
        return max(ends)

    def hours(self, units: int) -> float:
        """Return the hours of all tasks together, each with ``units`` cores or GPUs."""
        return float(self.seconds.sum()) * units / 3600

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as ``launch --dry-run --json`` prints it."""
        return {
            "seconds": self.seconds.tolist(),
            "startup_seconds": self.startup,
            "wall_seconds": self.wall_seconds,
            "max_concurrent": self.max_concurrent,
            "workloads": self.workloads,
            "measured_workloads": self.measured,
            "source": self.source,
            "device": self.device or None,
        }


def estimate_tasks(
    plan: Plan,
    workloads: Workloads,
    slices: Sequence[Sequence[Range]],
    speeds: Speeds,
    max_concurrent: int,
    workers: int = 1,
    device: str = "",
) -> Estimate | None:
    """Return how long tasks will take; None if a pack is comparable to none that was measured.

    Args:
        slices: the packs of each worker, as ranges of pack numbers.
        max_concurrent: how many tasks run at once.
        workers: how many workers a task has, which train at the same time.
        device: the one of the speeds.
    """
    packs = [np.concatenate([np.arange(low, high) for low, high in ranges]) for ranges in slices]
    needed = np.unique(workloads.of_pack[np.concatenate(packs)]).tolist()
    step, setup = np.zeros(len(workloads.workloads)), np.zeros(len(workloads.workloads))
    measured = 0
    for index in needed:
        prediction = speeds.predict(workloads.workloads[index])
        if prediction is None:
            return None
        step[index], setup[index] = prediction.step, prediction.setup
        measured += prediction.exact
    per_config = (workloads.steps * step)[workloads.of_pack]
    per_pack = setup[workloads.of_pack] + plan.pack_sizes * per_config
    of_workers = np.array([per_pack[own].sum() for own in packs])
    of_tasks = np.maximum.reduceat(of_workers, np.arange(0, len(packs), workers))
    return Estimate(
        # Rounded here, once, so that all figures derived from it agree.
        seconds=np.round(speeds.startup + of_tasks, 3),
        startup=speeds.startup,
        max_concurrent=min(max_concurrent, len(of_tasks)),
        workloads=len(needed),
        measured=measured,
        source=speeds.source,
        device=device,
    )
