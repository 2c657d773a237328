"""The loss of a network: as a function of its trained parameters, and on the test set."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mlpsubmit.arguments import further_arguments
from mlpsubmit.batchfns.validation import check_choice
from mlpsubmit.grabs.labelled import labelled
from mlpsubmit.grabs.samples import check_test_set
from mlpsubmit.protocol import LOSS_PARAMS

__all__ = ["Loss", "Parameters", "held_out_loss", "objective", "trained_parameters"]

Loss: TypeAlias = str | Callable[..., Tensor]
Parameters: TypeAlias = dict[str, Tensor]


@labelled(long_name="loss on the test set")
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

    Online, the train loss measures generalisation if every batch is fresh. If minibatches are drawn
    from a finite data set, as by :func:`~mlpsubmit.batchfns.sample` and
    :func:`~mlpsubmit.batchfns.arrays`, it does not, and this grab does; so does the ``test_loss``
    of the results, which is evaluated online if EVAL_EVERY is set. The grab is the loss after the
    update, not smoothed, in the precision of the weights whatever PRECISION is, and costs a forward
    pass over the test set (two if CENTERED).

    Args:
        model: the network, uncentred.
        model0: the network at initialisation.
        X_te: (n, ...) test inputs.
        y_te: (n,) or (n, d_out) test targets.
        loss: the hyperparameter LOSS. A sweep supplies it, and CENTERED; if ``train`` is called
            directly, contexts must hold them.
        centered: the hyperparameter CENTERED: whether the output is f - f0, else f.

    Raises:
        SpecError: for an invalid loss, and if there is no test set.

    Example:
        >>> held_out_loss(nn.Identity(), nn.Identity(), torch.ones(4, 1), 3 * torch.ones(4))
        tensor(9.)
    """
    check_test_set("held_out_loss", X_te)
    value = objective("held_out_loss", model, model0, X_te, y_te, loss, centered)
    return value(trained_parameters(model))


def trained_parameters(model: nn.Module) -> Parameters:
    """Return the parameters that require a gradient, detached, by name; tied ones once."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def objective(
    grab: str, model: nn.Module, model0: nn.Module, X: Tensor, y: Tensor, loss: Loss, centered: bool
) -> Callable[[Parameters], Tensor]:
    """Return the training loss as a function of the trained parameters.

    Args:
        grab: the name of the grab, for messages.
        model: the network, uncentred.
        model0: the network at initialisation, f0.
        X: (n, ...) inputs.
        y: (n,) or (n, d_out) targets.
        loss: the hyperparameter LOSS: a name, or a callable(output, y) or (output, y, params)
            that returns a scalar, with y in the shape of the output if both have the same number
            of entries, and params all parameters of the network by name.
        centered: whether f - f0 is trained, else f.

    Raises:
        SpecError: for an invalid loss.
    """
    takes_params = callable(loss) and LOSS_PARAMS in further_arguments(loss)
    if callable(loss):
        measure = loss
    else:
        valid = ", ".join(map(repr, _LOSSES)) + ", or a callable(output, y) -> scalar"
        check_choice(grab, "loss", loss, _LOSSES, valid)
        measure = _LOSSES[loss]
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    with torch.no_grad():
        f0 = model0(X) if centered else None

    def value(parameters: Parameters) -> Tensor:
        f = functional_call(model, parameters, (X,))
        output: Tensor = f if f0 is None else f - f0
        # Otherwise (n, 1) - (n,) would be (n, n).
        targets = y.reshape(output.shape) if y.numel() == output.numel() else y
        supplied = {LOSS_PARAMS: {**frozen, **parameters}} if takes_params else {}
        return measure(output, targets, **supplied)

    return value


def _mse(output: Tensor, y: Tensor) -> Tensor:
    n = len(output)
    return (output.reshape(n, -1) - y.reshape(n, -1)).square().mean()


def _cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    classes = y if y.is_floating_point() else y.reshape(len(output))  # may come as a column
    return nn.functional.cross_entropy(output, classes)


def _hinge(output: Tensor, y: Tensor) -> Tensor:
    return torch.relu(1 - y * output).mean()


def _logistic(output: Tensor, y: Tensor) -> Tensor:
    return -nn.functional.logsigmoid(y * output).mean()


#: All but the second have targets in the shape of the output.
_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": _mse,
    "cross_entropy": _cross_entropy,
    "hinge": _hinge,
    "logistic": _logistic,
    "mae": nn.functional.l1_loss,
    "huber": nn.functional.huber_loss,
}
