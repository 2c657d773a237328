"""Arrays and tensors from one another, on the device that a script means."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor, nn

__all__ = ["ensure_numpy", "ensure_torch", "on_device", "training_on"]

#: Where the function of a script that is running now trains; None outside of all training.
_DEVICE: ContextVar[torch.device | None] = ContextVar("mlpsubmit.compat.device", default=None)


def ensure_torch(
    x: Any,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | int | None = None,
    clone: bool = False,
) -> Tensor:
    """Return a number, list, array or tensor as a tensor.

    Args:
        x: what to convert; a tensor that fits already is returned itself.
        dtype: what it becomes.
        device: where it goes. By default, in a batch function or a grab, the device that the
            config trains on; elsewhere the first GPU, or the processor where there is none.
        clone: return a copy in any case.

    Example:
        >>> ensure_torch([1, 2]).dtype
        torch.float32
    """
    tensor = torch.as_tensor(x, dtype=dtype, device=_chosen(device))
    return tensor.clone() if clone else tensor


def _chosen(device: torch.device | str | int | None) -> torch.device:
    if isinstance(device, int):
        return torch.device("cuda", device)
    if device is not None:
        return torch.device(device)
    return _DEVICE.get() or torch.device("cuda" if torch.cuda.is_available() else "cpu")


def ensure_numpy(x: Any, dtype: DTypeLike = np.float64, clone: bool = False) -> NDArray[Any]:
    """Return a number, list, array or tensor as an array.

    Args:
        x: what to convert. A tensor keeps its own type; an array that fits is returned itself.
        dtype: what anything but a tensor becomes.
        clone: return a copy in any case.

    Example:
        >>> ensure_numpy([1, 2])
        array([1., 2.])
    """
    array = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x, dtype=dtype)
    return array.copy() if clone else array


@contextlib.contextmanager
def training_on(device: torch.device) -> Iterator[None]:
    """Let :func:`ensure_torch` put tensors on a device, for the duration."""
    token = _DEVICE.set(device)
    try:
        yield
    finally:
        _DEVICE.reset(token)


def on_device(value: Any, device: torch.device | str) -> Any:
    """Return a value with the tensors and modules in it on a device; all else is as it was.

    Args:
        value: anything; dictionaries, lists and tuples are looked into.
        device: where to. What is there already is not copied.
    """
    if isinstance(value, Tensor):
        return value.detach().to(device)
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).to(device)  # a module moves in place, under the script's feet
    if type(value) is dict:
        return {key: on_device(entry, device) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(on_device(entry, device) for entry in value)
    return value
