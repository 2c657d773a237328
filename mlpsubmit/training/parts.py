"""The parts of a pack: how their state is shrunk, saved and restored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpsubmit.training.result import Array

__all__ = ["Part", "extended", "map_tensors", "resized"]


def map_tensors(state: Any, change: Callable[[Any], Any]) -> Any:
    """Return the same nested dicts, lists and tuples with every tensor or array changed."""
    if isinstance(state, (Tensor, np.ndarray)):
        return change(state)
    if isinstance(state, dict):
        return {key: map_tensors(value, change) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map_tensors(value, change) for value in state)
    return state


def resized(array: Array, columns: int, fill: Any) -> Array:
    """Return an array (K, columns, ...), further columns filled with a value."""
    further = columns - array.shape[1]
    if not further:
        return array
    filled = np.full((len(array), further, *array.shape[2:]), fill, array.dtype)
    return np.concatenate([array, filled], axis=1)


def extended(trace: Array, columns: int, final: Array, stopped: Array) -> Array:
    """Return a trace (K, columns) of a longer training.

    Args:
        trace: (K, fewer columns).
        final: (K,) the values that configs keep to the end which have stopped.
        stopped: (K,) bool.
    """
    before, trace = trace.shape[1], resized(trace, columns, np.nan)
    trace[stopped, before:] = final[stopped, np.newaxis]
    return trace


class Part:
    """A part of a pack whose state is in attributes, listed by name.

    Attributes:
        PER_ROW: tensors with a row per row of the stack, and lists and dicts of such tensors.
        SAVED: further state: tensors, numbers, and lists and dicts of these.
        ON_HOST: further state: NumPy arrays, and dicts of arrays.
    """

    PER_ROW: tuple[str, ...] = ()
    SAVED: tuple[str, ...] = ()
    ON_HOST: tuple[str, ...] = ()

    @property
    def on_device(self) -> dict[str, Any]:
        """The state by name, without the NumPy arrays."""
        return {name: getattr(self, name) for name in (*self.PER_ROW, *self.SAVED)}

    def shrink(self, keep: Sequence[int]) -> None:
        """Keep these rows of the stack."""
        for name in self.PER_ROW:
            kept = map_tensors(getattr(self, name), lambda t: t[torch.tensor(keep).to(t.device)])
            setattr(self, name, kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for :meth:`load_state_dict`: no copy, but NumPy arrays as tensors."""
        arrays = {name: getattr(self, name) for name in self.ON_HOST}
        return self.on_device | dict(map_tensors(arrays, torch.from_numpy))

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from a saved state, with the tensors on a device."""
        for name in (*self.PER_ROW, *self.SAVED):
            setattr(self, name, map_tensors(state[name], lambda t: t.to(device, copy=True)))
        for name in self.ON_HOST:
            setattr(self, name, map_tensors(state[name], lambda t: t.numpy().copy()))
