"""Muon over stacked parameters."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from mlpsubmit.spec.optimizer_settings import kwargs_of
from mlpsubmit.training.batches import column
from mlpsubmit.training.optimizers.adam import Adam, AdamW
from mlpsubmit.training.optimizers.stacked import OptimizerSettings, StackedOptimizer
from mlpsubmit.training.parametrizations import hidden_matrices
from mlpsubmit.training.stack import Stack

__all__ = ["Muon", "orthogonalised"]

#: The smallest norm that a matrix is divided by, in units of the order of the gradients.
_SMALLEST = 1e-7


class Muon(AdamW):
    """Muon (Jordan et al., 2024) for the hidden matrices, and AdamW for everything else.

    As torch.optim.Muon with ``adjust_lr_fn="original"``: m = momentum m + (1 - momentum) g, and
    p -= lr sqrt(max(1, rows / columns)) O(m), where O orthogonalises a matrix; with Nesterov
    O(momentum m + (1 - momentum) g). Kernels of convolutions are matrices of their outputs times
    everything else. The decay is decoupled.

    Matrices are orthogonalised in the precision of the training, so in bfloat16 under PRECISION
    "bf16" only. torch.optim.Muon always rounds them to bfloat16, where a difference in the last bit
    of a gradient can change an update by 0.4%: configs in a pack would differ from the same configs
    alone.
    """

    PER_ROW = (*AdamW.PER_ROW, "momenta", "rests", "smallest")

    def __init__(self, stack: Stack, settings: OptimizerSettings) -> None:
        hidden = hidden_matrices(stack.models[0])
        adjusted = [
            {name: lr * hidden.get(name, 1.0) for name, lr in own.items()} for own in settings.lrs
        ]
        super().__init__(stack, replace(settings, lrs=adjusted))
        common = settings.common
        self._hidden = {i for i, name in enumerate(stack.names) if name in hidden}
        if not self._hidden:
            warnings.warn(
                "OPTIMIZER='muon': the model has no matrix between its first and its last one, so "
                "all of it trains by adamw; a built-in MLP needs DEPTH >= 2",
                stacklevel=1,
            )
        momenta = [h.of_optimizer("momentum") for h in settings.hyperparameters]
        self.momenta = self._per_config(momenta)
        self.rests = self._per_config([1 - momentum for momentum in momenta])
        self.smallest = self._eps(_SMALLEST, settings.factors)
        self._nesterov = common.of_optimizer("nesterov")
        self._further = kwargs_of("muon", common.optimizer_kwargs)
        self._rounded = common.precision == "bf16"
        for i in self._hidden:  # which have no second moments
            self.second_moments[i] = self.lrs.new_zeros(len(stack), 0)

    def _gradient(self, i: int, g: Tensor, made: Tensor) -> Tensor:
        # Adam's kernel leaves out configs that make no step, but it updates no hidden layer.
        kind = StackedOptimizer if i in self._hidden else Adam
        return kind._gradient(self, i, g, made)

    def _update(self, i: int, p: Tensor, g: Tensor, lr: Tensor) -> None:
        if i not in self._hidden:
            super()._update(i, p, g, lr)
            return
        m = self.first_moments[i]
        m.lerp_(g, column(self.rests, g))
        if self._nesterov:
            m = g.lerp(m, column(self.momenta, g))
        matrices = (m.bfloat16() if self._rounded else m).reshape(*m.shape[:2], -1)
        update = orthogonalised(matrices, self.smallest[:, i], **self._further)
        p.addcmul_(update.to(p.dtype).view_as(p), lr, value=-1)


def orthogonalised(
    matrices: Tensor,
    smallest: Tensor,
    ns_steps: int,
    ns_coefficients: tuple[float, float, float],
) -> Tensor:
    """Return matrices whose singular values are near 1, and whose singular vectors are the same.

    A Newton-Schulz iteration: X = a X + (b A + c A^2) X with A = X X^T.

    Args:
        matrices: (K, rows, columns).
        smallest: (K,), the smallest norms that they are divided by.
        ns_steps: of the iteration.
        ns_coefficients: a, b and c.
    """
    a, b, c = ns_coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    X = matrices.mT if tall else matrices  # so that the products are small
    norms = torch.linalg.vector_norm(X, dim=(1, 2))
    X = X / torch.maximum(norms, smallest.to(X.dtype)).view(-1, 1, 1)
    for _ in range(ns_steps):
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, B, X, beta=a)
    return X.mT if tall else X
