"""Data recipes: functions with some arguments bound, the others being left to axes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

from mlpsubmit.batchfns.validation import check_arguments

__all__ = ["Check", "as_recipe", "bound_recipe", "recipe"]

#: Takes some of a recipe's arguments by name; raises a SpecError that lists every bad one.
Check: TypeAlias = Callable[[Mapping[str, Any]], None]

Entries = TypeVar("Entries", bound=Callable[..., Any])


def recipe(
    name: str, check: Check | None = None, cheap: bool = False
) -> Callable[[Entries], Entries]:
    """Decorate the function that computes a recipe's data entries on a worker.

    Messages then show the public name, and a launch can run ``check`` on the values of axes.
    Pickles and content hashes use the qualified name, which is unchanged.

    Args:
        name: the public name of the recipe.
        check: the check of its arguments, by default that each keeps the rule of its name.
        cheap: whether it takes so little time that a launch may compute the entries, too, and
            try batches and grabs on them.
    """

    def decorate(entries: Entries) -> Entries:
        entries.__name__ = name
        checked = check or functools.partial(check_arguments, name)
        entries.__dict__.update(check=checked, cheap=cheap)
        return entries

    return decorate


def bound_recipe(
    entries: Callable[..., Any], arguments: Mapping[str, Any]
) -> functools.partial[Any]:
    """Return a recipe bound to those arguments that are not None, after checking them.

    The others may be axes or come from ``datasethps``, or keep their defaults.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    entries.__dict__["check"](given)
    return functools.partial(entries, **given)


def as_recipe(data: Any) -> Any:
    """Return what ``arrays(...)`` or ``from_dataset(...)`` is as data; anything else as it is.

    Both return a batch function with the arrays bound to it, which names in its attribute
    ``entries`` the function that returns them as data entries.
    """
    entries = getattr(getattr(data, "func", None), "entries", None)
    return functools.partial(entries, **data.keywords) if entries is not None else data
