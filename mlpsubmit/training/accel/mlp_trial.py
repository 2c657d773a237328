"""The trial of kernels for MLPs: their losses and gradients against the formulas'."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mlpsubmit.training.accel.kernels import relative_difference
from mlpsubmit.training.batches import Batch
from mlpsubmit.training.precision import full_precision_matmul

__all__ = ["MSEGradients", "difference_from_formulas", "trial_shapes"]

#: From tensors by name, each (K, ...), a batch and f0 (K, n, d_out) or a number to the losses (K,)
#: under mse, and gradients (K, ...) by name.
MSEGradients = Callable[
    [Mapping[str, Tensor], Batch, "Tensor | float"], tuple[Tensor, dict[str, Tensor]]
]

#: Networks and samples of a trial, and the most inputs and units of a layer: wider ones are
#: computed by the same code, and would take seconds and gigabytes.
_K, _SAMPLES, _WIDEST = 2, 64, 300

#: Rounding may switch a unit on or off: so many tries, of which the closest counts.
_TRIES = 4


def difference_from_formulas(
    kernel: MSEGradients,
    formulas: MSEGradients,
    tensors: Mapping[str, Tensor],
    device: torch.device,
) -> float:
    """Return how much a kernel differs from the formulas on random numbers, in norms.

    Args:
        tensors: parameters and buffers by name, those of one network.
    """
    found = [_trial(seed, kernel, formulas, tensors, device) for seed in range(_TRIES)]
    return min(found) if max(found) < math.inf else math.nan


def trial_shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors in a trial, by name."""
    return {
        name: tuple(min(size, _WIDEST) for size in tensor.shape) for name, tensor in tensors.items()
    }


def _trial(
    seed: int,
    kernel: MSEGradients,
    formulas: MSEGradients,
    tensors: Mapping[str, Tensor],
    device: torch.device,
) -> float:
    random, dtype = torch.Generator().manual_seed(seed), next(iter(tensors.values())).dtype

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=dtype).to(device)

    shapes = trial_shapes(tensors)
    weights = [shape for shape in shapes.values() if len(shape) == 2]
    d, d_out = weights[0][1], weights[-1][0]
    given = {
        name: drawn(_K, *shape) / max(shape, default=1) ** 0.5 for name, shape in shapes.items()
    }
    batch = Batch(drawn(_K, _SAMPLES, d), drawn(_K, _SAMPLES, d_out), shared=False)
    initial_output = drawn(_K, _SAMPLES, d_out)
    losses, found = kernel(given, batch, initial_output)
    with full_precision_matmul():
        expected, wanted = formulas(given, batch, initial_output)
    return relative_difference(
        [(losses, expected), *((found[name], wanted[name]) for name in wanted)]
    )
