"""Settings of the whole process: set for a training, and restored afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.deterministic

__all__ = [
    "arithmetic",
    "autocast",
    "default_dtype",
    "dtype_of",
    "full_precision_matmul",
    "functions_dtype",
    "keep_freed_memory",
    "settings_kept",
]


@contextlib.contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    # cuDNN's convolutions use TF32 by default, so fp32 has to be set explicitly too.
    tf32 = precision == "tf32"
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of weights, batches and losses: float64 in fp64, otherwise float32."""
    return torch.float64 if precision == "fp64" else torch.float32


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create tensors of floats with a dtype within the context, as functions of the user do."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def functions_dtype(precision: str) -> contextlib.AbstractContextManager[None]:
    """Return the context of a user's functions: in fp64 they create tensors of float64."""
    return default_dtype(torch.float64) if precision == "fp64" else contextlib.nullcontext()


@contextlib.contextmanager
def full_precision_matmul() -> Iterator[None]:
    """Compute matmuls in full fp32 within the context: those of batch functions and grabs."""
    if torch.get_float32_matmul_precision() == "highest":
        yield
        return
    with _matmul_precision("fp32"):
        yield


@contextlib.contextmanager
def _deterministic_algorithms(device: torch.device) -> Iterator[None]:
    if device.type == "cuda":
        # cuBLAS reads it when its first handle is made; it stays set for the process.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Not use_deterministic_algorithms: that imports torch's compiler, almost a second per process.
    was = torch.get_deterministic_debug_mode()
    benchmark = torch.backends.cudnn.benchmark
    filling: Any = torch.utils.deterministic  # its setting is a property, which mypy cannot see
    filled = filling.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    torch.backends.cudnn.benchmark = False
    # Nothing here reads memory before writing it, and filling each new tensor costs a pass.
    filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(was)
        torch.backends.cudnn.benchmark = benchmark
        filling.fill_uninitialized_memory = filled


# Parameters of glibc's mallopt(3), and the largest threshold that it takes for mapped blocks.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _LARGEST = -1, -3, 2**25


@contextlib.contextmanager
def keep_freed_memory(device: torch.device) -> Iterator[None]:
    """Keep up to 1 GiB of freed memory in the process, on a CPU under glibc.

    Otherwise malloc returns the activations to the kernel at every step and gets them back one
    page fault at a time, which takes a third of the step. Afterwards the thresholds are those that
    malloc's own adaptation ends at.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, 2**30)
    try:
        yield
    finally:
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)


@contextlib.contextmanager
def arithmetic(precision: str, deterministic: bool, device: torch.device) -> Iterator[None]:
    """Set matmul precision and determinism within the context, and restore both afterwards.

    Args:
        precision: fp32 disables TF32, also in convolutions; tf32 lets matmuls and convolutions on
            Ampere and later round their inputs to 10 bits; bf16 is applied by :func:`autocast`;
            fp64 makes float64 the default dtype.
        deterministic: only deterministic algorithms of torch are used; an operation that has no
            deterministic algorithm on this device then raises a RuntimeError that names it.
        device: where the training runs.
    """
    algorithms = _deterministic_algorithms(device) if deterministic else contextlib.nullcontext()
    with _matmul_precision(precision), functions_dtype(precision), algorithms:
        yield


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Restore, at the end of the context, all that a training sets for the whole process.

    So that trainings can take turns in one process.
    """
    filling: Any = torch.utils.deterministic
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    tf32, benchmark, filled = cudnn.allow_tf32, cudnn.benchmark, filling.fill_uninitialized_memory
    debug, dtype = torch.get_deterministic_debug_mode(), torch.get_default_dtype()
    with torch.set_grad_enabled(torch.is_grad_enabled()):
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(matmul)
            cudnn.allow_tf32, cudnn.benchmark = tf32, benchmark
            filling.fill_uninitialized_memory = filled
            torch.set_deterministic_debug_mode(debug)
            torch.set_default_dtype(dtype)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return a context in which a forward pass runs in bfloat16 where PRECISION is bf16."""
    if precision != "bf16":
        return contextlib.nullcontext()
    # No cache: it would keep casts of weights past their update, and each is used once per pass.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
