"""The functions in C of a training step, against formulas."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlpsubmit.training import MLP, loss_history, train
from mlpsubmit.training.accel import native_mlp, step_kernels
from mlpsubmit.training.accel.chains import Chain, chain_of
from mlpsubmit.training.accel.layer_products import LayerProducts
from mlpsubmit.training.accel.mlp import ClosedForm
from mlpsubmit.training.accel.native_mlp import NativeMLP
from mlpsubmit.training.batches import Batch, BatchError
from mlpsubmit.training.losses import mse
from mlpsubmit.training.optimizers import adam

K = 3
#: Samples, inputs, widths of the hidden layers, and outputs: around the sizes of tiles and panels.
SHAPES = [
    (1, 1, (1,), 1),
    (7, 3, (5,), 2),
    (17, 31, (33, 8), 1),
    (64, 16, (32, 32), 3),
    (65, 33, (100, 65), 10),
    (257, 40, (64, 64, 64), 1),
    (300, 700, (257,), 1),
    (33, 300, (513, 17), 40),
]
SCALES, BIAS_SCALES = (1.0, 1.3, 0.7, 1.1), (0.8, 1.2, 1.5)
PHIS = {"relu": ["relu"], "tanh": ["tanh"], "mixed": ["sigmoid", "identity", "relu"]}


class Case:
    """K networks of some shape, with a batch; all in double precision."""

    def __init__(
        self,
        n: int,
        d: int,
        widths: tuple[int, ...],
        d_out: int,
        bias: bool = True,
        phi: str = "relu",
    ) -> None:
        random = torch.Generator().manual_seed(n + d)
        drawn = lambda *shape: torch.randn(shape, generator=random).double()  # noqa: E731
        units = [d, *widths, d_out]
        layers = tuple(f"layer{i}" for i in range(len(units) - 1))
        self.chain = Chain(
            layers,
            tuple(PHIS[phi][i % len(PHIS[phi])] for i in range(len(widths))),
            SCALES[: len(layers)],
            (*BIAS_SCALES[: len(widths)], 1.0) if phi != "relu" else (1.0,) * len(layers),
            flattens=True,
        )
        self.tensors = {self.chain.multiplier: drawn(K)}
        for name, fan_in, out in zip(layers, units, units[1:], strict=False):
            self.tensors[f"{name}.weight"] = drawn(K, out, fan_in) / fan_in**0.5
            if bias:
                self.tensors[f"{name}.bias"] = drawn(K, out)
        self.X, self.y, self.f0 = drawn(K, n, d), drawn(K, n, d_out), drawn(K, n, d_out)

    def batch(self, dtype: torch.dtype, kind: str = "stacked") -> Batch:
        X, y = self.X.to(dtype), self.y.to(dtype)
        if kind == "apart":
            return Batch.apart([(one.clone(), own.clone()) for one, own in zip(X, y, strict=True)])
        return Batch(X[0], y[0], True) if kind == "shared" else Batch(X, y, False)

    def native(self, dtype: torch.dtype) -> NativeMLP:
        functions = native_mlp.library(dtype)
        assert functions is not None
        return NativeMLP(functions, dtype, self.chain)

    def given(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: tensor.to(dtype) for name, tensor in self.tensors.items()}

    def formulas(self) -> ClosedForm:
        return ClosedForm(self.chain, LayerProducts())


def close(found: Any, wanted: Any, dtype: torch.dtype) -> None:
    """Compare in norms: a sum of many terms is not more exact than these."""
    tolerance = 2e-6 if dtype == torch.float32 else 1e-14
    assert found.shape == wanted.shape
    difference = (found.double() - wanted).norm() / wanted.norm().clamp(min=1e-30)
    assert difference < tolerance * max(found.shape) ** 0.5


@pytest.mark.parametrize("kind", ["stacked", "shared", "apart"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "phi"),
    [(torch.float64, "relu"), *((torch.float32, phi) for phi in PHIS)],
    ids=["relu-double", *PHIS],
)
def test_losses_gradients_and_outputs(
    dtype: torch.dtype, phi: str, shape: Any, bias: bool, kind: str
) -> None:
    case = Case(*shape, bias=bias, phi=phi)
    native, tensors, batch = case.native(dtype), case.given(dtype), case.batch(dtype, kind)
    exact = case.batch(torch.float64, kind)
    kept: list[Tensor] = []
    losses, gradients = native.mse_gradients(tensors, batch, case.f0.to(dtype), kept)
    kept_exactly: list[Tensor] = []
    wanted, expected = case.formulas().losses_and_gradients(
        case.tensors, exact, case.f0, mse, kept_exactly
    )
    close(losses, wanted, dtype)
    close(kept[0], kept_exactly[0], dtype)
    assert gradients.keys() == expected.keys() == case.tensors.keys() - {case.chain.multiplier}
    if dtype == torch.float64 or phi == "tanh":  # rounding of floats switches ReLUs on or off
        for name, gradient in gradients.items():
            close(gradient, expected[name], dtype)
    outputs = case.formulas().outputs(case.tensors, exact)
    close(native.outputs(tensors, batch), outputs, dtype)
    # In two calls, with a loss of one's own between them.
    signals, f = native.forward(tensors, batch)
    assert torch.equal(f, native.outputs(tensors, batch))
    error = f - case.f0.to(dtype) - batch.targets
    by_parts = native.backward(tensors, batch, signals, error * (2 / error[0].numel()))
    for name, gradient in gradients.items():
        torch.testing.assert_close(by_parts[name], gradient)


@pytest.fixture
def on_threads() -> Iterator[Callable[[int], None]]:
    """Return a function that sets how many threads compute."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize(
    "shape", [(65, 33, (40, 24), 2), (300, 20, (300, 520), 1), (7, 9, (300,), 3)]
)
def test_a_network_has_the_same_bits_alone_and_on_any_number_of_threads(
    shape: Any, phi: str, on_threads: Callable[[int], None]
) -> None:
    """Threads share networks out, or the columns of wide ones: of 300 units among two."""
    case = Case(*shape, phi=phi)
    native, tensors = case.native(torch.float32), case.given(torch.float32)
    batch, f0 = case.batch(torch.float32), case.f0.float()

    def of(rows: slice, threads: int) -> list[Tensor]:
        on_threads(threads)
        given = {name: tensor[rows] for name, tensor in tensors.items()}
        own, kept = Batch(batch.X[rows], batch.y[rows], False), list[Tensor]()
        losses, gradients = native.mse_gradients(given, own, f0[rows], kept)
        signals, outputs = native.forward(given, own)
        by_parts = native.backward(given, own, signals, outputs)
        found = [losses, *gradients.values(), *kept, outputs, *by_parts.values()]
        return [*found, native.outputs(given, own)]

    def each(threads: int) -> list[Tensor]:
        found = [of(slice(k, k + 1), threads) for k in range(K)]
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    alone = each(1)
    for threads in (1, 2, 3, 5, 8):
        together = of(slice(None), threads)
        for one, other, third in zip(alone, together, each(threads), strict=True):
            assert torch.equal(one, other)
            assert torch.equal(one, third)


def test_nan_stays_nan_in_its_own_network() -> None:
    case = Case(20, 3, (5, 4), 1)
    tensors = case.given(torch.float32)
    tensors["layer1.weight"][1, 2, 0] = torch.nan
    native, batch = case.native(torch.float32), case.batch(torch.float32)
    losses, gradients = native.mse_gradients(tensors, batch, 0.0)
    assert losses.isnan().tolist() == [False, True, False]
    for gradient in gradients.values():
        assert gradient[[0, 2]].isfinite().all()


def test_a_number_and_strided_tensors_are_taken() -> None:
    case = Case(20, 6, (5, 4), 2)
    native, tensors = case.native(torch.float64), case.given(torch.float64)
    batch = case.batch(torch.float64)
    wanted = native.mse_gradients(tensors, batch, torch.full_like(case.f0, 0.5))
    turned = {
        name: tensor.mT.contiguous().mT if tensor.ndim == 3 else tensor
        for name, tensor in tensors.items()
    }
    square = Batch(batch.X.mT.contiguous().mT.reshape(K, 20, 3, 2), batch.y, False)
    found = native.mse_gradients(turned, square, 0.5)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(K, 20, 7), (K - 1, 20, 6)])
def test_inputs_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    case = Case(20, 6, (5,), 1)
    X, native = torch.zeros(*shape).double(), case.native(torch.float64)
    given = f"a tensor of shape \\({shape[0]}, 20, {shape[2]}\\) and .* 3 networks of 6 inputs"
    with pytest.raises(ValueError, match=given):
        native.outputs(case.tensors, Batch(X, X, False))
    given = f"{shape[0]} batches of shape \\(20, {shape[2]}\\), for 3 networks of 6 inputs"
    with pytest.raises(ValueError, match=given):
        native.outputs(case.tensors, Batch.apart([(one, one) for one in X]))


def test_one_that_fails_its_trial_is_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gradients = NativeMLP.mse_gradients

    def wrong(self: NativeMLP, *arguments: Any) -> Any:
        losses, found = gradients(self, *arguments)
        return losses * (1 + 1e-4), found

    monkeypatch.setattr(NativeMLP, "mse_gradients", wrong)
    monkeypatch.setattr(native_mlp, "_PASSED", {})
    form = ClosedForm.of([MLP(4, 9)], "fp32", torch.device("cpu"))
    assert form is not None
    assert form.native is None
    assert form.method == "the closed form"
    text = "the kernel for MLPs in C is not used: it differs from the formulas by 1.0e-04\n"
    assert capsys.readouterr().out == text


def test_a_wide_network_is_tried_as_a_narrower_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a trial takes seconds, and the memory of a dozen of them."""
    largest: list[int] = []
    gradients = NativeMLP.mse_gradients

    def noted(self: NativeMLP, tensors: Any, *arguments: Any) -> Any:
        largest.append(max(tensor[0].numel() for tensor in tensors.values()))
        return gradients(self, tensors, *arguments)

    monkeypatch.setattr(NativeMLP, "mse_gradients", noted)
    monkeypatch.setattr(native_mlp, "_PASSED", {})
    chain = Chain(("a", "b", "c"), ("relu",) * 2, (1.0, 1.2, 0.8), (1.0,) * 3, True)
    shapes = {"a.weight": (8192, 9), "b.weight": (8192, 8192), "c.weight": (1, 8192)}
    # Without memory for the weights: the trial draws its own.
    tensors = {name: torch.empty(1).expand(shape) for name, shape in shapes.items()}
    formulas = functools.partial(ClosedForm(chain, LayerProducts()).losses_and_gradients, loss=mse)
    assert NativeMLP.of(chain, tensors, formulas) is not None
    assert max(largest) <= 2**20


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sgd_has_the_bits_of_the_formula(
    dtype: torch.dtype, threads: int, on_threads: Callable[[int], None]
) -> None:
    on_threads(threads)
    step = step_kernels.sgd_step(torch.device("cpu"), dtype)
    assert step is not None
    random = torch.Generator().manual_seed(0)
    old = [torch.randn(K, *s, generator=random, dtype=dtype) for s in ((333, 777), (1,), (130,))]
    gradients = [p.flip(-1).contiguous() for p in old]
    gradients[1][2] = torch.nan  # of one that is not updated
    lrs = torch.rand(K, 7, generator=random, dtype=dtype)[:, 1:4]
    updated = torch.tensor([[True, True, False], [False, True, True], [True, False, True]])
    new = [p.clone() for p in old]
    step(new, gradients, lrs, updated)
    for i, (p, g, q) in enumerate(zip(old, gradients, new, strict=True)):
        for k in range(K):
            wanted = p[k] - g[k] * lrs[k, i] if updated[k, i] else p[k]
            assert torch.equal(q[k], wanted)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_has_the_bits_of_the_formula(
    dtype: torch.dtype, threads: int, on_threads: Callable[[int], None]
) -> None:
    on_threads(threads)
    step = step_kernels.adam_step(torch.device("cpu"), dtype, adam._formula)
    assert step is not None
    random = torch.Generator().manual_seed(0)
    drawn = lambda *shape: torch.randn(shape, generator=random, dtype=dtype)  # noqa: E731
    p, g, m, v = (drawn(K, 333, 777).exp() for _ in range(4))
    g[1] = torch.nan  # of one that is not updated
    lrs, eps = drawn(K, 4).exp(), drawn(K, 3).exp()
    numbers = (0.9, 0.99, torch.tensor(0.3).double(), torch.tensor(0.2).double())
    made = torch.tensor([[True, False], [False, True], [True, True]])[:, 0]
    found, wanted = ([part.clone() for part in (p, g, m, v)] for _ in range(2))
    step(*found, lrs[:, 2], eps[:, 1], made, *numbers)
    adam._formula(*wanted, lrs[:, 2].view(K, 1, 1), eps[:, 1].view(K, 1, 1), *numbers)
    for old, one, other in zip((p, g, m, v), found, wanted, strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])
        torch.testing.assert_close(one[1], old[1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("contracts", [True, False])
def test_losses_are_rounded_as_the_formula_rounds_them(
    contracts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a build of PyTorch whose addcmul rounds once, or twice."""

    def one(average: float, loss: float, smoother: float) -> float:
        share, old = 1 - smoother, average * smoother
        if contracts and math.isfinite(loss):
            return float(Fraction(loss) * Fraction(share) + Fraction(old))
        return loss * share + old

    def smoothed(*parts: Tensor) -> Tensor:
        rows = zip(*[part.tolist() for part in parts], strict=True)
        return torch.tensor([one(*row) for row in rows], dtype=torch.float64)

    monkeypatch.setattr(loss_history, "_smoothed", smoothed)
    fused = step_kernels.fused_loss_step.__wrapped__
    step = fused(torch.device("cpu"), loss_history._loss_step)
    assert step is not None
    assert step.args == (contracts,)
    assert (
        fused(torch.device("cpu"), lambda *given: loss_history._loss_step(*given[:-1], False))
        is None
    )


@pytest.mark.parametrize("phi", ["tanh", "sigmoid"])
def test_large_signals_saturate(phi: str) -> None:
    """What rounds to 1, of infinity, and of NaN."""
    ends = [-torch.inf, -1e30, -30.0, 30.0, 1e30, torch.inf]
    values = torch.tensor([*ends, -8.5, 0.0, 8.5, torch.nan])
    chain, ones = Chain(("in", "out"), (phi,), (1.0, 1.0), (1.0, 1.0), True), torch.ones(1, 1, 1)
    functions = native_mlp.library(torch.float32)
    assert functions is not None
    weights = {"in.weight": ones, "out.weight": ones}
    found = NativeMLP(functions, torch.float32, chain).outputs(
        weights, Batch(values[:, None], values, True)
    )
    found, wanted = found.flatten(), getattr(torch, phi)(values.double())
    close_to = {"rtol": 3e-7, "atol": 1e-7, "equal_nan": True}
    torch.testing.assert_close(found.double(), wanted, **close_to)
    assert found[:6].tolist() == [-1.0 if phi == "tanh" else 0.0] * 3 + [1.0] * 3


def test_layers_that_do_not_fit_are_no_chain() -> None:
    """In C they would be read past the end of a signal."""
    fits = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    assert chain_of(fits) is not None
    assert chain_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4000, 1))) is None
    fits[0].bias = nn.Parameter(torch.zeros(1))
    assert chain_of(fits) is None


def test_a_model_whose_layers_do_not_fit_is_named() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(40_000, 1))

    with pytest.raises(BatchError, match=r"on which the model fails .* or a MODEL that takes it"):
        train([model()], [lambda step: (torch.ones(4, 3), torch.ones(4))], {"MAX_ITER": 2})


@pytest.mark.parametrize("wrong", ["y", "f0", "type", "one type"])
def test_what_does_not_fit_is_refused(wrong: str) -> None:
    case = Case(20, 6, (5,), 1)
    y, f0 = (case.y[:, :7], case.f0) if wrong == "y" else (case.y, case.f0[:2])
    tensors = case.given(torch.float32 if wrong == "type" else torch.float64)
    if wrong == "one type":
        tensors["layer1.weight"] = tensors["layer1.weight"].float()
    native = case.native(torch.float64)
    with pytest.raises(
        ValueError, match=r"^a tensor of shape .* 1 outputs in .*, on samples \(20,\)$"
    ):
        native.mse_gradients(tensors, Batch(case.X, y, False), f0)


@pytest.mark.slow
def test_a_process_that_forks_after_threads_trains_on() -> None:
    code = """
        import os, torch
        from tests.training.accel.test_native import Case
        torch.set_num_threads(2)
        case = Case(20, 6, (5,), 1)
        native, tensors = case.native(torch.float32), case.given(torch.float32)
        losses, _ = native.mse_gradients(tensors, case.batch(torch.float32), 0.0)
        child = os.fork()
        if child == 0:
            found, _ = native.mse_gradients(tensors, case.batch(torch.float32), 0.0)
            os._exit(0 if torch.equal(found, losses) else 1)
        assert os.waitpid(child, 0)[1] == 0
        """
    run_python(code)


def run_python(code: str) -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(command, check=True, cwd=root, timeout=120)


@pytest.mark.parametrize("dtypes", [("float64", "float32"), ("float32", "float64")])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_parameters_of_several_types_have_no_kernel(dtypes: Any, optimizer: str) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            first, second = (getattr(torch, name) for name in dtypes)
            self.first = nn.Parameter(torch.full((3,), 0.5, dtype=first))
            self.second = nn.Parameter(torch.full((3,), 0.5, dtype=second))

        def forward(self, X: Tensor) -> Tensor:
            return X @ self.first.to(X.dtype) + X @ self.second.to(X.dtype)

    data = (torch.eye(3), torch.zeros(3))
    settings = {"MAX_ITER": 3, "LR": 0.3, "PARAMETRIZATION": "sp", "CENTERED": False}
    settings |= {"OPTIMIZER": optimizer, "LOSS_CHECKPOINTS": []}
    found = [
        train([Mixed()], [lambda step: data], {**settings, "COMPILE": c}) for c in ("auto", False)
    ]
    assert found[0].train_loss[0] < 1
    np.testing.assert_allclose(found[0].train_loss, found[1].train_loss, rtol=1e-6)
