"""Linear or logarithmic scales, and their ticks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpsubmit.results.figures.axis import Axis, is_wide
from mlpsubmit.results.figures.text import length, number, tick_labels
from mlpsubmit.results.source import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "MOST_NAMED",
    "fitting",
    "limits",
    "log_axis",
    "log_ticks",
    "name_ticks",
    "scale_of_values",
]

#: The most values of an axis that get a tick each.
MOST_NAMED = 8


#: The lowest end of a logarithmic scale: below, its ends cannot be divided by each other.
_LEAST = 1e-100


def scale_of_values(values: Array, ratio: float) -> str:
    """Return the scale for values: logarithmic if they are positive and spread over a ratio."""
    return "log" if is_wide(values, ratio) else "linear"


def log_axis(panels: Sequence[Axes], which: str) -> None:
    """Give the logarithmic axis x or y of panels, which share it, its ticks."""
    for panel in panels:
        log_ticks(getattr(panel, f"{which}axis"), *getattr(panel, f"get_{which}lim")())


def log_ticks(axis: Any, low: float, high: float) -> None:
    """Give a logarithmic axis ticks at powers of ten, written as these.

    If it spans less than about a decade and a half, or has less than two of these, also at 2 and 5
    times these.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    powers = np.floor(np.log10(high)) - np.ceil(np.log10(low)) + 1
    short = high / low < 30 or powers < 2
    locator = LogLocator(subs=(1, 2, 5) if short else (1,))
    texts = {}
    if short:
        ticks = [float(tick) for tick in locator.tick_values(low, high)]
        inside = [tick for tick in ticks if low <= tick <= high]
        texts = dict(zip(inside, tick_labels(inside), strict=True))
    axis.set_major_locator(locator)
    axis.set_major_formatter(FuncFormatter(lambda value, _: texts.get(value, number(value))))
    axis.set_minor_formatter(NullFormatter())


def limits(panels: Sequence[Axes], values: Array, ends: Array, crosses: float = 0.0) -> None:
    """Show the values, and bands as far as they do not stretch a logarithmic scale to 0.

    Args:
        values: that are shown; others, of curves that diverged, leave the panels.
        ends: the lower ends of bands.
        crosses: the share of the height, from the top, that is theirs.
    """
    log = panels[0].get_yscale() == "log"
    values = values[values > 0] if log else values
    if not values.size:
        return
    low, high = float(values.min()), float(values.max())
    lower = ends[ends > 0] if log else ends
    if lower.size:
        low = max(min(low, float(lower.min())), low / 3) if log else min(low, float(lower.min()))
    if log:
        low, high = np.log10(max(low, _LEAST)), np.log10(high)
    margin = 0.05 * (high - low)
    margin = max(margin, 0.02) if log else margin or 0.05 * abs(high) or 0.05
    low, below = low - margin, (high - low + margin) / (1 - crosses)
    high = max(high + margin, low + below)
    panels[0].set_ylim(*(10**low, 10**high) if log else (low, high))


def name_ticks(panels: Sequence[Axes], axis: Axis, width: float) -> None:
    """Name the values of an axis that goes across panels, as far as their texts fit.

    Args:
        width: how many characters fit below a panel.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    texts = axis.ticks
    if axis.numeric and len(axis.parts[0]) == 1:
        texts = tick_labels(axis.levels.astype(float))
    at = axis.levels.astype(float) if axis.numeric else np.arange(float(axis.size))
    panels[0].get_xlim()  # sets the limits, if they are automatic
    points = panels[0].transData.transform(np.column_stack([at, np.ones(len(at))]))
    fractions = panels[0].transAxes.inverted().transform(points)[:, 0]
    shown, turned = fitting(fractions, texts, width, may_turn=not axis.numeric)
    named = dict(zip(at.tolist(), texts, strict=True))
    for panel in panels:
        panel.xaxis.set_major_locator(FixedLocator(at[shown].tolist()))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: named.get(value, "")))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.xaxis.set_minor_locator(NullLocator())
        if turned:
            panel.tick_params(axis="x", labelrotation=45)


def fitting(
    places: Array, texts: Sequence[str], width: float, *, may_turn: bool
) -> tuple[list[int], bool]:
    """Return which texts below an axis fit beside each other, and whether they are turned for that.

    Args:
        places: of the texts, from 0 to 1 along the axis, ascending.
        width: how many characters fit below the axis.
        may_turn: whether to turn them by 45 degrees if not all fit else.
    """
    sizes = [max(map(length, text.split("\n"))) for text in texts]
    shown = _apart(places * width, sizes)
    if len(shown) == len(texts) or not may_turn:
        return shown, False
    lines = max(text.count("\n") for text in texts) + 1
    return _apart(places * width, [4 * lines - 2] * len(texts)), True


def _apart(at: Array, sizes: Sequence[float]) -> list[int]:
    """Return the first text, and each next one with a character of space before it."""
    shown = [0]
    for i in range(1, len(sizes)):
        if at[i] - at[shown[-1]] >= (sizes[i] + sizes[shown[-1]]) / 2 + 1:
            shown.append(i)
    return shown
