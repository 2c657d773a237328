"""The parameters and buffers of a module as tensors by name, and a module as a view of others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import is_layer

__all__ = ["detached_tensors", "own_buffers", "own_tensors", "point_at", "put_back", "showing"]


def own_buffers(model: nn.Module) -> list[str]:
    """Return the names of the buffers that no parametrization has added."""
    added = [f"{path}.multiplier" for path, module in model.named_modules() if is_layer(module)]
    return [name for name, _ in model.named_buffers() if name not in added]


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a model, and the buffers that no parametrization has added."""
    buffers = dict(model.named_buffers())
    return {
        **dict(model.named_parameters()),
        **{name: buffers[name] for name in own_buffers(model)},
    }


@contextlib.contextmanager
def showing(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, in_place: bool
) -> Iterator[None]:
    """Give tensors of a model other values within the context.

    Args:
        own: the model's, by name.
        tensors: (1, ...) each.
        in_place: copy the values, because other tensors share memory with the model's.
    """
    before = {name: t.detach().clone() if in_place else t.data for name, t in own.items()}
    try:
        for name, tensor in own.items():
            _assign(tensor, tensors[name].detach()[0], in_place)
        yield
    finally:
        for name, tensor in own.items():
            _assign(tensor, before[name], in_place)


def _assign(tensor: Tensor, value: Tensor, in_place: bool) -> None:
    if in_place:
        tensor.detach().copy_(value)
    else:
        tensor.data = value


def put_back(now: dict[str, Any], before: Mapping[str, Any]) -> None:
    """Give the buffers of a module the values of those that a forward pass has put in their place.

    Raises:
        SpecError: for a buffer of another shape.
    """
    for name, buffer in before.items():
        value, now[name] = now.get(name), buffer
        if value is buffer or buffer is None:
            continue
        if not isinstance(value, Tensor) or value.shape != buffer.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise SpecError(
                f"MODEL: its forward pass replaces the buffer {name!r} of shape "
                f"{tuple(buffer.shape)} by {got}; let a buffer keep its shape"
            )
        buffer.detach().copy_(value.detach())


def detached_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model, detached."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


def point_at(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Make the parameters and buffers of a model these tensors, without copying; return it."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.data = tensors[name]
    return model
