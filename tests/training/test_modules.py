"""Modules of the kinds that people use, against a plain PyTorch loop, packed and interrupted."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations

from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import Interrupted, train
from mlpsubmit.training.comparison import StackingError
from mlpsubmit.training.seeds import streams

STEPS, BASE = 12, {"PARAMETRIZATION": "sp", "CENTERED": False, "LOSS_CHECKPOINTS": []}


class Net(nn.Module):
    """A hidden layer, something between, and a second one."""

    def __init__(self, between: Any, **modules: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(3, 8), nn.Linear(8, 1), between
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, X):
        return self.b(self.between(self, torch.relu(self.a(X))))


class Recurrent(nn.Module):
    def __init__(self, kind, **settings):
        super().__init__()
        self.rnn = kind(1, 8, batch_first=True, **settings)
        self.out = nn.Linear(8, 1)

    def forward(self, X):
        return self.out(self.rnn(X[..., None])[0][:, -1])


class Attention(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.embed, self.out = nn.Linear(1, 8), nn.Linear(8, 1)
        self.attend = nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, X):
        h = self.embed(X[..., None])
        h = self.norm(h + self.attend(h, h, h, need_weights=False)[0])
        return self.out(h.mean(1))


class Embedded(nn.Module):
    """Takes each number for one of four tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(4, 8), nn.Linear(8, 1)

    def forward(self, X):
        return self.out(self.embed((X > 0).long() + 2 * (X > 1).long()).mean(1))


class FrozenNorm(nn.Module):
    """Keeps its normalisation in eval mode by a method ``train`` of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, X):
        return self.b(self.norm(self.a(X)))


def sequential(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), *modules, nn.Linear(8, 1))


def branching(net, h):
    return h / h.norm() if h.norm() > 3 else h


def item(net, h):
    return h * (1 + h.mean().item())


def stochastic_depth(net, h):
    return h if net.training and random.random() < 0.5 else torch.tanh(h)


def numpy_noise(net, h):
    return h + float(np.random.standard_normal()) if net.training else h


def checkpointed(net, h):
    def inner(h):
        return F.dropout(torch.tanh(h), 0.3, net.training)

    return torch.utils.checkpoint.checkpoint(inner, h, use_reentrant=False)


def switching(net, h):
    """Draws from a certain step on only."""
    net.calls += net.training
    return F.dropout(h, 0.5, net.training and int(net.calls) > 5)


def hooked(module: nn.Module) -> nn.Module:
    module[1].register_forward_hook(lambda module, args, output: output * 1.5)
    return module


def with_calls(between: Any) -> nn.Module:
    net = Net(between)
    net.register_buffer("calls", torch.zeros((), dtype=torch.int64))
    return net


def evaluated_norm() -> nn.Module:
    model = sequential(nn.BatchNorm1d(8), nn.ReLU())
    model[1].eval()
    return model


#: By name: the module, and the words that say why a pack of it trains one at a time, if it does.
PACKED: dict[str, Any] = {
    "dropout": lambda: sequential(nn.ReLU(), nn.Dropout(0.2)),
    "dropout of inputs": lambda: nn.Sequential(nn.Dropout(0.2), sequential(nn.ReLU())),
    "alpha dropout": lambda: sequential(nn.SELU(), nn.AlphaDropout(0.2)),
    "channel dropout": lambda: Net(
        lambda n, h: F.dropout2d(h.reshape(-1, 2, 2, 2), 0.3, n.training).flatten(1)
    ),
    "noise": lambda: Net(lambda n, h: h + 0.1 * torch.randn_like(h) if n.training else h),
    "noise of weights": lambda: Net(lambda n, h: h * torch.rand(8) if n.training else h),
    "integers": lambda: Net(lambda n, h: h * torch.randint(2, h.shape) if n.training else h),
    "a stochastic path": lambda: Net(
        lambda n, h: h * h.new_empty(len(h), 1).bernoulli_(0.7) if n.training else h
    ),
    "batch norm": lambda: sequential(nn.BatchNorm1d(8), nn.ReLU()),
    "batch norm without statistics": lambda: sequential(
        nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU()
    ),
    "batch norm in eval mode": evaluated_norm,
    "batch norm with a train of its own": FrozenNorm,
    "layer norm": lambda: sequential(nn.LayerNorm(8), nn.ReLU()),
    "group norm": lambda: sequential(nn.GroupNorm(2, 8), nn.GELU()),
    "in-place ReLU": lambda: sequential(nn.ReLU(inplace=True)),
    "attention": Attention,
    "attention with dropout": lambda: Attention(0.2),
    "embedding": Embedded,
    "weight norm": lambda: sequential(parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU()),
    "a forward hook": lambda: hooked(sequential(nn.ReLU())),
}
ALONE: dict[str, Any] = {
    "GRU": (lambda: Recurrent(nn.GRU), "rnn is an nn.GRU, which computes one model at a time"),
    "LSTM with dropout": (
        lambda: Recurrent(nn.LSTM, num_layers=2, dropout=0.3),
        "rnn is an nn.LSTM, which computes one model at a time",
    ),
    "a branch": (
        lambda: Net(branching),
        r"MODEL has a branch that depends on the data \(line \d+ of test_modules.py: return h / h",
    ),
    "item": (
        lambda: Net(item),
        r"MODEL has a number that depends on the data \(line \d+ of test_modules.py: return h \*",
    ),
    "spectral norm": (
        lambda: sequential(parametrizations.spectral_norm(nn.Linear(8, 8)), nn.ReLU()),
        r"computes for one model at a time: div \(in the module _SpectralNorm\)",
    ),
    "Python's generator": (lambda: Net(stochastic_depth), "the global generator of random"),
    "NumPy's generator": (lambda: Net(numpy_noise), "the global generator of numpy"),
    "checkpointing": (lambda: Net(checkpointed), "a part that is computed in the backward pass"),
    "draws late": (lambda: with_calls(switching), "a number that depends on the data"),
    "rrelu": (
        lambda: Net(lambda n, h: F.rrelu(h, training=n.training)),
        "an operation that PyTorch computes for one model at a time: rrelu",
    ),
    "a permutation": (
        lambda: Net(lambda n, h: h[:, torch.randperm(8)] if n.training else h),
        "MODEL draws random numbers by randperm, which draws for one model at a time",
    ),
}
#: Those that the quick part of the tests trains.
QUICK = ("dropout", "batch norm", "a branch", "Python's generator")
EVERY = PACKED | {name: model for name, (model, _) in ALONE.items()}

CASES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in EVERY]


def made(name: str, trial: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(trial)
        model: nn.Module = EVERY[name]()
    return model


def by_hand(model: nn.Module, batch_fn: Any, lr: float, trial: int) -> list[float]:
    """Train as a plain script does, with the global generators seeded as documented."""
    seed = streams(42, trial).draws
    torch.manual_seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    random.seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    if isinstance(model, FrozenNorm):
        model.train()
    for step in range(STEPS):
        X, y = batch_fn(step)
        loss = (model(X).squeeze(1) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


LRS, TRIALS = (0.05, 0.02, 0.05), (0, 0, 1)


def ours(name: str, gaussian: Any, rows: Any, monitor: Any = None, **settings: Any) -> Any:
    models = [made(name, TRIALS[k]) for k in rows]
    fns = [gaussian(TRIALS[k], n=8) for k in rows]
    base = validate({**BASE, "MAX_ITER": STEPS, **settings})
    trained = train(
        models,
        fns,
        [base.model_copy(update={"lr": LRS[k]}) for k in rows],
        trials=[TRIALS[k] for k in rows],
        test_fns=[gaussian(9)] * len(models),
        generators=[fn.generator for fn in fns],
        monitor=monitor,
    )
    return trained, models


@pytest.mark.parametrize("name", CASES)
def test_a_module_trains_as_in_a_plain_loop(name, gaussian):
    expected = []
    for lr, trial in zip(LRS, TRIALS, strict=True):
        model = made(name, trial)
        by_hand(model, gaussian(trial, n=8), lr, trial)
        expected.append(model.state_dict())
    if name in PACKED:
        _, models = ours(name, gaussian, range(3))
    else:
        with pytest.raises(StackingError, match=ALONE[name][1]):
            ours(name, gaussian, range(3))
        models = [ours(name, gaussian, [k])[1][0] for k in range(3)]
    for model, state in zip(models, expected, strict=True):
        for key, tensor in model.state_dict().items():
            if key in state:
                torch.testing.assert_close(tensor, state[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_module_that_was_interrupted_ends_bit_by_bit_alike(name, gaussian, saver, same):
    rows = range(3) if name in PACKED else [0]
    settings = {"CENTERED": True, "EVAL_EVERY": 3, "ONLYTHRESHOLDS": False}
    straight, models = ours(name, gaussian, rows, **settings)
    monitor = saver(every=7, interrupting=True)
    with pytest.raises(Interrupted):
        ours(name, gaussian, rows, monitor, **settings)
    resumed, others = ours(name, gaussian, rows, saver(monitor.state), **settings)
    same(straight, resumed)
    for one, other in zip(models, others, strict=True):
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_a_config_draws_the_same_alone_and_packed(gaussian, same):
    """Also of a layout in memory of its own, in evaluations, and after the pack has shrunk."""

    def transposed(net, h):
        h = F.dropout(h.T, 0.3, net.training).T
        return h + 0.1 * torch.randn_like(h)

    EVERY["transposed"] = lambda: Net(transposed)
    try:
        settings = {"CENTERED": True, "ONLYTHRESHOLDS": False, "PERCENT_THRESHOLDS": [0.97]}
        settings |= {"MAX_ITER": 80, "LOSS_CHECKPOINTS": None, "EVAL_EVERY": 4}
        together, _ = ours("transposed", gaussian, range(3), **settings)
        for k in range(3):
            alone, _ = ours("transposed", gaussian, [k], **settings)
            for field in ("train_loss", "test_loss", "steps"):
                one, other = getattr(together, field)[k], getattr(alone, field)[0]
                np.testing.assert_allclose(one, other, rtol=1e-5)
        assert len(set(together.steps.tolist())) > 1
    finally:
        del EVERY["transposed"]


def test_a_device_has_one_stream_whatever_its_name(gaussian):
    """A model that names the device, as "cuda", draws on from where one on "cuda:0" ended."""

    def two_names(net, h):
        h = F.dropout(h, 0.3, net.training)
        return h + 0.1 * torch.randn(h.shape, device=torch.device("cpu", 0))

    EVERY["two names"] = lambda: Net(two_names)
    try:
        together, _ = ours("two names", gaussian, range(3))
        alone = [ours("two names", gaussian, [k])[0].train_loss[0] for k in range(3)]
        np.testing.assert_allclose(together.train_loss, alone, rtol=1e-5)
    finally:
        del EVERY["two names"]


class Watching(nn.Module):
    """Notes in which mode it is called, and draws in both."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)
        self.drop = nn.Dropout(0.5)

    def forward(self, X):
        return self.b(self.drop(self.norm(self.a(X))))


@pytest.mark.parametrize("count", [1, 2])
def test_steps_train_and_all_else_evaluates(count, gaussian):
    """Against the final network in eval mode; a grab may choose the mode, which is restored."""
    modes: list[bool] = []

    def evaluated(model, model0, X_te, y_te):
        modes.extend([model.training, model.drop.training, model0.training])
        with torch.no_grad():
            loss = (model(X_te) - model0(X_te)).squeeze(1).sub(y_te).square().mean()
        model.train()
        first, second = model(X_te), model(X_te)
        assert not torch.equal(first, second)
        return loss

    models = [Watching() for _ in range(count)]
    trained = train(
        models,
        [gaussian(0)] * count,
        {**BASE, "MAX_ITER": 6, "CENTERED": True, "EVAL_EVERY": 3, "ONLYTHRESHOLDS": False}
        | {"GRAB_EVERY": 3, "EMA_SMOOTHER": 0.0},
        trials=[0] * count,
        test_fns=[gaussian(9)] * count,
        grabs={"again": evaluated},
    )
    assert not any(modes)
    assert modes
    assert all(module.training for model in models for module in model.modules())
    np.testing.assert_allclose(trained.grabs["again"], trained.test_loss, rtol=1e-5)
    assert [int(model.norm.num_batches_tracked) for model in models] == [6] * count
