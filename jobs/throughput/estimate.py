"""How long the tasks of a launch will take, and what they will cost, by speeds that were measured.

All of it is at most: thresholds may end a config early, and saved states spare what they hold.
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
from mlpsubmit.jobs.throughput.workload import Kinds

__all__ = ["Estimate", "estimated"]


@dataclass(frozen=True)
class Estimate:
    """What the tasks of a launch will take at most.

    Attributes:
        seconds: (tasks,) of each task, from the start of its process to its end.
        startup: what of that goes by before its first pack, in seconds.
        max_concurrent: how many tasks run at once.
        kinds: how many kinds of packs are to train.
        measured: how many of them were measured as they are; the others are scaled from those.
        source: where the speeds come from, for people.
    """

    seconds: NDArray[np.float64] = field(repr=False)
    startup: float
    max_concurrent: int
    kinds: int
    measured: int
    source: str

    @property
    def wall_seconds(self) -> float:
        """Seconds until the last task ends, if as many as may do run side by side throughout.

        Each place takes the next task in order, as executors do.
        """
        ends = [0.0] * self.max_concurrent
        for seconds in self.seconds.tolist():
            heapq.heapreplace(ends, ends[0] + seconds)
        return max(ends)

    def hours(self, units: int) -> float:
        """Return the hours of all tasks together, each counted for so many cores or GPUs."""
        return float(self.seconds.sum()) * units / 3600

    def to_json(self) -> dict[str, Any]:
        """Return what ``launch --dry-run --json`` prints of it."""
        return {
            "seconds": self.seconds.tolist(),
            "startup_seconds": self.startup,
            "wall_seconds": self.wall_seconds,
            "max_concurrent": self.max_concurrent,
            "kinds": self.kinds,
            "measured_kinds": self.measured,
            "source": self.source,
        }


def estimated(
    plan: Plan,
    kinds: Kinds,
    slices: Sequence[Sequence[Range]],
    speeds: Speeds,
    max_concurrent: int,
) -> Estimate | None:
    """Return what tasks will take; None where speeds tell nothing of one of their packs.

    Args:
        slices: the packs of each task, as ranges of their numbers.
    """
    packs = [np.concatenate([np.arange(low, high) for low, high in ranges]) for ranges in slices]
    needed = np.unique(kinds.which[np.concatenate(packs)])
    reckoned = {place: speeds.of(kinds.kinds[place]) for place in needed.tolist()}
    step, setup = np.zeros(len(kinds.kinds)), np.zeros(len(kinds.kinds))
    for place, one in reckoned.items():
        if one is None:
            return None
        step[place], setup[place] = one.step, one.setup
    per_pack = setup[kinds.which] + plan.pack_sizes * (kinds.steps * step)[kinds.which]
    return Estimate(
        # Rounded here, once: whatever is said of them agrees.
        seconds=np.round(speeds.startup + np.array([per_pack[own].sum() for own in packs]), 3),
        startup=speeds.startup,
        max_concurrent=min(max_concurrent, len(slices)),
        kinds=len(reckoned),
        measured=sum(one is not None and one.exact for one in reckoned.values()),
        source=speeds.source,
    )
