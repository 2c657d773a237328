"""A pack of networks on an easy task, and a stopwatch: used by the single-process benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mlpsubmit.batchfns import randn
from mlpsubmit.training import MLP, Monitor, Progress, Trained, streams, train
from mlpsubmit.training.batches import BatchFn

__all__ = ["DEVICE", "Stopwatch", "Workload", "polynomials"]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def polynomials(d: int, bsz: int, gen: torch.Generator) -> BatchFn:
    """Batch function: Gaussian inputs, y = x0 + x0 x1, learned in about 100 steps."""

    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        X = randn(bsz, d, generator=gen)
        return X, X[:, 0] * (1 + X[:, 1])

    return batch_fn


@dataclass(frozen=True)
class Workload:
    """A pack of MLPs of two hidden layers.

    Attributes:
        batch: samples per step, offline the size of the training set.
        d: input dimension.
        test_rows: rows of the test set; training is offline if there are any.
        trials: different batches and initial weights, which configs share in turn; by default each
            config has its own.
    """

    width: int
    configs: int
    batch: int = 256
    d: int = 32
    test_rows: int = 0
    trials: int | None = None

    def train(
        self,
        steps: int,
        settings: Mapping[str, Any],
        *,
        seed: int = 42,
        dtype: torch.dtype = torch.float32,
        monitor: Monitor | None = None,
        grabs: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Trained:
        """Train the pack; equal arguments give equal results."""
        trials = [config % (self.trials or self.configs) for config in range(self.configs)]
        seeds = [streams(seed, trial) for trial in sorted(set(trials))]
        generators = [torch.Generator(DEVICE).manual_seed(one.train) for one in seeds]
        drawn = [polynomials(self.d, self.batch, generator) for generator in generators]
        test = polynomials(
            self.d, self.test_rows, torch.Generator(DEVICE).manual_seed(seeds[0].test)
        )
        fixed = {"WIDTH": self.width, "MAX_ITER": steps, "ONLINE": not self.test_rows, "SEED": seed}
        return train(
            [MLP(self.d, self.width).to(dtype) for _ in trials],
            [drawn[trial] for trial in trials],
            {"LOSS_CHECKPOINTS": [], **fixed, **settings},
            trials=trials,
            test_fns=[test] * self.configs if self.test_rows else None,
            grabs=grabs,
            generators=generators,
            device=DEVICE,
            monitor=monitor,
        )

    def operations(self, steps: int, evaluations: int) -> float:
        """Return the FLOPs in matrix products of a training.

        A product with all weights takes 2 FLOPs per weight and sample. A step has one forward and
        two backward, except with respect to the inputs of the first layer. The network at
        initialisation is evaluated at every step online, and offline once on each set.

        Args:
            evaluations: how often the test set is evaluated.
        """
        weights = self.width * (self.d + self.width + 1)
        made = steps * self.batch * (3 * weights - self.d * self.width)
        if self.test_rows:
            made += (self.batch + (1 + evaluations) * self.test_rows) * weights
        else:
            made += steps * self.batch * weights
        return 2.0 * self.configs * made


class Stopwatch(Monitor):
    """A monitor that times a training and forwards every call to another monitor.

    Args:
        wait: synchronise with the device at every step, for :attr:`step_seconds` on a GPU.

    Attributes:
        seconds: from the end of the first step to the last read-back.
        steps: gradient steps in that time.
        save_seconds: of each save, including the copy of the state.
        told_seconds: in all other calls of the other monitor.
    """

    def __init__(self, inner: Monitor | None = None, wait: bool = False) -> None:
        self._inner, self._wait = Monitor() if inner is None else inner, wait
        self._ends: list[float] = []
        self.seconds, self.steps, self.told_seconds = 0.0, 0, 0.0
        self.save_seconds: list[float] = []

    @property
    def step_seconds(self) -> list[float]:
        """The seconds of each step but the first and the last, with the save before it."""
        return [after - before for before, after in pairwise(self._ends)]

    def restore(self) -> dict[str, Any] | None:
        return self._inner.restore()

    def due(self, step: int) -> bool:
        if DEVICE.type == "cuda" and (self._wait or not self._ends):
            torch.cuda.synchronize()
        self._ends.append(time.perf_counter())
        due = self._inner.due(step)
        self.told_seconds += time.perf_counter() - self._ends[-1]
        return due

    def save(self, state: dict[str, Any]) -> None:
        self._inner.save(state)
        self.save_seconds.append(time.perf_counter() - self._ends[-1])

    def progress(self, progress: Progress) -> None:
        begin = time.perf_counter()
        self._inner.progress(progress)
        end = time.perf_counter()
        self.told_seconds += end - begin
        self.seconds, self.steps = end - self._ends[0], progress.step - 1
