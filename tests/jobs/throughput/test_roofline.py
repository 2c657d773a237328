"""What a model-step needs in matrix products, against closed forms; and what a device can do."""

from __future__ import annotations

import operator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mlpsubmit import Sweep
from mlpsubmit.assembly.assemble import StackInputs, assemble
from mlpsubmit.jobs.throughput import roofline
from mlpsubmit.jobs.throughput.roofline import Roofline, matmul_flops, matmul_rate
from mlpsubmit.training.models import MLP

CPU = torch.device("cpu")
N, D, W = 8, 5, 16


def gaussian(bsz, gen, split):
    def batch_fn(step):
        inputs = torch.randn(bsz, D, generator=gen)
        return inputs, inputs[:, 0]

    return batch_fn


def images(bsz, gen):
    def batch_fn(step):
        return torch.randn(bsz, 1, 6, 6, generator=gen), torch.zeros(bsz)

    return batch_fn


def stacked(batchfn: Any = gaussian, axes: Any = None, **settings: Any) -> StackInputs:
    settings = {"WIDTH": W, "N_SAMPLES": N, "MAX_ITER": 101, **settings}
    sweep = Sweep("limit", axes or {"trial": range(3)}, batchfn=batchfn, **settings)
    (stack,) = assemble(sweep, list(sweep), [{}] * len(sweep), CPU)
    return stack


def passes(rows: int, depth: int = 2) -> tuple[int, int]:
    """Return the operations of a forward pass, and of a forward and a backward one.

    Backward, each layer multiplies for its weights and, but the first, for what enters it.
    """
    weights = [D * W, *[W * W] * (depth - 1), W]
    forward = 2 * rows * sum(weights)
    return forward, 3 * forward - 2 * rows * weights[0]


def test_online_the_initial_network_is_evaluated_too() -> None:
    forward, step = passes(N)
    assert matmul_flops(stacked()) == step + forward
    assert matmul_flops(stacked(CENTERED=False)) == step
    forward, step = passes(N, depth=4)
    assert matmul_flops(stacked(DEPTH=4)) == step + forward


def test_configs_that_begin_alike_need_one_initial_network() -> None:
    axes = {"GAMMA": [0.5, 1.0, 2.0], "trial": range(2)}
    forward, step = passes(N)
    assert matmul_flops(stacked(axes=axes)) == step + forward * 2 / 6
    own = matmul_flops(stacked(images, axes, MODEL=conv))
    assert own == matmul_flops(stacked(images, MODEL=conv))


def test_the_formula_of_an_mlp_is_what_torch_counts() -> None:
    class Own(MLP):
        """The same network, as one of the user's."""

    for depth in (1, 2, 4):
        assert matmul_flops(stacked(DEPTH=depth)) == matmul_flops(stacked(MODEL=Own, DEPTH=depth))


@pytest.mark.parametrize(("every", "evaluations"), [(1, 101), (10, 11), (7, 16), ("log:2", 2)])
def test_offline_the_test_set_is_evaluated_now_and_then(every: Any, evaluations: int) -> None:
    stack = stacked(ONLINE=False, N_TEST=40, EVAL_EVERY=every)
    expected = passes(N)[1] + passes(40)[0] * evaluations / 101
    assert matmul_flops(stack) == pytest.approx(expected)


def test_online_the_test_set_is_evaluated_on_request() -> None:
    online, grabs = passes(N)[1] + passes(N)[0], {"test": lambda X_te: X_te.sum()}
    assert matmul_flops(stacked(N_TEST=40, grabs=grabs)) == online
    expected = online + passes(40)[0] * 11 / 101
    assert matmul_flops(stacked(N_TEST=40, EVAL_EVERY=10)) == pytest.approx(expected)


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1))


def test_any_network_is_counted() -> None:
    convolution, linear = 2 * N * 16 * 4 * 9, 2 * N * 64
    forward = convolution + linear
    step = 2 * convolution + 3 * linear  # no gradient of the images
    assert matmul_flops(stacked(images, MODEL=conv)) == step + forward


class Attentive(nn.Module):
    """A network of operations that consist of others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.mixer = nn.Parameter(torch.ones(D, D))

    def forward(self, X):
        tokens = torch.einsum("ni,ij->nj", X, self.mixer).unsqueeze(-1).expand(-1, -1, 4)
        return self.layer(tokens).mean((1, 2))


@pytest.mark.parametrize("make", [conv, Attentive])
def test_what_is_counted_is_what_torch_counts(make: Any) -> None:
    X = torch.zeros(N, 1, 6, 6) if make is conv else torch.zeros(N, D)
    model, counter = make(), FlopCounterMode(display=False)
    with counter:
        output = model(X)
        forward = counter.get_total_flops()
        output.square().sum().backward()
    assert roofline._passes(model, X) == (forward, counter.get_total_flops())
    assert roofline._forward(model, X) == forward > 0


class Choosy(nn.Module):
    """A network whose operations depend on the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, 1)

    def forward(self, X):
        return self.layer(X) if X.sum().item() > 0 else -self.layer(X)


def test_a_network_that_looks_at_the_numbers_is_counted_too() -> None:
    stack = stacked(MODEL=Choosy, PARAMETRIZATION="sp")
    assert matmul_flops(stack) == 3 * 2 * N * D


def test_a_network_that_fails_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = stacked(MODEL=Choosy, PARAMETRIZATION="sp")
    monkeypatch.setattr(Choosy, "forward", lambda self, X: 1 / 0)
    assert matmul_flops(stack) is None
    assert Roofline(CPU, "fp32").ideal_seconds(stack) is None


class Keeping(nn.Module):
    """A network that keeps its last activations."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(D, 1), None

    def forward(self, X):
        self.last = self.layer(X)
        return self.last


def test_counting_leaves_nothing_in_a_network() -> None:
    stack = stacked(MODEL=Keeping, PARAMETRIZATION=lambda model, optimizer: None)
    before = [model.last for model in stack.models]
    assert matmul_flops(stack) == 3 * 2 * N * D
    assert all(map(operator.is_, before, [model.last for model in stack.models]))


def drawing() -> nn.Module:
    return nn.Sequential(nn.Linear(D, W), nn.BatchNorm1d(W), nn.Dropout(), nn.Linear(W, 1))


@pytest.mark.parametrize("settings", [{}, {"MODEL": drawing, "PARAMETRIZATION": "sp"}])
def test_counting_and_measuring_leave_no_trace(settings: Any) -> None:
    stack = stacked(ONLINE=False, N_TEST=40, **settings)
    generators = [torch.get_rng_state(), *(g.get_state() for g in stack.generators)]
    weights = [t.clone() for model in stack.models for t in model.state_dict().values()]
    precision = torch.get_float32_matmul_precision()
    assert Roofline(CPU, "fp32").ideal_seconds(stack) is not None
    after = [torch.get_rng_state(), *(g.get_state() for g in stack.generators)]
    assert all(map(torch.equal, generators, after))
    assert all(
        map(torch.equal, weights, [t for m in stack.models for t in m.state_dict().values()])
    )
    assert all(p.grad is None for model in stack.models for p in model.parameters())
    assert torch.get_float32_matmul_precision() == precision
    assert not torch.are_deterministic_algorithms_enabled()


def test_ideal_seconds_are_flops_over_the_rate_of_the_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates, measured = {"fp32": 1e9, "bf16": 4e9}, []

    def rate(device: torch.device, precision: str) -> float:
        measured.append(precision)
        return rates[precision]

    monkeypatch.setattr(roofline, "matmul_rate", rate)
    device = Roofline(CPU, "fp32")
    assert measured == ["fp32"], "at once, before there is a stack"
    forward, step = passes(N)
    for _ in range(2):
        assert device.ideal_seconds(stacked()) == (step + forward) / 1e9
        assert device.ideal_seconds(stacked(PRECISION="bf16")) == (step + forward) / 4e9
    assert measured == ["fp32", "bf16"], "each once"


@pytest.mark.parametrize(
    ("precision", "further", "fastest"),
    [
        ("fp32", [], 0.25),
        ("bf16", [], 0.25),
        ("fp32", [9.0, 0.5, 0.125, 0.5], 0.125),  # in C
        ("fp32", [9.0, 0.5, 0.3, 0.5], 0.25),  # slower there
    ],
)
def test_the_rate_is_that_of_the_fastest_product(
    precision: str, further: list[float], fastest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, torchs = 0.0, [9.0, 0.5, 0.25, 0.4]  # the first is the warm-up
    waits = iter([*torchs, *further])
    in_c = (lambda A, B: A) if further else None
    monkeypatch.setattr(roofline, "product_in_c", lambda dtype: in_c)

    def wait(device: torch.device) -> None:
        nonlocal now
        now += next(waits)

    monkeypatch.setattr(roofline, "wait_for", wait)
    monkeypatch.setattr(roofline, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(roofline, "CPU_SIZE", 16)
    monkeypatch.setattr(roofline, "MEASURED_SECONDS", 1.0)
    assert matmul_rate(CPU, precision) == 2 * 16**3 / fastest
    assert now == pytest.approx(sum([*torchs, *further])), "for a second, and three products"


def test_a_device_without_the_memory_for_it_has_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpsubmit.jobs.throughput.roofline.CPU_SIZE", 10**7)
    assert matmul_rate(CPU, "fp32") is None
