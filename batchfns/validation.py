"""Validation of arguments: rules, and one error that lists every argument that breaks one."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from mlpsubmit.errors import SpecError, collected, did_you_mean

__all__ = [
    "RULES",
    "argument_errors",
    "check_amount",
    "check_arguments",
    "check_choice",
    "check_exactly_one",
    "is_integer",
    "is_real",
]

#: A description of the valid values, for messages, and the test of a value.
Rule: TypeAlias = tuple[str, Callable[[Any], bool]]


def is_integer(value: Any, minimum: int) -> bool:
    """Return whether a value is an integer, of Python or numpy, that is at least the minimum."""
    integral = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return integral and int(value) >= minimum


def is_real(value: Any) -> bool:
    """Return whether a value is a finite real number."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


def _integer(minimum: int, hint: str = "") -> Rule:
    return f"an integer >= {minimum}{hint}", lambda value: is_integer(value, minimum)


def _positive(hint: str = "") -> Rule:
    return f"a finite number > 0{hint}", lambda value: is_real(value) and value > 0


def _nonnegative(hint: str = "") -> Rule:
    return f"a finite number >= 0{hint}", lambda value: is_real(value) and value >= 0


_COUNT = _integer(1)
_FLAG = ("True or False", lambda value: isinstance(value, (bool, np.bool_)))
# The seeds that numpy.random.RandomState accepts.
_SEED = ("an integer from 0 to 2**32 - 1", lambda seed: is_integer(seed, 0) and seed < 2**32)

#: The rule of each argument: one of this name means the same in every function of the library.
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("k", "n", "n_train", "iterations"), _COUNT),
    "n_test": _integer(0, ", where 0 is no test set"),
    **dict.fromkeys(("teacher_width", "teacher_depth"), _COUNT),
    **dict.fromkeys(("direction_seed", "pair_seed", "teacher_seed"), _SEED),
    **dict.fromkeys(("eigvals", "flat", "grayscale", "labels", "normalized", "onehot"), _FLAG),
    "standardized": _FLAG,
    "binarize": (_FLAG[0], lambda value: value is None or _FLAG[1](value)),
    "rows": ("an integer >= 1, or None for all", lambda n: n is None or is_integer(n, 1)),
    "d": _integer(1, ", such as 200"),
    "p": _integer(2, ", such as 97"),
    "cutoff_mode": _integer(1, ", such as 40000"),
    "kmax": _integer(0, ", such as 10"),
    "alpha": _nonnegative(", such as 2.0"),
    "beta": _nonnegative(", such as 1.2"),
    "noise_size": _nonnegative(),
    "zca_strength": _nonnegative(", where 0 changes nothing"),
    "bias_variance": _nonnegative(),
    "weight_variance": _positive(),
    "kernel_width": _positive(),
    "offset": _positive(", where 1 gives the plain power law"),
    "yoffset": _positive(", such as 1.2"),
    "tolerance": _positive(", such as 1e-3"),
    "train_fraction": (
        "a number between 0 and 1, such as 0.5",
        lambda fraction: is_real(fraction) and 0 < fraction < 1,
    ),
    **dict.fromkeys(
        ("noise", "corruption"),
        ("a fraction from 0 to 1, such as 0.2", lambda f: is_real(f) and 0 <= f <= 1),
    ),
    "stratified": _FLAG,
    "test_size": (
        "a fraction between 0 and 1, such as 0.2, or a count >= 1, such as 1000",
        lambda size: (
            is_integer(size, 1)
            or (is_real(size) and (0 < size < 1 or (size > 1 and size == int(size))))
        ),
    ),
    "network": ("an nn.Module or a function x (n, d) -> y (n,) or (n, d_out)", callable),
}


def argument_errors(
    function: str, arguments: Mapping[str, Any], rules: Mapping[str, Rule] = RULES
) -> list[str]:
    """Return one message for each argument that breaks the rule of its name, if it has one.

    Args:
        function: the name of the function, for messages.
        arguments: its arguments by name.
        rules: the rules by name.
    """
    return [
        f"{function}: got {name}={value!r}; valid is {rules[name][0]}"
        for name, value in arguments.items()
        if name in rules and not rules[name][1](value)
    ]


def check_arguments(
    function: str, arguments: Mapping[str, Any], rules: Mapping[str, Rule] = RULES
) -> None:
    """Raise a SpecError that lists the errors of :func:`argument_errors`, if there are any."""
    if errors := argument_errors(function, arguments, rules):
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


def check_amount(
    function: str, name: str, kinds: Collection[str], default: str, arguments: Mapping[str, Any]
) -> None:
    """Check the amount of a change, whose bounds depend on the kind of change.

    Args:
        function: its name, for messages.
        name: of the amount; that of the kind is NAME_kind.
        kinds: all kinds; the amount of "gaussian" is a standard deviation.
        default: the kind where none is given.
        arguments: the two, as far as they are given.

    Raises:
        SpecError: listing both errors.
    """
    errors: list[str] = []
    kind = arguments.get(f"{name}_kind", default)
    with collected(errors):
        check_choice(function, f"{name}_kind", kind, kinds, ", ".join(map(repr, kinds)))
    rule = RULES["noise_size" if kind == "gaussian" else name]
    errors += argument_errors(function, arguments, {name: rule})
    if errors:
        raise SpecError(errors)
