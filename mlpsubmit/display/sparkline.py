"""A curve in a line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["sparkline"]

_BARS = "▁▂▃▄▅▆▇█"
#: The same for terminals without Unicode, and what stands for a value that is not finite.
_ASCII_BARS = "_.-~=+*#"
_NOT_FINITE = "x"


def sparkline(values: Sequence[float | None], width: int, *, ascii_only: bool = False) -> str:
    """Return a bar for each of some values, from the lowest to the highest: ``"█▅▃▂▁▁"``.

    The scale is logarithmic where all values are positive, as losses are. Of more values than fit,
    each bar shows the last of its share.

    Args:
        values: ``x`` stands for None and for those that are not finite.
        width: the most characters.
    """
    bars = _ASCII_BARS if ascii_only else _BARS
    shown = _thinned(values, width)
    finite = [value for value in shown if value is not None and math.isfinite(value)]
    largest = max(map(abs, finite), default=1.0) or 1.0  # so that no difference overflows
    scale = math.log if all(value > 0 for value in finite) else lambda value: value / largest
    low, high = min(map(scale, finite), default=0.0), max(map(scale, finite), default=0.0)

    def bar(value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return _NOT_FINITE
        height = (scale(value) - low) / (high - low) if high > low else 0.0
        return bars[round(height * (len(bars) - 1))]

    return "".join(map(bar, shown))


def _thinned(values: Sequence[float | None], width: int) -> Sequence[float | None]:
    if len(values) <= width:
        return values
    return [values[(i + 1) * len(values) // width - 1] for i in range(width)]
