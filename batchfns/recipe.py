"""Data recipes: functions bound to the arguments that are given, the rest being left to axes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

__all__ = ["Check", "bound_recipe", "recipe"]

#: Takes some of a recipe's arguments by name; raises a SpecError for all that is wrong with them.
Check: TypeAlias = Callable[[Mapping[str, Any]], None]

Entries = TypeVar("Entries", bound=Callable[..., Any])


def recipe(name: str, check: Check, cheap: bool = False) -> Callable[[Entries], Entries]:
    """Decorate the function that computes a recipe's data entries on a worker.

    Messages then call it by the name that the user knows, and its ``check`` can be asked at launch
    about values of axes. Pickles and content hashes go by the qualified name, which stays.

    Args:
        cheap: whether it takes next to no time, so that a launch may compute the entries too and
            look whether batches and grabs fit them.
    """

    def decorate(entries: Entries) -> Entries:
        entries.__name__ = name
        entries.__dict__.update(check=check, cheap=cheap)
        return entries

    return decorate


def bound_recipe(
    entries: Callable[..., Any], arguments: Mapping[str, Any]
) -> functools.partial[Any]:
    """Return a recipe bound to those arguments that are not None, once its check has passed them.

    The others may be axes or come from ``datasethps``, or keep their defaults.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    entries.__dict__["check"](given)
    return functools.partial(entries, **given)
