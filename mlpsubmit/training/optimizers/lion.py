"""Lion over stacked parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.training.optimizers.stacked import Closure, Stacked
from mlpsubmit.training.parametrizations import Factors
from mlpsubmit.training.stack import Stack

__all__ = ["Lion"]


class Lion(Stacked):
    """Lion (Chen et al., arXiv:2302.06675, algorithm 2), with a decoupled weight decay.

    p -= lr sign(b1 m + (1 - b1) g); m = b2 m + (1 - b2) g.
    """

    PER_ROW = (*Stacked.PER_ROW, "moments")
    DECOUPLED = True

    def __init__(
        self,
        stack: Stack,
        hyperparameters: Sequence[Hyperparameters],
        lrs: Sequence[Mapping[str, float]],
        bases: Sequence[float],
        factors: Sequence[Mapping[str, Factors]],
    ) -> None:
        super().__init__(stack, hyperparameters, lrs, bases, factors)
        self._betas = hyperparameters[0].of_optimizer("betas")
        self.moments = self._zeros()

    @torch.no_grad()
    def step(
        self,
        gradients: Sequence[Tensor],
        active: Tensor,
        closure: Closure,
        scale: Tensor | None = None,
    ) -> None:
        """Update the parameters of the active configs."""
        beta1, beta2 = self._betas
        for i, p, g, lr in self._each(gradients, active, scale):
            m = self.moments[i]
            p.addcmul_(torch.lerp(m, g, 1 - beta1).sign_(), lr, value=-1)
            m.lerp_(g, 1 - beta2)
