"""The closed form of MLPs against vmap and autograd, and when it is not used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mlpsubmit.spec.hyperparameters import PARAMETRIZATIONS, validate
from mlpsubmit.training import MLP, Interrupted, StateError, train, weights_rng
from mlpsubmit.training.accel.mlp import ClosedForm
from mlpsubmit.training.batches import Batch
from mlpsubmit.training.losses import differentiated, mse, stacked_loss
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


def closed_form(built: Any) -> ClosedForm | None:
    return ClosedForm.of(built, "fp32", torch.device("cpu"))


@pytest.fixture(params=["the closed form in C", "the closed form"])
def method(request: pytest.FixtureRequest) -> str:
    """How it is computed: where there is a C compiler, and where there is none."""
    if request.param == "the closed form":
        request.getfixturevalue("without_c")
    return str(request.param)


def stack(built: Any, method: str = "autograd") -> Stack:
    accelerated = method.startswith("the closed form")
    stacked = Stack(built, torch.device("cpu"), "fp32", accelerated)
    assert stacked.method == method
    return stacked


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
    parametrization: str,
    depth: int,
    shared: bool,
    bias: bool,
    d_out: int,
    loss: str,
    method: str,
) -> None:
    closed = stack(models(parametrization, depth=depth, bias=bias, d_out=d_out), method)
    plain = stack(models(parametrization, depth=depth, bias=bias, d_out=d_out))
    given = batch(shared, d_out)
    targets = given.targets.softmax(-1) if loss == "cross_entropy" else given.targets

    def losses(outputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return stacked_loss(loss)(outputs, targets)

    torch.testing.assert_close(closed(given), plain(given), rtol=1e-12, atol=1e-12)
    got, expected = (s.losses_and_gradients(given, 0.1, losses) for s in (closed, plain))
    torch.testing.assert_close(got[0], expected[0], rtol=1e-12, atol=1e-12)
    assert len(got[1]) == len(closed.names)
    for found, wanted in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


def test_a_read_out_without_a_multiplier(method: str) -> None:
    def declares_gamma(model: nn.Module, optimizer: Any, gamma: float) -> None:
        """Ask for gamma, and so leave the outputs as they are."""

    built = [MLP(D, WIDTH, depth=3).double() for _ in range(2 * K)]
    for model in built:
        parametrize(model, declares_gamma, gamma=2.0)
    for one, other in zip(built[:K], built[K:], strict=True):
        other.load_state_dict(one.state_dict())
    closed, plain = stack(built[:K], method), stack(built[K:])
    given = batch(False, 1)
    got, expected = (
        s.losses_and_gradients(given, 0.0, lambda outputs, y: outputs.square().mean((1, 2)))
        for s in (closed, plain)
    )
    torch.testing.assert_close(got, (expected[0], list(expected[1])), rtol=1e-11, atol=1e-12)


def test_inputs_of_more_dimensions_are_flattened(method: str) -> None:
    closed = stack(models("mup"), method)
    given = batch(False, 1)
    square = Batch(given.X.reshape(K, N, 2, 2), given.y, shared=False)
    torch.testing.assert_close(closed(square), closed(given))


def whole(compile_it: Any, parametrization: str, online: bool, monitor: Any = None) -> Any:
    """Train 4 networks in double precision."""

    def batch_fn(generator: torch.Generator) -> Any:
        def draw(step: int) -> Any:
            X = torch.randn(64, 6, generator=generator)
            return X, X[:, 0] * X[:, 1]

        return draw

    base = validate(
        {
            "MAX_ITER": 60,
            "LR": 0.1,
            "ONLINE": online,
            "PARAMETRIZATION": parametrization,
            "PERCENT_THRESHOLDS": [0.9, 0.7],
            "ONLYTHRESHOLDS": False,
            "COMPILE": compile_it,
        }
    )
    with weights_rng(42, 0):  # for sp, which keeps the models' own weights
        nets = [MLP(6, 32, 2).double() for _ in range(4)]
    generators = [torch.Generator().manual_seed(seed % 2) for seed in range(4)]
    return train(
        nets,
        [batch_fn(generator) for generator in generators],
        [base.model_copy(update={"gamma": gamma}) for gamma in (0.7, 1.0, 1.5, 2.0)],
        trials=[0, 1, 0, 1],
        test_fns=[batch_fn(torch.Generator().manual_seed(9))] * 4,
        generators=generators,
        grabs={"moved": lambda model, model0, X_tr: (model(X_tr) - model0(X_tr)).norm()},
        monitor=monitor,
    )


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("online", [True, False])
def test_whole_trainings_are_those_of_the_plain_way(
    parametrization: str, online: bool, same: Any, short_blocks: None
) -> None:
    accelerated, plain = (whole(choice, parametrization, online) for choice in ("auto", False))
    same(plain, accelerated, rtol=1e-9)
    assert (plain.grabs["moved"][:, -1] > 0.01).all()  # the networks have moved


def test_without_compile_everything_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for accelerator in ("ClosedForm.of", "Compiled.__init__", "ReplayedSteps.__init__"):
        module = {"C": "stack", "R": "accel.replay"}[accelerator[0]]
        fails = lambda *_, name=accelerator: pytest.fail(name)  # noqa: E731
        monkeypatch.setattr(f"mlpsubmit.training.{module}.{accelerator}", fails)
    whole(False, "mup", online=True)


def test_a_state_goes_on_in_the_way_in_which_it_began(saver: Any, same: Any) -> None:
    def interrupted(compile_it: Any) -> Any:
        monitor = saver(every=20, interrupting=True)
        with pytest.raises(Interrupted):
            whole(compile_it, "mup", True, monitor)
        return saver(monitor.state)

    same(whole(False, "mup", True), whole("auto", "mup", True, interrupted(False)))
    with pytest.raises(
        StateError, match="from the closed form in C, those of this training from autograd"
    ):
        whole(False, "mup", True, interrupted("auto"))


def test_a_state_of_the_functions_in_c_goes_on_only_where_they_are_compiled(
    saver: Any, request: pytest.FixtureRequest
) -> None:
    monitor = saver(every=20, interrupting=True)
    with pytest.raises(Interrupted):
        whole("auto", "mup", True, monitor)
    request.getfixturevalue("without_c")
    with pytest.raises(StateError) as error:
        whole("auto", "mup", True, saver(monitor.state))
    assert str(error.value) == (
        "saved state: its gradients come from the closed form in C, those of this training from "
        "the closed form, which rounds differently; here the functions in C are not compiled, "
        "unlike where it began (mlpsubmit doctor shows why): continue on a machine like that, or "
        "discard the state to train from the beginning"
    )


def test_a_state_without_the_functions_in_c_goes_on_without_them(saver: Any, same: Any) -> None:
    with pytest.MonkeyPatch.context() as without:
        without.setattr("mlpsubmit.training.accel.native_mlp.library", lambda dtype: None)
        expected, monitor = whole("auto", "mup", True), saver(every=20, interrupting=True)
        with pytest.raises(Interrupted):
            whole("auto", "mup", True, monitor)
    same(whole("auto", "mup", True, saver(monitor.state)), expected)


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
    assert closed_form(built) is not None
    change(built[-1])
    if change is not _scaled:  # on one of them alone, which is what makes the difference
        for model in built[:-1]:
            change(model)
    assert closed_form(built) is None


@pytest.mark.parametrize(
    "build",
    [
        lambda: Doubled(D, WIDTH),
        lambda: MLP(D, WIDTH, nonlinearity=nn.GELU()),
        lambda: nn.Sequential(nn.Linear(D, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1)),
        lambda: nn.Sequential(nn.Linear(D, WIDTH), nn.Linear(WIDTH, 1)),
        lambda: nn.Sequential(nn.Linear(D, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1), nn.Tanh()),
        lambda: nn.Sequential(nn.Flatten(0), nn.Linear(D, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)),
        lambda: nn.Sequential(nn.Linear(D, 1)),
        nn.Sequential,
        lambda: Doubling(nn.Linear(D, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)),
        lambda: twice(nn.Linear(D, D)),
    ],
)
def test_other_models_are_left_to_autograd(build: Any) -> None:
    assert closed_form([build()]) is None


class Doubling(nn.Sequential):
    def forward(self, X: torch.Tensor) -> torch.Tensor:
        doubled: torch.Tensor = 2 * super().forward(X)
        return doubled


def twice(layer: nn.Linear) -> nn.Module:
    """A chain in which a layer occurs twice."""
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(D, 1))


def test_a_nonlinearity_may_occur_twice() -> None:
    phi = nn.Tanh()
    layers = [nn.Linear(D, 6), phi, nn.Linear(6, WIDTH), phi, nn.Linear(WIDTH, 1)]
    built: list[nn.Module] = [nn.Sequential(*layers).double()]
    closed, plain = stack(built, "the closed form"), stack(built, "the model itself")
    given = Batch(batch(True, 1).X, batch(True, 1).y, True)
    torch.testing.assert_close(closed(given), plain(given), rtol=1e-12, atol=1e-12)


PHIS = (nn.Tanh, nn.Sigmoid, nn.Identity, nn.ReLU)


def sequential(trial: int, phis: Any, flatten: bool) -> nn.Module:
    torch.manual_seed(trial)
    first = [nn.Flatten()] if flatten else []
    layers = [nn.Linear(D, 6), phis[0](), nn.Linear(6, WIDTH, bias=False), phis[1]()]
    return nn.Sequential(*first, *layers, nn.Linear(WIDTH, 2))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("parametrization", ["mup", "ntp", "sp"])
@pytest.mark.parametrize("phis", [(PHIS[i], PHIS[i - 1]) for i in range(4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(D,), (2, 2), (3, D)], ids=str)
def test_a_sequential_is_a_chain(
    shape: Any, dtype: Any, phis: Any, parametrization: str, shared: bool, method: str
) -> None:
    """Of vectors, of images that are flattened, and along the last dimension of several."""
    smooth = {nn.Tanh, nn.Sigmoid} & set(phis)
    if dtype == torch.float64 and smooth:  # which are in C for floats alone
        method = "the closed form"
    built: list[list[nn.Module]] = [[], []]
    for models in built:
        for trial, gamma in enumerate((0.5, 1.0, 2.0)):
            model = sequential(trial, phis, flatten=shape == (2, 2))
            generator = torch.Generator().manual_seed(trial)
            parametrize(model, parametrization, gamma=gamma, generator=generator)
            models.append(model.to(dtype))
    closed, plain = stack(built[0], method), stack(built[1])
    generator = torch.Generator().manual_seed(9)
    lead, per_output = (N,) if shared else (K, N), shape[:-1] if shape == (3, D) else ()
    X = torch.randn(*lead, *shape, generator=generator, dtype=dtype)
    y = torch.randn(*lead, *per_output, 2, generator=generator, dtype=dtype)
    given = Batch(X, y, shared)
    single = {"rtol": 1e-4, "atol": 1e-5}
    tolerance = single if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(closed(given), plain(given), **tolerance)
    for loss in (mse, stacked_loss("mae")):
        got, expected = (s.losses_and_gradients(given, 0.1, loss) for s in (closed, plain))
        torch.testing.assert_close(got[0], expected[0], **tolerance)
        for found, wanted in zip(got[1], expected[1], strict=True):
            torch.testing.assert_close(found, wanted, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (4, 256, 1), (2, 100, 3)], ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_the_gradient_of_mse_has_the_bits_of_autograd(
    shape: tuple[int, ...], dtype: torch.dtype, shared: bool
) -> None:
    draw = torch.Generator().manual_seed(0)
    y = torch.randn(1 if shared else shape[0], *shape[1:], generator=draw, dtype=dtype)
    loss = stacked_loss("mse")
    for exponent in range(-20, 20):
        output = torch.randn(*shape, generator=draw, dtype=dtype) * 10.0**exponent
        f = output.clone().requires_grad_()
        losses = loss(f, y)
        (gradient,) = torch.autograd.grad(losses.sum(), f)
        found = differentiated(loss, output, y)
        assert torch.equal(found[0], losses)
        assert torch.equal(found[1], gradient)
