"""Narrow MLPs on a GPU: losses and gradients in one kernel, if Triton is installed.

At widths up to :data:`WIDEST` a step moves its activations to and from memory many times, and
launches a kernel per operation. One program per network and 256 samples keeps them on the chip (the
idea of fully fused networks: Müller et al., 2021, arXiv:2106.12372).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mlpsubmit.training.accel.kernels import kernel_module, launch, passes
from mlpsubmit.training.accel.mlp_trial import MSEGradients, difference_from_formulas
from mlpsubmit.training.batches import Batch

__all__ = ["WIDEST", "NarrowKernel"]

#: The widest layers of the kernel for MLPs, and the most inputs: weights and gradients of a network
#: are in registers.
WIDEST, MOST_INPUTS = 64, 64

#: Samples of one program, and those that it multiplies at a time, in so many warps.
SEGMENT, ROWS, WARPS = 256, 32, 4

#: Largest difference from the formulas, over the norm of what is compared, in a trial.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class NarrowKernel:
    """Losses and gradients of K narrow MLPs with one output under mse.

    Get one from :meth:`of`.

    Attributes:
        layers: names of the Linear layers: two or three.
        scales: per layer, the factor that its input lacks (see ``mlp.ClosedForm``).
        d, width: inputs, and units of the hidden layers.
        bias: whether the layers have biases.
    """

    layers: tuple[str, ...]
    scales: tuple[float, ...]
    d: int
    width: int
    bias: bool

    @classmethod
    def of(
        cls,
        layers: tuple[str, ...],
        scales: tuple[float, ...],
        tensors: Mapping[str, Tensor],
        device: torch.device,
        formulas: MSEGradients,
    ) -> NarrowKernel | None:
        """Return the kernel for these MLPs, or None where there is none or it fails its trial.

        Args:
            layers, scales: as the attributes.
            tensors: parameters and buffers by name, those of one network.
            device: where to train.
            formulas: what the kernel computes, in PyTorch.
        """
        width, d = tensors[f"{layers[0]}.weight"].shape
        outputs = tensors[f"{layers[-1]}.weight"].shape[0]
        small = width <= WIDEST and d <= MOST_INPUTS and outputs == 1 and len(layers) <= 3
        floats = all(t.dtype == torch.float32 for t in tensors.values())
        if not (small and floats and kernel_module(device.type)):
            return None
        kernel = cls(layers, scales, d, width, f"{layers[0]}.bias" in tensors)
        if (kernel, device) not in _PASSED:
            difference = functools.partial(
                difference_from_formulas, kernel, formulas, tensors, device
            )
            _PASSED[kernel, device] = passes(f"MLPs of width {width}", difference, TOLERANCE)
        return kernel if _PASSED[kernel, device] else None

    def __call__(
        self, tensors: Mapping[str, Tensor], batch: Batch, initial_output: Tensor | float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return losses (K,) under mse, and gradients (K, ...) by name.

        Args:
            tensors: parameters and buffers, each (K, ...).
            initial_output: f0, (K, n, 1), or a number.
        """
        X, y = batch.X.contiguous(), batch.y.contiguous()
        K, n = len(tensors[f"{self.layers[0]}.weight"]), X.shape[0 if batch.shared else 1]
        f0 = initial_output
        if not isinstance(f0, Tensor):
            f0 = X.new_full((n,), f0)
        shared_f0 = not isinstance(initial_output, Tensor)
        segments = -(-n // SEGMENT)
        names = [f"{layer}.{kind}" for layer in self.layers for kind in ("weight", "bias")]
        weights = {name: tensors[name].detach() for name in names if name in tensors}
        losses = X.new_empty(K, segments)
        sums = {name: t.new_empty(K, segments, *t.shape[1:]) for name, t in weights.items()}
        unused = losses  # takes the place of what there is none of
        multiplier = tensors.get(f"{self.layers[-1]}.multiplier")
        deep = len(self.layers) == 3
        if not deep:
            names[2:2] = ["", ""]
        padded = {"D": self.d, "WIDTH": self.width}
        launch(
            X.device,
            "mlp_losses_and_gradients",
            (K, segments),
            *(X, y, f0.contiguous()),
            *(weights.get(name, unused) for name in names),
            unused if multiplier is None else multiplier,
            losses,
            *(sums.get(name, unused) for name in names),
            n,
            0 if batch.shared else n * self.d,
            0 if batch.shared else n,
            0 if shared_f0 else n,
            self.scales[1],
            self.scales[-1],
            d=self.d,
            width=self.width,
            DEEP=deep,
            BIAS=self.bias,
            MULTIPLIED=multiplier is not None,
            **{name: max(16, 1 << (size - 1).bit_length()) for name, size in padded.items()},
            ROWS=ROWS,
            SEGMENT=SEGMENT,
            num_warps=WARPS,
            num_stages=1,
        )
        if segments == 1:
            return losses[:, 0], {name: tensor[:, 0] for name, tensor in sums.items()}
        return losses.sum(1), {name: tensor.sum(1) for name, tensor in sums.items()}


#: Which kernels have passed their trial in this process, and which have not.
_PASSED: dict[tuple[NarrowKernel, torch.device], bool] = {}
