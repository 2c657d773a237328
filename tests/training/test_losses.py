"""The losses against torch's own, and callables that take the parameters."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from mlpsubmit.errors import SpecError
from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import MLP, parametrize, streams, train
from mlpsubmit.training.batches import BatchError
from mlpsubmit.training.losses import differentiated, stacked_loss
from mlpsubmit.training.parametrizations import effective_lr


def hinge(output, y):
    """Torch's loss for ranking f above 0 where y = 1, and below where y = -1."""
    return functional.margin_ranking_loss(output, torch.zeros_like(output), y, margin=1.0)


TORCH = {
    "hinge": hinge,
    "logistic": functional.soft_margin_loss,
    "mae": functional.l1_loss,
    "huber": lambda output, y: functional.huber_loss(output, y, delta=1.0),
    "mse": functional.mse_loss,
}
SIGNED = ("hinge", "logistic")


def targets(name, *shape):
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return drawn.sign() if name in SIGNED else 3 * drawn


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("d_out", [1, 3])
@pytest.mark.parametrize("name", TORCH)
def test_a_loss_and_its_gradient_are_torchs_own(name, d_out, shared):
    draw = torch.Generator().manual_seed(0)
    output = 2 * torch.randn(4, 50, d_out, generator=draw, dtype=torch.float64)
    y = targets(name, 1 if shared else 4, 50, d_out)
    f = output.clone().requires_grad_()
    wanted = torch.stack([TORCH[name](f[k], y[0 if shared else k]) for k in range(4)])
    (gradient,) = torch.autograd.grad(wanted.sum(), f)
    found = differentiated(stacked_loss(name), output, y)
    close = {"rtol": 1e-12, "atol": 1e-15}
    torch.testing.assert_close(stacked_loss(name)(output, y), wanted.detach(), **close)
    torch.testing.assert_close(found, (wanted.detach(), gradient), **close)


def test_the_logistic_loss_does_not_overflow():
    losses, gradient = differentiated(
        stacked_loss("logistic"), torch.tensor([[[-1e4], [1e4]]]), torch.ones(1, 2)
    )
    assert losses.tolist() == [5000.0]
    assert gradient.flatten().tolist() == [-0.5, 0.0]


class Signs:
    """A batch function with targets of -1 and 1, or of real numbers."""

    def __init__(self, seed, signed=True):
        self.generator, self.signed = torch.Generator().manual_seed(seed), signed

    def __call__(self, step):
        X = torch.randn(12, 3, generator=self.generator)
        y = X[:, 0] * X[:, 1] + X[:, 2]
        return X, y.sign() if self.signed else y


def by_hand(model, batch_fn, h, trial, loss, test):
    """Train one config with torch.optim; return the losses of all steps, and the test loss."""
    generator = torch.Generator().manual_seed(streams(h.seed, trial).weights)
    factors = parametrize(model, h.parametrization, gamma=h.gamma, generator=generator)
    f0, lr, losses = copy.deepcopy(model), effective_lr(h.lr, h.gamma), []
    groups = [{"params": [p], "lr": lr * factors[n].lr} for n, p in model.named_parameters()]
    optimizer = torch.optim.SGD(groups, lr=lr)

    def on(X, y):
        X, y = X.double(), y.double()
        return loss(model, (model(X) - f0(X).detach()).squeeze(1), y)

    for step in range(h.max_iter):
        losses.append(on(*batch_fn(step)))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    return [value.item() for value in losses], on(*test).item()


def l1_of_readin(output, y, params):
    """The mean squared error, and penalties that differ by layer."""
    weights = {name: p for name, p in params.items() if name.endswith("weight")}
    assert all(p.ndim == 2 for p in weights.values())  # of one config
    penalty = 0.01 * params["input_layer.weight"].abs().sum()
    return (output - y).square().mean() + penalty + 0.1 * params["output_layer.bias"].square().sum()


def penalised(model, output, y):
    return l1_of_readin(output, y, dict(model.named_parameters()))


LOSSES = {name: (name, lambda _, f, y, name=name: TORCH[name](f, y)) for name in TORCH}
LOSSES["a penalty"] = (l1_of_readin, penalised)


@pytest.mark.parametrize("way", ["closed form", "vmap", "alone"])
@pytest.mark.parametrize("case", LOSSES)
def test_a_pack_trains_as_each_network_by_hand(case, way, short_blocks):
    name, measure = LOSSES[case]
    settings = {"MAX_ITER": 9, "LR": 0.1, "LOSS": name, "ONLYTHRESHOLDS": False, "EVAL_EVERY": 9}
    settings |= {"EMA_SMOOTHER": 0.0, "LOSS_CHECKPOINTS": []}
    base = validate({**settings, "COMPILE": "auto" if way == "closed form" else False})
    K = 1 if way == "alone" else 3
    hs = [base.model_copy(update={"lr": 0.1 * (k + 1), "gamma": 1 + k / 2}) for k in range(K)]
    networks = [[MLP(3, 6, 2).double() for _ in range(K)] for _ in range(2)]
    signed = name in SIGNED
    test = Signs(9, signed)(0)
    fns = [Signs(k, signed) for k in range(K)]
    got = train(networks[0], fns, hs, test_fns=[lambda step: test] * K)
    for k, (model, h) in enumerate(zip(networks[1], hs, strict=True)):
        losses, final = by_hand(model, Signs(k, signed), h, k, measure, test)
        np.testing.assert_allclose(got.train_loss[k], losses, rtol=1e-10)
        np.testing.assert_allclose(got.test_loss[k, -1], final, rtol=1e-10)
        for own, wanted in zip(networks[0][k].parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(own, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "y", "hint"),
    [
        ("hinge", torch.tensor([0.0, 1.0, 1.0]), "gave y from 0 to 1; .*try 2 \\* y - 1"),
        ("logistic", torch.tensor([True, False, True]), "gave y from 0 to 1; .*try 2 \\* y - 1"),
        ("hinge", torch.tensor([-0.3, 1.0, 2.0]), "gave y from -0.3 to 2; .*or y.sign\\(\\)"),
        ("mae", torch.ones(3, 2), "y \\(n,\\); set D_OUT or reshape y"),
    ],
)
def test_targets_that_do_not_fit_the_loss_are_refused(loss, y, hint):
    with pytest.raises(BatchError, match=hint):
        train([MLP(3, 4, 1)], [lambda step: (torch.ones(3, 3), y)], {"MAX_ITER": 1, "LOSS": loss})


def test_targets_of_later_batches_are_checked_too():
    """A first batch may have none of one class."""
    labels = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])

    def batches(step):
        return torch.ones(2, 3), labels[step]

    settings = {"MAX_ITER": 4, "LOSS": "logistic"}
    with pytest.raises(BatchError, match=r"gave y from 0 to 1; .*try 2 \* y - 1"):
        train([MLP(3, 4, 1)], [batches], settings)
    for number in (1, 2):  # of a pack, in which another one has been checked
        fns = [lambda step: (torch.ones(2, 3), torch.ones(2)), batches]
        with pytest.raises(BatchError, match="gave y from 0 to 1"):
            train([MLP(3, 4, 1), MLP(3, 4, 1)], fns[::-1] if number == 1 else fns, settings)


def test_integers_are_targets_like_floats():
    def of(y):
        settings = {"MAX_ITER": 3, "LOSS": "hinge"}
        return train([MLP(3, 4, 1)], [lambda step: (torch.ones(2, 3), y)], settings).train_loss

    np.testing.assert_array_equal(of(torch.tensor([1, -1])), of(torch.tensor([[1.0], [-1.0]])))


def test_a_penalty_sees_the_parameters_that_are_not_trained(gaussian):
    seen = []

    def loss(output, y, *, params):
        seen.append(sorted(params))
        return (output - y).square().mean() + params["1.weight"].square().sum()

    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1, bias=False))
    model[0].requires_grad_(False)
    settings = {"MAX_ITER": 2, "LOSS": loss, "PARAMETRIZATION": "sp"}
    train([model], [gaussian(0)], settings)
    assert set(map(tuple, seen)) == {("0.bias", "0.weight", "1.weight")}


def test_what_a_loss_of_parameters_returns_is_checked(gaussian):
    def per_layer(output, y, params):
        return torch.stack([p.square().sum() for p in params.values()])

    with pytest.raises(SpecError, match=r"per_layer\(output, y\) gave shape \(6,\).*a scalar"):
        train([MLP(3, 4, 2)], [gaussian(0)], {"MAX_ITER": 1, "LOSS": per_layer})


@pytest.mark.parametrize("count", [1, 2])
def test_a_loss_that_returns_nothing_is_refused(gaussian, count):
    def forgotten(output, y):
        (output - y).square().mean()

    models = [MLP(3, 4, 2) for _ in range(count)]
    text = r"forgotten\(output, y\) gave None .*; return it: a function without return gives None$"
    with pytest.raises(SpecError, match=text):
        train(models, [gaussian(0)] * count, {"MAX_ITER": 1, "LOSS": forgotten})
