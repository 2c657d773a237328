"""Numbers as text, with the digits that are read; ``report.js`` writes them in the same way."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["DIGITS", "digits_apart", "numeral"]

#: Significant digits of a number, and the most that tell two floats apart.
DIGITS, MOST_DIGITS = 4, 17

#: From which size on, and below which, numbers are written with a power of ten.
LARGE, SMALL = 1e6, 1e-3

_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def numeral(value: float, digits: int = DIGITS, *, whole: bool = False) -> str:
    """Return a number as text: ``0.3333``, ``1,024``, ``1.5·10⁻⁵``.

    Args:
        digits: significant ones.
        whole: whether all digits of a large integer are shown, too.
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}".removeprefix("-0") or "0"
    size = abs(value)
    if float(value).is_integer() and size < (1e15 if whole else LARGE):
        return f"{int(value):,}"
    if size >= LARGE or size < SMALL:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}·10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return repr(float(f"{value:.{digits}g}")).removesuffix(".0")


def digits_apart(values: Iterable[float]) -> int:
    """Return the fewest significant digits with which different numbers are different texts."""
    own = set(values)
    for digits in range(DIGITS, MOST_DIGITS):
        if len({numeral(value, digits) for value in own}) == len(own):
            return digits
    return MOST_DIGITS
