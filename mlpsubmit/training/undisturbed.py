"""Calls of a model that leave no trace in it: checks of its shapes, and measurements."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mlpsubmit.training.global_state import global_state_kept

__all__ = ["undisturbed"]


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore afterwards what a forward pass may change: buffers, attributes, generators.

    Not a copy of the model: its hooks and functions may be bound to this very module.
    """
    modules = list(model.modules())
    contents = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    attributes = [(module, _shallow_copies(module)) for module in modules]
    try:
        with global_state_kept():
            yield
    finally:
        for module, own in attributes:
            _restore(module, own)
        with torch.no_grad():
            for buffer, content in contents:
                if not torch.equal(buffer, content):
                    buffer.copy_(content)


def _shallow_copies(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Return the attributes of a module, each with a copy of its entries if it is a container."""
    return {
        name: (value, value.copy() if type(value) in (list, dict, set) else None)
        for name, value in vars(module).items()
    }


def _restore(module: nn.Module, attributes: dict[str, tuple[Any, Any]]) -> None:
    own = vars(module)
    for name in [name for name in own if name not in attributes]:
        del own[name]
    for name, (value, entries) in attributes.items():
        own[name] = value
        if entries is not None:
            value.clear()
            value.extend(entries) if type(value) is list else value.update(entries)
