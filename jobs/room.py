"""Which packs train side by side on a GPU: as many as its memory holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mlpsubmit.jobs.pack_memory import usable
from mlpsubmit.jobs.plan import PackRange, Plan
from mlpsubmit.spec.hyperparameters import OPTIMIZERS
from mlpsubmit.spec.sweep import Sweep

__all__ = ["Room"]

#: Packs side by side at most. On an H100, eight packs of three configs each filled the time of one
#: and a half; the CPU, which queues the steps of all, has no more to spare.
MOST_SIDE_BY_SIDE = 8


@dataclass(frozen=True)
class Room:
    """The memory of a task's device.

    Attributes:
        memory: bytes for all packs together.
        most: packs at most.
    """

    sweep: Sweep
    plan: Plan
    memory: float
    most: int

    @classmethod
    def of(cls, device: torch.device, sweep: Sweep, plan: Plan) -> Room:
        """Return what is free now. On a CPU packs train one at a time: they share its cores."""
        if device.type != "cuda":
            return cls(sweep, plan, 0.0, 1)
        return cls(sweep, plan, usable(torch.cuda.mem_get_info(device)[0]), MOST_SIDE_BY_SIDE)

    def fits_beside(self, pack: PackRange, others: Sequence[PackRange]) -> bool:
        """Return whether a pack should start while others train; the first one always does."""
        if not others:
            return True
        if len(others) >= self.most or not all(map(self._takes_turns, (pack, *others))):
            return False
        needed = sum(float(self.plan.pack_bytes[one.number]) for one in (pack, *others))
        return needed <= self.memory

    def _takes_turns(self, pack: PackRange) -> bool:
        """Return whether others may train between its steps.

        Optimizers of torch.optim may draw from the global generators; a compiled model, or steps
        that are made one by one, keep the CPU busy.
        """
        first = self.sweep.config(int(self.plan.indices(pack)[0])).hyperparameters
        return first.optimizer in OPTIMIZERS and first.compile == "auto"
