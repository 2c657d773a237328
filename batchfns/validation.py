"""Arguments of recipes and batch functions: what is valid, and one error for all that is not."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from mlpsubmit.errors import SpecError

__all__ = [
    "COUNT",
    "FLAG",
    "SEED",
    "Valid",
    "argument_errors",
    "check_arguments",
    "is_integer",
    "is_real",
]

#: For each argument what is valid, in words, and how to tell.
Valid: TypeAlias = Mapping[str, tuple[str, Callable[[Any], bool]]]


def argument_errors(function: str, arguments: Mapping[str, Any], valid: Valid) -> list[str]:
    """Return what is wrong with those arguments that are there, one message for each of them."""
    return [
        f"{function}: got {name}={arguments[name]!r}; valid is {words}"
        for name, (words, holds) in valid.items()
        if name in arguments and not holds(arguments[name])
    ]


def check_arguments(function: str, arguments: Mapping[str, Any], valid: Valid) -> None:
    """Raise a SpecError that lists every argument that is there and not valid."""
    if errors := argument_errors(function, arguments, valid):
        raise SpecError(errors)


def is_integer(value: Any, minimum: int) -> bool:
    """Tell whether a value is an integer, of Python or numpy, that is not below the minimum."""
    integral = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return integral and int(value) >= minimum


def is_real(value: Any) -> bool:
    """Tell whether a value is a finite number."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


#: What the arguments of several functions may be.
COUNT = ("an integer >= 1", lambda value: is_integer(value, 1))
FLAG = ("True or False", lambda value: isinstance(value, (bool, np.bool_)))
#: The seeds that ``numpy.random.RandomState`` takes.
SEED = ("an integer from 0 to 2**32 - 1", lambda seed: is_integer(seed, 0) and seed < 2**32)
