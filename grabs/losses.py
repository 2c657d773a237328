"""The loss of a network on samples that it is not trained on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlpsubmit.grabs.objective import Loss, objective, trained_parameters
from mlpsubmit.grabs.samples import check_test_set

__all__ = ["held_out_loss"]


@torch.no_grad()
def held_out_loss(
    model: nn.Module,
    model0: nn.Module,
    X_te: Tensor,
    y_te: Tensor,
    loss: Loss = "mse",
    centered: bool = True,
) -> Tensor:
    """Return the loss on the test set, as the train loop defines it, a scalar.

    Online, the ``test_loss`` of the results is the train loss, which is right where every batch is
    fresh. Where minibatches come out of a finite data set, as those of
    :func:`~mlpsubmit.batchfns.sample` and :func:`~mlpsubmit.batchfns._arrays`, this grab gives the
    generalisation curve. It is the loss after the update, not smoothed, in the precision of the
    weights whatever PRECISION is, and costs a forward pass over the test set (two if CENTERED).

    Args:
        model: the network, uncentred.
        model0: the network at initialisation.
        X_te: (n, ...) test inputs.
        y_te: (n,) or (n, d_out) test targets.
        loss: the hyperparameter LOSS, and ``centered`` the hyperparameter CENTERED: both arrive by
            themselves in a sweep; where ``train`` is called directly, contexts have to hold them.
        centered: whether the output is f - f0, else f.

    Raises:
        SpecError: for another loss, and where there is no test set.

    Example:
        >>> held_out_loss(nn.Identity(), nn.Identity(), torch.ones(4, 1), 3 * torch.ones(4))
        tensor(9.)
    """
    check_test_set("held_out_loss", X_te)
    value = objective("held_out_loss", model, model0, X_te, y_te, loss, centered)
    return value(trained_parameters(model))
