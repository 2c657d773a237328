"""Small tasks shared by the tests of the training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlpsubmit.training import MLP, Interrupted, Monitor, loop


class Gaussian:
    """A batch function over a generator of its own: y is a product of two inputs."""

    def __init__(self, seed: int, n: int = 8, d: int = 3, kind: str = "mse") -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.n, self.d, self.kind, self.calls = n, d, kind, 0

    def __eq__(self, other: object) -> bool:
        raise AssertionError("batch functions are compared by identity: they may hold tensors")

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        self.calls += 1
        X = torch.randn(self.n, self.d, generator=self.generator)
        if self.kind == "cross_entropy":
            return X, (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
        return X, X[:, 0] * X[:, 1] + X[:, 2]


class Saver(Monitor):
    """A monitor that saves after some steps, in memory, and may end the training there."""

    def __init__(
        self, state: dict[str, Any] | None = None, every: int = 0, interrupting: bool = False
    ) -> None:
        self.state, self.every, self.interrupting = state, every, interrupting
        self.asked, self.seen = 0, []

    def restore(self) -> dict[str, Any] | None:
        return self.state

    def due(self, step: int) -> bool:
        self.asked += 1
        return bool(self.every) and self.asked % self.every == 0

    def save(self, state: dict[str, Any]) -> None:
        self.state = state
        if self.interrupting:
            raise Interrupted

    def progress(self, progress: Any) -> None:
        self.seen.append(progress)


def mlps(count: int, d_out: int = 1, width: int = 6, depth: int = 2) -> list[nn.Module]:
    """Build MLPs whose PyTorch initialisation (for sp) is seeded with their index."""
    models: list[nn.Module] = []
    for seed in range(count):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            models.append(MLP(3, width, depth, d_out))
    return models


def assert_equal(one: Any, other: Any, rtol: float = 0.0) -> None:
    """Compare two Trained: bit by bit, or the floating-point numbers to a relative tolerance."""
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        pairs = {k: (a[k], b[k]) for k in a | b} if isinstance(a, dict) else {field.name: (a, b)}
        for name, (x, y) in pairs.items():
            assert x.dtype == y.dtype, name
            if rtol and x.dtype.kind == "f":
                np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7, err_msg=name)
            else:
                np.testing.assert_array_equal(x, y, err_msg=name)


@pytest.fixture
def gaussian() -> type[Gaussian]:
    return Gaussian


@pytest.fixture
def saver() -> type[Saver]:
    return Saver


@pytest.fixture
def make_mlps() -> Callable[..., list[nn.Module]]:
    return mlps


@pytest.fixture
def same() -> Callable[..., None]:
    return assert_equal


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read back every 4 steps, so that packs shrink within a few steps."""
    monkeypatch.setattr(loop, "BLOCK", 4)
