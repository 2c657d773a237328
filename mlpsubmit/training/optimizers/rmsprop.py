"""RMSprop over stacked parameters."""

from __future__ import annotations

from torch import Tensor

from mlpsubmit.spec.optimizer_settings import kwargs_of
from mlpsubmit.training.batches import column
from mlpsubmit.training.optimizers.stacked import OptimizerSettings, StackedOptimizer
from mlpsubmit.training.stack import Stack

__all__ = ["RMSprop"]


class RMSprop(StackedOptimizer):
    """RMSprop (Hinton, Coursera lecture 6e, 2012), as torch.optim.RMSprop.

    v = alpha v + (1 - alpha) g^2; u = g / (sqrt(v) + eps); b = momentum b + u; p -= lr b.
    Centred (Graves, arXiv:1308.0850), v - a^2 is in the place of v, with
    a = alpha a + (1 - alpha) g.
    """

    PER_ROW = (*StackedOptimizer.PER_ROW, "eps", "momenta", "squares", "means", "buffers")

    def __init__(self, stack: Stack, settings: OptimizerSettings) -> None:
        super().__init__(stack, settings)
        common = settings.common
        further = kwargs_of("rmsprop", common.optimizer_kwargs)
        self._alpha = further["alpha"]
        self.eps = self._eps(common.of_optimizer("eps"), settings.factors)
        momenta = [h.of_optimizer("momentum") for h in settings.hyperparameters]
        self.momenta = self._per_config(momenta)
        self.squares = self._zeros()
        self.means = self._zeros() if further["centered"] else []
        self.buffers = self._zeros() if any(momenta) else []

    def _update(self, i: int, p: Tensor, g: Tensor, lr: Tensor) -> None:
        alpha, v, eps = self._alpha, self.squares[i], self.eps[:, i]
        v.mul_(alpha).addcmul_(g, g, value=1 - alpha)
        if self.means:
            mean = self.means[i]
            mean.lerp_(g, 1 - alpha)
            v = v.addcmul(mean, mean, value=-1)
        update = g / v.sqrt().add_(column(eps, v))
        if self.buffers:
            update = self.buffers[i].mul_(column(self.momenta, p)).add_(update)
        p.addcmul_(update, lr, value=-1)
