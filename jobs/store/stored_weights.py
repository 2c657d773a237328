"""The weights that SAVE_WEIGHTS keeps, read from a finished pack."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.jobs.store.pack_schema import WEIGHT_SHAPES, WEIGHTS
from mlpsubmit.results.source import FinishedPack

__all__ = ["WeightsInMemory", "has_weights", "weights_digest", "weights_steps"]


def has_weights(pack: FinishedPack) -> bool:
    """Return whether a pack has weights of its configs."""
    return any(name.startswith(WEIGHTS) for name in pack.arrays())


def weights_steps(pack: FinishedPack) -> NDArray[np.int64] | None:
    """Return the steps (S,) of its weights; None where they are those at the end."""
    return pack["weights_step"] if "weights_step" in pack.arrays() else None


class WeightsInMemory:
    """The weights of a pack, each array read once."""

    def __init__(self, pack: FinishedPack) -> None:
        self._pack, self._names = pack, tuple(pack.arrays())
        self._read: dict[str, NDArray[Any]] = {}

    def of(self, row: int, column: int | None) -> dict[str, NDArray[Any]]:
        """Return the weights of one config, by the names of parameters and buffers.

        Args:
            column: the position of the step; None where only those at the end were kept.
        """
        found = {}
        for array in self._names:
            if not array.startswith(WEIGHTS):
                continue
            name = array.removeprefix(WEIGHTS)
            own = self._array(array)
            values = own[row] if column is None else own[row, column]
            if (shapes := WEIGHT_SHAPES + name) in self._names:
                dimensions, *sizes = self._array(shapes)[row].tolist()
                if dimensions < 0:
                    continue
                shape = tuple(sizes[:dimensions])
                values = values[: math.prod(shape)].reshape(shape)
            found[name] = values
        return found

    def _array(self, name: str) -> NDArray[Any]:
        if name not in self._read:
            self._read[name] = self._pack[name]
        return self._read[name]

    def forget(self) -> None:
        """Free the memory; what is needed again is read again."""
        self._read = {}


def weights_digest(weights: Mapping[str, NDArray[Any]]) -> str:
    """Return the hex hash of the names, types, shapes and contents of weights."""
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        plain = array.astype(array.dtype.newbyteorder("<"), copy=False)
        whole.update(f"{name}\0{plain.dtype.str}{plain.shape}\0".encode())
        whole.update(plain.tobytes())
    return whole.hexdigest()
