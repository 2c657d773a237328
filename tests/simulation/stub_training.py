"""The sweep of the simulation, and what is in the place of its training.

A config's result is a number that depends on every step of its training, so that a step that is
left out, repeated or made on another state gives another number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from virtual_time import Process, World, current

from mlpsubmit import Sweep
from mlpsubmit.protocol import DONE
from mlpsubmit.spec.process import ProcessSettings
from mlpsubmit.spec.sweep import Config
from mlpsubmit.training.monitor import STATE_FORMAT, Monitor, Progress
from mlpsubmit.training.result import Trained

__all__ = ["STEPS", "Registry", "expected", "stub_assemble", "the_sweep"]

STEPS = 8


def the_sweep() -> Sweep:
    """Return twelve configs in six packs."""

    def entries(gen: Any) -> dict[str, Any]:
        return {"weights": torch.rand(4, generator=gen)}

    def batches(weights: Any, bsz: int, gen: Any, X: Any = None, y: Any = None) -> Any:
        raise AssertionError("the stub trains without batches")

    sweep = Sweep(
        "study",
        axes={"WIDTH": [4, 8, 16], "trial": range(4)},
        data=entries,
        batchfn=batches,
        MAX_ITER=STEPS,
        LOSS_CHECKPOINTS=[0.5],
        PACK_SIZE=2,
        CHECKPOINT_MINUTES=0.5,
    )
    return sweep.in_process(ProcessSettings.of_this_process())


def _begun(index: int) -> int:
    return (index + 1) * 0x9E3779B97F4A7C15 % (1 << 48)


def _step(value: int, step: int) -> int:
    return (value * 0x5DEECE66D + 11 + step) % (1 << 48)


def expected(index: int) -> float:
    """Return the result of a config that trains without interruption."""
    value = _begun(index)
    for step in range(STEPS):
        value = _step(value, step)
    return float(value)


class Registry:
    """Which process trains which config, over a whole schedule.

    Attributes:
        twice: descriptions of configs that two processes trained at the same time.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.twice: list[str] = []
        self._training: dict[int, Process] = {}

    def enter(self, indices: Sequence[int]) -> None:
        """Note that the current process trains configs."""
        process = current()
        assert process is not None
        for index in indices:
            other = self._training.get(index)
            if other is not None and other is not process and other.alive:
                self.twice.append(
                    f"config {index} trains in {other.name} and {process.name} at the same time"
                )
            self._training[index] = process

    def leave(self, indices: Sequence[int]) -> None:
        process = current()
        for index in indices:
            if self._training.get(index) is process:
                del self._training[index]


@dataclass
class StubStack:
    """In the place of :class:`mlpsubmit.assembly.assemble.StackInputs`."""

    registry: Registry
    configs: Sequence[Config]
    reason: str = ""

    @property
    def rows(self) -> list[int]:
        return list(range(len(self.configs)))

    @property
    def hyperparameters(self) -> list[Any]:
        return [config.hyperparameters for config in self.configs]

    @property
    def trials(self) -> list[int]:
        return [config.trial for config in self.configs]

    def train(self, monitor: Monitor) -> Trained:
        """Make the steps, each of which takes a while, from the saved state on."""
        indices = [config.index for config in self.configs]
        state, count = monitor.restore(), len(indices)
        values = [_begun(index) for index in indices]
        start = 0
        if state is not None:
            start, values = int(state["start"]), state["values"].tolist()
        try:
            for step in range(start, STEPS):
                self.registry.enter(indices)
                time.sleep(self.registry.world.random.uniform(2, 25))
                values = [_step(value, step) for value in values]
                if monitor.due(step):
                    monitor.save(_state(step + 1, values))
                if step % 3 == 2:
                    losses = np.array(values, dtype=np.float64)
                    made = (step + 1) * count
                    monitor.progress(Progress(step + 1, made, STEPS, count, count, 0, losses))
        finally:
            self.registry.leave(indices)
        none = np.zeros(0, np.int64)
        return Trained(
            np.full(count, DONE, np.uint8),
            np.full(count, STEPS),
            np.full((count, 1), -1),
            np.array(values, dtype=np.float64),
            np.full(count, np.nan),
            *(none, none, none),
        )


def _state(start: int, values: Sequence[int]) -> dict[str, Any]:
    return {
        "format": STATE_FORMAT,
        "start": start,
        "values": torch.tensor(values),
        "parts": {
            "history": {"status": torch.zeros(len(values))},
            "stack": {"configs": list(range(len(values)))},
        },
    }


def stub_assemble(registry: Callable[[], Registry]) -> Callable[..., list[StubStack]]:
    """Return what is in the place of :func:`mlpsubmit.assembly.assemble.assemble`."""

    def assemble(
        sweep: Sweep, configs: Sequence[Config], entries: Sequence[Mapping[str, Any]], *_: Any
    ) -> list[StubStack]:
        assert all("weights" in entry for entry in entries)
        return [StubStack(registry(), configs)]

    return assemble
