"""The page of a figure: its size and fonts, its panels, and one legend or scale of colours."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpsubmit.results.figures.axis import Axis, is_wide
from mlpsubmit.results.figures.roles import MOST_COLOURS, Roles
from mlpsubmit.results.figures.scales import log_ticks
from mlpsubmit.results.figures.text import label, wrapped
from mlpsubmit.results.source import Array

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CONTEXTS",
    "GREY",
    "Colours",
    "Context",
    "Page",
    "colour_norm",
    "legend_handles",
    "legend_title",
]

GREY = "0.35"

#: The colours of seaborn's palette "colorblind", the one that is hard to see on white last.
_DISTINCT = (
    *("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc"),
    *("#ca9161", "#56b4e9", "#949494", "#fbafe4", "#ece133"),
)


@dataclass(frozen=True)
class Context:
    """Where a figure is shown; lengths in inches, fonts and lines in points.

    Args:
        font: size of titles and labels; ticks and legends are a little smaller.
        line: width of lines.
        marker: size of markers.
        column: width of a figure with one column of panels.
        page: width of one with several.
        aspect: height of a panel per width.
        tallest: the most height of all panels; the height of the figure if that is fixed.
        columns: the panels beside each other before those of one axis go on below.
        grid: the most columns and rows of panels.
        below: whether the legend of the colours is below the panels and adds to their height, else
            on their right.
    """

    font: float
    line: float
    marker: float
    column: float
    page: float
    aspect: float
    tallest: float
    columns: int
    grid: tuple[int, int]
    below: bool

    @property
    def thin(self) -> dict[str, Any]:
        """The style of lines that are less than others."""
        return {"linewidth": 0.55 * self.line, "alpha": 0.7}

    @property
    def settings(self) -> dict[str, Any]:
        """Matplotlib's settings. Fonts of type 42 are those that journals take."""
        small = 0.9 * self.font
        return {
            "font.size": self.font,
            "axes.labelsize": self.font,
            "axes.titlesize": self.font,
            "figure.labelsize": self.font,
            "figure.titlesize": self.font,
            "xtick.labelsize": small,
            "ytick.labelsize": small,
            "legend.fontsize": small,
            "legend.title_fontsize": small,
            "legend.frameon": False,
            "lines.linewidth": self.line,
            "lines.markersize": self.marker,
            "axes.linewidth": 0.5 * self.line,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "0.9",
            "grid.linewidth": 0.5 * self.line,
            "axes.formatter.use_mathtext": True,
            "text.usetex": False,
            "pdf.fonttype": 42,
            "ps.fonttype": 42,
            "svg.hashsalt": "mlpsubmit",
            "savefig.dpi": 300,
        }


CONTEXTS = {
    # One column, or the text width, of a two-column page.
    "paper": Context(8, 1.2, 3.5, 3.35, 6.9, 0.72, 8.5, 3, (8, 6), below=True),
    # A slide of 16:9.
    "talk": Context(15, 2.4, 7, 10.0, 10.0, 0.56, 5.6, 4, (5, 3), below=False),
}


@dataclass(frozen=True, eq=False)
class Colours:
    """A colour per level of an axis: in the order of numbers, distinct for others.

    Args:
        axis: None for one colour.
        shown: the levels that have one.
    """

    axis: Axis | None
    shown: Sequence[int]

    @property
    def is_scale(self) -> bool:
        """Whether there are so many numbers that a scale beside the panels tells them apart."""
        return self.axis is not None and self.axis.numeric and self.axis.size > MOST_COLOURS

    def __getitem__(self, level: int) -> Any:
        """Return the colour of a level."""
        if self.axis is None:
            return _DISTINCT[0]
        if self.is_scale:
            return self.mappable.to_rgba(float(self.axis.levels[level]))
        at = list(self.shown).index(level)
        if not self.axis.numeric:
            return _DISTINCT[at]
        return _viridis()(at / max(1, len(self.shown) - 1))

    @functools.cached_property
    def mappable(self) -> Any:
        """What a scale of colours is drawn from."""
        from matplotlib.cm import ScalarMappable

        assert self.axis is not None
        return ScalarMappable(colour_norm(self.axis.levels), _viridis())


def _viridis() -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    # Its yellow end cannot be read on white.
    return ListedColormap(colormaps["viridis"](np.linspace(0, 0.88, 256)))


def colour_norm(values: Array) -> Any:
    """Return the scale of colours for values: logarithmic if they are positive and spread."""
    from matplotlib.colors import LogNorm, Normalize

    finite = values[np.isfinite(values)]
    if not finite.size:
        return Normalize(0, 1)
    return (LogNorm if is_wide(finite, 10) else Normalize)(finite.min(), finite.max())


class Page:
    """A figure, divided into panels.

    Attributes:
        figure: matplotlib's.
        axes: of the panels, shape (rows, columns).
    """

    def __init__(self, figure: Figure, roles: Roles, context: Context) -> None:
        self.figure, self.roles, self.context = figure, roles, context
        columns, rows = roles.shown("col"), roles.shown("row")
        self._wrapped = len(rows) == 1 and len(columns) > context.columns
        across = len(columns)
        if self._wrapped:
            across = 2 if len(columns) == 4 else context.columns
        down = -(-len(columns) // across) if self._wrapped else len(rows)
        width = context.column if across == 1 else context.page
        height = min(down * max(width / across * context.aspect, 1.9), context.tallest)
        height = height if context.below else context.tallest
        figure.set_layout_engine("constrained")
        figure.set_size_inches(width, height)
        self.axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        self._place(columns, rows)

    def _place(self, columns: Sequence[int], rows: Sequence[int]) -> None:
        """Give each panel its levels and titles."""
        keys = [(row, column) for row in rows for column in columns]
        self.panels: dict[tuple[int, int], Axes] = dict(
            zip(keys, self.axes.ravel().tolist(), strict=False)
        )
        for unused in self.axes.ravel()[len(keys) :]:
            unused.set_visible(False)
        for axes in self._lowest():
            axes.tick_params(labelbottom=True)
        col, row = self.roles.axes.get("col"), self.roles.axes.get("row")
        for (row_level, column), axes in self.panels.items():
            if col is not None and (self._wrapped or row_level == rows[0]):
                axes.set_title(wrapped(_fact(col, column), self.below))
            if row is not None and column == columns[-1]:
                axes.annotate(
                    wrapped(_fact(row, row_level), self._beside),
                    (1.02, 0.5),
                    xycoords="axes fraction",
                    rotation=270,
                    va="center",
                )

    def _lowest(self) -> list[Axes]:
        """Return the lowest panel of each column."""
        found = []
        for column in self.axes.T:
            found.append([axes for axes in column if axes.get_visible()][-1])
        return found

    @property
    def used(self) -> list[Axes]:
        """The panels that are drawn into."""
        return list(self.panels.values())

    def label(self, x: str, y: str, title: str) -> None:
        """Name what goes across and up, and what the figure is restricted to."""
        # Not a label of the figure: that would be below the legend.
        width, height = self.figure.get_size_inches()
        for axes in self._lowest():
            axes.set_xlabel(wrapped(x, self.below))
        self._up = self.figure.supylabel(wrapped(y, self.characters(height) - 4))
        if title:
            self.figure.suptitle(wrapped(title, self.characters(width) - 4))

    @property
    def below(self) -> float:
        """How many characters fit below or above a panel."""
        width = self.figure.get_size_inches()[0] / self.axes.shape[1]
        return max(self.characters(width) - 4, 10)

    @property
    def _beside(self) -> float:
        """How many characters fit beside a panel."""
        height = self.figure.get_size_inches()[1] / self.axes.shape[0]
        return max(self.characters(height) - 4, 10)

    def characters(self, inches: float) -> float:
        """Return about how many characters of a label are so many inches long."""
        return 72 * inches / (0.56 * self.context.font)

    def add_scale(self, mappable: Any, title: str) -> None:
        """Add a scale of colours beside the panels."""
        bar = self.figure.colorbar(mappable, ax=self.axes, aspect=30)
        height = self.figure.get_size_inches()[1]
        bar.set_label(wrapped(title, max(0.7 * self.characters(height), 10)))
        bar.outline.set_visible(False)
        if mappable.norm.__class__.__name__ == "LogNorm":
            log_ticks(bar.ax.yaxis, mappable.norm.vmin, mappable.norm.vmax)

    def add_legends(self, title: str, colours: list[Artist], others: list[Artist]) -> None:
        """Add legends of the colours and of all else outside of the panels, which keep their size.

        Args:
            title: of the colours.
        """
        width, height = self.figure.get_size_inches()
        below, right = 0.0, 0.0
        if others:
            below = self._legend("", others, (0.5, 0.0), "lower center", 3)
        if colours and self.context.below:
            below += self._legend(title, colours, (0.5, below / height), "lower center", 8)
        elif colours:
            right = self._legend(title, colours, (1.0, 1.0), "upper right", 1, across=True)
        if self.context.below:
            self._grow(width, height + below)
            height += below
        engine: Any = self.figure.get_layout_engine()
        bottom = below / height
        engine.set(rect=(0, bottom, 1 - right / width, 1 - bottom))
        self._up.set_y((1 + bottom) / 2)

    def _grow(self, width: float, height: float) -> None:
        """Make the figure higher; legends keep their distance to its bottom."""
        before = self.figure.get_size_inches()[1]
        for legend in self.figure.legends:
            x, y = legend.get_bbox_to_anchor().transformed(self.figure.transFigure.inverted()).p0
            legend.set_bbox_to_anchor((x, y * before / height))
        self.figure.set_size_inches(width, height)

    def _legend(
        self,
        title: str,
        handles: list[Artist],
        anchor: tuple[float, float],
        place: Any,
        most: int,
        *,
        across: bool = False,
    ) -> float:
        """Add a legend with as many columns as fit, and return its height (or width), in inches."""
        available = 0.98 * self.figure.get_size_inches()[0]
        for columns in range(min(len(handles), most), 0, -1):
            legend = self.figure.legend(
                handles=handles,
                title=label(title, 60) if title else None,
                loc=place,
                bbox_to_anchor=anchor,
                ncols=columns,
                handlelength=1.6,
                columnspacing=1.2,
                borderaxespad=0.2,
            )
            box = legend.get_window_extent()
            if columns == 1 or box.width <= available * self.figure.dpi:
                break
            legend.remove()
        return float((box.width if across else box.height) / self.figure.dpi) + 0.03


def _fact(axis: Axis, level: int) -> str:
    return f"{axis.title} = {axis.texts[level]}"


def legend_handles(colours: Colours, styles: Mapping[str, Any]) -> list[Artist]:
    """Return a handle per colour; none for one colour or a scale.

    Args:
        styles: of the lines: their marker, for example.
    """
    from matplotlib.lines import Line2D

    if colours.axis is None or colours.is_scale:
        return []
    return [
        Line2D([], [], color=colours[level], label=label(colours.axis.texts[level], 28), **styles)
        for level in colours.shown
    ]


def legend_title(colours: Colours) -> str:
    """Return the name of what the colours are, and how many of its values are shown if not all."""
    if colours.axis is None or colours.is_scale:
        return ""
    some = len(colours.shown) < colours.axis.size
    return colours.axis.title + (f" ({len(colours.shown)} of {colours.axis.size})" if some else "")
