"""The kernels: their numbers, in Triton's interpreter and on a GPU, and when they are not used."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mlpsubmit.training import MLP, train
from mlpsubmit.training.accel import kernels, layer_products, narrow_mlps, step_kernels
from mlpsubmit.training.accel.mlp import ClosedForm
from mlpsubmit.training.loss_history import _loss_step
from mlpsubmit.training.parametrizations import parametrize

HERE = Path(__file__).parent


def _checks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kernel_checks", HERE / "kernel_checks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kernel_checks"] = module
    spec.loader.exec_module(module)
    return module


checks = _checks()


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the checks find in the interpreter, which Triton has to be imported with."""
    file = tmp_path_factory.mktemp("kernels") / "found.json"
    subprocess.run(
        [sys.executable, HERE / "kernel_checks.py", file],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=True,
    )
    return json.loads(file.read_text())


TOLERANCE = 5e-6
SGD = {"configs": True, "parameters": True, "strides": True}


@pytest.mark.slow
def test_in_the_interpreter_they_agree_with_autograd(interpreted: Any) -> None:
    for case, found in zip(checks.CASES, interpreted["differences"], strict=True):
        assert found < TOLERANCE, case
    assert all(interpreted["same"])
    assert interpreted["diverged"] == [False, True, False]
    assert interpreted["sgd"] == SGD
    assert interpreted["losses"]
    for case in ("layers", "layers in tf32"):
        for layer, found in zip(checks.LAYERS, interpreted[case], strict=True):
            assert found < TOLERANCE, (case, layer)
    assert interpreted["products of diverged"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["trained", "adam", "wide"])
def test_in_the_interpreter_trainings_are_those_of_the_plain_way(
    interpreted: Any, case: str
) -> None:
    fused, plain = np.array(interpreted[case])
    np.testing.assert_allclose(fused, plain, rtol=1e-5)
    assert not np.array_equal(fused, plain)  # they were computed in another way
    assert (plain[:, -1] < plain[:, 0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_they_compile_for_gpus(capability: int) -> None:
    """Triton's compiler needs no GPU; its interpreter accepts more than it does."""
    subprocess.run([sys.executable, HERE / "kernel_compile.py", str(capability)], check=True)


@pytest.mark.gpu
@pytest.mark.parametrize("case", checks.CASES, ids=str)
def test_on_a_gpu_they_agree_with_autograd(case: Any) -> None:
    assert checks.difference(case, "cuda") < TOLERANCE
    assert checks.alone_and_again(case, "cuda")


@pytest.mark.gpu
def test_on_a_gpu_they_are_used() -> None:
    assert checks.diverged("cuda") == [False, True, False]
    assert checks.sgd("cuda") == SGD
    assert checks.loss_steps("cuda")
    form = closed_form("cuda")
    assert form is not None
    assert form.kernel is not None


@pytest.mark.gpu
@pytest.mark.parametrize("layer", checks.LAYERS, ids=str)
def test_on_a_gpu_fused_products_agree_with_double_precision(layer: Any) -> None:
    assert checks.layer_difference(layer, "cuda") < TOLERANCE
    assert checks.layer_difference(layer, "cuda", tf32=True) < layer_products.TF32_TOLERANCE


@pytest.mark.gpu
def test_on_a_gpu_fused_products_are_used_where_tensor_cores_are_fast() -> None:
    assert checks.products_of_diverged("cuda")
    form = closed_form("cuda", width=70)
    assert form is not None
    fast = torch.cuda.get_device_capability() in layer_products._FAST_TENSOR_CORES
    assert form.method == ("fused products" if fast else "the closed form")


def closed_form(device: str, dtype: torch.dtype = torch.float32, **shape: Any) -> ClosedForm | None:
    models = [MLP(4, **{"width": 8, **shape}).to(dtype) for _ in range(2)]
    for model in models:
        parametrize(model, "mup")
    return ClosedForm.of(models, "fp32", torch.device(device))


def use(monkeypatch: pytest.MonkeyPatch, kernel: Any) -> None:
    """Let a function of the kernel's arguments take the place of all kernels."""

    class Launched:
        def __getitem__(self, grid: Any) -> Any:
            return kernel

    names = ("mlp_losses_and_gradients", "sgd_step", "loss_step", "layer_product")
    found = SimpleNamespace(**dict.fromkeys(names, Launched()))
    monkeypatch.setattr("mlpsubmit.training.accel.native_mlp.library", lambda dtype: None)
    for module in (kernels, narrow_mlps, step_kernels, layer_products):
        monkeypatch.setattr(module, "kernel_module", lambda device_type: found)
    monkeypatch.setattr(narrow_mlps, "_PASSED", {})
    for name in ("sgd_step", "fused_loss_step"):
        monkeypatch.setattr(step_kernels, name, uncached(getattr(step_kernels, name)))
    products = uncached(layer_products._fused_products)
    monkeypatch.setattr(layer_products, "_fused_products", products)


def uncached(function: Any) -> Any:
    """Return a function with a cache of its own."""
    return functools.cache(function.__wrapped__)


def _raises(*arguments: Any, **options: Any) -> None:
    raise RuntimeError("no C compiler\n\nfind one")


def _computes_nothing(*arguments: Any, **options: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [(_raises, "RuntimeError: no C compiler"), (_computes_nothing, "it differs from the formulas")],
)
def test_a_kernel_that_fails_its_trial_is_not_used(
    kernel: Any, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, kernel)
    form = closed_form("cpu")
    assert form is not None
    assert form.kernel is None
    assert form.method == "the closed form"
    output = capsys.readouterr().out
    assert f"the kernel for MLPs of width 8 is not used: {reason}" in output
    assert f"the kernel for layers of MLPs is not used: {reason}" in output
    assert step_kernels.sgd_step(torch.device("cpu"), torch.float32) is None
    assert step_kernels.fused_loss_step(torch.device("cpu"), _loss_step) is None
    output = capsys.readouterr().out
    assert f"the kernel for SGD is not used: {reason}" in output
    assert f"the kernel for losses is not used: {reason}" in output


def test_a_trial_that_runs_out_of_memory_says_nothing_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    use(monkeypatch, fails)
    with pytest.raises(torch.OutOfMemoryError):
        closed_form("cpu")


@pytest.mark.parametrize(
    "unfit",
    [{"width": 65}, {"d_out": 2}, {"depth": 3}, {"dtype": torch.float64}],
    ids=str,
)
def test_other_mlps_have_no_kernel(unfit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, lambda *arguments, **options: pytest.fail("was tried"))
    monkeypatch.setattr(layer_products, "_fused_products", lambda *_: None)
    form = closed_form("cpu", **unfit)
    assert form is not None
    assert form.kernel is None


def test_without_triton_or_a_gpu_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.kernel_module("cpu") is None
    monkeypatch.setitem(sys.modules, "triton", None)
    kernels.kernel_module.cache_clear()
    assert kernels.kernel_module("cuda") is None
    kernels.kernel_module.cache_clear()


def test_a_trial_that_finds_nan_fails(capsys: pytest.CaptureFixture[str]) -> None:
    one = torch.ones(2)
    pairs = [(one, one), (torch.tensor([1.0, torch.nan]), one), (one, one), (0 * one, 0 * one)]
    assert kernels.relative_difference([*pairs[:1], *pairs[3:]]) == 0
    assert kernels.relative_difference([(one, 0 * one)]) > 1e30
    assert not kernels.passes("this", lambda: kernels.relative_difference(pairs), 1e-5)
    assert "the kernel for this is not used: it differs" in capsys.readouterr().out


class Waves(torch.nn.Module):
    """A model with a complex parameter, and one whose parameters share memory."""

    def __init__(self, shares: bool) -> None:
        super().__init__()
        weights = torch.ones(4)
        waves = torch.ones(3, dtype=torch.cfloat)
        self.first = torch.nn.Parameter(weights[1:])  # the type of this one is that of inputs
        self.second = torch.nn.Parameter(weights[:3] if shares else waves)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return X @ self.first + (X * self.second).abs().sum(-1)


@pytest.mark.parametrize("shares", [True, False])
def test_sgd_has_no_kernel_for_parameters_that_are_complex_or_share_memory(
    shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = lambda device, dtype: pytest.fail("was asked for")  # noqa: E731
    monkeypatch.setattr("mlpsubmit.training.optimizers.sgd.sgd_step", refused)
    batch = (torch.eye(3), torch.ones(3))
    settings = {"MAX_ITER": 2, "PARAMETRIZATION": "sp", "CENTERED": False}
    trained = train([Waves(shares)], [lambda step: batch], settings)
    assert np.isfinite(trained.train_loss).all()


@pytest.mark.parametrize(("capability", "is_tried"), [((9, 0), True), ((8, 9), False)])
def test_fused_products_are_tried_where_tensor_cores_are_fast_alone(
    capability: tuple[int, int], is_tried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr(layer_products, "kernel_module", lambda device_type: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(layer_products, "passes", lambda *trial: not tried.append(trial[2]))
    products = uncached(layer_products._fused_products)
    monkeypatch.setattr(layer_products, "_fused_products", products)
    cuda = torch.device("cuda")
    for precision in ("fp32", "tf32"):
        found = layer_products.layer_products(precision, torch.float32, cuda)
        assert found.method == ("fused products" if is_tried else "the closed form")
    assert layer_products.layer_products("fp64", torch.float64, cuda).method == "the closed form"
    assert tried == ([layer_products.TOLERANCE, layer_products.TF32_TOLERANCE] if is_tried else [])


def test_in_tf32_the_gradient_of_wide_layers_is_of_transposed_signals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    d, signal = torch.randn(2, 5, 8), torch.randn(2, 5, 9)
    seen: list[bool] = []

    def product(A: torch.Tensor, B: torch.Tensor, scale: float) -> torch.Tensor:
        seen.append(B.mT.is_contiguous())
        return scale * A @ B

    monkeypatch.setattr(layer_products, "product", product)
    for tf32, widest in ((True, 8), (True, 9), (False, 8)):
        monkeypatch.setattr(layer_products, "TRANSPOSED", widest)
        found = layer_products.LayerProducts(tf32).weight_gradient(d, signal, 0.5)
        torch.testing.assert_close(found, 0.5 * torch.einsum("kno,kni->koi", d, signal))
    assert seen == [True, False, False]
