"""CENTERED: f0(X), the output of the network at initialisation, subtracted from every output.

On a fixed set (the training set offline, and the test set) it is evaluated once, at the beginning.
On fresh batches it is evaluated at every step, a second forward pass; but configs that differ in LR
or GAMMA alone start from the same weights and see the same batches, so each distinct initial
network is evaluated once for all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlpsubmit.training.batches import Batch, Batches
from mlpsubmit.training.module_tensors import point_at
from mlpsubmit.training.parts import Part
from mlpsubmit.training.stack import Stack

__all__ = ["InitialOutput"]


class InitialOutput(Part):
    """f0(X) of K configs, or zero where outputs are not centred.

    Args:
        stack: the networks.
        weights: a copy of their initial parameters and buffers, each (K, ...); None where nothing
            needs them once the fixed sets have been evaluated.
        centered: whether anything is subtracted.
        train, test: the batches; None where the test set needs no outputs.

    Attributes:
        weights: those of the K0 <= K distinct initial networks, each (K0, ...).
    """

    SAVED = ("_fixed", "weights", "_networks", "_merged")

    def __init__(
        self,
        stack: Stack,
        weights: dict[str, Tensor] | None,
        *,
        centered: bool,
        train: Batches,
        test: Batches | None,
    ) -> None:
        self._stack, self._centered = stack, centered
        self.weights = weights or {}
        #: Per row of the stack, the number of its initial network.
        self._networks = list(range(len(stack)))
        #: Whether rows share networks: then ``weights`` lacks the tensors that may differ.
        self._merged = False
        self._begun = False  # whether a batch has been evaluated
        self._fixed: dict[str, Tensor] = {}
        if centered:
            sets = {"train": train, "test": test}
            fixed = {name: one for name, one in sets.items() if one is not None and one.fixed}
            self._fixed = {name: self._evaluate(one.draw(0)) for name, one in fixed.items()}
        if not train.fixed:
            self._merge(list(zip(train.sources, stack.evaluation_streams, strict=True)))
        self._index()

    def train(self, batch: Batch) -> Tensor | float:
        """Return f0 (K, n, ...) on a training batch."""
        if not self._centered:
            return 0.0
        fixed = self._fixed.get("train")
        if fixed is not None:
            return fixed
        if not self._begun:
            # Of all rows as they are, so that f - f0 is 0: rounding can depend on how many networks
            # there are, and the gradient of a loss on the sign of what is left.
            self._begun = True
            with torch.no_grad():
                return self._stack.evaluate(self._stack.tensors, batch)
        return self._evaluate(batch)

    def test(self) -> Tensor | float:
        """Return f0 (K, n, ...) on the fixed test set."""
        return self._fixed["test"] if self._centered else 0.0

    @torch.no_grad()
    def _evaluate(self, batch: Batch) -> Tensor:
        if not self._merged:
            return self._stack.evaluate(self.weights or self._stack.tensors, batch)
        own = batch.rows(self._rows, self._first)
        outputs = self._stack.evaluate(self.weights, own, self._rows)
        return self._stack.scaled(outputs.index_select(0, self._gathered))

    def _merge(self, sources: Sequence[Hashable]) -> None:
        """Keep networks of equal weights once, for rows of the same source.

        They may differ in the tensors that :meth:`Stack.scaled` multiplies outputs by.

        Args:
            sources: per row, where its batches come from, and what its network may draw.
        """
        if not self.weights:
            return
        kept = {n: tensor for n, tensor in self.weights.items() if n not in self._stack.scaling}
        contents = [_content(kept, row) for row in self._networks]
        keys = list(zip(sources, contents, strict=True))
        distinct = list(dict.fromkeys(keys))
        if len(distinct) < len(keys):
            self._keep(kept, [keys.index(key) for key in distinct])
            self._networks, self._merged = [distinct.index(key) for key in keys], True

    def _keep(self, weights: Mapping[str, Tensor], networks: Sequence[int]) -> None:
        index = torch.tensor(networks, device=self._stack.device)
        self.weights = {name: tensor[index] for name, tensor in weights.items()}

    def _index(self) -> None:
        """Set per network its first row, and per row its network.

        Also on the device: an index that is a list would be copied there, synchronously, at each
        step.
        """
        networks = range(max(self._networks) + 1)
        self._rows = [self._networks.index(network) for network in networks]
        device = self._stack.device
        self._first = torch.tensor(self._rows, device=device)
        self._gathered = torch.tensor(self._networks, device=device)

    def show(self, module: nn.Module, row: int) -> nn.Module:
        """Return a module of the same structure, made a view of one row's initial network."""
        network = self._networks[row]
        initial = {name: tensor[network] for name, tensor in self.weights.items()}
        # A multiplier that is not kept has its current value: it is not trained.
        current = {name: t.detach()[row] for name, t in self._stack.tensors.items()}
        return point_at(module, current | initial)

    def shrink(self, keep: Sequence[int]) -> None:
        """Keep these rows, and only the networks that they started from."""
        self._fixed = {name: output[list(keep)] for name, output in self._fixed.items()}
        used = list(dict.fromkeys(self._networks[row] for row in keep))
        self._keep(self.weights, used)
        self._networks = [used.index(self._networks[row]) for row in keep]
        self._index()

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from a saved state, which may have fewer rows."""
        super().load_state_dict(state, device)
        self._begun = True
        self._index()


def _content(tensors: Mapping[str, Tensor], row: int) -> bytes:
    """Return a hash of the bits of one row."""
    content = hashlib.blake2b(digest_size=16)
    for tensor in tensors.values():
        content.update(tensor[row].contiguous().flatten().view(torch.uint8).cpu().numpy().tobytes())
    return content.digest()
