"""Compile the kernels for a GPU of some compute capability, such as 90, which need not be there."""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mlpsubmit.training.accel import narrow_mlps, step_kernels, triton_kernels

#: By the argument's name; all others point to floats.
TYPES = {
    **dict.fromkeys(
        ("n", "X_stride", "y_stride", "f0_stride", "K", "T", "M", "N", "summands", "blocks"), "i32"
    ),
    **dict.fromkeys(
        ("lr_stride", "lr_column", "made_stride", "made_column", "A_stride", "B_stride"), "i32"
    ),
    **dict.fromkeys(("scale", "scale1", "scale2"), "fp32"),
    **dict.fromkeys(("active", "made", "uncrossed"), "*i1"),
    **dict.fromkeys(("smoothed", "smoother", "thresholds"), "*fp64"),
    **dict.fromkeys(("steps", "crossed_after"), "*i64"),
    "ps": ("*fp32", "*fp32"),
    "gs": ("*fp32", "*fp32"),
    "sizes": ("i32", "i32"),
}


FLAGS = ("A_ACROSS", "B_ACROSS", "BIAS", "RELU", "GATED", "SUMS")
DIRECTIONS: dict[str, tuple[str, ...]] = {
    "forward": ("B_ACROSS", "BIAS", "RELU"),
    "backward": ("GATED", "SUMS"),
    "weights": ("A_ACROSS",),
}


def compile_for(
    capability: int, kernel: Any, warps: int, stages: int = 1, **constants: Any
) -> None:
    signature = {
        name: "constexpr" if name in constants else TYPES.get(name, "*fp32")
        for name in kernel.arg_names
    }
    positions = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=positions)
    target = GPUTarget("cuda", capability, 32)
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=target, options=options)
    assert compiled.asm["cubin"]


def main(capability: int) -> None:
    compile_for(capability, triton_kernels.sgd_step, 4, P=2, BLOCK=step_kernels.BLOCK)
    for stops in (True, False):
        sizes = {"STOPS": stops, "CONFIGS": step_kernels.CONFIGS}
        compile_for(capability, triton_kernels.loss_step, 4, **sizes)
    for direction, flags in DIRECTIONS.items():
        tile = {"ROWS": 64, "COLUMNS": 64, "DEPTH": 16}
        options = {**dict.fromkeys(FLAGS, False), **dict.fromkeys(flags, True), **tile}
        for precision in ("tf32x3" if direction == "forward" else "bf16x6", "bf16x3"):
            options["PRECISION"] = precision
            compile_for(capability, triton_kernels.layer_product, 4, 3, **options)
    for deep in (True, False):
        compile_for(
            capability,
            triton_kernels.mlp_losses_and_gradients,
            narrow_mlps.WARPS,
            d=5,
            width=16,
            D=16,
            WIDTH=16,
            DEEP=deep,
            BIAS=deep,
            MULTIPLIED=deep,
            ROWS=narrow_mlps.ROWS,
            SEGMENT=narrow_mlps.SEGMENT,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]))
