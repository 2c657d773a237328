"""The losses, each computed for all K configs at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from mlpsubmit.arguments import function_name, further_arguments
from mlpsubmit.errors import SpecError, UserError, error_message, unreturned
from mlpsubmit.protocol import LOSS_PARAMS
from mlpsubmit.training.comparison import StackingError
from mlpsubmit.training.guard import WriteError
from mlpsubmit.training.oom import ran_out_of_memory
from mlpsubmit.training.unvectorised import unvectorised

__all__ = [
    "StackedLoss",
    "differentiated",
    "mse",
    "partial_derivatives",
    "stacked_loss",
    "takes_params",
    "with_params",
]

#: From outputs (K, n, ...) and targets (1 or K, n, ...) to losses (K,). One that takes ``params``,
#: the parameters (K, ...) of the configs by name, is given them by :func:`with_params`.
StackedLoss = Callable[..., Tensor]

#: From outputs and targets (K, n, d_out) to one number per entry.
_Entrywise = Callable[[Tensor, Tensor], Tensor]

#: Parts of torch's messages where a function writes into a tensor that vmap has not copied.
_VMAP_REFUSES_WRITE = ("vmap: inplace arithmetic", "accessing `data` under vmap")


def stacked_loss(loss: str | Callable[..., Tensor]) -> StackedLoss:
    """Return the loss named by LOSS, for K configs at once.

    Args:
        loss: ``cross_entropy``, the mean over samples, of integer targets (n,) or probabilities
            (n, C); one of the means over all entries: ``mse`` of (f - y)^2, ``mae`` of |f - y|,
            ``huber`` of (f - y)^2 / 2 where |f - y| < 1, else |f - y| - 1/2, and for targets of
            -1 and 1 ``hinge`` of max(0, 1 - y f), ``logistic`` of log(1 + exp(-y f)); or a
            callable(output, y) that is called per config, for several under ``torch.vmap``, with y
            in the shape of the output where both have as many entries, and returns a scalar tensor.
            If it declares ``params`` after these two, it is given the parameters of its config by
            name, and the loss takes them (K, ...): see :func:`with_params`.
    """
    if callable(loss):
        return _by_callable(loss)
    return {"mse": mse, "cross_entropy": _cross_entropy, **_MEANS}[loss]


def takes_params(loss: StackedLoss) -> bool:
    """Return whether a loss takes the parameters, too, as for penalties on the weights."""
    return bool(getattr(loss, "takes_params", False))


def with_params(loss: StackedLoss, params: Mapping[str, Tensor]) -> StackedLoss:
    """Return a loss that takes the parameters as one of outputs and targets alone.

    Args:
        params: (K, ...) by name.
    """
    return partial(loss, params=params)


def partial_derivatives(
    loss: StackedLoss, output: Tensor, y: Tensor, params: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return losses (K,), and their derivatives by the outputs, and directly by the parameters.

    Args:
        params: (K, ...) by name; the third result has an entry for each, of zeros where the loss
            does not use it.
    """
    with torch.enable_grad():
        f = output.detach().requires_grad_()
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
        losses = with_params(loss, leaves)(f, y)
        inputs = [f, *leaves.values()]
        d_output, *direct = torch.autograd.grad(losses.sum(), inputs, materialize_grads=True)
    return losses.detach(), d_output, dict(zip(leaves, direct, strict=True))


def differentiated(loss: StackedLoss, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return losses (K,), and their gradients (K, n, ...) with respect to the outputs.

    That of ``mse``, 2 (f - y) / N over N entries, has the bits of autograd's in fewer passes.
    """
    if (slope := _SLOPES.get(loss)) is not None:
        with torch.no_grad():
            f, targets = _entries(output, y)
            gradient = slope(f, targets) / f[0].numel()
            return loss(output, y), gradient.reshape(output.shape)
    if loss is mse:
        with torch.no_grad():
            K, n = output.shape[:2]
            error = output.reshape(K, n, -1) - y.reshape(len(y), n, -1)
            losses = error.square().mean((1, 2))
            gradient = (error * (2 / error[0].numel())).reshape(output.shape)
            return losses, gradient.to(output.dtype)
    with torch.enable_grad():
        f = output.detach().requires_grad_()
        losses = loss(f, y)
        (gradient,) = torch.autograd.grad(losses.sum(), f)
    return losses.detach(), gradient


def mse(output: Tensor, y: Tensor) -> Tensor:
    """Return the mean of (f - y)^2 over the entries of each config, (K,)."""
    f, y = _entries(output, y)
    return (f - y).square().mean((1, 2))


def _entries(output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs (K, n, d_out) and targets (1 or K, n, d_out)."""
    K, n = output.shape[:2]
    return output.reshape(K, n, -1), y.reshape(len(y), n, -1)


def _hinge(f: Tensor, y: Tensor) -> Tensor:
    return torch.relu(1 - y * f)


def _hinge_slope(f: Tensor, y: Tensor) -> Tensor:
    return torch.where(y * f < 1, -y, 0)


def _logistic(f: Tensor, y: Tensor) -> Tensor:
    return -nn.functional.logsigmoid(y * f)  # finite where exp() overflows


def _logistic_slope(f: Tensor, y: Tensor) -> Tensor:
    return -y * torch.sigmoid(-y * f)


def _mae(f: Tensor, y: Tensor) -> Tensor:
    return (f - y).abs()


def _mae_slope(f: Tensor, y: Tensor) -> Tensor:
    return (f - y).sign()


def _huber(f: Tensor, y: Tensor) -> Tensor:
    distance = (f - y).abs()
    return torch.where(distance < 1, distance.square() / 2, distance - 0.5)


def _huber_slope(f: Tensor, y: Tensor) -> Tensor:
    return (f - y).clamp(-1, 1)


def _mean_of(entrywise: _Entrywise) -> StackedLoss:
    """Return the mean over the entries of each config."""

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return entrywise(*_entries(output, y)).mean((1, 2))

    return loss


_ENTRYWISE: dict[str, tuple[_Entrywise, _Entrywise]] = {
    "hinge": (_hinge, _hinge_slope),
    "logistic": (_logistic, _logistic_slope),
    "mae": (_mae, _mae_slope),
    "huber": (_huber, _huber_slope),
}
_MEANS = {name: _mean_of(entrywise) for name, (entrywise, _) in _ENTRYWISE.items()}
#: The derivatives of their entries by the outputs, in fewer passes than autograd makes.
_SLOPES: dict[StackedLoss, _Entrywise] = {
    loss: _ENTRYWISE[name][1] for name, loss in _MEANS.items()
}


def _cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    K, n, C = output.shape
    y = y if y.is_floating_point() else y.reshape(len(y), n)  # classes may come as a column
    per_sample = y.expand(K, *y.shape[1:]).reshape(K * n, *y.shape[2:])
    losses = nn.functional.cross_entropy(output.reshape(K * n, C), per_sample, reduction="none")
    return losses.reshape(K, n).mean(1)


def _by_callable(loss: Callable[..., Tensor]) -> StackedLoss:
    name, has_params = function_name(loss), LOSS_PARAMS in further_arguments(loss)

    def one(output: Tensor, y: Tensor, params: Mapping[str, Tensor] | None = None) -> Tensor:
        if y.numel() == output.numel():
            y = y.reshape(output.shape)  # else (n, 1) - (n,) would be (n, n)
        try:
            value = loss(output, y, params=params) if has_params else loss(output, y)
        except RuntimeError as error:
            if not any(text in error_message(error) for text in _VMAP_REFUSES_WRITE):
                raise
            raise WriteError(
                f"LOSS {name} changes output or y in place; all configs read y too; try y.clone(), "
                "or operations out of place"
            ) from error
        if not isinstance(value, Tensor) or value.ndim != 0 or not value.is_floating_point():
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            got += f" of {value.dtype}" if isinstance(value, Tensor) and value.ndim == 0 else ""
            raise SpecError(
                f"LOSS: {name}(output, y) gave {got} for output {tuple(output.shape)} and y "
                f"{tuple(y.shape)}; valid is a scalar tensor of a real number"
                f"{unreturned(value, 'try .mean()')}"
            )
        return value

    shared = torch.vmap(one, in_dims=(0, None, 0))
    stacked = torch.vmap(one, in_dims=(0, 0, 0))

    def each(output: Tensor, y: Tensor, params: Mapping[str, Tensor] | None = None) -> Tensor:
        params = dict(params or {})
        if len(output) == 1:  # as it is, so that it may do whatever PyTorch allows
            own = {name: tensor[0] for name, tensor in params.items()}
            return one(output[0], y[0], own).unsqueeze(0)
        try:
            return shared(output, y[0], params) if len(y) == 1 else stacked(output, y, params)
        except Exception as error:
            if isinstance(error, UserError) or ran_out_of_memory(error):
                raise
            raise StackingError(unvectorised(error, f"LOSS {name}")) from error

    each.takes_params = has_params  # type: ignore[attr-defined]
    return each
