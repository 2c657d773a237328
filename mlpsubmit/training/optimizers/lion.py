"""Lion over stacked parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from mlpsubmit.training.optimizers.stacked import OptimizerSettings, StackedOptimizer
from mlpsubmit.training.stack import Stack

__all__ = ["Lion"]


class Lion(StackedOptimizer):
    """Lion (Chen et al., arXiv:2302.06675, algorithm 2), with a decoupled weight decay.

    p -= lr sign(b1 m + (1 - b1) g); m = b2 m + (1 - b2) g.
    """

    PER_ROW = (*StackedOptimizer.PER_ROW, "moments")
    DECOUPLED = True

    def __init__(self, stack: Stack, settings: OptimizerSettings) -> None:
        super().__init__(stack, settings)
        self._betas = settings.common.of_optimizer("betas")
        self.moments = self._zeros()

    def _update(self, i: int, p: Tensor, g: Tensor, lr: Tensor) -> None:
        (beta1, beta2), m = self._betas, self.moments[i]
        p.addcmul_(torch.lerp(m, g, 1 - beta1).sign_(), lr, value=-1)
        m.lerp_(g, 1 - beta2)
