"""Adam and AdamW over stacked parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.training.batches import column
from mlpsubmit.training.optimizers.stacked import Closure, Stacked
from mlpsubmit.training.parametrizations import Factors
from mlpsubmit.training.stack import Stack

__all__ = ["Adam"]


class Adam(Stacked):
    """Adam (Kingma and Ba, arXiv:1412.6980), or with decoupled decay AdamW (arXiv:1711.05101).

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
    p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps).
    """

    PER_ROW = (*Stacked.PER_ROW, "decays", "eps", "first_moments", "second_moments")
    SAVED = ("steps",)

    def __init__(
        self,
        stack: Stack,
        hyperparameters: Sequence[Hyperparameters],
        lrs: Sequence[Mapping[str, float]],
        bases: Sequence[float],
        factors: Sequence[Mapping[str, Factors]],
    ) -> None:
        super().__init__(stack, hyperparameters, lrs)
        common = hyperparameters[0]
        self._betas, names = common.betas, stack.names
        eps = [[common.eps * own[name].eps for name in names] for own in factors]
        # Positive also where it underflows: a gradient that is always zero makes no update.
        smallest = torch.finfo(self.lrs.dtype).tiny
        self.eps = torch.tensor(eps, **self._like).clamp_(min=smallest)
        # The part of a parameter that a decoupled decay takes at each step (K, P).
        self._decoupled = self._has_decay and common.optimizer == "adamw"
        self._has_decay &= not self._decoupled
        decays = [
            [base * own[name].decay * h.weight_decay for name in names]
            for h, base, own in zip(hyperparameters, bases, factors, strict=True)
        ]
        self.decays = torch.tensor(decays, **self._like)
        self.first_moments, self.second_moments = self._zeros(), self._zeros()
        # Counted on the device, so that a replayed step counts too.
        exact = torch.float32 if self.lrs.device.type == "mps" else torch.float64
        self.steps = torch.zeros((), dtype=exact, device=self.lrs.device)

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
        self.steps += 1
        correction1, root2 = 1 - beta1**self.steps, (1 - beta2**self.steps).sqrt()
        eps = self.eps.unbind(1)
        if self._decoupled:
            for p, decay in zip(
                self._stack.parameters, self._at(self.decays, active, scale), strict=True
            ):
                p.mul_(column(1 - decay, p))
        for i, p, g, lr in self._each(gradients, active, scale):
            m, v = self.first_moments[i], self.second_moments[i]
            m.lerp_(g, 1 - beta1)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            denominator = v.sqrt().div_(root2).add_(column(eps[i], v))
            update = torch.div(m, denominator, out=denominator)
            p.addcmul_(update, lr / correction1, value=-1)
