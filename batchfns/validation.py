"""Validation of arguments: rules, and one error that lists every argument that breaks one."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from mlpsubmit.errors import SpecError, did_you_mean

__all__ = [
    "COUNT",
    "FLAG",
    "SEED",
    "Valid",
    "argument_errors",
    "check_arguments",
    "check_choice",
    "check_exactly_one",
    "integer_from",
    "is_integer",
    "is_real",
    "nonnegative",
    "positive",
]

#: A description of the valid values, for messages, and the test of a value.
Rule: TypeAlias = tuple[str, Callable[[Any], bool]]
#: The rule of each argument.
Valid: TypeAlias = Mapping[str, Rule]


def argument_errors(function: str, arguments: Mapping[str, Any], valid: Valid) -> list[str]:
    """Return one message for each argument that is present and breaks its rule."""
    return [
        f"{function}: got {name}={arguments[name]!r}; valid is {description}"
        for name, (description, holds) in valid.items()
        if name in arguments and not holds(arguments[name])
    ]


def check_arguments(function: str, arguments: Mapping[str, Any], valid: Valid) -> None:
    """Raise a SpecError that lists every argument that is present and breaks its rule."""
    if errors := argument_errors(function, arguments, valid):
        raise SpecError(errors)


def check_choice(function: str, name: str, value: Any, valid: Iterable[str], listed: str) -> None:
    """Raise a SpecError unless a value is one of the valid strings, which ``listed`` describes."""
    if not (isinstance(value, str) and value in valid):
        hint = did_you_mean(str(value), valid)
        raise SpecError(f"{function}: got {name}={value!r}{hint}; valid are {listed}")


def check_exactly_one(function: str, arguments: Mapping[str, Any], example: str) -> None:
    """Raise a SpecError unless exactly one of two arguments is given, that is, not None."""
    absent = sum(value is None for value in arguments.values())
    if absent != 1:
        raise SpecError(
            f"{function}: got {'neither' if absent else 'both'} of {' and '.join(arguments)}; "
            f"give exactly one: {example}"
        )


def is_integer(value: Any, minimum: int) -> bool:
    """Return whether a value is an integer, of Python or numpy, that is at least the minimum."""
    integral = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return integral and int(value) >= minimum


def is_real(value: Any) -> bool:
    """Return whether a value is a finite real number."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


def integer_from(minimum: int, hint: str = "") -> Rule:
    """Return the rule of an integer >= minimum; the hint ends its description."""
    return f"an integer >= {minimum}{hint}", lambda value: is_integer(value, minimum)


def positive(hint: str = "") -> Rule:
    """Return the rule of a finite number > 0; the hint ends its description."""
    return f"a finite number > 0{hint}", lambda value: is_real(value) and value > 0


def nonnegative(hint: str = "") -> Rule:
    """Return the rule of a finite number >= 0; the hint ends its description."""
    return f"a finite number >= 0{hint}", lambda value: is_real(value) and value >= 0


#: Rules that several functions share.
COUNT = integer_from(1)
FLAG = ("True or False", lambda value: isinstance(value, (bool, np.bool_)))
#: The seeds that ``numpy.random.RandomState`` accepts.
SEED = ("an integer from 0 to 2**32 - 1", lambda seed: is_integer(seed, 0) and seed < 2**32)
