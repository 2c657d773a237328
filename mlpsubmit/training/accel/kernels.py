"""Kernels of our own: where they run, and the trial that each passes before it is used.

They are written in Triton (:mod:`mlpsubmit.training.accel.triton_kernels`), where that is
installed, and do in a launch what PyTorch does in many. Before one is used it is compared with what
it replaces. Where it fails, or gives other numbers, that is used instead, and one line of output
names the reason.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mlpsubmit.display.output import echo
from mlpsubmit.training.oom import ran_out_of_memory

__all__ = ["kernel_module", "launch", "passes", "relative_difference"]


@functools.cache
def kernel_module(device_type: str) -> Any:
    """Return the module of the kernels, or None where they cannot run."""
    interpreted = device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if find_spec("triton") is None or not (device_type == "cuda" or interpreted):
        return None
    with contextlib.suppress(ImportError):  # a Triton that does not fit this machine
        from mlpsubmit.training.accel import triton_kernels

        return triton_kernels
    return None


def launch(device: torch.device, name: str, grid: tuple[int, int], *args: Any, **kw: Any) -> None:
    """Launch a kernel, on the device and stream of PyTorch."""
    is_cuda = device.type == "cuda"
    with torch.cuda.device(device) if is_cuda else contextlib.nullcontext():
        getattr(kernel_module(device.type), name)[grid](*args, **kw)


def relative_difference(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the largest difference of tensors from others, over the norm of those.

    NaN if there is any.
    """
    ratios = [(a - b).norm() / b.norm().clamp(min=torch.finfo(b.dtype).tiny) for a, b in pairs]
    return float(torch.stack([ratio.double() for ratio in ratios]).max())


def passes(what: str, difference: Callable[[], float], tolerance: float) -> bool:
    """Return whether a kernel runs, and differs little from what it replaces; print why not."""
    try:
        found = difference()
        reason, passes = f"it differs from the formulas by {found:.1e}", found <= tolerance
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        first_line = (str(error).strip().splitlines() or [""])[0]
        reason, passes = f"{type(error).__name__}: {first_line}", False
    if not passes:
        echo(f"the kernel for {what} is not used: {reason}")
    return passes
