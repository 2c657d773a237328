"""SGD over stacked parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mlpsubmit.training.accel.step_kernels import sgd_step
from mlpsubmit.training.batches import column
from mlpsubmit.training.optimizers.stacked import Closure, OptimizerSettings, StackedOptimizer
from mlpsubmit.training.stack import Stack

__all__ = ["SGD"]


class SGD(StackedOptimizer):
    """g += wd p; b = momentum b + g; p -= lr b, or p -= lr (g + momentum b) for Nesterov."""

    PER_ROW = (*StackedOptimizer.PER_ROW, "momenta", "buffers")

    def __init__(self, stack: Stack, settings: OptimizerSettings) -> None:
        super().__init__(stack, settings)
        momenta = [h.of_optimizer("momentum") for h in settings.hyperparameters]
        self._nesterov = settings.common.of_optimizer("nesterov")
        self.momenta = self._per_config(momenta)
        self.buffers = self._zeros() if any(momenta) else []
        plain = not (self.buffers or self._has_penalty)
        fusible = plain and settings.common.compile is not False
        fusible &= self._alike(stack.parameters)
        fusible &= not stack.aliased  # programs of one launch would race
        self._kernel = sgd_step(stack.device, stack.parameters[0].dtype) if fusible else None
        #: The indices, on the device, of the parameters that are trained, where some are not.
        self._columns: Tensor | None = None
        if len(self._indices) < len(stack.parameters):
            self._columns = torch.tensor(self._indices, device=stack.device)

    @torch.no_grad()
    def step(
        self,
        gradients: Sequence[Tensor],
        active: Tensor,
        closure: Closure,
        scale: Tensor | None = None,
    ) -> None:
        """Update the parameters of the active configs."""
        if self._kernel is None:
            super().step(gradients, active, closure, scale)
            return
        lrs = self.lrs if scale is None else self.lrs * scale
        made = active.unsqueeze(1) if self._trained is None else active.unsqueeze(1) & self._trained
        if self._columns is not None:
            lrs = lrs.index_select(1, self._columns)
            made = made if self._trained is None else made.index_select(1, self._columns)
        parameters = [self._stack.parameters[i] for i in self._indices]
        self._kernel(parameters, [gradients[i] for i in self._indices], lrs, made)

    def _update(self, i: int, p: Tensor, g: Tensor, lr: Tensor) -> None:
        if self.buffers:
            momentum, buffer = column(self.momenta, p), self.buffers[i]
            buffer.mul_(momentum).add_(g)
            g = torch.addcmul(g, buffer, momentum) if self._nesterov else buffer
        # Not addcmul, which rounds once on some CPUs and twice on others, unlike the kernels.
        p.sub_(g * lr)
