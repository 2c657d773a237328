"""What all kinds of figures draw on, and what they have drawn, for the legend and the scales."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpsubmit.results.figures.page import Colours, Page
from mlpsubmit.results.figures.roles import MOST_COLOURS, Roles
from mlpsubmit.results.source import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Canvas", "Seen"]

#: How far below each other crosses at one place are, of the height of a panel.
_BELOW = 0.05


@dataclass
class Seen:
    """What was drawn, for the legend and the scales.

    Args:
        counts: over how many configs means are.
        partial: how many means leave out configs without a value.
        none: at how many places no config has a value.
        tails: whether curves go on after their mean has ended.
        cut: whether there were too many of these to draw.
        shares: whether the shares of configs with a value are written into cells.
        values: all that was drawn, for the scale: means, upper ends of bands, and points.
        lower: the lower ends of bands.
        diverged: the values of curves that diverged, which count only if there are no others.
        curves: how many groups of curves there are.
        drawn: how many of them were drawn.
        unplaced: how many configs lack the measured value that goes across.
        crosses: how many crosses there are at a place across a panel.
    """

    counts: set[int] = field(default_factory=set)
    partial: int = 0
    none: int = 0
    tails: bool = False
    cut: bool = False
    shares: bool = True
    values: list[Array] = field(default_factory=list)
    lower: list[Array] = field(default_factory=list)
    diverged: list[Array] = field(default_factory=list)
    curves: int = 0
    drawn: int = 0
    unplaced: int = 0
    crosses: Counter[tuple[int, float]] = field(default_factory=Counter)

    @property
    def all_values(self) -> Array:
        """All values that were drawn, flat; those of curves that diverged only if all did."""
        return _finite(self.values or self.diverged)

    @property
    def height_of_crosses(self) -> float:
        """The share of the height of a panel, from the top, in which there are crosses."""
        return _BELOW * min(max(self.crosses.values(), default=0), MOST_COLOURS)

    @property
    def lower_ends(self) -> Array:
        """All lower ends of bands, flat."""
        return _finite(self.lower)


def _finite(arrays: list[Array]) -> Array:
    values = np.concatenate([np.ravel(own) for own in arrays] or [np.empty(0)])
    finite: Array = values[np.isfinite(values)]
    return finite


@dataclass(frozen=True, eq=False)
class Canvas:
    """A page, how it is drawn on, and what was drawn.

    Args:
        page: with its panels.
        roles: of the axes.
        colours: of the levels of hue.
        errorbar: the band around means: one of ERRORBARS, or NO_BAND.
        seen: what was drawn so far.
    """

    page: Page
    roles: Roles
    colours: Colours
    errorbar: str
    seen: Seen = field(default_factory=Seen)

    def draw_crosses(self, panel: Axes, x: Array, colour: Any) -> None:
        """Mark places without a value with crosses at the top, below those of other colours."""
        if not x.size:
            return
        heights = []
        for place in x.tolist():
            heights.append(1 - _BELOW * min(self.seen.crosses[id(panel), place], MOST_COLOURS - 1))
            self.seen.crosses[id(panel), place] += 1
        top = panel.get_xaxis_transform()
        (marks,) = panel.plot(x, heights, "x", color=colour, transform=top, clip_on=False)
        marks.set_markersize(1.3 * self.page.context.marker)
        self.seen.none += x.size
