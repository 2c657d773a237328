"""One hash of all results of a run, the same however they were computed, stored and packed.

It covers the coordinates, the status and every variable of the dataset but those that tell how the
results came about: seconds, errors, devices, tasks and how many configs trained together. So a run
that was interrupted has the hash of one that was not, and so has one that reused its results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mlpsubmit.protocol import FAILED, MISSING
from mlpsubmit.results.names import TOGETHER, TRAINED_BY, TRAINED_ON
from mlpsubmit.results.schema import Variable
from mlpsubmit.results.source import Array

__all__ = ["RESULTS_HASH", "ResultsHash"]

#: The attribute of the dataset.
RESULTS_HASH = "results_hash"

_BYTES = 16

#: Variables that are no results.
_OMITTED = ("seconds", TOGETHER, TRAINED_ON, TRAINED_BY)


class ResultsHash:
    """Collects the hashes of variables, of arrays or of one config after the other.

    Args:
        size: the number of points of the product.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._hashes: dict[str, bytes] = {}
        #: Of variables too large to be in memory, the hash of the values of each point.
        self._rows: dict[str, tuple[Variable, npt.NDArray[np.uint8]]] = {}

    def add_coordinates(self, coordinates: Mapping[str, Array]) -> None:
        """Add the coordinates of the dataset."""
        for name, values in coordinates.items():
            self._hashes[f"coordinate {name}"] = _hash(values)

    def add_status(self, codes: npt.NDArray[np.uint8]) -> None:
        """Add the status of each point, (size,); a failed one counts as missing."""
        self._hashes["status"] = _hash(np.where(codes == FAILED, MISSING, codes).astype(np.uint8))

    def add(self, variable: Variable, values: Array) -> None:
        """Add the values of a variable, (size, *variable.shape)."""
        if variable.name in _OMITTED:
            return
        if variable.is_small:
            self._hashes[variable.name] = _hash(values, *variable.dims)
            return
        for point, row in enumerate(values):
            self.add_row(variable, point, row)

    def add_row(self, variable: Variable, point: int, values: Array) -> None:
        """Add the values of one point, of a variable that is too large for all to be in memory."""
        if variable.name not in self._rows:
            missing = np.full(variable.shape, variable.fill, variable.dtype)
            start = np.frombuffer(_hash(missing), np.uint8)
            self._rows[variable.name] = variable, np.tile(start, (self._size, 1))
        self._rows[variable.name][1][point] = np.frombuffer(_hash(values), np.uint8)

    def hexdigest(self) -> str:
        """Return the hash of all that was added, in hex."""
        rows = {name: _hash(hashes, *v.dims) for name, (v, hashes) in self._rows.items()}
        whole = hashlib.blake2b(digest_size=_BYTES)
        for name, own in sorted({**self._hashes, **rows}.items()):
            whole.update(f"{name}\0".encode() + own)
        return whole.hexdigest()


def _hash(values: Array, *about: Any) -> bytes:
    """Return the hash of an array: its type, its shape and its content."""
    values = np.ascontiguousarray(values)
    found = hashlib.blake2b(digest_size=_BYTES)
    found.update(f"{values.dtype.newbyteorder('<').str} {values.shape} {about}".encode())
    if values.size:
        plain = values.astype(values.dtype.newbyteorder("<"), copy=False)
        found.update(plain.reshape(-1).view(np.uint8).data)
    return found.digest()
