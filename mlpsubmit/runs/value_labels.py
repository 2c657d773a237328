"""Labels of values, as sweep.json and datasets show them, and the hashes that identify values."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from mlpsubmit.arguments import function_name
from mlpsubmit.results.values import (
    HASH_BYTES,
    coordinate_values,
    identity,
    read_label,
    scalar_hash,
    shared_texts,
)
from mlpsubmit.spec.fingerprint import setting_digest
from mlpsubmit.spec.numbers import canonical_number

__all__ = ["axis_label", "axis_labels", "label_hash", "value_hash"]

#: Where a function is in memory, in its text.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
#: Types whose values are their own labels.
_SCALARS = (bool, int, float, str, type(None))


def axis_label(value: Any) -> Any:
    """Return a value as a number or a string, which coordinates can hold."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Decimal, Fraction)):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)
    if callable(value) and not hasattr(value, "items"):
        return function_name(value)
    return _ADDRESS.sub("", str(value))


def axis_labels(values: Sequence[Any]) -> list[Any]:
    """Return the labels of the values on an axis; equal labels of different values are numbered.

    Two lambdas have equal labels. On a zipped axis a value may be there several times.
    """
    labels = [axis_label(value) for value in values]
    if all(type(value) in (int, float) for value in values):  # of long axes
        return labels
    shown = coordinate_values(labels).tolist()
    if len({*shown}) == len(shown):
        return labels
    identities = [value_hash(value) for value in values]
    if not shared_texts(shown, identities):
        return labels
    first: dict[str, int] = {}
    numbers = [first.setdefault(own, n) for n, own in enumerate(identities)]
    return [f"{label} #{number}" for label, number in zip(labels, numbers, strict=True)]


def value_hash(value: Any) -> str:
    """Return the hash of a value: equal values have equal ones, as in the keys of configs.

    Raises:
        TypeError: it holds something that has no content to hash, such as an open file.
    """
    value = canonical_number(value)
    empty = type(value) in (tuple, list, dict) and not value
    if empty or type(value) in _SCALARS:
        return scalar_hash(value)
    return setting_digest(value)[:HASH_BYTES].hex()


def label_hash(value: Any, label: Any) -> str:
    """Return the hash of a value if its label does not identify it; else nothing."""
    if value is label and type(value) in _SCALARS and read_label(label) is label:
        return ""  # of long axes
    own = value_hash(value)
    return "" if own == identity(label) else own
