"""The interface of optimizers, and what those over stacked parameters have in common.

The formulas are those of torch.optim. For a config that is not active at a step, the learning rate
is multiplied by zero, and with it the weight decay, and the gradient, which may be NaN, is replaced
by zero: its weights stay as they are, without a GPU-CPU sync point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.training.batches import column
from mlpsubmit.training.parametrizations import Factors
from mlpsubmit.training.parts import Part
from mlpsubmit.training.stack import Stack

__all__ = ["Closure", "OptimizerSettings", "PackOptimizer", "StackedOptimizer"]

#: Computes losses (K,) and gradients at the current weights.
Closure = Callable[[], tuple[Tensor, Sequence[Tensor]]]


class PackOptimizer(Part):
    """The interface of an optimizer."""

    def step(
        self,
        gradients: Sequence[Tensor],
        active: Tensor,
        closure: Closure,
        scale: Tensor | None = None,
    ) -> None:
        """Update the parameters of the active configs.

        Args:
            gradients: one (K, ...) per trained parameter.
            active: (K,) bool.
            closure: computes losses and gradients again, for optimizers that need them.
            scale: (K, 1), factors of the learning rates at this step; None where all are 1.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class OptimizerSettings:
    """The settings of the optimizers of K configs.

    Attributes:
        hyperparameters: K.
        lrs: K times, the learning rates by parameter name.
        bases: K, the learning rates without the factors of parameters.
        factors: K times, these factors.
    """

    hyperparameters: Sequence[Hyperparameters]
    lrs: Sequence[Mapping[str, float]]
    bases: Sequence[float]
    factors: Sequence[Mapping[str, Factors]]

    @property
    def common(self) -> Hyperparameters:
        """Those of the first config, for what all have in common."""
        return self.hyperparameters[0]


class StackedOptimizer(PackOptimizer):
    """Learning rates and weight decays (K, P) of the P parameters, and any further state.

    A parameter of learning rate zero is frozen: its weights keep their bits.

    Args:
        stack: K networks.
        settings: of the K configs.
    """

    PER_ROW: tuple[str, ...] = ("lrs", "weight_decays", "decays", "_trained")
    #: Whether the weight decay is a share of the learning rate that a parameter loses at each step,
    #: rather than a penalty whose gradient is added (arXiv:1711.05101).
    DECOUPLED = False

    def __init__(self, stack: Stack, settings: OptimizerSettings) -> None:
        hyperparameters, lrs = settings.hyperparameters, settings.lrs
        first = stack.parameters[0]
        self._stack = stack
        self._like: dict[str, Any] = {"device": first.device, "dtype": first.dtype}
        self._zero = torch.zeros((), **self._like)  # a number would be copied there at every use
        self.lrs = torch.tensor([[one[name] for name in stack.names] for one in lrs], **self._like)
        trained = [[one[name] != 0 for name in stack.names] for one in lrs]
        decays = [
            [h.of_optimizer("weight_decay") * each for each in own]
            for h, own in zip(hyperparameters, trained, strict=True)
        ]
        self._has_penalty = any(map(any, decays)) and not self.DECOUPLED
        self.weight_decays = torch.tensor(decays, **self._like)
        # What a decoupled decay takes of a parameter at each step (K, P).
        self.decays: Tensor | None = None
        if self.DECOUPLED and any(map(any, decays)):
            shares = [
                [base * own[name].decay * h.of_optimizer("weight_decay") for name in stack.names]
                for h, base, own in zip(
                    hyperparameters, settings.bases, settings.factors, strict=True
                )
            ]
            self.decays = torch.tensor(shares, **self._like)
        #: The parameters that any config trains; where configs differ in this, per config (K, P).
        self._indices = [i for i, column in enumerate(zip(*trained, strict=True)) if any(column)]
        differ = not all(own[i] for own in trained for i in self._indices)
        self._trained = torch.tensor(trained, device=first.device) if differ else None

    @torch.no_grad()
    def step(
        self,
        gradients: Sequence[Tensor],
        active: Tensor,
        closure: Closure,
        scale: Tensor | None = None,
    ) -> None:
        """Update the parameters of the active configs."""
        self._begin_step()
        for i, p, g, lr in self._each(gradients, active, scale):
            self._update(i, p, g, lr)

    def _begin_step(self) -> None:
        """Prepare what the updates of all parameters have in common."""

    def _update(self, i: int, p: Tensor, g: Tensor, lr: Tensor) -> None:
        """Update parameter i, p (K, ...), by its gradient g and learning rate lr (K, 1, ...)."""
        raise NotImplementedError

    def _made(self, active: Tensor) -> Sequence[Tensor]:
        """Return which configs update each parameter, P times (K,)."""
        if self._trained is None:
            return [active] * len(self._stack.parameters)
        return (self._trained & active.unsqueeze(1)).unbind(1)

    def _each(
        self, gradients: Sequence[Tensor], active: Tensor, scale: Tensor | None
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield index, parameter (K, ...), gradient (K, ...) and learning rate (K, 1, ...).

        The gradient includes that of a penalty; a decoupled decay has been applied.
        """
        lrs = self._at(self.lrs, active, scale)
        parameters, made = self._stack.parameters, self._made(active)
        if self.decays is not None:
            for i, decay in enumerate(self._at(self.decays, active, scale)):
                parameters[i].mul_(column(1 - decay, parameters[i]))
        for i in self._indices:
            g = self._gradient(i, gradients[i], made[i])
            yield i, parameters[i], g, column(lrs[i], parameters[i])

    def _gradient(self, i: int, g: Tensor, made: Tensor) -> Tensor:
        """Return the gradient (K, ...) of parameter i with its penalty; 0 where no step is made.

        Args:
            made: (K,) bool.
        """
        g = torch.where(column(made, g), g, self._zero)
        if not self._has_penalty:
            return g
        p = self._stack.parameters[i]
        return torch.addcmul(g, p, column(self.weight_decays[:, i], p))

    def _at(self, lrs: Tensor, active: Tensor, scale: Tensor | None) -> Sequence[Tensor]:
        """Return learning rates (K, P) as they are at a step: P times (K,), 0 if not active."""
        lrs = lrs if scale is None else lrs * scale
        return (lrs * active.unsqueeze(1)).unbind(1)

    def _alike(self, parameters: Sequence[Tensor]) -> bool:
        """Return whether a kernel can take them: contiguous, and of the type of learning rates."""
        dtype = self.lrs.dtype
        return dtype.is_floating_point and all(
            p.is_contiguous() and p.dtype == dtype for p in parameters
        )

    def _per_config(self, values: Sequence[float]) -> Tensor:
        """Return a setting of K configs as a tensor (K,)."""
        return torch.tensor(values, **self._like)

    def _eps(self, eps: float, factors: Sequence[Mapping[str, Factors]]) -> Tensor:
        """Return EPS (K, P) in units of the order of the gradients."""
        values = [[eps * own[name].eps for name in self._stack.names] for own in factors]
        # Positive also where it underflows: a gradient that is always zero makes no update.
        smallest = torch.finfo(self.lrs.dtype).tiny
        return torch.tensor(values, **self._like).clamp_(min=smallest)

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(p, requires_grad=False) for p in self._stack.parameters]
