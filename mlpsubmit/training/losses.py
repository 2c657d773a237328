"""The losses, each computed for all K configs at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mlpsubmit.arguments import function_name
from mlpsubmit.errors import SpecError, UserError, error_message
from mlpsubmit.training.comparison import StackingError, unvectorised
from mlpsubmit.training.guard import WriteError
from mlpsubmit.training.oom import ran_out_of_memory

__all__ = ["StackedLoss", "differentiated", "mse", "stacked_loss"]

#: From outputs (K, n, ...) and targets (1 or K, n, ...) to losses (K,).
StackedLoss = Callable[[Tensor, Tensor], Tensor]

#: Parts of torch's messages where a function writes into a tensor that vmap has not copied.
_VMAP_REFUSES_WRITE = ("vmap: inplace arithmetic", "accessing `data` under vmap")


def stacked_loss(loss: str | Callable[[Tensor, Tensor], Tensor]) -> StackedLoss:
    """Return the loss named by LOSS, for K configs at once.

    Args:
        loss: ``mse``, the mean of (f - y)^2 over all entries; ``cross_entropy``, the mean over
            samples, of integer targets (n,) or probabilities (n, C); or a callable(output, y) that
            is called per config, for several under ``torch.vmap``, with y in the shape of the
            output where both have as many entries, and returns a scalar tensor.
    """
    if callable(loss):
        return _by_callable(loss)
    return {"mse": mse, "cross_entropy": _cross_entropy}[loss]


def differentiated(loss: StackedLoss, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return losses (K,), and their gradients (K, n, ...) with respect to the outputs.

    That of ``mse``, 2 (f - y) / N over N entries, has the bits of autograd's in fewer passes.
    """
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
    K, n = output.shape[:2]
    f = output.reshape(K, n, -1)
    return (f - y.reshape(len(y), n, -1)).square().mean((1, 2))


def _cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    K, n, C = output.shape
    y = y if y.is_floating_point() else y.reshape(len(y), n)  # classes may come as a column
    per_sample = y.expand(K, *y.shape[1:]).reshape(K * n, *y.shape[2:])
    losses = nn.functional.cross_entropy(output.reshape(K * n, C), per_sample, reduction="none")
    return losses.reshape(K, n).mean(1)


def _by_callable(loss: Callable[[Tensor, Tensor], Tensor]) -> StackedLoss:
    name = function_name(loss)

    def one(output: Tensor, y: Tensor) -> Tensor:
        if y.numel() == output.numel():
            y = y.reshape(output.shape)  # else (n, 1) - (n,) would be (n, n)
        try:
            value = loss(output, y)
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
                f"{tuple(y.shape)}; valid is a scalar tensor of a real number; try .mean()"
            )
        return value

    shared = torch.vmap(one, in_dims=(0, None))
    stacked = torch.vmap(one, in_dims=(0, 0))

    def each(output: Tensor, y: Tensor) -> Tensor:
        if len(output) == 1:  # as it is, so that it may do whatever PyTorch allows
            return one(output[0], y[0]).unsqueeze(0)
        try:
            return shared(output, y[0]) if len(y) == 1 else stacked(output, y)
        except Exception as error:
            if isinstance(error, UserError) or ran_out_of_memory(error):
                raise
            raise StackingError(unvectorised(error, f"LOSS {name}")) from error

    return each
