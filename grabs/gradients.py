"""Norms of the gradient of the training loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlpsubmit.grabs.labelled import labelled
from mlpsubmit.grabs.layers import layers_of
from mlpsubmit.grabs.losses import Loss, Parameters, objective, trained_parameters

__all__ = ["gradient_norm", "gradient_norms"]


@labelled(long_name="norm of the gradient of all parameters")
def gradient_norm(
    model: nn.Module,
    X_tr: Tensor,
    y_tr: Tensor,
    model0: nn.Module,
    loss: Loss = "mse",
    centered: bool = True,
) -> Tensor:
    """Return the norm of the gradient of the training loss, over all parameters, a scalar.

    The loss is on this batch, without weight decay, at the current parameters and in their
    precision, whatever PRECISION is. A grab is taken after the update, so with a fresh batch at
    every step this is not the gradient of that update. It does not include learning rates, neither
    LR nor those of the parametrization.

    Args:
        model: the network, uncentred.
        X_tr: (n, ...) inputs: the training batch's, or by :func:`on_test_set` the test set's.
        y_tr: (n,) or (n, d_out) targets.
        model0: the network at initialisation.
        loss: the hyperparameter LOSS. A sweep supplies it, and CENTERED; if ``train`` is called
            directly, contexts must hold them.
        centered: the hyperparameter CENTERED: whether f - f0 is trained, else f.

    Raises:
        SpecError: for an invalid loss.

    Example:
        >>> gradient_norm(nn.Linear(3, 1), torch.ones(4, 3), torch.ones(4), nn.Linear(3, 1)).shape
        torch.Size([])
    """
    gradient = _gradient("gradient_norm", model, X_tr, y_tr, model0, loss, centered)
    return _norm(list(gradient.values()), like=X_tr)


@labelled("layer", long_name="norm of the gradient")
def gradient_norms(
    model: nn.Module,
    X_tr: Tensor,
    y_tr: Tensor,
    model0: nn.Module,
    loss: Loss = "mse",
    centered: bool = True,
) -> Tensor:
    """Return the norm of the gradient of the training loss, per layer, (layers,).

    Each is over the weight and bias of one Linear or Conv2d layer, in order; 0 for a layer that is
    not trained. Otherwise as :func:`gradient_norm`.

    Args:
        model: the network, uncentred.
        X_tr: (n, ...) inputs: the training batch's, or by :func:`on_test_set` the test set's.
        y_tr: (n,) or (n, d_out) targets.
        model0: the network at initialisation.
        loss: the hyperparameter LOSS.
        centered: the hyperparameter CENTERED.

    Raises:
        SpecError: for an invalid loss, and if the model has no Linear or Conv2d layer.

    Example:
        >>> gradient_norms(nn.Linear(3, 1), torch.ones(4, 3), torch.ones(4), nn.Linear(3, 1)).shape
        torch.Size([1])
    """
    layers = layers_of(model)
    gradient = _gradient("gradient_norms", model, X_tr, y_tr, model0, loss, centered)
    of = {parameter: gradient.get(name) for name, parameter in model.named_parameters()}
    parts = [[of[parameter] for parameter in layer.parameters()] for layer in layers]
    return torch.stack([_norm([g for g in part if g is not None], like=X_tr) for part in parts])


def _gradient(
    grab: str, model: nn.Module, X: Tensor, y: Tensor, model0: nn.Module, loss: Loss, centered: bool
) -> Parameters:
    value = objective(grab, model, model0, X, y, loss, centered)
    gradient: Parameters = torch.func.grad(value)(trained_parameters(model))
    return gradient


def _norm(tensors: list[Tensor], like: Tensor) -> Tensor:
    """Return the norm of all entries, or 0 for no tensors, on the device of ``like``."""
    if not tensors:
        return like.new_zeros(())
    norm: Tensor = torch.stack([tensor.norm() for tensor in tensors]).norm()
    return norm
