"""Conversion between arrays and tensors, on the device of the training."""

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

#: The device on which the function of a script that runs now trains; None outside of training.
_DEVICE: ContextVar[torch.device | None] = ContextVar("mlpsubmit.compat.device", default=None)


def ensure_torch(
    x: Any,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | int | None = None,
    clone: bool = False,
) -> Tensor:
    """Return a number, list, array or tensor as a tensor.

    Args:
        x: the value; a tensor that has the type and the device already is returned itself.
        dtype: the type of the result.
        device: its device. The default in batch functions and grabs is the device on which the
            config trains; elsewhere it is the first GPU, or the CPU if there is none.
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
        x: the value. A tensor keeps its own type; an array of the right type is returned itself.
        dtype: the type of the result, unless x is a tensor.
        clone: return a copy in any case.

    Example:
        >>> ensure_numpy([1, 2])
        array([1., 2.])
    """
    array = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x, dtype=dtype)
    return array.copy() if clone else array


@contextlib.contextmanager
def training_on(device: torch.device) -> Iterator[None]:
    """Make a device the default of :func:`ensure_torch`."""
    token = _DEVICE.set(device)
    try:
        yield
    finally:
        _DEVICE.reset(token)


def on_device(value: Any, device: torch.device | str) -> Any:
    """Return a value with its tensors and modules on a device, everything else unchanged.

    Args:
        value: anything; dictionaries, lists and tuples are searched.
        device: the target. Tensors that are there already are not copied; modules always are.
    """
    if isinstance(value, Tensor):
        return value.detach().to(device)
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).to(device)  # module.to() would move the script's own module
    if type(value) is dict:
        return {key: on_device(entry, device) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(on_device(entry, device) for entry in value)
    return value
