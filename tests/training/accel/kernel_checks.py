"""The kernels against PyTorch in float64: on a GPU, or as a program in Triton's interpreter."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlpsubmit.training import MLP, train
from mlpsubmit.training.accel.kernels import NarrowKernel, sgd_step
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
    return max(float((found[n] - expected[n]).norm() / expected[n].norm()) for n in expected)


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
    """Make a step of SGD of which one config, whose gradient is NaN, takes no part."""
    step = sgd_step(torch.device(device))
    assert step is not None
    random = torch.Generator().manual_seed(0)
    old, gradient = torch.randn(2, K, 7, 300, generator=random).to(device)
    lrs = torch.rand(K, 4, generator=random).to(device)
    active, rates = torch.tensor([True, False, True], device=device), lrs[:, 2]
    gradient[1] = torch.nan
    new = old.clone()
    step(new, gradient, rates, active)
    expected = old - rates.view(K, 1, 1) * gradient
    across = old.clone()  # a gradient of other strides
    step(across, gradient.mT.contiguous().mT, rates, active)
    return {
        "updated": torch.allclose(new[active], expected[active], rtol=0, atol=1e-6),
        "untouched": torch.equal(new[1], old[1]),
        "strides": torch.equal(new, across),
    }


def batches(generator: torch.Generator, device: str) -> Callable[[int], tuple[Tensor, Tensor]]:
    def draw(step: int) -> tuple[Tensor, Tensor]:
        X = torch.randn(24, 4, generator=generator).to(device)
        return X, 2 * X[:, 0]

    return draw


def trained(device: str, **settings: Any) -> list[list[float]]:
    """Return the train losses of four networks at every step."""
    generators = [torch.Generator().manual_seed(trial) for trial in range(2)]
    drawn = [batches(generator, device) for generator in generators]
    common = {"MAX_ITER": 30, "LR": 0.1, "ONLYTHRESHOLDS": False, **settings}
    return train(
        [MLP(4, 8) for _ in range(4)],
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
                "trained": [trained("cpu"), trained("cpu", COMPILE=False)],
                "adam": [
                    trained("cpu", OPTIMIZER="adam", COMPILE=compile) for compile in ("auto", False)
                ],
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
