"""Gaussian random numbers, in a third of the time that torch takes on a CPU."""

from __future__ import annotations

import math
import threading

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlpsubmit.native.library import library

__all__ = ["randn"]

#: Numbers per block: words 0 and 1 of 16 counters, then words 2 and 3.
_COUNTERS = 16
_LOWER = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def randn(*size: int, generator: torch.Generator) -> Tensor:
    """Return independent N(0, 1), of torch's default dtype, on the generator's device.

    In place of :func:`torch.randn` in a batch function. On a CPU the generator is drawn from once,
    for the key of a counter-based generator, Philox4x32-10 (Salmon et al., 2011,
    https://doi.org/10.1145/2063384.2063405), and pairs of its words of 24 bits become Gaussian by
    the transform of Box and Muller. All dtypes get the same numbers, of single precision. They do
    not depend on the CPU; where there is no C compiler, the last bits differ, and numpy computes
    them, some ten times slower. On other devices it is torch.randn.

    Args:
        size: the shape.
        generator: such as the ``gen`` of a batch function.

    Example:
        >>> randn(3, 2, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([3, 2])
    """
    if generator.device.type != "cpu":
        return torch.randn(*size, generator=generator, device=generator.device)
    numbers = torch.empty(size, dtype=torch.float32, device="cpu")
    if type(numbers) is not Tensor:  # without memory, as under FakeTensorMode
        return torch.randn(*size, generator=generator, device="cpu")
    key = _key().random_(generator=generator)
    functions = library(torch.float32)
    if functions is None:
        numbers = torch.from_numpy(_by_numpy(int(key), math.prod(size))).view(size)
    else:
        functions.normals(key.data_ptr(), numbers.numel(), numbers.data_ptr())
    dtype = torch.get_default_dtype()
    return numbers if numbers.dtype == dtype else numbers.to(dtype)


#: Takes the key of a call; a tensor of its own for each thread.
_KEYS = threading.local()


def _key() -> Tensor:
    try:
        key: Tensor = _KEYS.key
    except AttributeError:
        with torch.inference_mode(False):  # or nothing could write into it outside of that mode
            key = _KEYS.key = torch.empty((), dtype=torch.int64, device="cpu")
    return key


def _by_numpy(key: int, count: int) -> NDArray[np.float32]:
    """Return what the function in C computes."""
    blocks = -(-count // (4 * _COUNTERS))
    bits = [word >> 8 for word in _words(key, blocks * _COUNTERS)]
    pairs = []
    for first, second in (bits[:2], bits[2:]):
        radius = np.sqrt(-2 * np.log((first + 8388609.0) * 2.0**-24))
        angle = second * (np.pi * 2.0**-23)
        pairs += [radius * np.cos(angle), radius * np.sin(angle)]
    numbers = np.stack([one.reshape(blocks, _COUNTERS) for one in pairs], axis=1)
    return numbers.reshape(-1)[:count].astype(np.float32)


def _words(key: int, counters: int) -> list[NDArray[np.int32]]:
    """Return four words for each counter from 0 on, by Philox4x32-10."""
    x0: NDArray[np.uint64] = np.arange(counters, dtype=np.uint64)
    x1, x2, x3 = x0 >> _HALF, np.zeros_like(x0), np.zeros_like(x0)
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        a, b = (x0 & _LOWER) * np.uint64(0xD2511F53), (x2 & _LOWER) * np.uint64(0xCD9E8D57)
        x0, x1 = (b >> _HALF) ^ x1 ^ np.uint64(k0), b
        x2, x3 = (a >> _HALF) ^ x3 ^ np.uint64(k1), a
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [(x & _LOWER).astype(np.uint32).view(np.int32) for x in (x0, x1, x2, x3)]
