"""The explicit formulas for MLPs against vmap and autograd, and when they are not used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit import MLP, train
from mlpsubmit.spec.hyperparameters import PARAMETRIZATIONS
from mlpsubmit.training.accel.mlp import Perceptrons
from mlpsubmit.training.batches import Batch
from mlpsubmit.training.losses import stacked_loss
from mlpsubmit.training.parametrizations import parametrize
from mlpsubmit.training.stack import Stack

K, N, D, WIDTH = 3, 7, 4, 5


def models(parametrization: str, gammas: tuple[float, ...] = (0.5, 1.0, 2.0), **shape: Any) -> Any:
    built = []
    for trial, gamma in enumerate(gammas):
        model = MLP(D, WIDTH, **shape)
        generator = torch.Generator().manual_seed(trial)
        parametrize(model, parametrization, gamma=gamma, generator=generator)
        for parameter in model.parameters():  # biases too, which PyTorch may start small
            nn.init.normal_(parameter, generator=generator)
        built.append(model.double())
    return built


def stack(built: Any) -> Stack:
    return Stack(built, torch.device("cpu"), "fp32", keep_initial=False)


def batch(shared: bool, d_out: int) -> Batch:
    generator = torch.Generator().manual_seed(9)
    lead = (N,) if shared else (K, N)
    X = torch.randn(*lead, D, generator=generator, dtype=torch.float64)
    y = torch.randn(*lead, d_out, generator=generator, dtype=torch.float64)
    return Batch(X, y, shared)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("bias", "d_out", "loss"), [(True, 1, "mse"), (False, 2, "cross_entropy")])
def test_they_agree_with_vmap_and_autograd(
    parametrization: str, depth: int, shared: bool, bias: bool, d_out: int, loss: str
) -> None:
    explicit = stack(models(parametrization, depth=depth, bias=bias, d_out=d_out))
    general = stack(models(parametrization, depth=depth, bias=bias, d_out=d_out))
    assert explicit._perceptrons is not None
    general._perceptrons = None
    given = batch(shared, d_out)
    targets = given.targets.softmax(-1) if loss == "cross_entropy" else given.targets

    def losses(outputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return stacked_loss(loss)(outputs, targets)

    torch.testing.assert_close(explicit(given), general(given), rtol=1e-12, atol=1e-12)
    got, expected = (s.losses_and_gradients(given, 0.1, losses) for s in (explicit, general))
    torch.testing.assert_close(got[0], expected[0], rtol=1e-12, atol=1e-12)
    assert len(got[1]) == len(explicit.names)
    for found, wanted in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


def test_a_read_out_without_a_multiplier() -> None:
    def plain(model: nn.Module, optimizer: Any, gamma: float) -> None:
        """Ask for gamma, and so leave the outputs as they are."""

    built = [MLP(D, WIDTH, depth=3).double() for _ in range(2 * K)]
    for model in built:
        parametrize(model, plain, gamma=2.0)
    for one, other in zip(built[:K], built[K:], strict=True):
        other.load_state_dict(one.state_dict())
    explicit, general = stack(built[:K]), stack(built[K:])
    assert explicit._perceptrons is not None
    general._perceptrons = None
    given = batch(False, 1)
    got, expected = (
        s.losses_and_gradients(given, 0.0, lambda outputs, y: outputs.square().mean((1, 2)))
        for s in (explicit, general)
    )
    torch.testing.assert_close(got, (expected[0], list(expected[1])), rtol=1e-11, atol=1e-12)


def test_inputs_of_more_dimensions_are_flattened() -> None:
    explicit = stack(models("mup"))
    given = batch(False, 1)
    square = Batch(given.X.reshape(K, N, 2, 2), given.y, shared=False)
    torch.testing.assert_close(explicit(square), explicit(given))


@pytest.mark.parametrize("online", [True, False])
def test_whole_trainings_agree(monkeypatch: pytest.MonkeyPatch, online: bool) -> None:
    def run() -> Any:
        generators = [torch.Generator().manual_seed(seed) for seed in range(4)]

        def batch_fn(generator: torch.Generator) -> Any:
            def draw(step: int) -> Any:
                X = torch.randn(64, 6, generator=generator)
                return X, X[:, 0] * X[:, 1]

            return draw

        settings = {"MAX_ITER": 150, "LR": 0.1, "ONLINE": online, "LOSS_CHECKPOINTS": [1e-3]}
        nets = [MLP(6, 32, 2).double() for _ in range(4)]
        fns = [batch_fn(generator) for generator in generators]
        return train(nets, fns, settings | {"WIDTH": 32}, generators=generators)

    explicit = run()
    monkeypatch.setattr(Perceptrons, "of", classmethod(lambda cls, models: None))
    general = run()
    np.testing.assert_allclose(explicit.train_loss, general.train_loss, rtol=1e-10)
    assert (explicit.train_loss < 0.2).all()


class Doubled(MLP):
    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(X)


def _hooked(model: Any) -> None:
    model.hidden_layers[0].register_forward_hook(lambda module, args, output: 2 * output)


def _watched(model: Any) -> None:
    model.register_forward_pre_hook(lambda module, args: (2 * args[0],))


def _patched(model: Any) -> None:
    linear = model.hidden_layers[0].forward
    model.hidden_layers[0].forward = lambda x: 2 * linear(x)


def _replaced(model: Any) -> None:
    model.forward = lambda X: model.input_layer(X).sum(1, keepdim=True)


def _tied(model: Any) -> None:
    model.hidden_layers[1] = model.hidden_layers[0]


def _frozen(model: Any) -> None:
    model.input_layer.bias.requires_grad_(False)


def _extended(model: Any) -> None:
    model.temperature = nn.Parameter(torch.ones(()))


def _normed(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.input_layer)


def _scaled(model: Any) -> None:
    model.input_layer.multiplier *= 2


def _foreign(model: Any) -> None:
    model.output_layer._forward_hooks.clear()  # a multiplier that something else would apply


CHANGES = [
    _foreign,
    _hooked,
    _watched,
    _patched,
    _replaced,
    _tied,
    _frozen,
    _extended,
    _normed,
    _scaled,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__[1:])
def test_a_network_that_computes_something_else_is_left_to_autograd(change: Any) -> None:
    built = models("ntp", depth=3)
    assert Perceptrons.of(built) is not None
    change(built[-1])
    if change is not _scaled:  # on one of them alone, which is what makes the difference
        for model in built[:-1]:
            change(model)
    assert Perceptrons.of(built) is None


@pytest.mark.parametrize(
    "build",
    [
        lambda: Doubled(D, WIDTH),
        lambda: MLP(D, WIDTH, nonlinearity=nn.Tanh()),
        lambda: nn.Sequential(nn.Linear(D, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)),
    ],
)
def test_other_models_are_left_to_autograd(build: Any) -> None:
    model = build()
    parametrize(model, "mup")
    assert Perceptrons.of([model]) is None
