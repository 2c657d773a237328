"""Which numbers are equal: by value, whatever their type; True and False are no numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from mlpsubmit.errors import SpecError
from mlpsubmit.spec.setting_types import python_number

__all__ = ["canonical_number", "one_kind_of_number", "plain_number"]


def canonical_number(value: Any) -> Any:
    """Return the same object type and value for numbers that are equal; other values as they are.

    Integral numbers are ints, others floats if a float equals them exactly, else Fractions. The
    sign of a zero is kept: a function can tell -0.0 from 0.0.
    """
    if type(value) in (int, str, bool):  # most values of long axes
        return value
    value = python_number(value)
    kind = type(value)
    if kind is float:
        integral = value.is_integer() and (value != 0 or math.copysign(1, value) > 0)
        return int(value) if integral else value
    if kind is Decimal and not value.is_finite():
        return float(value) if not value.is_snan() else value
    if kind is Fraction or kind is Decimal:
        return _rational(Fraction(value))
    return value


def _rational(value: Fraction) -> int | float | Fraction:
    if value.denominator == 1:
        return value.numerator
    try:
        nearest = float(value)
    except OverflowError:
        return value
    return nearest if Fraction(nearest) == value else value


def plain_number(value: Any) -> Any:
    """Return a number of numpy or torch as Python's, and -0.0 as 0.0; other values as they are."""
    value = python_number(value)
    return 0.0 if type(value) is float and value == 0 else value


def one_kind_of_number(values: Sequence[Any]) -> list[Any]:
    """Return the values of an axis, with ints as floats if there are floats among them.

    Raises:
        SpecError: for an int that no float equals.
    """
    kinds = {type(value) for value in values}
    if not {int, float} <= kinds:
        return list(values)
    return [_as_float(value) if type(value) is int else value for value in values]


def _as_float(value: int) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if number != value:
        raise SpecError(
            f"got the integer {value}, which no float equals, beside floats; an axis that has both "
            "gives floats to functions: write all values as integers, or as floats"
        )
    return number
