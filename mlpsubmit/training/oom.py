"""Running out of memory: how it is told from other failures, and what is freed after it."""

from __future__ import annotations

import errno
import gc

import torch

__all__ = ["free_memory", "is_crowded", "ran_out_of_memory"]

#: The share of a GPU that may be taken before it is worth looking for what can be freed.
_CROWDED = 0.1

#: What a plain RuntimeError of torch says where an allocation failed: the allocators of processors,
#: of CUDA outside its caching allocator and of Apple's devices, cuBLAS and its like, and C++.
_SAYINGS = (
    *("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory"),
    *("CUDA error: out of memory", "MPS backend out of memory"),
    *("STATUS_ALLOC_FAILED", "std::bad_alloc"),
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception, or what it was raised from, is a failed allocation.

    The exceptions of NumPy, of CUDA's caching allocator and of the system count as well.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (MemoryError, torch.cuda.OutOfMemoryError)):
            return True
        if isinstance(cause, OSError) and cause.errno == errno.ENOMEM:
            return True
        if isinstance(cause, RuntimeError) and any(saying in str(cause) for saying in _SAYINGS):
            return True
        cause = cause.__cause__
    return False


def is_crowded(device: torch.device) -> bool:
    """Tell whether a good part of a GPU is taken by tensors."""
    if device.type != "cuda":
        return False
    total = torch.cuda.get_device_properties(device).total_memory
    return torch.cuda.memory_allocated(device) > _CROWDED * total


def free_memory() -> None:
    """Free what nothing refers to any more, on the device too.

    Call it where no exception is being handled: its traceback holds every tensor of the frames
    that it passed.
    """
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA has not been used
