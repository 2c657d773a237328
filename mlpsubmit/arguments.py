"""Call functions with the arguments that they declare, by name; parse booleans."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from mlpsubmit.errors import SpecError, did_you_mean

__all__ = [
    "call",
    "declared",
    "function_name",
    "further_arguments",
    "most_by_position",
    "needed",
    "parse_bool",
    "pick",
    "takes_all",
]

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

_TRUE = ("true", "yes", "y", "t", "1")
_FALSE = ("false", "no", "n", "f", "0")


def parse_bool(value: Any) -> bool | None:
    """Return the boolean that a value spells, or None if it spells neither.

    Accepts booleans, the integers 0 and 1, and in any case the strings true, false, yes, no, y, n,
    t, f, 1 and 0, as JSON, command lines and MLPscape scripts write them.

    Example:
        >>> parse_bool("False"), parse_bool(1), parse_bool("maybe")
        (False, True, None)
    """
    text = str(value).lower() if isinstance(value, (bool, int, str)) else ""
    return True if text in _TRUE else False if text in _FALSE else None


def function_name(function: Callable[..., Any]) -> str:
    """Return the name of a function for messages; of a partial, that of its function."""
    if name := getattr(function, "__name__", None):
        return str(name)
    inner = getattr(function, "func", None)
    return type(function).__name__ if inner is None else function_name(inner)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise SpecError(
            f"{function_name(function)}: its signature cannot be read, so its arguments cannot be "
            "matched by name; wrap it in a function that declares them"
        ) from None


def declared(function: Callable[..., Any]) -> set[str]:
    """Return the names of the arguments that a function declares, without ``**kwargs``.

    Raises:
        SpecError: if its signature cannot be read.
    """
    return {p.name for p in _parameters(function) if p.kind in _BY_NAME}


def needed(function: Callable[..., Any]) -> set[str]:
    """Return the names of the arguments without a default that a function declares."""
    return {p.name for p in _parameters(function) if p.kind in _BY_NAME and p.default is p.empty}


def further_arguments(function: Callable[..., Any], first: int = 2) -> dict[str, inspect.Parameter]:
    """Return the arguments by name that a function declares after its first ones.

    Those are the ones that PARAMETRIZATION(model, optimizer), LOSS(output, y) and LR_SCHEDULE(step)
    are always given. Empty if its signature cannot be read, as that of some of torch's functions.
    """
    try:
        parameters = _parameters(function)[first:]
    except SpecError:
        return {}
    return {p.name: p for p in parameters if p.kind in _BY_NAME}


def most_by_position(function: Callable[..., Any]) -> float:
    """Return how many arguments a function takes by position at most; infinity if not known."""
    try:
        kinds = [parameter.kind for parameter in _parameters(function)]
    except SpecError:
        return math.inf
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return math.inf
    return sum(kind in _BY_POSITION for kind in kinds)


def takes_all(function: Callable[..., Any]) -> bool:
    """Return whether a function has ``**kwargs``."""
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in _parameters(function))


def pick(
    function: Callable[..., Any], offered: Mapping[str, Any], called: str = ""
) -> dict[str, Any]:
    """Return the offered arguments that a function takes: all of them if it has ``**kwargs``.

    Args:
        called: what messages call it; by default its name.

    Raises:
        SpecError: if an argument without a default is not offered.
    """
    parameters = _parameters(function)
    names = {p.name for p in parameters if p.kind in _BY_NAME}
    missing = [
        p.name
        for p in parameters
        if p.default is p.empty
        and (p.kind is p.POSITIONAL_ONLY or (p.kind in _BY_NAME and p.name not in offered))
    ]
    if missing:
        hints = ", ".join(f"{name!r}{did_you_mean(name, offered)}" for name in missing)
        names_offered = ", ".join([*offered][::-1])  # hyperparameters last: messages may be cut
        raise SpecError(
            f"{called or function_name(function)} needs {hints}; give the argument in the spec, as "
            f"an axis, or with a default; offered are {names_offered}"
        )
    if takes_all(function):
        return dict(offered)
    return {name: value for name, value in offered.items() if name in names}


def call(function: Callable[..., Any], offered: Mapping[str, Any]) -> Any:
    """Call a function with the offered arguments that it takes.

    Raises:
        SpecError: if an argument without a default is not offered.
    """
    return function(**pick(function, offered))
