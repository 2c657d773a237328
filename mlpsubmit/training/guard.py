"""In-place writes into tensors that are shared: batches, data entries, weights that a grab sees.

Version counters of tensors find most of them without waiting for the device. Writes through
``.data`` or a NumPy view do not count there; checksums find those.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpsubmit.errors import UserError

__all__ = ["Guard", "WriteError", "arrays_of", "version"]

#: Elements of a tensor, at even distances, that a checksum covers where it is not of the whole.
_SAMPLED = 1 << 14
#: Elements of a tensor that are summed at a time, or a 64th of it: each takes 24 bytes for that.
_CHUNK = 1 << 14

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class WriteError(UserError):
    """A function of the user's that has written into a tensor which others read."""


class Guard:
    """Tensors that nothing may change from now on.

    Args:
        tensors: by name.
        sampled: whether to compute checksums, of a sample of each tensor.
        whole: whether to compute checksums of the whole tensors too.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], *, sampled: bool = False, whole: bool = False
    ) -> None:
        # Not detached: that would take longer than the whole check.
        self._tensors = dict(tensors)
        self._versions = [version(tensor) for tensor in tensors.values()]
        self._sums = {
            kind: self._checksums(kind) for kind in (False, True) if (sampled, whole)[kind]
        }

    def written(self) -> list[str]:
        """Return the names of tensors that have been written to, by their version counters."""
        pairs = zip(self._tensors.items(), self._versions, strict=True)
        return [name for (name, tensor), old in pairs if version(tensor) != old]

    def changed(self, whole: bool = False) -> list[str]:
        """Return the names of tensors whose content differs, too (a GPU-CPU sync point)."""
        found = self.written()
        if not found and self._tensors and whole in self._sums:
            pairs = zip(self._checksums(whole), self._sums[whole], strict=True)
            differ = torch.stack([new.ne(old) for new, old in pairs]).tolist()
            found = [name for name, one in zip(self._tensors, differ, strict=True) if one]
        return found

    @torch.no_grad()
    def _checksums(self, whole: bool) -> list[Tensor]:
        device = next((tensor.device for tensor in self._tensors.values()), None)
        return [_checksum(tensor, whole).to(device) for tensor in self._tensors.values()]


def version(tensor: Tensor) -> int:
    """Return the version counter of a tensor, which every write in place increases."""
    return 0 if tensor.is_inference() else tensor._version


def arrays_of(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors among some values, and the NumPy arrays of numbers as views of them.

    Left out are read-only arrays, arrays that torch cannot view (long doubles, columns of records),
    and tensors without ordinary memory (sparse, nested, quantized, meta).
    """
    found = {name: _viewed(value) for name, value in values.items()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _viewed(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        usual = value.layout is torch.strided and not (value.is_nested or value.is_quantized)
        return value if usual and not value.is_meta else None
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc" and value.flags.writeable:
        # In increasing addresses and the byte order of this machine: bits are compared, not used.
        upwards: Any = (..., *(slice(None, None, -1 if s < 0 else 1) for s in value.strides))
        bits = value[upwards].view(value.dtype.newbyteorder("="))
        with contextlib.suppress(TypeError, ValueError):
            return torch.from_numpy(bits)
    return None


def _checksum(tensor: Tensor, whole: bool) -> Tensor:
    """Return a hash () of the bits of a tensor that depends on their order: sum of i * bits_i."""
    flat = tensor.detach().reshape(-1) if whole else _sample(tensor.detach())
    if flat.is_complex():
        flat = torch.view_as_real(flat.resolve_conj()).reshape(-1)
    bits = flat.resolve_neg().contiguous().view(_INTEGERS[flat.itemsize])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    size = max(_CHUNK, len(bits) // 64)
    for start in range(0, len(bits), size):
        part = bits[start : start + size].long()
        places = torch.arange(start + 1, start + 1 + len(part), device=tensor.device)
        total += (part * places).sum()
    return total


def _sample(tensor: Tensor) -> Tensor:
    if tensor.numel() <= _SAMPLED:
        return tensor.reshape(-1)
    # An odd distance, so that the sample does not keep to one column.
    every = tensor.numel() // _SAMPLED | 1
    if tensor.is_contiguous():
        return tensor.view(-1)[::every]
    rows = max(1, _SAMPLED * len(tensor) // tensor.numel())
    return tensor[:: max(1, len(tensor) // rows)].reshape(-1)
