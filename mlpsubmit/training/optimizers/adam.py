"""Adam and AdamW over stacked parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpsubmit.training.accel.step_kernels import adam_step
from mlpsubmit.training.batches import column
from mlpsubmit.training.optimizers.stacked import OptimizerSettings, StackedOptimizer
from mlpsubmit.training.stack import Stack

__all__ = ["Adam", "AdamW"]


class Adam(StackedOptimizer):
    """Adam (Kingma and Ba, arXiv:1412.6980).

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
    p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps).
    """

    PER_ROW = (*StackedOptimizer.PER_ROW, "eps", "first_moments", "second_moments")
    SAVED = ("steps",)

    def __init__(self, stack: Stack, settings: OptimizerSettings) -> None:
        super().__init__(stack, settings)
        self._betas = settings.common.of_optimizer("betas")
        self.eps = self._eps(settings.common.of_optimizer("eps"), settings.factors)
        self.first_moments, self.second_moments = self._zeros(), self._zeros()
        # Counted on the device, so that a replayed step counts too.
        exact = torch.float32 if self.lrs.device.type == "mps" else torch.float64
        self.steps = torch.zeros((), dtype=exact, device=self.lrs.device)
        fusible = settings.common.compile is not False and not stack.aliased
        fusible &= self._alike(stack.parameters)
        self._kernel = adam_step(stack.device, self.lrs.dtype, _formula) if fusible else None
        self._updated: dict[int, Tensor] = {}

    def _begin_step(self) -> None:
        beta1, beta2 = self._betas
        self.steps += 1
        self._correction1, self._root2 = 1 - beta1**self.steps, (1 - beta2**self.steps).sqrt()

    def _gradient(self, i: int, g: Tensor, made: Tensor) -> Tensor:
        self._updated[i] = made
        return super()._gradient(i, g, made) if self._has_penalty or self._kernel is None else g

    def _update(self, i: int, p: Tensor, g: Tensor, lr: Tensor) -> None:
        m, v, eps = self.first_moments[i], self.second_moments[i], self.eps[:, i]
        corrections = (*self._betas, self._correction1, self._root2)
        if self._kernel is None:
            _formula(p, g, m, v, lr, column(eps, v), *corrections)
        else:
            self._kernel(p, g, m, v, lr.view(-1), eps, self._updated[i], *corrections)


def _formula(*arguments: Any) -> None:
    """Update p, m and v in place.

    Args:
        arguments: p, g, m, v (K, ...), lr, eps (K, 1, ...), beta1, beta2, 1 - beta1^t and the
            square root of 1 - beta2^t.
    """
    on_cpu = arguments[0].device.type == "cpu"
    step = _rounded_singly if on_cpu else _in_few_operations
    step(*arguments)


def _rounded_singly(*arguments: Any) -> None:
    """Update on a CPU; each operation is rounded by itself, and correctly, as in C."""
    p, g, m, v, lr, eps, beta1, beta2, correction1, root2 = arguments
    m.add_((g - m).mul_(1 - beta1))
    v.mul_(beta2).add_((g * g).mul_(1 - beta2))
    update = m / _root(v).div_(root2).add_(eps)
    p.sub_(update.mul_(lr / correction1))


def _in_few_operations(*arguments: Any) -> None:
    """Update on a GPU, in as few launches as PyTorch allows."""
    p, g, m, v, lr, eps, beta1, beta2, correction1, root2 = arguments
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    denominator = v.sqrt().div_(root2).add_(eps)
    update = torch.div(m, denominator, out=denominator)
    p.addcmul_(update, lr / correction1, value=-1)


def _root(v: Tensor) -> Tensor:
    """Return the square root on a CPU, correctly rounded, which PyTorch's is not."""
    found = torch.empty_like(v)
    np.sqrt(v.numpy(), out=found.numpy())
    return found


class AdamW(Adam):
    """Adam with a decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101)."""

    DECOUPLED = True
