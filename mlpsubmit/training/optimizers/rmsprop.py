"""RMSprop over stacked parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.optimizer_settings import kwargs_of
from mlpsubmit.training.batches import column
from mlpsubmit.training.optimizers.stacked import Closure, Stacked
from mlpsubmit.training.parametrizations import Factors
from mlpsubmit.training.stack import Stack

__all__ = ["RMSprop"]


class RMSprop(Stacked):
    """RMSprop (Hinton, Coursera lecture 6e, 2012), as torch.optim.RMSprop.

    v = alpha v + (1 - alpha) g^2; u = g / (sqrt(v) + eps); b = momentum b + u; p -= lr b.
    Centred (Graves, arXiv:1308.0850), v - a^2 is in the place of v, with
    a = alpha a + (1 - alpha) g.
    """

    PER_ROW = (*Stacked.PER_ROW, "eps", "momenta", "squares", "means", "buffers")

    def __init__(
        self,
        stack: Stack,
        hyperparameters: Sequence[Hyperparameters],
        lrs: Sequence[Mapping[str, float]],
        bases: Sequence[float],
        factors: Sequence[Mapping[str, Factors]],
    ) -> None:
        super().__init__(stack, hyperparameters, lrs, bases, factors)
        common = hyperparameters[0]
        further = kwargs_of("rmsprop", common.optimizer_kwargs)
        self._alpha = further["alpha"]
        self.eps = self._eps(common.eps, factors)
        momenta = [h.of_optimizer("momentum") for h in hyperparameters]
        self.momenta = self._per_config(momenta)
        self.squares = self._zeros()
        self.means = self._zeros() if further["centered"] else []
        self.buffers = self._zeros() if any(momenta) else []

    @torch.no_grad()
    def step(
        self,
        gradients: Sequence[Tensor],
        active: Tensor,
        closure: Closure,
        scale: Tensor | None = None,
    ) -> None:
        """Update the parameters of the active configs."""
        alpha, eps = self._alpha, self.eps.unbind(1)
        for i, p, g, lr in self._each(gradients, active, scale):
            v = self.squares[i]
            v.mul_(alpha).addcmul_(g, g, value=1 - alpha)
            if self.means:
                mean = self.means[i]
                mean.lerp_(g, 1 - alpha)
                v = v.addcmul(mean, mean, value=-1)
            update = g / v.sqrt().add_(column(eps[i], v))
            if self.buffers:
                update = self.buffers[i].mul_(column(self.momenta, p)).add_(update)
            p.addcmul_(update, lr, value=-1)
