"""Adam and AdamW over stacked parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from mlpsubmit.training.batches import column
from mlpsubmit.training.optimizers.stacked import OptimizerSettings, Stacked
from mlpsubmit.training.stack import Stack

__all__ = ["Adam", "AdamW"]


class Adam(Stacked):
    """Adam (Kingma and Ba, arXiv:1412.6980).

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
    p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps).
    """

    PER_ROW = (*Stacked.PER_ROW, "eps", "first_moments", "second_moments")
    SAVED = ("steps",)

    def __init__(self, stack: Stack, settings: OptimizerSettings) -> None:
        super().__init__(stack, settings)
        self._betas = settings.common.of_optimizer("betas")
        self.eps = self._eps(settings.common.eps, settings.factors)
        self.first_moments, self.second_moments = self._zeros(), self._zeros()
        # Counted on the device, so that a replayed step counts too.
        exact = torch.float32 if self.lrs.device.type == "mps" else torch.float64
        self.steps = torch.zeros((), dtype=exact, device=self.lrs.device)

    def _begin_step(self) -> None:
        beta1, beta2 = self._betas
        self.steps += 1
        self._correction1, self._root2 = 1 - beta1**self.steps, (1 - beta2**self.steps).sqrt()

    def _update(self, i: int, p: Tensor, g: Tensor, lr: Tensor) -> None:
        beta1, beta2 = self._betas
        m, v, eps = self.first_moments[i], self.second_moments[i], self.eps[:, i]
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        denominator = v.sqrt().div_(self._root2).add_(column(eps, v))
        update = torch.div(m, denominator, out=denominator)
        p.addcmul_(update, lr / self._correction1, value=-1)


class AdamW(Adam):
    """Adam with a decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101)."""

    DECOUPLED = True
