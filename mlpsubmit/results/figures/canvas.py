"""What all kinds of figures draw on, and what they have drawn, for the legend and the scales."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mlpsubmit.results.figures.page import Colours, Page
from mlpsubmit.results.figures.roles import Roles
from mlpsubmit.results.source import Array

__all__ = ["Canvas", "Seen"]


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

    @property
    def all_values(self) -> Array:
        """All values that were drawn, flat; those of curves that diverged only if all did."""
        return _finite(self.values or self.diverged)

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
        errorbar: the band around means.
        seen: what was drawn so far.
    """

    page: Page
    roles: Roles
    colours: Colours
    errorbar: str
    seen: Seen = field(default_factory=Seen)
