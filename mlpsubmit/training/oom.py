"""Running out of memory: telling it from other failures, and releasing memory after it."""

from __future__ import annotations

import errno
import gc

import torch

__all__ = ["is_crowded", "ran_out_of_memory", "release_memory"]

#: The share of a GPU in use from which on a release is worth its time.
_CROWDED = 0.1

#: Parts of the messages of failed allocations that torch raises as a plain RuntimeError: from the
#: CPU allocator, CUDA outside its caching allocator, Apple's MPS, cuBLAS and the like, and C++.
_MESSAGES = (
    *("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory"),
    *("CUDA error: out of memory", "MPS backend out of memory"),
    *("STATUS_ALLOC_FAILED", "std::bad_alloc"),
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception, or what it was raised from, is a failed allocation.

    Those of NumPy, of CUDA's caching allocator and of the operating system count as well.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (MemoryError, torch.cuda.OutOfMemoryError)):
            return True
        if isinstance(cause, OSError) and cause.errno == errno.ENOMEM:
            return True
        if isinstance(cause, RuntimeError) and any(text in str(cause) for text in _MESSAGES):
            return True
        cause = cause.__cause__
    return False


def is_crowded(device: torch.device) -> bool:
    """Return whether tensors hold more than a tenth of a GPU's memory."""
    if device.type != "cuda":
        return False
    total = torch.cuda.get_device_properties(device).total_memory
    return torch.cuda.memory_allocated(device) > _CROWDED * total


def release_memory() -> None:
    """Collect garbage, and return the unused memory of torch's CUDA allocator to the device.

    Call it where no exception is being handled: its traceback holds every tensor of the frames
    that it passed.
    """
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA has not been used
