"""Gradients whose norm is limited: GRAD_CLIP_NORM."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.training.batches import column
from mlpsubmit.training.parametrizations import Factors
from mlpsubmit.training.parts import Part
from mlpsubmit.training.stack import Stack

__all__ = ["GradientClipping"]

#: Added to the norm that is divided by, as torch.nn.utils.clip_grad_norm_ does.
_EPS = 1e-6


class GradientClipping(Part):
    """Scales the gradients of K configs down to their GRAD_CLIP_NORM, each by its own norm.

    As torch.nn.utils.clip_grad_norm_: the norm is that of all trained parameters together, and the
    factor min(1, max_norm / (norm + 1e-6)). Parameters of learning rate zero are not counted.

    Args:
        hyperparameters: of the K configs.
        stack: their networks.
        factors: K times, by parameter name; a factor of zero freezes a parameter.
    """

    PER_ROW = ("_max_norms", "_counted")

    def __init__(
        self,
        hyperparameters: Sequence[Hyperparameters],
        stack: Stack,
        factors: Sequence[Mapping[str, Factors]],
    ) -> None:
        #: (K,), and (K, P) bool; None where nothing is clipped, and where all is counted.
        self._max_norms: Tensor | None = None
        self._counted: Tensor | None = None
        if all(h.grad_clip_norm is None for h in hyperparameters):
            return
        first = stack.parameters[0]
        norms = [
            math.inf if h.grad_clip_norm is None else h.grad_clip_norm for h in hyperparameters
        ]
        self._max_norms = torch.tensor(norms, dtype=first.dtype, device=first.device)
        counted = [[own[name].lr != 0 for name in stack.names] for own in factors]
        if not all(map(all, counted)):
            self._counted = torch.tensor(counted, device=first.device)

    @torch.no_grad()
    def __call__(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the gradients, each (K, ...), scaled where their norms are larger."""
        if self._max_norms is None:
            return gradients
        found = [torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in gradients]
        norms = torch.stack(found, 1)
        if self._counted is not None:
            norms = torch.where(self._counted, norms, torch.zeros_like(norms))
        factors = self._max_norms / (torch.linalg.vector_norm(norms, dim=1) + _EPS)
        # Exactly 1 without a limit, also where the norm overflows.
        factors = torch.where(self._max_norms.isinf(), 1.0, factors.clamp(max=1.0))
        return [g * column(factors, g) for g in gradients]
