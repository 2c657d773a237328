"""Refuse models that cannot be one stack, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mlpsubmit.errors import SpecError
from mlpsubmit.training.comparison import StackingError, signature

__all__ = ["check_stackable", "first_difference"]


def check_stackable(models: Sequence[nn.Module], *, compared: bool = False) -> None:
    """Refuse models that cannot be stacked.

    Args:
        models: as they are trained, after every function that makes or changes them.
        compared: whether their signatures are known to be equal.

    Raises:
        SpecError: naming the first tensor or module that differs.
        StackingError: for models that differ in anything but their tensors.
    """
    if len(set(map(id, models))) < len(models):
        raise SpecError("models: the same module occurs twice; every config needs its own")
    for path, parameter in models[0].named_parameters():
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise SpecError(
                f"MODEL: its parameter {path} has a post-accumulate-grad hook, which is never "
                "called here, as no gradient is accumulated; use register_hook"
            )
    if compared or len(models) == 1:
        return
    first = _shapes(models[0])
    for config, model in enumerate(models[1:], start=1):
        other = _shapes(model)
        if (name := first_difference(first, other)) is not None:
            raise SpecError(
                f"models: {name} is {first.get(name, 'missing')} in model 0 but "
                f"{other.get(name, 'missing')} in model {config}; models trained together "
                "need equal structures and shapes"
            )
    signatures = [signature(model) for model in models]
    distinct = list(dict.fromkeys(signatures))
    if len(distinct) > 1 or distinct[0].alone:
        groups = [[k for k, own in enumerate(signatures) if own == one] for one in distinct]
        raise StackingError(distinct[0].difference(distinct[-1]), groups)


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Return the first key for which two dictionaries differ, or that only one of them has."""
    return next((key for key in {**one, **other} if one.get(key) != other.get(key)), None)


def _shapes(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in named}
