"""The kernels against PyTorch in float64: on a GPU, or as a program in Triton's interpreter."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from mlpsubmit.training import MLP, loss_history, train
from mlpsubmit.training.accel.kernels import relative_difference
from mlpsubmit.training.accel.layer_products import FusedProducts, LayerProducts
from mlpsubmit.training.accel.narrow_mlps import NarrowKernel
from mlpsubmit.training.accel.step_kernels import fused_loss_step, sgd_step
from mlpsubmit.training.batches import Batch

K = 3


@dataclass(frozen=True)
class Case:
    """MLPs of some shapes, and their batch."""

    n: int
    d: int
    width: int
    deep: bool = True
    bias: bool = True
    shared: bool = False

    @property
    def layers(self) -> tuple[str, ...]:
        return ("in", "hidden", "out") if self.deep else ("in", "out")

    @property
    def scales(self) -> tuple[float, ...]:
        return (1.0, 1.3, 0.7) if self.deep else (1.0, 1.3)

    def kernel(self) -> NarrowKernel:
        return NarrowKernel(self.layers, self.scales, self.d, self.width, self.bias)

    def drawn(self, device: str) -> tuple[dict[str, Tensor], Batch, Tensor | float]:
        """Return tensors, a batch, and f0; without biases there is no multiplier and no f0."""
        random = torch.Generator().manual_seed(self.n)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random).to(device)

        fans = {"in": self.d, "hidden": self.width, "out": self.width}
        tensors = {}
        for layer in self.layers:
            units = 1 if layer == "out" else self.width
            tensors[f"{layer}.weight"] = normal(K, units, fans[layer]) / fans[layer] ** 0.5
            if self.bias:
                tensors[f"{layer}.bias"] = normal(K, units)
        lead = () if self.shared else (K,)
        batch = Batch(normal(*lead, self.n, self.d), normal(*lead, self.n), self.shared)
        if not self.bias:
            return tensors, batch, 0.25
        tensors["out.multiplier"] = 1 + normal(K).abs()
        return tensors, batch, normal(K, self.n, 1)


CASES = (
    *(
        Case(n, d, width, deep, bias, shared)
        for (n, d, width), deep, bias, shared in itertools.product(
            ((20, 3, 5), (300, 33, 64)), (True, False), (True, False), (True, False)
        )
    ),
    Case(64, 64, 17),
    Case(1, 1, 1),
)


def reference(
    case: Case, tensors: dict[str, Tensor], batch: Batch, f0: Tensor | float
) -> dict[str, Tensor]:
    """Return losses and gradients by autograd in float64."""
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    trained = {n: t.requires_grad_() for n, t in exact.items() if n != "out.multiplier"}
    h = batch.X.double()
    for layer, scale in zip(case.layers, case.scales, strict=True):
        h = scale * (h @ exact[f"{layer}.weight"].mT)
        if case.bias:
            h = h + exact[f"{layer}.bias"].unsqueeze(1)
        h = h if layer == "out" else h.relu()
    if case.bias:
        h = h * exact["out.multiplier"].view(K, 1, 1)
    losses = (h - f0 - batch.y.double().unsqueeze(-1)).square().mean((1, 2))
    gradients = torch.autograd.grad(losses.sum(), list(trained.values()))
    return {"losses": losses.detach(), **dict(zip(trained, gradients, strict=True))}


def computed(case: Case, device: str) -> dict[str, Tensor]:
    losses, gradients = case.kernel()(*case.drawn(device))
    return {"losses": losses, **gradients}


def difference(case: Case, device: str) -> float:
    """Return the largest difference from the reference, over the reference's norm."""
    expected, found = reference(case, *case.drawn(device)), computed(case, device)
    assert found.keys() == expected.keys()
    return relative_difference((found[name], expected[name]) for name in expected)


def alone_and_again(case: Case, device: str) -> bool:
    """Return whether each network has the same bits again, and alone."""
    tensors, batch, f0 = case.drawn(device)
    together, again = computed(case, device), computed(case, device)
    for k in range(K):
        own = {name: tensor[k : k + 1] for name, tensor in tensors.items()}
        single = batch if batch.shared else Batch(batch.X[k : k + 1], batch.y[k : k + 1], False)
        own_f0 = f0[k : k + 1] if isinstance(f0, Tensor) else f0
        losses, gradients = case.kernel()(own, single, own_f0)
        alone = {"losses": losses, **gradients}
        if not all(torch.equal(alone[name][0], together[name][k]) for name in alone):
            return False
    return all(torch.equal(together[name], again[name]) for name in again)


def diverged(device: str) -> list[bool]:
    """Return of three networks, with NaN in a hidden weight of the second, which losses are NaN."""
    case = Case(20, 3, 5)
    tensors, batch, f0 = case.drawn(device)
    tensors["in.weight"][1, 2, 0] = torch.nan
    losses, _ = case.kernel()(tensors, batch, f0)
    return losses.isnan().tolist()


def sgd(device: str) -> dict[str, bool]:
    """Make a step of SGD of ten parameters, of which configs take part by parameter, and by config.

    The gradients of those that take no part are NaN.
    """
    step = sgd_step(torch.device(device), torch.float32)
    assert step is not None
    random = torch.Generator().manual_seed(0)
    shapes = [(7, 300), (1,), (3,), *[(5, 2)] * 7]
    old = [torch.randn(K, *shape, generator=random).to(device) for shape in shapes]
    lrs = torch.rand(K, 12, generator=random).to(device)[:, 1:11]
    by_config = torch.tensor([[True], [False], [True]], device=device)
    by_parameter = (torch.rand(K, 10, generator=random) < 0.5).to(device)
    found = {}
    for name, made in (("configs", by_config), ("parameters", by_parameter)):
        table = made.expand(K, 10)
        gradients = [
            torch.where(table[:, i].view(K, *[1] * (p.ndim - 1)), p.sin(), torch.nan)
            for i, p in enumerate(old)
        ]
        new = [p.clone() for p in old]
        step(new, gradients, lrs, made)
        rates = [lrs[:, i].view(K, *[1] * (p.ndim - 1)) for i, p in enumerate(old)]
        expected = [p - rate * p.sin() for p, rate in zip(old, rates, strict=True)]
        found[name] = all(
            torch.allclose(new[i][k], expected[i][k], rtol=0, atol=1e-6)
            if table[k, i]
            else torch.equal(new[i][k], old[i][k])
            for i in range(10)
            for k in range(K)
        )
    across, straight = old[0].clone(), old[0].clone()  # a gradient of other strides
    gradient = old[0].sin()
    step([across], [gradient.mT.contiguous().mT], lrs, by_config)
    step([straight], [gradient], lrs, by_config)
    return {**found, "strides": torch.equal(across, straight)}


def loss_steps(device: str) -> bool:
    """Return whether the kernel for losses passes its trial, which compares bits."""
    with contextlib.ExitStack() as stack:
        if device == "cpu":  # the interpreter rounds the product in its fma, too
            two_roundings = lambda average, loss, s: loss * (1 - s) + average * s  # noqa: E731
            stack.enter_context(mock.patch.object(loss_history, "_smoothed", two_roundings))
        return fused_loss_step(torch.device(device), loss_history._loss_step) is not None


@dataclass(frozen=True)
class Layer:
    """A layer of K MLPs, and its batch."""

    n: int
    d_in: int
    d_out: int
    shared: bool = False


LAYERS = (
    Layer(64, 64, 64),
    Layer(80, 96, 112, shared=True),
    Layer(200, 33, 65),
    Layer(67, 130, 1),
    Layer(65, 5, 200, shared=True),
    Layer(70, 200, 10),
)


def layer_difference(layer: Layer, device: str, tf32: bool = False) -> float:
    """Return the largest difference of products from those in float64, over their norm."""
    random = torch.Generator().manual_seed(layer.n)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(device)

    n, d_in, d_out = layer.n, layer.d_in, layer.d_out
    x = normal(n, d_in).expand(K, n, d_in) if layer.shared else normal(K, n, d_in)
    W, bias, d = normal(K, d_out, d_in), normal(K, d_out), normal(K, n, d_out)
    found = []
    for products, dtype in ((FusedProducts(tf32), torch.float32), (LayerProducts(), torch.float64)):
        x, W, bias, d = (tensor.to(dtype) for tensor in (x, W, bias, d))
        hidden = [products.hidden(x, W, 0.7, one) for one in (bias, None)]
        errors, sums = products.errors(d, W, 0.7, x, True)
        alone, none = products.errors(d, W, 0.7, x, False)
        assert none is None
        assert sums is not None
        assert torch.equal(alone, errors)
        found.append([*hidden, errors, sums, products.weight_gradient(d, x, 0.7)])
    return relative_difference(zip(*found, strict=True))


def products_of_diverged(device: str) -> bool:
    """Return whether NaN and infinities of one network stay its own, and stay what they are."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(K, 64, 64, generator=random).to(device)
    x[1, 0, 0], x[1, 1, 0] = torch.nan, torch.inf
    W = torch.ones(K, 64, 64, device=device)
    hidden = FusedProducts().hidden(x, W, 1.0, None)
    errors, _ = FusedProducts().errors(x, W, 1.0, torch.ones_like(x), False)
    weights = FusedProducts().weight_gradient(x, W, 1.0)
    others = torch.tensor([0, 2], device=device)
    return all(
        bool(one.index_select(0, others).isfinite().all()) and not bool(one[1].isfinite().all())
        for one in (hidden, errors, weights)
    )


def batches(
    generator: torch.Generator, device: str, n: int
) -> Callable[[int], tuple[Tensor, Tensor]]:
    def draw(step: int) -> tuple[Tensor, Tensor]:
        X = torch.randn(n, 4, generator=generator).to(device)
        return X, 2 * X[:, 0]

    return draw


def trained(device: str, width: int = 8, **settings: Any) -> list[list[float]]:
    """Return the train losses of four networks at every step."""
    generators = [torch.Generator().manual_seed(trial) for trial in range(2)]
    drawn = [batches(generator, device, 64 if width > 64 else 24) for generator in generators]
    common = {"MAX_ITER": 30, "LR": 0.1, "ONLYTHRESHOLDS": False, **settings}
    return train(
        [MLP(4, width) for _ in range(4)],
        [drawn[k % 2] for k in range(4)],
        common,
        trials=[0, 1, 0, 1],
        generators=generators,
        device=device,
    ).train_loss.tolist()


def main(file: Path) -> None:
    """Write everything that the interpreter finds."""
    file.write_text(
        json.dumps(
            {
                "differences": [difference(case, "cpu") for case in CASES],
                "same": [alone_and_again(case, "cpu") for case in CASES],
                "diverged": diverged("cpu"),
                "sgd": sgd("cpu"),
                "losses": loss_steps("cpu"),
                "layers": [layer_difference(layer, "cpu") for layer in LAYERS],
                "layers in tf32": [layer_difference(layer, "cpu", tf32=True) for layer in LAYERS],
                "products of diverged": products_of_diverged("cpu"),
                "trained": [trained("cpu"), trained("cpu", COMPILE=False)],
                "wide": [
                    trained("cpu", 70, MAX_ITER=4, COMPILE=compile) for compile in ("auto", False)
                ],
                "adam": [
                    trained("cpu", OPTIMIZER="adam", COMPILE=compile) for compile in ("auto", False)
                ],
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
