"""The networks of a stack as they were at initialisation, those that do the same kept once."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Initial"]


class Initial:
    """The initial weights of K networks.

    Configs that differ in LR or GAMMA alone begin with the same weights and see the same batches:
    one network can stand for all of them.

    Args:
        tensors: the parameters and buffers by name, each (K, ...).

    Attributes:
        tensors: those of the K0 <= K networks that are kept, each (K0, ...).
        of: K numbers, which of them each config began with.
        first: (K0,) int64, on the device, the first config that began with each.
        merged: whether any network has stood for several configs: then the tensors that
            :meth:`merge` ignored are kept no longer.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self.merged = False
        self._set(range(len(next(iter(tensors.values())))))

    def _set(self, of: Sequence[int]) -> None:
        self.of = list(of)
        first = [self.of.index(network) for network in range(max(self.of, default=-1) + 1)]
        device = next(iter(self.tensors.values())).device
        # On the device: an index that is a list would be brought there, and waited for, each step.
        self.first = torch.tensor(first, device=device)
        self._rows = torch.tensor(self.of, device=device)

    def merge(self, sources: Sequence[int], ignored: Collection[str] = ()) -> None:
        """Keep networks of equal tensors once, for configs whose batches have the same source.

        Args:
            sources: K numbers, where the batches of each config come from.
            ignored: names of tensors in which they may differ, which are kept no longer.
        """
        kept = {name: tensor for name, tensor in self.tensors.items() if name not in ignored}
        known: dict[Any, int] = {}
        contents = [_content(kept, network) for network in self.of]
        of = [known.setdefault(key, len(known)) for key in zip(sources, contents, strict=True)]
        if len(known) < len(of):
            rows = self._rows[[of.index(network) for network in range(len(known))]]
            self.tensors = {name: tensor[rows] for name, tensor in kept.items()}
            self.merged = True
            self._set(of)

    def gather(self, outputs: Tensor) -> Tensor:
        """Return for each of K configs the outputs of its network: from (K0, ...) to (K, ...)."""
        return outputs.index_select(0, self._rows)

    def shrink(self, keep: Sequence[int]) -> None:
        """Keep the configs at these positions, and only the networks that they began with."""
        of = [self.of[position] for position in keep]
        used = list(dict.fromkeys(of))
        rows = torch.tensor(used, device=self._rows.device)
        self.tensors = {name: tensor[rows] for name, tensor in self.tensors.items()}
        self._set([used.index(network) for network in of])

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` takes."""
        return {"tensors": dict(self.tensors), "of": list(self.of), "merged": self.merged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state, whose tensors are on the device."""
        self.tensors, self.merged = dict(state["tensors"]), state["merged"]
        self._set(state["of"])


def _content(tensors: Mapping[str, Tensor], row: int) -> bytes:
    """Return a hash of one network's tensors, bit for bit."""
    content = hashlib.blake2b(digest_size=16)
    for tensor in tensors.values():
        content.update(tensor[row].contiguous().flatten().view(torch.uint8).cpu().numpy().tobytes())
    return content.digest()
