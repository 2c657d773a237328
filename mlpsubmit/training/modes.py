"""Training and evaluation mode of a model, as ``train()`` and ``eval()`` set them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

__all__ = ["Modes"]


class Modes:
    """The training flags of a model's modules: those of a step, and those of an evaluation.

    In a step they are as MODEL has set them, so a module that it has put into eval mode stays
    there. In an evaluation all are False. A model with a method ``train`` of its own, which may
    keep some modules in eval mode, has that called for each change of mode, as in any train loop.

    Args:
        model: in training mode, unless MODEL has set another one. Its modules are taken now.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._mode = model, model.training
        modules = list(model.modules())
        self._own = any(map(_has_own_train, modules))
        frozen = [module for module in modules if not module.training]
        if self._own:
            model.train(self._mode)
            _set(frozen, False)
        self._training = [module for module in modules if module.training]

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the model into eval mode within the context."""
        if self._own:
            self._model.eval()
        _set(self._training, False)
        try:
            yield
        finally:
            if self._own:
                self._model.train(self._mode)
                _set(list(self._model.modules()), False)
            _set(self._training, True)


def _has_own_train(module: nn.Module) -> bool:
    cls = type(module)
    replaced = cls.train is not nn.Module.train or cls.eval is not nn.Module.eval
    return replaced or "train" in vars(module) or isinstance(module, torch.jit.ScriptModule)


def _set(modules: list[nn.Module], flag: bool) -> None:
    for module in modules:
        if "training" in (own := vars(module)):
            own["training"] = flag  # spares the costs of Module.__setattr__
        else:
            module.training = flag
