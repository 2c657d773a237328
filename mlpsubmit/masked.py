"""Masked arrays of numpy: a tensor of one would have what is below its mask."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["is_masked", "with_nan"]

_of_numpy: Any = np.ma  # which has functions without types


def is_masked(value: Any) -> bool:
    """Return whether a value is a masked array of which any entry is masked."""
    return bool(_of_numpy.is_masked(value))


def with_nan(value: Any) -> NDArray[Any]:
    """Return a masked array as an array of floats that has NaN for what is masked."""
    return np.where(_of_numpy.getmaskarray(value), np.nan, _of_numpy.getdata(value))
