"""Values of axes and settings in a form that every file format can hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlpsubmit.results.names import clean_text
from mlpsubmit.results.source import Array, Scalar

__all__ = ["coordinate_values", "plain_value"]


def coordinate_values(values: Sequence[Scalar]) -> Array:
    """Return an array of one plain type; what mixes numbers with text or booleans becomes text."""
    plain = [plain_value(value) for value in values]
    kinds = {type(value) for value in plain}
    if kinds <= {int, float}:
        return np.array(plain, dtype=np.int64 if kinds == {int} else np.float64)
    if kinds == {bool}:
        return np.array(plain, dtype=np.bool_)
    return np.array([clean_text(str(value)) for value in plain], dtype=np.str_)


def plain_value(value: Scalar) -> Scalar:
    """Return the value as a builtin that every file format can hold."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str):
        return clean_text(value)
    return value if abs(value) < 2**63 or isinstance(value, float) else str(value)
