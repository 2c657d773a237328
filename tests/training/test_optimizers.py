"""The stacked optimizers against torch.optim, on the same gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mlpsubmit.errors import SpecError
from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import train
from mlpsubmit.training.optimizers.build import build_optimizer
from mlpsubmit.training.parametrizations import Factors
from mlpsubmit.training.stack import Stack

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
            if cls is not torch.optim.SGD:
                group["eps"] *= factor.eps
            if cls is torch.optim.AdamW:
                group["weight_decay"] *= factor.decay / factor.lr
        stacked = [torch.empty(K, *p.shape) for p in model.parameters()]
        for step in range(min(6, stopped[k])):
            for p, g in zip(model.parameters(), gradients_at(step, stacked), strict=True):
                p.grad = g[k]
            optimizer.step()
        tolerance = 1e-6 if dtype is torch.float32 else 1e-12
        for name, p in model.named_parameters():
            torch.testing.assert_close(
                got[k].get_parameter(name), p, rtol=tolerance, atol=tolerance / 10
            )


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_class_of_torch_trains_like_its_stacked_counterpart(name, gaussian, make_mlps, same):
    settings = {"MAX_ITER": 9, "LR": 0.01, "ONLYTHRESHOLDS": False, "PARAMETRIZATION": "mup-lr"}
    stacked = train(make_mlps(1), [gaussian(0)], {**settings, "OPTIMIZER": name})
    unstacked = {
        **settings,
        "OPTIMIZER": getattr(torch.optim, name),
        "OPTIMIZER_KWARGS": {"weight_decay": 0.0},
    }
    same(stacked, train(make_mlps(1), [gaussian(0)], unstacked), rtol=1e-5)


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
        "OPTIMIZER": "RMSprop",
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
        ({"OPTIMIZER": "RMSprop", "OPTIMIZER_KWARGS": {"x": 1}}, "RMSprop takes no 'x'; valid"),
        ({"OPTIMIZER_KWARGS": {"amsgrad": True}}, "they are for a torch.optim class; try MOMENTUM"),
    ]
    for settings, text in cases:
        with pytest.raises(SpecError, match=text):
            train(make_mlps(1), [gaussian(0)], settings)
