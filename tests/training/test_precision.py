"""Precision and determinism are set for a training, and restored afterwards."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from mlpsubmit.training import precision, train
from mlpsubmit.training.precision import arithmetic


def now():
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
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
