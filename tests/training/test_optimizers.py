"""The stacked optimizers against torch.optim, on the same gradients."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit.errors import SpecError
from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import train
from mlpsubmit.training.optimizers.build import build_optimizer
from mlpsubmit.training.parametrizations import Factors
from mlpsubmit.training.stack import Stack


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of arXiv:2302.06675, in its notation."""

    def __init__(self, params, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": 1.0, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            (beta1, beta2), eta, lam = group["betas"], group["lr"], group["weight_decay"]
            for theta in group["params"]:
                g, m = theta.grad, self.state[theta].get("m", torch.zeros_like(theta))
                c = beta1 * m + (1 - beta1) * g
                theta -= eta * (torch.sign(c) + lam * theta)
                self.state[theta]["m"] = beta2 * m + (1 - beta2) * g


class MuonAndAdamW:
    """torch.optim.Muon for the hidden matrices, torch.optim.AdamW for everything else."""

    def __init__(self, groups, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, **arguments):
        hidden = [g for g in groups if g["name"] == "hidden_layers.0.weight"]
        others = [g for g in groups if g["name"] != "hidden_layers.0.weight"]
        self.muon = torch.optim.Muon(
            hidden, weight_decay=weight_decay, adjust_lr_fn="original", **arguments
        )
        self.adamw = torch.optim.AdamW(others, weight_decay=weight_decay, betas=betas, eps=eps)
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]

    def step(self):
        self.muon.step()
        self.adamw.step()


#: Their weight decay is a share of the learning rate.
DECOUPLED = (torch.optim.AdamW, Lion, MuonAndAdamW)

CASES = {
    "sgd": ({}, torch.optim.SGD, {}),
    "decay": ({"WEIGHT_DECAY": 0.1}, torch.optim.SGD, {"weight_decay": 0.1}),
    "momentum": ({"MOMENTUM": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (
        {"MOMENTUM": 0.9, "NESTEROV": True, "WEIGHT_DECAY": 0.1},
        torch.optim.SGD,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ),
    "adam": ({"OPTIMIZER": "adam"}, torch.optim.Adam, {}),
    "adam decay": (
        {"OPTIMIZER": "adam", "WEIGHT_DECAY": 0.1, "BETAS": (0.8, 0.9), "EPS": 1e-4},
        torch.optim.Adam,
        {"weight_decay": 0.1, "betas": (0.8, 0.9), "eps": 1e-4},
    ),
    "adamw": (
        {"OPTIMIZER": "adamw", "WEIGHT_DECAY": 0.1},
        torch.optim.AdamW,
        {"weight_decay": 0.1},
    ),
    "lion": ({"OPTIMIZER": "lion"}, Lion, {}),
    "lion decay": (
        {"OPTIMIZER": "lion", "WEIGHT_DECAY": 0.1, "BETAS": (0.5, 0.8)},
        Lion,
        {"weight_decay": 0.1, "betas": (0.5, 0.8)},
    ),
    "rmsprop": ({"OPTIMIZER": "rmsprop"}, torch.optim.RMSprop, {}),
    "rmsprop momentum": (
        {
            "OPTIMIZER": "RMSprop",
            "MOMENTUM": 0.9,
            "WEIGHT_DECAY": 0.1,
            "EPS": 1e-4,
            "OPTIMIZER_KWARGS": {"alpha": 0.8, "centered": True},
        },
        torch.optim.RMSprop,
        {"momentum": 0.9, "weight_decay": 0.1, "eps": 1e-4, "alpha": 0.8, "centered": True},
    ),
    "muon": ({"OPTIMIZER": "muon", "PRECISION": "bf16"}, MuonAndAdamW, {}),
    "muon decay": (
        {
            "OPTIMIZER": "muon",
            "MOMENTUM": 0.8,
            "NESTEROV": False,
            "WEIGHT_DECAY": 0.1,
            "OPTIMIZER_KWARGS": {"ns_steps": 7, "ns_coefficients": [2, -1.5, 0.5]},
            "BETAS": (0.8, 0.9),
            "EPS": 1e-4,
            "PRECISION": "bf16",
        },
        MuonAndAdamW,
        {
            "momentum": 0.8,
            "nesterov": False,
            "weight_decay": 0.1,
            "ns_steps": 7,
            "ns_coefficients": (2, -1.5, 0.5),
            "betas": (0.8, 0.9),
            "eps": 1e-4,
        },
    ),
}


def steps_of(h, models, dtype, active_at, gradients_at, factors):
    models = [model.to(dtype) for model in models]
    stack = Stack(models, torch.device("cpu"), "fp32")
    optimizer, _ = build_optimizer(stack, h, factors)
    for step in range(6):
        optimizer.step(gradients_at(step, stack.parameters), active_at(step), None)
    return models


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_updates_are_those_of_torch(case, dtype, make_mlps):
    settings, cls, arguments = CASES[case]
    K, base = 3, validate({"LR": 0.05, **settings})
    hs = [base.model_copy(update={"lr": base.lr * (k + 1)}) for k in range(K)]
    wanted = [model.to(dtype) for model in make_mlps(K)]
    names = [name for name, _ in wanted[0].named_parameters()]
    factors = [
        {name: Factors(1.0 + i, 2.0 + i / 9, 1.0 + 1e6 * (i + k)) for i, name in enumerate(names)}
        for k in range(K)
    ]
    stopped = {0: 99, 1: 3, 2: 0}  # per config, the step from which it is not active

    def gradients_at(step, parameters):
        generator = torch.Generator().manual_seed(step)
        return [torch.randn(p.shape, generator=generator, dtype=dtype) for p in parameters]

    def active_at(step):
        return torch.tensor([step < stopped[k] for k in range(K)])

    got = steps_of(hs, make_mlps(K), dtype, active_at, gradients_at, factors)
    for k, model in enumerate(wanted):
        optimizer = cls(
            [{"params": [p], "name": name} for name, p in model.named_parameters()], **arguments
        )
        for group in optimizer.param_groups:
            factor = factors[k][group["name"]]
            group["lr"] = hs[k].lr * factor.lr
            if cls not in (torch.optim.SGD, Lion):
                group["eps"] *= factor.eps
            if cls in DECOUPLED:
                group["weight_decay"] *= factor.decay / factor.lr
        stacked = [torch.empty(K, *p.shape) for p in model.parameters()]
        for step in range(min(6, stopped[k])):
            for p, g in zip(model.parameters(), gradients_at(step, stacked), strict=True):
                p.grad = g[k]
            optimizer.step()
        tolerance = 1e-6 if dtype is torch.float32 else 1e-12
        for name, p in model.named_parameters():
            torch.testing.assert_close(
                got[k].get_parameter(name), p, rtol=tolerance, atol=tolerance / 5
            )


def test_muon_trains_matrices_of_any_shape_as_torch_does():
    """Convolutions too, as matrices, which torch does not take."""
    shapes = [(3, 5), (7, 7), (9, 4), (6, 4, 3, 3), (2, 8)]
    names = [f"{i}.weight" for i in range(5)]

    def network():
        torch.manual_seed(0)
        layers = [nn.Linear(5, 3), nn.Linear(7, 7), nn.Linear(4, 9), nn.Conv2d(4, 6, 3)]
        return nn.Sequential(*layers, nn.Linear(8, 2))

    models, wanted = [network(), network()], network()
    h = validate({"OPTIMIZER": "muon", "LR": 0.1, "COMPILE": False, "PRECISION": "bf16"})
    stack = Stack(models, torch.device("cpu"), "fp32")
    optimizer, _ = build_optimizer(stack, [h] * 2, [{n: Factors(1.0) for n in stack.names}] * 2)
    inner = [dict(wanted.named_parameters())[name] for name in names[1:4]]
    flat = [nn.Parameter(p.detach().flatten(1)) for p in inner]
    reference = torch.optim.Muon(flat, lr=0.1, weight_decay=0.0)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        gradients = [torch.randn(p.shape, generator=generator) for p in stack.parameters]
        optimizer.step(gradients, torch.tensor([True, True]), None)
        for p, name in zip(flat, names[1:4], strict=True):
            p.grad = gradients[stack.names.index(name)][1].flatten(1)
        reference.step()
    for p, name, shape in zip(flat, names[1:4], shapes[1:4], strict=True):
        torch.testing.assert_close(
            models[1].get_parameter(name), p.view(shape), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_a_class_of_torch_trains_like_its_stacked_counterpart(name, gaussian, make_mlps, same):
    settings = {"MAX_ITER": 9, "LR": 0.01, "ONLYTHRESHOLDS": False, "PARAMETRIZATION": "mup-lr"}
    stacked = train(make_mlps(1), [gaussian(0)], {**settings, "OPTIMIZER": name})
    unstacked = {**settings, "OPTIMIZER": getattr(torch.optim, name)}
    same(stacked, train(make_mlps(1), [gaussian(0)], unstacked), rtol=1e-5)  # the same defaults
    stacked = train(make_mlps(1), [gaussian(0)], {**settings, "OPTIMIZER": name, "WEIGHT_DECAY": 0})
    decaying = functools.partial(unstacked["OPTIMIZER"], weight_decay=0.2)
    for zero in (
        {"OPTIMIZER_KWARGS": {"weight_decay": 0.0}},
        {"WEIGHT_DECAY": 0},
        {"OPTIMIZER": decaying, "WEIGHT_DECAY": 0},
    ):
        same(stacked, train(make_mlps(1), [gaussian(0)], {**unstacked, **zero}), rtol=1e-5)


@pytest.mark.parametrize("rounded", [False, True])
def test_a_pack_under_muon_trains_as_each_in_a_loop_of_torch(
    rounded, gaussian, make_mlps, monkeypatch
):
    """To rounding where torch does not round to bfloat16, and roughly where it does."""
    settings = {
        "OPTIMIZER": "muon",
        "PARAMETRIZATION": "sp",
        "CENTERED": False,
        "LOSS_CHECKPOINTS": [],
        "MAX_ITER": 20,
        "ONLYTHRESHOLDS": False,
        "EMA_SMOOTHER": 0.0,
        "WEIGHT_DECAY": 0.1,
    }
    lrs = (0.01, 0.02, 0.05)
    hs = [validate({**settings, "LR": lr}) for lr in lrs]
    got = train(make_mlps(3, width=16), [gaussian(0)] * 3, hs)
    if not rounded:
        monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    for k, model in enumerate(make_mlps(3, width=16)):
        optimizer = MuonAndAdamW(
            [{"params": [p], "name": name} for name, p in model.named_parameters()],
            weight_decay=0.1,
        )
        for group in optimizer.param_groups:
            group["lr"] = lrs[k]
        batch_fn, losses = gaussian(0), []
        for step in range(20):
            X, y = batch_fn(step)
            loss = (model(X).squeeze(1) - y).square().mean()
            model.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        np.testing.assert_allclose(got.train_loss[k], losses, rtol=0.1 if rounded else 1e-4)
        alone = train(make_mlps(3, width=16)[k : k + 1], [gaussian(0)], hs[k])
        np.testing.assert_allclose(got.train_loss[k], alone.train_loss[0], rtol=1e-5)


def test_muon_without_hidden_matrices_is_adamw_with_a_warning(gaussian, make_mlps, same):
    settings = {"MAX_ITER": 5, "LR": 0.01, "WEIGHT_DECAY": 0.1, "ONLYTHRESHOLDS": False}
    with pytest.warns(
        UserWarning, match="no matrix between its first and its last one.*DEPTH >= 2"
    ):
        muon = train(make_mlps(2, depth=1), [gaussian(0)] * 2, {**settings, "OPTIMIZER": "muon"})
    adamw = train(make_mlps(2, depth=1), [gaussian(0)] * 2, {**settings, "OPTIMIZER": "adamw"})
    same(muon, adamw)


def test_defaults_depend_on_the_optimizer():
    defaults = {
        name: [
            validate({"OPTIMIZER": name}).of_optimizer(n) for n in ("momentum", "nesterov", "betas")
        ]
        for name in ("sgd", "muon", "lion", "adamw", torch.optim.NAdam)
    }
    assert list(defaults.values()) == [
        [0.0, False, None],
        [0.95, True, (0.9, 0.999)],
        [None, None, (0.9, 0.99)],
        [None, None, (0.9, 0.999)],
        [0.0, False, None],
    ]
    assert validate({"OPTIMIZER": "muon", "MOMENTUM": 0}).of_optimizer("momentum") == 0.0


def test_lbfgs_gets_its_closure(gaussian, make_mlps):
    settings = {"PARAMETRIZATION": "sp", "OPTIMIZER": "LBFGS", "LR": 1.0, "ONLINE": False}
    further = {"MAX_ITER": 4, "ONLYTHRESHOLDS": False, "EMA_SMOOTHER": 0.0, "CENTERED": False}
    model = make_mlps(1)[0].double()
    settings["LOSS_CHECKPOINTS"] = []
    got = train([model], [gaussian(0)], {**settings, **further})

    model = make_mlps(1)[0].double()
    X, y = (part.double() for part in gaussian(0)(0))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0)
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = (model(X).squeeze(1) - y).square().mean()
        loss.backward()
        return loss

    for _ in range(4):
        losses.append(closure().item())
        optimizer.step(closure)
    np.testing.assert_allclose(got.train_loss[0], losses, rtol=1e-6, atol=1e-9)
    assert losses[-1] < losses[0] / 10


def test_a_class_of_torch_stops_at_the_threshold(gaussian, make_mlps):
    settings = {
        "OPTIMIZER": torch.optim.RMSprop,
        "PARAMETRIZATION": "sp",
        "MAX_ITER": 50,
        "ONLINE": False,
        "PERCENT_THRESHOLDS": [0.5],
        "EMA_SMOOTHER": 0.0,
    }
    models = make_mlps(1)
    got = train(models, [gaussian(0)], settings)
    assert 0 < got.steps[0] < 50
    again = make_mlps(1)
    shorter = {**settings, "MAX_ITER": int(got.steps[0]), "PERCENT_THRESHOLDS": [1e-9]}
    train(again, [gaussian(0)], shorter)
    assert torch.equal(again[0].input_layer.weight, models[0].input_layer.weight)


def test_settings_that_an_optimizer_does_not_take_are_refused(gaussian, make_mlps):
    cases = [
        ({"OPTIMIZER": "Adamm"}, r"no optimizer 'Adamm' \(did you mean 'Adam"),
        ({"OPTIMIZER": "LBFGS", "MOMENTUM": 0.9}, "MOMENTUM: LBFGS takes none; valid are lr"),
        ({"OPTIMIZER": "NAdam", "OPTIMIZER_KWARGS": {"x": 1}}, "NAdam takes no 'x'; valid"),
        (
            {"OPTIMIZER_KWARGS": {"amsgrad": True}},
            "got 'amsgrad' with OPTIMIZER='sgd'; it takes none, and has the settings WEIGHT_DECAY",
        ),
        (
            {"OPTIMIZER": "rmsprop", "OPTIMIZER_KWARGS": {"alpa": 1, "alpha": 1}},
            r"'alpa' with OPTIMIZER='rmsprop' \(did you mean 'alpha'\?\); it takes alpha and "
            r"centered, and has the settings WEIGHT_DECAY, MOMENTUM, EPS; for a class .*\n"
            r".*got alpha=1; should be",
        ),
    ]
    for settings, text in cases:
        with pytest.raises(SpecError, match=text):
            train(make_mlps(1), [gaussian(0)], settings)
