"""Packs to measure on a GPU: their speed in the steady state, and how steps are made."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from workload import DEVICE, Workload

from mlpsubmit.jobs.pack_memory import fitting
from mlpsubmit.training import Monitor, Progress
from mlpsubmit.training.accel import replay

__all__ = ["BLOCK", "GPU", "TRIALS", "BlockTimes", "fitting_configs", "planned", "speed", "steps"]

GPU = DEVICE.type == "cuda"
BLOCK = 64
#: Different batches and initial weights of a pack: its other configs differ in LR or GAMMA, say.
TRIALS = 8


class BlockTimes(Monitor):
    """Records when each block of steps has ended on the device, and the model-steps until then."""

    def __init__(self) -> None:
        self._begun = 0.0
        self.ends: list[float] = []
        self.made: list[int] = []

    def restore(self) -> None:
        """Record the start: nothing is restored."""
        self._begun = time.perf_counter()

    @property
    def first_block(self) -> float:
        """The seconds until the first block has ended."""
        return self.ends[0] - self._begun

    def progress(self, progress: Progress) -> None:
        """Record a block; the loop has just read its losses back."""
        self.ends.append(time.perf_counter())
        self.made.append(progress.made)

    def steady_speed(self, skipped: int = 2) -> float:
        """Return the model-steps per second after the first blocks, which record the step."""
        return (self.made[-1] - self.made[skipped - 1]) / (self.ends[-1] - self.ends[skipped - 1])


def speed(pack: Workload, blocks: int, settings: Mapping[str, Any] | None = None) -> float:
    """Return the model-steps per second of a pack in the steady state."""
    times = BlockTimes()
    pack.train((blocks + 2) * BLOCK, settings or {}, monitor=times)
    return times.steady_speed()


def fitting_configs(width: int, batch: int = 256, d: int = 32) -> int:
    """Return how many configs a pack would have on this device."""
    free = torch.cuda.mem_get_info()[0] if GPU else 3 << 30
    weights = np.array([float(width * (d + width + 1))])
    most = int(fitting(free, weights, planned(Workload(width, 1, batch, d)))[0])
    return most if GPU else min(most, 2)


def planned(pack: Workload) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Return the settings, each (1,), from which the memory of such a pack is estimated."""
    names = {"d": pack.d, "width": pack.width, "depth": 2, "n_samples": pack.batch}
    names |= {"n_test": pack.test_rows, "online": int(not pack.test_rows), "precision": 4}
    return {name: np.array([float(value)]) for name, value in names.items()}


@contextlib.contextmanager
def steps(*, replayed: bool, largest: int = 1 << 62) -> Iterator[None]:
    """Replay every step, or none, within the context; under COMPILE="auto".

    Args:
        largest: weights of a stack up to which steps are replayed.
    """
    before = replay.WORTHWHILE_STEPS, replay.LARGEST_RECORDED
    limits = (0, largest) if replayed else (1 << 62, 0)
    replay.WORTHWHILE_STEPS, replay.LARGEST_RECORDED = limits
    try:
        yield
    finally:
        replay.WORTHWHILE_STEPS, replay.LARGEST_RECORDED = before
