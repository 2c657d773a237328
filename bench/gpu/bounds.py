"""What a card allows: model-steps per second from its measured bandwidth and matmul rate.

A roofline (Williams, Waterman and Patterson, 2009, doi.org/10.1145/1498765.1498785) of one step of
one MLP of two hidden layers of width w, on n fresh inputs of dimension d, with SGD and a centred
output. A share s of the configs evaluates f0: those of equal initial weights and batches have the
same. With W = w (d + w + 1) weights and A = 4 n w bytes of activations per layer:

- arithmetic: 2 n ((3 + s) W - d w) FLOPs. A forward pass of f, one of f0, and two products per
  layer backward, except with respect to the inputs of the first layer.
- memory, every operation a kernel: (23 + 8 s) A. Per hidden layer a forward pass writes the
  product, reads and writes it for the ReLU, and reads it for the next product (4 A; of f, and of
  f0); the backward pass writes a product, reads two and writes one for the derivative of the ReLU,
  and reads four: for the bias, for the weights (two), and, but for the first layer, for its inputs.
- memory, elementwise operations fused into products (epilogues): (13 + 4 s) A, as above without
  them.
- memory, activations on the chip, as the kernel for narrow MLPs keeps them: none of A.
- on top of each, the inputs are written once and read three times: 16 n d bytes; and the weights
  pass six times and s: f, f0, backward, the gradient written, and the update (two read, one
  written): (24 + 4 s) W bytes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from mlpsubmit.jobs.throughput.roofline import matmul_rate, wait_for
from mlpsubmit.training.accel.narrow_mlps import WIDEST

__all__ = ["Card", "flops"]

#: Passes over the activations of a layer: without f0, and of f0.
UNFUSED, FUSED, ON_CHIP = (23, 8), (13, 4), (0, 0)


def flops(width: int, batch: int, d: int, initial: float = 1.0) -> float:
    """Return the FLOPs in matrix products of one model-step.

    Args:
        initial: the share of the configs that evaluates f0.
    """
    weights = width * (d + width + 1)
    return 2.0 * batch * ((3 + initial) * weights - d * width)


def moved_bytes(
    width: int, batch: int, d: int, passes: tuple[int, int], initial: float = 1.0
) -> float:
    """Return the bytes that one model-step moves, with so many passes over activations."""
    weights = width * (d + width + 1)
    over_activations = passes[0] + passes[1] * initial
    return 4.0 * (over_activations * batch * width + 4 * batch * d + (6 + initial) * weights)


@dataclass
class Card:
    """The measured limits of a device.

    Attributes:
        bandwidth: bytes per second of a large copy, read and written.
        rates: per precision, FLOP/s of large matrix products.
    """

    bandwidth: float
    rates: dict[str, float]

    @classmethod
    def measure(cls, device: torch.device, precisions: tuple[str, ...] = ("fp32",)) -> Card:
        """Measure a device."""
        rates = {name: matmul_rate(device, name) or 0.0 for name in precisions}
        return cls(_bandwidth(device), rates)

    def bounds(
        self, width: int, batch: int, d: int, precision: str = "fp32", initial: float = 1.0
    ) -> dict[str, float]:
        """Return the model-steps per second that each limit alone would allow."""
        sizes = (width, batch, d)
        passes = {"unfused": UNFUSED, "epilogues": FUSED}
        if width <= WIDEST:
            passes["on chip"] = ON_CHIP
        limits = {
            name: self.bandwidth / moved_bytes(*sizes, one, initial) for name, one in passes.items()
        }
        return {**limits, "arithmetic": self.rates[precision] / flops(*sizes, initial)}


def _bandwidth(device: torch.device) -> float:
    size = (1 << 30) if device.type == "cuda" else (1 << 26)
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(8):
        wait_for(device)
        begun = time.perf_counter()
        target.copy_(source)
        wait_for(device)
        times.append(time.perf_counter() - begun)
    return 2 * size / min(times)
