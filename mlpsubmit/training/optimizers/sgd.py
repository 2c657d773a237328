"""SGD over stacked parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.training.accel.kernels import sgd_step
from mlpsubmit.training.batches import column
from mlpsubmit.training.optimizers.stacked import Closure, Stacked
from mlpsubmit.training.parametrizations import Factors
from mlpsubmit.training.stack import Stack

__all__ = ["SGD"]


class SGD(Stacked):
    """g += wd p; b = momentum b + g; p -= lr b, or p -= lr (g + momentum b) for Nesterov."""

    PER_ROW = (*Stacked.PER_ROW, "momenta", "buffers")

    def __init__(
        self,
        stack: Stack,
        hyperparameters: Sequence[Hyperparameters],
        lrs: Sequence[Mapping[str, float]],
        bases: Sequence[float],
        factors: Sequence[Mapping[str, Factors]],
    ) -> None:
        super().__init__(stack, hyperparameters, lrs, bases, factors)
        momenta = [h.of_optimizer("momentum") for h in hyperparameters]
        self._nesterov = hyperparameters[0].of_optimizer("nesterov")
        self.momenta = self._per_config(momenta)
        self.buffers = self._zeros() if any(momenta) else []
        plain = not (self.buffers or self._has_penalty)
        fusible = plain and hyperparameters[0].compile is not False
        fusible &= all(p.is_contiguous() for p in stack.parameters)
        self._kernel = sgd_step(stack.device) if fusible else None

    @torch.no_grad()
    def step(
        self,
        gradients: Sequence[Tensor],
        active: Tensor,
        closure: Closure,
        scale: Tensor | None = None,
    ) -> None:
        """Update the parameters of the active configs."""
        if self._kernel is not None:
            lrs = (self.lrs if scale is None else self.lrs * scale).unbind(1)
            made = self._made(active)
            for i in self._indices:
                self._kernel(self._stack.parameters[i], gradients[i], lrs[i], made[i])
            return
        for i, p, g, lr in self._each(gradients, active, scale):
            if self.buffers:
                momentum, buffer = column(self.momenta, p), self.buffers[i]
                buffer.mul_(momentum).add_(g)
                g = torch.addcmul(g, buffer, momentum) if self._nesterov else buffer
            p.addcmul_(g, lr, value=-1)
