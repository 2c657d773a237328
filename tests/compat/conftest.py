"""A working directory, the parts of a small script, and MLPscape's loop to compare with."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlpsubmit.compat import ExptTrace, run_job_iterator
from mlpsubmit.training.seeds import streams


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with no variable that chooses folders or executors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # scripts that fail have one set
    for variable in ("MLPSUBMIT_RUNS", "MLPSUBMIT_EXECUTOR"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture
def run(workplace: Path) -> Callable[..., dict[str, Any]]:
    """Run jobs in this process, as the run ``study``."""

    def run(iterators: Any, names: Any, config: Any, bfn_config: Any, **more: Any) -> Any:
        more = {"use_mp": False, "name": "study", **more}
        return run_job_iterator(iterators, names, config, bfn_config=bfn_config, **more)

    return run


@pytest.fixture
def gaussian() -> Callable[..., Any]:
    """A batch function."""
    return gaussian_bfn


@pytest.fixture
def config() -> Callable[..., dict[str, Any]]:
    """Return global_config, with some entries changed."""
    return small_config


@pytest.fixture
def traces() -> Callable[[Mapping[str, Any]], dict[str, ExptTrace]]:
    """Return every trace of a result, by name."""

    def traces(result: Mapping[str, Any]) -> dict[str, ExptTrace]:
        named = {"losses": result["losses"], "timekeys": result["timekeys"], **result["extras"]}
        return {name: ExptTrace.deserialize(trace) for name, trace in named.items()}

    return traces


@pytest.fixture
def mlpscape() -> Callable[..., SimpleNamespace]:
    """Train one job as MLPscape does."""
    return trained


def gaussian_bfn(bsz, gen, X=None, y=None, dim=4, noise=0.0, **kwargs):
    """Targets are the first input, and noise."""

    def batch_fn(step, X=X, y=y):
        if X is not None and y is not None:
            return X, y
        inputs = torch.randn(bsz, dim, generator=gen, device=gen.device)
        drawn = torch.randn(bsz, generator=gen, device=gen.device)
        return inputs, inputs[:, 0] + noise * drawn

    return batch_fn


def small_config(**changes: Any) -> dict[str, Any]:
    """Return a global_config that trains for a moment."""
    return {
        "ONLINE": True,
        "LR": 0.1,
        "MAX_ITER": 30,
        "LOSS_CHECKPOINTS": [0.6, 1e-9],
        "GAMMA": 1.0,
        "EMA_SMOOTHER": 0.5,
        "ONLYTHRESHOLDS": True,
        "VERBOSE": False,
        "N_TEST": 16,
        "SEED": 3,
        "DIM": 4,
        "width": 8,
        "depth": 2,
        **changes,
    }


# MLPscape's train loop for one job, in plain torch. It shares nothing with the package but the
# seeds of the three streams: layers, muP, GAMMA, centring, smoothing and thresholds are its own.

SQRT2 = math.sqrt(2.0)


class MupMLP(nn.Module):
    """The MLP in muP: multipliers in the forward pass, weights and biases N(0, 1 / width)."""

    def __init__(self, d_in: int, width: int, depth: int, d_out: int, gamma: float, seed: int):
        super().__init__()
        sizes = [d_in] + depth * [width] + [d_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            for parameter in (layer.weight, layer.bias):
                drawn = torch.randn(parameter.shape, generator=generator) / math.sqrt(width)
                parameter.data = drawn
        hidden = [math.sqrt(width / layer.in_features) for layer in list(self.layers)[:-1]]
        self.multipliers = [*hidden, 1 / math.sqrt(width) / gamma]

    @property
    def input_layer(self) -> nn.Module:
        return self.layers[0]

    def forward(self, X: Tensor) -> Tensor:
        for layer, g in zip(list(self.layers)[:-1], self.multipliers, strict=False):
            X = torch.relu(SQRT2 * g * layer(X))
        return self.multipliers[-1] * self.layers[-1](X)


def squeezed_mse(output: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(output.squeeze(), y.squeeze())


def trained(
    bfn: Callable[..., Callable[[int], tuple[Tensor, Tensor]]],
    n: int,
    trial: int,
    *,
    lr: float,
    max_iter: int,
    thresholds: list[float],
    gamma: float = 1.0,
    smoother: float = 0.5,
    online: bool = True,
    n_test: int = 16,
    seed: int = 3,
    width: int = 8,
    depth: int = 2,
    d_out: int = 1,
    grabs: Mapping[str, Callable[..., Any]] | None = None,
    model: nn.Module | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    loss: Callable[[Tensor, Tensor], Tensor] = squeezed_mse,
    **arguments: Any,
) -> SimpleNamespace:
    """Train one network; return its final losses, traces, timekeys and measurements."""
    own = streams(seed, trial)
    test_fn = bfn(bsz=n_test, gen=torch.Generator().manual_seed(own.test), **arguments)
    X_te, y_te = test_fn(0)
    batch_fn = bfn(bsz=n, gen=torch.Generator().manual_seed(own.train), **arguments)
    if not online:
        fixed = batch_fn(0)
        batch_fn = lambda step: fixed  # noqa: E731
        d_in = fixed[0].shape[1]
    else:
        d_in = X_te[0].numel()
    if model is None:
        model = MupMLP(d_in, width, depth, d_out, gamma, own.weights)
    opt = optimizer(model.parameters(), lr=lr * gamma if gamma >= 1 else lr * gamma**2)
    initial = {name: p.detach().clone() for name, p in model.named_parameters()}
    baseline = lambda X: torch.func.functional_call(model, initial, (X,))  # noqa: E731
    train_trace, test_trace = np.empty(max_iter), np.empty(max_iter)
    measured: dict[str, list[Any]] = {name: [] for name in grabs or {}}
    timekeys = np.full(len(thresholds), -1)
    pointer = 0
    for step in range(max_iter):
        X, y = batch_fn(step)
        opt.zero_grad()
        value = loss(model(X) - baseline(X), y)
        value.backward()
        opt.step()
        train = float(value.detach())
        with torch.no_grad():
            test = train if online else float(loss(model(X_te) - baseline(X_te), y_te))
        if step == 0:
            ema_train, ema_test = train, test
        ema_train = smoother * ema_train + (1 - smoother) * train
        ema_test = smoother * ema_test + (1 - smoother) * test
        train_trace[step:], test_trace[step:] = ema_train, ema_test
        offered = {"model": model, "X_tr": X, "y_tr": y, "X_te": X_te, "y_te": y_te, "opt": opt}
        for name, grab in (grabs or {}).items():
            measured[name].append(np.asarray(grab(**offered)))
        while pointer < len(thresholds) and ema_train < sorted(thresholds, reverse=True)[pointer]:
            timekeys[pointer] = step
            pointer += 1
        if pointer == len(thresholds):
            break
    return SimpleNamespace(
        train=train_trace, test=test_trace, timekeys=timekeys, grabs=measured, steps=step + 1
    )
