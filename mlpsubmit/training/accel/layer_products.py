"""The products of a layer of K MLPs, forward and backward: PyTorch's, or fused ones on a GPU.

A fused product writes its result once: with the bias added and the ReLU applied, or set to zero
where a unit was inactive, and summed over the samples. Otherwise each of these is a pass over the
activations, and up to width 512 the passes take as long as the products.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mlpsubmit.training.accel.kernels import kernel_module, launch, passes, relative_difference
from mlpsubmit.training.precision import full_precision_matmul

__all__ = ["FusedProducts", "LayerProducts", "layer_products", "product"]

#: Units of a layer from which on a transposed copy makes a product in TF32 faster.
TRANSPOSED = 4096

#: The smallest result, and the largest sum over samples, that the kernel computes.
SMALLEST, LONGEST = 64, 4096

#: Summands up to which three products of bf16 and no passes are faster than one of TF32 and these.
MOST_IN_TF32 = 256

#: Largest difference from the formulas, over the norm of what is compared, in a trial.
TOLERANCE, TF32_TOLERANCE = 1e-5, 1e-4

#: Per compute capability whose tensor cores make three products of TF32, or six of bf16, faster
#: than other cores make one of fp32: those of GPUs for data centres.
_FAST_TENSOR_CORES = ((8, 0), (9, 0), (10, 0), (10, 3))


def product(A: Tensor, B: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """Return scale A B (K, n, m), plus a bias (K, m) where there is one."""
    if bias is not None:
        return torch.baddbmm(bias.unsqueeze(1), A, B, alpha=scale)
    if scale == 1.0:
        return torch.bmm(A, B)
    ignored = A.new_empty(()).expand(len(A), A.shape[1], B.shape[2])  # beta=0 does not read it
    return torch.baddbmm(ignored, A, B, beta=0, alpha=scale)


class LayerProducts:
    """Those of PyTorch.

    Args:
        tf32: whether a GPU computes them in TF32.
    """

    #: How they are computed, which decides how they round.
    method = "the closed form"

    def __init__(self, tf32: bool = False) -> None:
        self._tf32 = tf32

    def hidden(self, signal: Tensor, W: Tensor, scale: float, bias: Tensor | None) -> Tensor:
        """Return relu(scale W x + b) (K, n, out), of signals x (K, n, in) and W (K, out, in)."""
        return product(signal, W.mT, scale, bias).relu_()

    def errors(
        self, d: Tensor, W: Tensor, scale: float, signal: Tensor, summed: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gradient (K, n, in) with respect to a layer's inputs before their ReLU.

        Args:
            d: that with respect to its outputs, (K, n, out).
            signal: its inputs (K, n, in): where they are not positive, the result is zero.
            summed: whether to return the sum over samples (K, in), too.
        """
        found = product(d, W, scale)
        torch.ops.aten.threshold_backward.grad_input(found, signal, 0, grad_input=found)
        return found, found.sum(1) if summed else None

    def weight_gradient(self, d: Tensor, signal: Tensor, scale: float) -> Tensor:
        """Return the gradient scale dᵀ x (K, out, in) with respect to a layer's weights."""
        if self._tf32 and min(d.shape[2], signal.shape[2]) >= TRANSPOSED:
            # Tensor cores read TF32 along the dimension that is summed over, here the samples.
            signal = signal.mT.contiguous().mT
        return product(d.mT, signal, scale)


class FusedProducts(LayerProducts):
    """Those of a Triton kernel; PyTorch's for shapes that these compute faster.

    Args:
        tf32: whether they may be as inexact as TF32; otherwise they are as exact as fp32.
    """

    method = "fused products"

    def hidden(self, signal: Tensor, W: Tensor, scale: float, bias: Tensor | None) -> Tensor:
        """Return relu(scale W x + b); see the base class."""
        K, n, d_in = signal.shape
        if not self._suits(n, W.shape[1], d_in):
            return super().hidden(signal, W, scale, bias)
        found = signal.new_empty(K, n, W.shape[1])
        tile = (64, 64, 16, 4, 4) if min(d_in, W.shape[1]) <= 64 else (128, 64, 32, 4, 3)
        if self._tf32:
            tile = (64, 64, 32, 4, 3)
        self._launch(signal, W, found, scale, tile, B_ACROSS=True, RELU=True, bias=bias)
        return found

    def errors(
        self, d: Tensor, W: Tensor, scale: float, signal: Tensor, summed: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gradient with respect to a layer's inputs; see the base class."""
        (K, n, d_out), d_in = d.shape, signal.shape[2]
        if not self._suits(n, d_in, d_out):
            return super().errors(d, W, scale, signal, summed)
        found = torch.empty_like(signal, memory_format=torch.contiguous_format)
        tile = (64, 64, 16, 4, 4) if d_out <= 64 else (64, 64, 32, 4, 3)
        if min(d_out, d_in) >= 1024:
            tile = (128, 128, 32, 8, 3)
        sums = found.new_empty(K, -(-n // tile[0]), d_in) if summed else None
        self._launch(d, W, found, scale, tile, gate=signal, sums=sums)
        return found, None if sums is None else sums.sum(1)

    def weight_gradient(self, d: Tensor, signal: Tensor, scale: float) -> Tensor:
        """Return the gradient with respect to a layer's weights; see the base class."""
        (K, n, d_out), d_in = d.shape, signal.shape[2]
        # A program sums over all samples; and TF32 alone is faster where nothing else is fused.
        if not self._suits(d_out, d_in, n) or n > LONGEST or self._tf32:
            return super().weight_gradient(d, signal, scale)
        found = d.new_empty(K, d_out, d_in)
        self._launch(d, signal, found, scale, (64, 64, 32, 4, 3), A_ACROSS=True)
        return found

    def _suits(self, rows: int, columns: int, summands: int) -> bool:
        """Return whether the kernel computes a result of this size faster than PyTorch."""
        most = MOST_IN_TF32 if self._tf32 else summands
        return min(rows, columns) >= SMALLEST and summands <= most

    def _launch(
        self,
        A: Tensor,
        B: Tensor,
        found: Tensor,
        scale: float,
        tile: tuple[int, int, int, int, int],
        *,
        A_ACROSS: bool = False,
        B_ACROSS: bool = False,
        RELU: bool = False,
        bias: Tensor | None = None,
        gate: Tensor | None = None,
        sums: Tensor | None = None,
    ) -> None:
        """Launch the kernel: see :func:`mlpsubmit.training.accel.triton_kernels.layer_product`.

        Args:
            tile: rows, columns and summands that a program handles at a time, its warps, and its
                stages of loading.
        """
        K, M, N = found.shape
        A, B = (
            # Inputs that configs share are read as they are.
            one if one.stride(0) == 0 and one[0].is_contiguous() else one.detach().contiguous()
            for one in (A, B)
        )
        summands = A.shape[1 if A_ACROSS else 2]
        rows, columns, depth, warps, stages = tile
        unused = found  # takes the place of what there is none of
        launch(
            found.device,
            "layer_product",
            (-(-M // rows) * -(-N // columns) * K, 1),
            *(A, B, found),
            *(unused if one is None else one.detach().contiguous() for one in (bias, gate)),
            unused if sums is None else sums,
            *(M, N, summands, A.stride(0), B.stride(0), scale),
            A_ACROSS=A_ACROSS,
            B_ACROSS=B_ACROSS,
            BIAS=bias is not None,
            RELU=RELU,
            GATED=gate is not None,
            SUMS=sums is not None,
            PRECISION=self._precision(B_ACROSS, found.device),
            ROWS=rows,
            COLUMNS=columns,
            DEPTH=depth,
            num_warps=warps,
            num_stages=stages,
        )

    def _precision(self, along_sum: bool, device: torch.device) -> str:
        """Return what a product is made of: several products of bf16, or of TF32.

        Tensor cores read TF32 along the sum only, bf16 in both directions. One product of TF32
        would drop bits of its factors instead of rounding them, which is no longer an error of zero
        mean: after 200 steps at width 1024 losses were 1e-3 from those of fp32, not 1e-5.
        """
        if device.type == "cpu":
            return "ieee"  # all are that in Triton's interpreter, which does not know bf16
        if self._tf32:
            return "bf16x3"
        return "tf32x3" if along_sum else "bf16x6"


def layer_products(precision: str, dtype: torch.dtype, device: torch.device) -> LayerProducts:
    """Return the products for weights of this type, under this PRECISION."""
    tf32 = precision == "tf32" and device.type == "cuda"
    fused = None
    if precision in ("fp32", "tf32") and dtype == torch.float32:
        fused = _fused_products(device, tf32)
    return fused or LayerProducts(tf32)


@functools.cache
def _fused_products(device: torch.device, tf32: bool) -> FusedProducts | None:
    """Return the fused products, or None where the kernel does not pay, or fails its trial."""
    if kernel_module(device.type) is None:
        return None
    if device.type == "cuda" and torch.cuda.get_device_capability(device) not in _FAST_TENSOR_CORES:
        return None
    products = FusedProducts(tf32)
    difference = functools.partial(_difference, products, device)
    passed = passes("layers of MLPs", difference, TF32_TOLERANCE if tf32 else TOLERANCE)
    return products if passed else None


def _difference(products: FusedProducts, device: torch.device) -> float:
    """Return how much fused products differ from PyTorch's on random numbers, in norms."""
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(device)

    found: list[list[Tensor | None]] = [[], []]
    large = [(64, 1024, 1024)] if device.type == "cuda" else []  # takes long in the interpreter
    for n, d_in, d_out in ((80, 96, 112), (80, 48, 64), *large):
        sizes = ((2, n, d_in), (2, d_out, d_in), (2, d_out), (2, n, d_out))
        signal, W, bias, d = (drawn(*size) for size in sizes)
        for results, one in zip(found, (products, LayerProducts()), strict=True):
            with full_precision_matmul():
                results.append(one.hidden(signal, W, 0.5, bias))
                results += one.errors(d, W, 0.5, signal, summed=True)
                results.append(one.weight_gradient(d, signal, 0.5))
    pairs = [(a, b) for a, b in zip(*found, strict=True) if a is not None and b is not None]
    return relative_difference(pairs)
