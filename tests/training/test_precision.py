"""Precision and determinism are set for a training, and restored afterwards."""

from __future__ import annotations

import copy
import math
import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlpsubmit import Monomial, Sweep
from mlpsubmit.assembly.assemble import assemble
from mlpsubmit.batchfns import polynomial, power_law
from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import MLP, parametrize, precision, train
from mlpsubmit.training.precision import arithmetic, functions_dtype
from mlpsubmit.training.seeds import streams


def now():
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp64"])
def test_settings_hold_inside_and_are_put_back(precision, deterministic):
    before, tf32 = now(), precision == "tf32"

    def inside():
        with arithmetic(precision, deterministic, torch.device("cpu")):
            assert now()[:3] == ("high" if tf32 else "highest", tf32, deterministic)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        inside()
    assert now() == before


def test_cublas_gets_its_workspace_on_cuda_only(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with arithmetic("fp32", True, torch.device("cpu")):
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with arithmetic("fp32", True, torch.device("cuda")):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(
    ("device", "libc", "calls"), [("cpu", "glibc", 3), ("cuda", "glibc", 0), ("cpu", "", 0)]
)
def test_malloc_is_asked_to_keep_memory_on_a_cpu_under_glibc_only(device, libc, calls, monkeypatch):
    asked = []

    class Library:
        mallopt = staticmethod(lambda *setting: asked.append(setting))

    monkeypatch.setattr(precision.platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(precision.ctypes, "CDLL", lambda name: Library)
    with precision.keep_freed_memory(torch.device(device)):
        pass
    assert len(asked) == calls


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("online", [True, False])
def test_lower_precision_trains_to_about_the_same(precision, online, gaussian, make_mlps, same):
    def losses(precision):
        settings = {"MAX_ITER": 20, "PRECISION": precision, "ONLINE": online, "LR": 0.03}
        fns = [gaussian(k) for k in range(2)]
        return train(make_mlps(2, width=32), fns, settings).train_loss

    exact, rounded = losses("fp32"), losses(precision)
    np.testing.assert_allclose(rounded, exact, rtol=0.05)
    np.testing.assert_array_equal(rounded, losses(precision))
    if precision == "bf16":
        assert (rounded != exact).any()


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_batches_and_grabs_multiply_exactly_whatever_the_training_does(precision):
    seen = {"batch": set(), "loss": set(), "grab": set()}

    def noted(place):
        seen[place].add(now()[:2])

    def batch_fn(step):
        noted("batch")
        return torch.ones(4, 3), torch.ones(4)

    def loss(output, y):
        noted("loss")
        return (output - y).square().mean()

    def grab(model):
        noted("grab")
        return 0.0

    settings = {"MAX_ITER": 3, "LOSS": loss, "PRECISION": precision, "LOSS_CHECKPOINTS": []}
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    train([model], [batch_fn], settings, grabs={"g": grab})
    whole = ("highest", False)
    trained = ("high", True) if precision == "tf32" else whole
    assert seen == {"batch": {whole}, "loss": {trained}, "grab": {whole}}


# ---- fp64 ----------------------------------------------------------------------------------------

WIDTH, STEPS, LR, GAMMA, SMOOTHER = 16, 60, 0.01, 1e-6, 0.9


def _float64_reference(X: Tensor, y: Tensor) -> list[float]:
    """Return the smoothed losses of mup with two hidden layers, on plain float64 tensors."""
    generator = torch.Generator().manual_seed(streams(42, 0).weights)
    shapes = [(WIDTH, 3), (WIDTH,), (WIDTH, WIDTH), (WIDTH,), (1, WIDTH), (1,)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float32) for shape in shapes]
    weights = [(w.double() / math.sqrt(WIDTH)).requires_grad_() for w in drawn]

    def f() -> Tensor:
        W1, b1, W2, b2, w3, b3 = weights
        h = (math.sqrt(2 * WIDTH / 3) * (X @ W1.T + b1)).relu()
        h = (math.sqrt(2) * (h @ W2.T + b2)).relu()
        return (h @ w3.T + b3)[:, 0] / math.sqrt(WIDTH)

    f0, smoothed = f().detach(), list[float]()
    for _ in range(STEPS):
        loss = (((f() - f0) / GAMMA - y) ** 2).mean()
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= LR * GAMMA**2 * gradient
        before = smoothed[-1] if smoothed else loss.item()
        smoothed.append(SMOOTHER * before + (1 - SMOOTHER) * loss.item())
    return smoothed


@pytest.mark.parametrize("compiled", [False, "auto"])
def test_fp64_resolves_a_gamma_that_fp32_cannot(compiled: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(32, 3, generator=generator, dtype=torch.float64)
    y = X[:, 0] * X[:, 1]
    settings = {"width": WIDTH, "max_iter": STEPS, "lr": LR, "gamma": GAMMA, "online": False}
    settings |= {"loss_checkpoints": [], "onlythresholds": False, "compile": compiled}
    expected = np.array(_float64_reference(X, y))
    assert expected[-1] < 0.9 * expected[0]
    traces = {}
    for name in ("fp64", "fp32"):
        trained = train([MLP(3, WIDTH)], [lambda step: (X, y)], {**settings, "precision": name})
        traces[name] = trained.train_loss[0]
    np.testing.assert_allclose(traces["fp64"], expected, rtol=1e-9)
    assert np.abs(traces["fp32"] / expected - 1).max() > 1e-4


def test_fp64_resolves_a_gamma_beside_others_in_a_pack_online() -> None:
    """Under AdamW with a schedule and clipping, against a loop in PyTorch for each config."""
    gammas, decay, limit = (GAMMA, 1.0), 0.3, 0.05

    def batch(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        X = torch.randn(32, 3, generator=generator, dtype=torch.float64)
        return X, X[:, 0] * X[:, 1]

    common = {"precision": "fp64", "max_iter": STEPS, "lr": LR, "loss_checkpoints": []}
    common |= {"optimizer": "adamw", "weight_decay": decay, "lr_schedule": "cosine"}
    common |= {"onlythresholds": False, "ema_smoother": 0.0}
    hs = [validate({**common, "gamma": g, "grad_clip_norm": limit / g}) for g in gammas]
    trained = train([MLP(3, WIDTH) for _ in hs], [batch] * 2, hs, trials=[0, 0])
    for gamma, got in zip(gammas, trained.train_loss, strict=True):
        model = MLP(3, WIDTH).double()
        generator = torch.Generator().manual_seed(streams(42, 0).weights)
        factors = parametrize(model, "mup", gamma=gamma, generator=generator, update="adam")
        initial = copy.deepcopy(model)
        lr = LR * min(1.0, gamma)
        optimizer = torch.optim.AdamW(
            {
                "params": [p],
                "lr": lr * factors[name].lr,
                "eps": 1e-8 * factors[name].eps,
                "weight_decay": decay / factors[name].lr,
            }
            for name, p in model.named_parameters()
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        losses = []
        for step in range(STEPS):
            X, y = batch(step)
            loss = ((model(X) - initial(X).detach())[:, 0] - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), limit / gamma)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        np.testing.assert_allclose(got, losses, rtol=1e-9)


def test_functions_of_an_fp64_spec_create_float64() -> None:
    """Also data, models and the library's batch functions, whatever was imported before."""
    seen: dict[str, torch.dtype] = {}

    def data(gen: torch.Generator) -> dict[str, Tensor]:
        return {"shift": torch.rand(3, generator=gen)}

    def batches(shift: Tensor, bsz: int, gen: torch.Generator) -> Any:
        def batch_fn(step: int) -> tuple[Tensor, Tensor]:
            X = torch.randn(bsz, 3, generator=gen) + shift
            seen.update(shift=shift.dtype, X=X.dtype)
            return X, X[:, 0]

        return batch_fn

    def weight(model: nn.Module, X_tr: Tensor) -> float:
        seen.update(weight=next(model.parameters()).dtype, X_tr=X_tr.dtype, new=torch.ones(1).dtype)
        return 0.0

    for sweep in (
        Sweep(data=data, batchfn=batches, grabs={"w": weight}, WIDTH=4, PRECISION="fp64"),
        Sweep(
            data=power_law(d=3, alpha=1.0),
            batchfn=polynomial,
            monomials=Monomial({0: 1}),
            grabs={"w": weight},
            WIDTH=4,
            PRECISION="fp64",
        ),
    ):
        config = next(iter(sweep)).replaced(max_iter=2, n_samples=8, n_test=8)
        entry = {"shift": torch.ones(3, dtype=torch.float64)}
        if sweep.data is not data:
            with functions_dtype("fp64"):
                entry = sweep.data()
            assert entry["data_eigvals"].dtype == torch.float64
        for stack in assemble(sweep, [config], [entry], torch.device("cpu")):
            stack.train()
        assert set(seen.values()) == {torch.float64}
    assert torch.get_default_dtype() == torch.float32
