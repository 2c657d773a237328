"""Values of axes and settings in a form that every file format can hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlpsubmit.results.names import clean_text
from mlpsubmit.results.source import Array, Scalar

__all__ = ["coordinate_values", "is_text", "plain_value", "text_of"]


def coordinate_values(values: Sequence[Scalar]) -> Array:
    """Return an array of one plain type; what mixes numbers with text or booleans becomes text."""
    if is_text(values):
        return np.array([text_of(value) for value in values], dtype=np.str_)
    plain = [plain_value(value) for value in values]
    kinds = {type(value) for value in plain}
    if kinds == {bool}:
        return np.array(plain, dtype=np.bool_)
    return np.array(plain, dtype=np.int64 if kinds == {int} else np.float64)


def is_text(values: Sequence[Scalar]) -> bool:
    """Return whether values together are texts: neither all numbers nor all booleans."""
    kinds = {type(plain_value(value)) for value in values}
    return not (kinds <= {int, float} or kinds == {bool})


def text_of(value: Scalar) -> str:
    """Return a value as text that every file format can hold."""
    return clean_text(str(plain_value(value)))


def plain_value(value: Scalar) -> Scalar:
    """Return the value as a builtin that every file format can hold."""
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, (int, float)):
        return clean_text(str(value))
    return value if abs(value) < 2**63 or isinstance(value, float) else str(value)
