"""The loss that a config is trained on, as a function of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mlpsubmit.errors import SpecError, did_you_mean

__all__ = ["Loss", "Parameters", "objective", "trained_parameters"]

Loss: TypeAlias = str | Callable[[Tensor, Tensor], Tensor]
Parameters: TypeAlias = dict[str, Tensor]

_LOSSES = ("mse", "cross_entropy")


def trained_parameters(model: nn.Module) -> Parameters:
    """Return the parameters that require a gradient, detached, by name: each once if it is tied."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def objective(
    grab: str, model: nn.Module, model0: nn.Module, X: Tensor, y: Tensor, loss: Loss, centered: bool
) -> Callable[[Parameters], Tensor]:
    """Return the loss that is trained, as a function of the trained parameters.

    Args:
        grab: in whose name to complain.
        model: the network, uncentred.
        model0: the same at initialisation, f0.
        X: (n, ...) inputs.
        y: (n,) or (n, d_out) targets.
        loss: as the hyperparameter LOSS: "mse", the mean of (f - y)^2 over all entries;
            "cross_entropy", the mean over samples, of integer classes (n,) or probabilities
            (n, classes); or a callable(output, y) -> scalar, with y in the shape of the output
            where both have as many entries.
        centered: whether f - f0 is trained, else f.

    Raises:
        SpecError: for another loss.
    """
    if not (callable(loss) or loss in _LOSSES):
        hint = did_you_mean(loss, _LOSSES) if isinstance(loss, str) else ""
        raise SpecError(
            f"{grab}: got loss={loss!r}{hint}; valid are 'mse', 'cross_entropy', or a "
            "callable(output, y) -> scalar"
        )
    measure = loss if callable(loss) else _cross_entropy if loss == "cross_entropy" else _mse
    with torch.no_grad():
        f0 = model0(X) if centered else None

    def value(parameters: Parameters) -> Tensor:
        f = functional_call(model, parameters, (X,))
        output: Tensor = f if f0 is None else f - f0
        # Else (n, 1) - (n,) would be (n, n).
        return measure(output, y.reshape(output.shape) if y.numel() == output.numel() else y)

    return value


def _mse(output: Tensor, y: Tensor) -> Tensor:
    n = len(output)
    return (output.reshape(n, -1) - y.reshape(n, -1)).square().mean()


def _cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    classes = y if y.is_floating_point() else y.reshape(len(output))  # may come as a column
    return nn.functional.cross_entropy(output, classes)
