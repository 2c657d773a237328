"""Grabs: the user's measurements, called in one place, their results kept until read back."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlpsubmit.arguments import pick
from mlpsubmit.errors import UserError
from mlpsubmit.protocol import GRAB_ARGUMENTS, Grab
from mlpsubmit.training.batches import Batch
from mlpsubmit.training.optimizers import OptimizerView
from mlpsubmit.training.precision import full_precision_matmul
from mlpsubmit.training.result import Array
from mlpsubmit.training.stack import Stack

__all__ = ["GrabError", "Grabber", "resolve"]

#: So much is kept on the device between two read-backs before it is read back early.
_PENDING_BYTES = 2**28


class GrabError(UserError):
    """A grab that failed, or that returned what cannot be stored."""


def resolve(
    grabs: Mapping[str, Grab], contexts: Sequence[Mapping[str, Any]]
) -> list[dict[str, frozenset[str]]]:
    """Return, per config and grab, the names of the arguments that it takes.

    Raises:
        SpecError: where a grab needs an argument that is not offered.
    """
    reserved = dict.fromkeys(GRAB_ARGUMENTS)
    return [
        {name: frozenset(pick(grab, {**context, **reserved})) for name, grab in grabs.items()}
        for context in contexts
    ]


class Grabber:
    """Calls the grabs of K configs and keeps what they return.

    Args:
        grabs: per name, a function that is given by name what it declares of ``model`` (the
            uncentred network: its parameters are views of the weights in training, which a grab
            must not modify), ``X_tr``, ``y_tr``, ``X_te``, ``y_te``, ``opt``, ``model0`` (at
            initialisation) and its config's context; and returns a number, an array, a tensor or
            a list of these.
        contexts: K times, further arguments by name.
        arguments: what :func:`resolve` returned.
        stack: the networks.
        views: K times, what a grab sees as ``opt``.
        init_model: a module of the same structure, to show the networks at initialisation.
        slots: how many times each grab is called in a trace; None: once, at the end.
    """

    def __init__(
        self,
        grabs: Mapping[str, Grab],
        contexts: Sequence[Mapping[str, Any]],
        arguments: list[dict[str, frozenset[str]]],
        stack: Stack,
        views: Sequence[OptimizerView],
        init_model: nn.Module | None,
        slots: int | None,
    ) -> None:
        self.grabs, self._contexts, self._arguments = grabs, contexts, arguments
        self._stack, self._views, self._twin = stack, views, init_model
        self._leading = (len(contexts),) if slots is None else (len(contexts), slots)
        self._pending: dict[str, list[tuple[int, int, Tensor | Array]]] = {n: [] for n in grabs}
        self._pending_bytes = 0
        self._arrays: dict[str, Array] = {}
        self._shapes: dict[str, dict[int, tuple[int, ...]]] = {name: {} for name in grabs}
        self._last_slot = [-1] * len(contexts)

    def measure(
        self, step: int, slot: int, rows: Sequence[int], train: Batch | None, test: Batch | None
    ) -> None:
        """Call every grab for the configs at these positions. Gradients are enabled.

        Args:
            step: the step that was made last, for messages.
            slot: where in a trace the results belong; what a config is given last stays to the end.
            rows: positions in the stack.
            train, test: the batches to show.

        Raises:
            GrabError: from what a grab raised, or for what it returned.
        """
        for row in rows if self.grabs else ():
            config = self._stack.configs[row]
            offered = self._offer(row, config, train, test)
            self._last_slot[config] = slot
            for name in self.grabs:
                where = f"grab {name!r} of config {config} at step {step}"
                value = self._call(name, config, offered, where)
                if value is not None:
                    self._check_shape(name, config, tuple(value.shape), where)
                    self._pending[name].append((config, slot, value))
                    self._pending_bytes += value.nbytes
            self._stack.models[config].zero_grad()
        if self._pending_bytes > _PENDING_BYTES:
            self.flush()

    def _call(
        self, name: str, config: int, offered: dict[str, Any], where: str
    ) -> Tensor | Array | None:
        taken = {key: offered[key] for key in self._arguments[config][name]}
        try:
            with torch.enable_grad(), full_precision_matmul():
                result = self.grabs[name](**taken)
        except Exception as error:
            # The update that precedes a divergence: its loss, before the update, was still finite.
            if _overflowed(offered["model"], offered["X_tr"]):
                return None
            raise GrabError(f"{where} failed: {type(error).__name__}: {error}") from error
        return _held(result, where)

    def _offer(
        self, row: int, config: int, train: Batch | None, test: Batch | None
    ) -> dict[str, Any]:
        X_tr, y_tr = train.of(row) if train else (None, None)
        X_te, y_te = test.of(row) if test else (None, None)
        model, init_model = self._stack.models[config], self._twin
        model0 = self._stack.show_initial(init_model, row) if init_model is not None else None
        values = (model, X_tr, y_tr, X_te, y_te, self._views[config], model0)
        return {**self._contexts[config], **dict(zip(GRAB_ARGUMENTS, values, strict=True))}

    def _check_shape(self, name: str, config: int, shape: tuple[int, ...], where: str) -> None:
        known = self._shapes[name]
        if known.setdefault(config, shape) != shape:
            raise GrabError(
                f"{where} returned shape {shape}, but {known[config]} before; a grab needs the "
                "same shape at every step; try padding, or grabs of its own per part"
            )
        first = next(iter(known))
        if len(known[first]) != len(shape):
            raise GrabError(
                f"{where} returned shape {shape}, but {known[first]} for config {first}; configs "
                "trained together need results of as many dimensions"
            )

    def flush(self) -> None:
        """Read back what the grabs have returned since the last time (a GPU-CPU sync point)."""
        for name, entries in self._pending.items():
            values = _read_back([value for _, _, value in entries])
            for (config, slot, _), value in zip(entries, values, strict=True):
                index = (config, slot)[: len(self._leading)]
                inner = tuple(slice(size) for size in value.shape)
                self._room_for(name, value)[index + inner] = value
            entries.clear()
        self._pending_bytes = 0

    def _room_for(self, name: str, value: Array) -> Array:
        """Return the array of a grab, made large enough and of a type for one more value."""
        array = self._arrays.get(name)
        if array is None:
            self._check_memory(name, value)
            array = np.full(self._leading + value.shape, np.nan, _storable(value.dtype))
        old = array.shape[len(self._leading) :]
        size = tuple(max(pair) for pair in zip(old, value.shape, strict=True))
        dtype = np.result_type(array.dtype, _storable(value.dtype))
        if size != old or dtype != array.dtype:
            larger = np.full(self._leading + size, np.nan, dtype)
            larger[tuple(slice(n) for n in array.shape)] = array
            array = larger
        self._arrays[name] = array
        return array

    def _check_memory(self, name: str, value: Array) -> None:
        """Refuse a trace that can never fit, rather than be killed when it is half full."""
        needed = math.prod(self._leading) * value.size * _storable(value.dtype).itemsize
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > there:
            raise GrabError(
                f"grab {name!r} returns shape {value.shape}: {' x '.join(map(str, self._leading))} "
                f"of these take {needed / 2**30:,.0f} GiB, and this machine has "
                f"{there / 2**30:,.0f}; try GRAB_EVERY='log:100', or ONLYTHRESHOLDS=True"
            )

    def results(self, diverged: Sequence[bool]) -> dict[str, Array]:
        """Return (K, ...) or (K, G, ...) per grab: traces keep their final value to the end.

        Those of a diverged config are NaN from the step at which it diverged, or from the one
        before where the grab raised because the update had made the weights overflow.
        """
        self.flush()
        missing = {name for name in self.grabs if name not in self._arrays}
        arrays = self._arrays | {name: np.full(self._leading, np.nan) for name in missing}
        for array in arrays.values() if len(self._leading) == 2 else ():
            for config, slot in enumerate(self._last_slot):
                if slot >= 0 and not diverged[config]:
                    array[config, slot + 1 :] = array[config, slot]
        return {name: arrays[name] for name in self.grabs}

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` takes (a GPU-CPU sync point)."""
        self.flush()
        return {
            "arrays": {name: torch.from_numpy(array) for name, array in self._arrays.items()},
            "shapes": {name: dict(shapes) for name, shapes in self._shapes.items()},
            "last_slot": list(self._last_slot),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self._arrays = {name: t.numpy().copy() for name, t in state["arrays"].items()}
        self._shapes = {name: dict(shapes) for name, shapes in state["shapes"].items()}
        self._last_slot = list(state["last_slot"])


@torch.no_grad()
def _overflowed(model: nn.Module, X: Tensor | None) -> bool:
    """Say whether the squares of a network's weights or outputs are no longer finite."""
    values = [*model.parameters(), *([] if X is None else [model(X)])]
    return not all(bool(value.square().sum().isfinite()) for value in values)


def _held(result: Any, where: str) -> Tensor | Array:
    """Return a copy of a result, tensors where they are: the weights that it shows will change."""
    if isinstance(result, Tensor):
        return result.detach().clone()
    try:
        array = _array(result)
    except (TypeError, ValueError) as error:
        raise _unstorable(result, where) from error
    if array.dtype.kind not in "biufc":
        raise _unstorable(result, where)
    return array


def _array(result: Any) -> Array:
    if isinstance(result, Tensor):
        return _numpy(result.detach())
    if isinstance(result, (list, tuple)):
        return np.stack([_array(entry) for entry in result]) if result else np.zeros(0)
    return np.array(result)


def _unstorable(result: Any, where: str) -> GrabError:
    return GrabError(
        f"{where} returned {type(result).__name__} {result!r:.80}; valid are numbers, arrays, "
        "tensors, and lists of these in equal shapes"
    )


def _numpy(tensor: Tensor) -> Array:
    tensor = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    array: Array = tensor.resolve_conj().resolve_neg().cpu().numpy()
    return array


def _read_back(values: list[Tensor | Array]) -> list[Array]:
    """Turn values into arrays; tensors that are alike come over in one transfer."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) == len(values) and len({(t.shape, t.dtype, t.device) for t in tensors}) == 1:
        return list(_numpy(torch.stack(tensors)))
    return [_numpy(value) if isinstance(value, Tensor) else value for value in values]


def _storable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a type that can hold NaN."""
    return dtype if dtype.kind in "fc" else np.dtype(np.float64)
