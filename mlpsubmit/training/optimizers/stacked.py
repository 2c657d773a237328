"""The interface of optimizers, and what those over stacked parameters have in common.

The formulas are those of torch.optim. For a config that is not active at a step, the learning rate
is multiplied by zero, and with it the weight decay, and the gradient, which may be NaN, is replaced
by zero: its weights stay as they are, without a GPU-CPU sync point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.training.batches import column
from mlpsubmit.training.parts import Part
from mlpsubmit.training.stack import Stack

__all__ = ["Closure", "Stacked", "StackedOptimizer"]

#: Computes losses (K,) and gradients at the current weights.
Closure = Callable[[], tuple[Tensor, Sequence[Tensor]]]


class StackedOptimizer(Part):
    """The interface of an optimizer."""

    def step(self, gradients: Sequence[Tensor], active: Tensor, closure: Closure) -> None:
        """Update the parameters of the active configs.

        Args:
            gradients: one (K, ...) per trained parameter.
            active: (K,) bool.
            closure: computes losses and gradients again, for optimizers that need them.
        """
        raise NotImplementedError


class Stacked(StackedOptimizer):
    """Learning rates (K, P) of the P parameters, weight decays (K,), and any further state."""

    PER_ROW: tuple[str, ...] = ("lrs", "weight_decays")

    def __init__(
        self,
        stack: Stack,
        hyperparameters: Sequence[Hyperparameters],
        lrs: Sequence[Mapping[str, float]],
    ) -> None:
        first = stack.parameters[0]
        self._stack = stack
        self._like: dict[str, Any] = {"device": first.device, "dtype": first.dtype}
        self._zero = torch.zeros((), **self._like)  # a number would be copied there at every use
        self.lrs = torch.tensor([[one[name] for name in stack.names] for one in lrs], **self._like)
        decays = [h.weight_decay for h in hyperparameters]
        self._has_decay = any(decays)
        self.weight_decays = torch.tensor(decays, **self._like)

    def _each(
        self, gradients: Sequence[Tensor], active: Tensor
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield index, parameter (K, ...), gradient (K, ...) and learning rate (K, 1, ...).

        The gradient includes the weight decay.
        """
        lrs = (self.lrs * active.unsqueeze(1)).unbind(1)
        for i, (p, g) in enumerate(zip(self._stack.parameters, gradients, strict=True)):
            g = torch.where(column(active, g), g, self._zero)
            if self._has_decay:
                g = torch.addcmul(g, p, column(self.weight_decays, p))
            yield i, p, g, column(lrs[i], p)

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(p, requires_grad=False) for p in self._stack.parameters]
