"""How large a sweep may be: what is endless or gigantic is refused before it fills the memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sized
from typing import Any

from mlpsubmit.errors import SpecError

__all__ = [
    "MOST_BITS",
    "MOST_BYTES",
    "MOST_CONFIGS",
    "MOST_ENTRIES",
    "MOST_VALUES",
    "bounded",
    "check_length",
]

#: Values of one axis, or of one setting that is a list.
MOST_VALUES = 1_000_000

#: Points of the product of all axes, with those that ``where`` leaves out: a dataset has all of
#: them in memory. Readers of a run refuse more, too.
MOST_CONFIGS = 10_000_000

#: Entries of a range or an iterator, and bytes of an array, that a setting or a function holds.
MOST_ENTRIES = 10_000_000
MOST_BYTES = 2**36

#: Bits of an integer: Python prints no longer ones.
MOST_BITS = 10_000


def check_length(values: Sized) -> None:
    """Check the length of values, without iterating over them.

    Raises:
        SpecError: for more than an axis may have.
    """
    try:
        too_many = len(values) > MOST_VALUES
    except OverflowError:  # of a range beyond what len() can return
        too_many = True
    if too_many:
        raise SpecError(
            f"has more than {MOST_VALUES:,} values; give fewer, and divide what is larger into "
            "several sweeps"
        )


def bounded(values: Iterable[Any]) -> Any:
    """Return values without a length as a list: an iterator can be read only once, or never ends.

    Others are returned as they are.

    Raises:
        SpecError: for more than an axis may have.
    """
    if not isinstance(values, Sized):
        values = list(itertools.islice(values, MOST_VALUES + 1))
    check_length(values)
    return values
