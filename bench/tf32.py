"""TF32 emulated: matrix products whose factors are rounded to 10 explicit mantissa bits.

TF32 has the 8 exponent bits of float32 and 10 of its 23 explicit mantissa bits. A tensor core
rounds float32 factors to it, multiplies them without loss, and adds the products up in float32:
https://developer.nvidia.com/blog/accelerating-ai-training-with-tf32-tensor-cores/. Here the factors
are rounded to nearest, and multiplied by the device's float32 matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mlpsubmit.training.accel import native_mlp

__all__ = ["Tf32Products", "to_tf32"]

_DROPPED = 13

_ATEN = torch.ops.aten
#: The position of the first of the two factors among the arguments of each matrix product.
_FACTORS = {
    _ATEN.mm: 0,
    _ATEN.bmm: 0,
    _ATEN.addmm: 1,
    _ATEN.addmm_: 1,
    _ATEN.baddbmm: 1,
    _ATEN.baddbmm_: 1,
}


def to_tf32(x: Tensor) -> Tensor:
    """Return float32 numbers rounded to 10 explicit mantissa bits, ties to even, as float32."""
    bits = x.view(torch.int32)
    half = (1 << (_DROPPED - 1)) - 1
    rounded = (bits + half + ((bits >> _DROPPED) & 1)) & -(1 << _DROPPED)
    # The bits of a NaN may carry into the sign.
    return torch.where(x.isnan(), x, rounded.view(torch.float32))


class Tf32Products(TorchDispatchMode):
    """A context in which float32 matrix products have their factors rounded, backward too.

    All are PyTorch's: the functions in C of this package are not used.

    Attributes:
        operations: floating-point operations in the products rounded so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self._without_c = mock.patch.object(native_mlp, "library", return_value=None)

    def __enter__(self) -> Any:
        self._without_c.start()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._without_c.stop()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        position = _FACTORS.get(func.overloadpacket)
        if position is not None and args[position].dtype == torch.float32:
            A, B = args[position : position + 2]
            self.operations += 2 * A.numel() * B.shape[-1]
            args = (*args[:position], to_tf32(A), to_tf32(B), *args[position + 2 :])
        return func(*args, **(kwargs or {}))
