"""Compile the kernels for a GPU of some compute capability, such as 90, which need not be there."""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mlpsubmit.training.accel import kernels, triton_kernels

#: By the argument's name; all others point to floats.
TYPES = {
    **dict.fromkeys(("n", "X_stride", "y_stride", "f0_stride", "lr_stride", "size"), "i32"),
    **dict.fromkeys(("scale1", "scale2"), "fp32"),
    "active": "*i1",
}


def compile_for(capability: int, kernel: Any, warps: int, **constants: Any) -> None:
    signature = {
        name: "constexpr" if name in constants else TYPES.get(name, "*fp32")
        for name in kernel.arg_names
    }
    positions = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=positions)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    assert compiled.asm["cubin"]


def main(capability: int) -> None:
    compile_for(capability, triton_kernels.sgd_step, 4, BLOCK=kernels.BLOCK)
    for deep in (True, False):
        compile_for(
            capability,
            triton_kernels.mlp_losses_and_gradients,
            kernels.WARPS,
            d=5,
            width=16,
            D=16,
            WIDTH=16,
            DEEP=deep,
            BIAS=deep,
            MULTIPLIED=deep,
            ROWS=kernels.ROWS,
            SEGMENT=kernels.SEGMENT,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]))
