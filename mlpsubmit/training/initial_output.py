"""CENTERED: the output of the network at initialisation, which is subtracted from every output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mlpsubmit.training.batches import Batch
from mlpsubmit.training.stack import Stack

__all__ = ["InitialOutput"]


class InitialOutput:
    """f0(X) for K configs, or zero where outputs are not centred.

    On a fixed set it is computed once, at the beginning; on fresh batches at every step, which is
    a second forward pass.

    Args:
        stack: the networks; where batches are fresh it keeps the initial weights.
        centered: whether anything is subtracted.
        train: the fixed training set, or None where every step has a fresh batch.
        test: the fixed test set, if there is one.
    """

    def __init__(
        self, stack: Stack, centered: bool, train: Batch | None, test: Batch | None
    ) -> None:
        self._stack, self._centered = stack, centered
        self._fixed = {
            name: stack.at_initialisation(batch)
            for name, batch in (("train", train), ("test", test))
            if centered and batch is not None
        }

    def train(self, batch: Batch) -> Tensor | float:
        """Return f0 (K, n, ...) on a training batch."""
        if not self._centered:
            return 0.0
        fixed = self._fixed.get("train")
        return self._stack.at_initialisation(batch) if fixed is None else fixed

    def test(self) -> Tensor | float:
        """Return f0 (K, n, ...) on the test set."""
        return self._fixed["test"] if self._centered else 0.0

    def shrink(self, keep: Sequence[int]) -> None:
        """Keep the configs at these positions."""
        self._fixed = {name: output[list(keep)] for name, output in self._fixed.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` takes."""
        return dict(self._fixed)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        device = self._stack.device
        self._fixed = {name: output.to(device, copy=True) for name, output in state.items()}
