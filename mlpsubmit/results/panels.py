"""How a figure divides a sweep: a panel per value of one axis, a colour per value of another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpsubmit.results.axes import PlotAxis, finished
from mlpsubmit.results.source import Array

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = ["Panels", "plain", "spread"]

MAX_PANELS = 6
MAX_COLOURS = 8
GREY = "0.35"


@dataclass(frozen=True)
class Panels:
    """A figure's panels and colours, and the finished points that belong to them.

    Args:
        panels: the axis with a panel per value, or None where the sweep has too few axes.
        colours: the axis with a colour per value, or None.
        dims: of the sweep, in the dataset's order.
        points: the finished points' positions along these, shape (n, len(dims)).
    """

    panels: PlotAxis | None
    colours: PlotAxis | None
    dims: tuple[str, ...]
    points: Array

    @classmethod
    def of(cls, dataset: xr.Dataset, colours: PlotAxis | None, panels: PlotAxis | None) -> Panels:
        """Return the panels of a dataset's finished points."""
        status = dataset["status"]
        dims = tuple(str(dim) for dim in status.dims)
        return cls(panels, colours, dims, np.argwhere(finished(status.values)))

    def shown(self) -> list[int]:
        """Return which values of the panels' axis get a panel."""
        return spread(1 if self.panels is None else len(self.panels.labels), MAX_PANELS)

    def coloured(self, panel: int) -> Iterator[tuple[Any, Array]]:
        """Yield each colour with its points in one panel."""
        in_panel = self._at(self.points, self.panels, panel)
        for position, colour in self._palette().items():
            yield colour, self._at(in_panel, self.colours, position)

    def _at(self, points: Array, axis: PlotAxis | None, position: int) -> Array:
        if axis is None:
            return points
        chosen: Array = points[self.position(points, axis) == position]
        return chosen

    def position(self, points: Array, axis: PlotAxis) -> Array:
        """Return the points' positions along an axis."""
        positions: Array = points[:, self.dims.index(axis.dim)]
        return positions

    def indexer(self, point: Array) -> dict[str, int]:
        """Return what ``isel`` takes to select a point."""
        return {dim: int(i) for dim, i in zip(self.dims, point, strict=True)}

    def _palette(self) -> dict[int, Any]:
        """Return a colour per shown value: in order for numbers, distinct for text."""
        from matplotlib import colormaps

        if self.colours is None:
            return {0: colormaps["tab10"](0)}
        shown = spread(len(self.colours.labels), MAX_COLOURS)
        if self.colours.numbers is None:
            return {position: colormaps["tab10"](i % 10) for i, position in enumerate(shown)}
        # The yellow end of viridis cannot be read on white.
        shades = colormaps["viridis"](np.linspace(0, 0.88, len(shown)))
        ranks = np.argsort(np.argsort(self.colours.numbers[shown], kind="stable"))
        return {position: shades[rank] for position, rank in zip(shown, ranks, strict=True)}

    def divide(self, figure: Figure) -> dict[int, Axes]:
        """Divide the figure, and return the panel of each shown value."""
        shown = self.shown()
        columns = 2 if len(shown) == 4 else min(3, len(shown))
        rows = -(-len(shown) // columns)
        size = (5.2, 3.6) if len(shown) == 1 else (2.8 * columns, 2.5 * rows)
        figure.set_size_inches(size[0] + (0 if self.colours is None else 1.3), size[1] + 0.5)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        flat = grid.ravel().tolist()
        for unused in flat[len(shown) :]:
            unused.set_visible(False)
        for column in range(columns):
            below = max(row for row in range(rows) if row * columns + column < len(shown))
            grid[below, column].tick_params(labelbottom=True)
        panels = dict(zip(shown, flat, strict=False))
        for position, axes in panels.items():
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(which="both", labelsize=8)
            axes.grid(visible=True, which="major", color="0.9", linewidth=0.6)
            if self.panels is not None:
                label = f"{self.panels.title} = {self.panels.labels[position]}"
                axes.set_title(plain(label), fontsize=9)
        return panels

    def add_legends(self, figure: Figure, styles: list[Line2D]) -> None:
        """Add a legend of the colours outside on the right, and one of the line styles below it."""
        from matplotlib.lines import Line2D

        handles: list[Line2D] = []
        title = ""
        if self.colours is not None:
            labels, palette = self.colours.labels, self._palette()
            hidden = len(labels) - len(palette)
            title = plain(self.colours.title) + (f"\n({hidden} more)" if hidden else "")
            handles = [Line2D([], [], color=c, label=plain(labels[i])) for i, c in palette.items()]
        if not handles and not styles:
            return
        legend = figure.legend(
            handles=[*handles, *styles],
            title=title,
            loc="outside right upper",
            fontsize=8,
            title_fontsize=8,
            frameon=False,
        )
        legend.set_in_layout(True)


def spread(size: int, most: int) -> list[int]:
    """Return positions along an axis: all, or as many as wanted, evenly from end to end."""
    return [int(i) for i in np.unique(np.linspace(0, size - 1, min(size, most)).round())]


def plain(text: str) -> str:
    """Return text that matplotlib does not take for mathematics."""
    text = text.replace("$", r"\$")
    return text if len(text) <= 40 else f"{text[:39]}…"
