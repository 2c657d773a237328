"""Heatmaps of means, and scatters of single configs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpsubmit.results.figures.axis import Axis
from mlpsubmit.results.figures.canvas import Canvas
from mlpsubmit.results.figures.page import GREY, Colours, colour_norm
from mlpsubmit.results.figures.points import Points, level_values, split
from mlpsubmit.results.figures.roles import spread
from mlpsubmit.results.figures.scales import fitting
from mlpsubmit.results.source import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_heatmap", "draw_scatter"]

#: The most ticks along an axis of a heatmap.
MOST_TICKS = 16
#: Scatters of more points are drawn as pixels in a PDF, which stays small.
MOST_VECTORS = 5000


def draw_scatter(canvas: Canvas, points: Points) -> None:
    """Draw a point per config; those without a value are crosses at the top."""
    page, seen = canvas.page, canvas.seen
    across = canvas.roles.axes.get("x")
    if points.beside is not None:
        x = points.beside
    elif across is not None:
        x = level_values(across)[points.levels["x"]]
    else:
        x = np.zeros(len(points))
    placed = replace(points, beside=x).at(np.isfinite(x))
    seen.unplaced += len(points) - len(placed)
    area = page.context.marker**2
    for key, group in split(placed, ("row", "col")):
        panel = page.panels[key["row"], key["col"]]
        has_value, colour = np.isfinite(group.values), _point_colours(group, canvas.colours)
        assert group.beside is not None
        panel.scatter(
            group.beside[has_value],
            group.values[has_value],
            c=colour[has_value],
            s=area,
            alpha=0.8,
            linewidths=0,
            rasterized=len(points) > MOST_VECTORS,
        )
        for level, missing in split(group.at(~has_value), ("hue",)):
            assert missing.beside is not None
            canvas.draw_crosses(panel, np.unique(missing.beside), canvas.colours[level["hue"]])
        seen.values.append(group.values)


def _point_colours(points: Points, colours: Colours) -> Array:
    """Return the colour of each point, shape (n, 4)."""
    from matplotlib.colors import to_rgba_array

    levels = points.levels.get("hue", np.zeros(len(points), dtype=np.int64))
    distinct, inverse = np.unique(levels, return_inverse=True)
    table: Array = to_rgba_array([colours[int(level)] for level in distinct])
    return table[inverse.ravel()]


def draw_heatmap(canvas: Canvas, points: Points, title: str) -> None:
    """Draw the means over trials as colours, x across and hue upwards.

    A cell in which no config has a value is crossed out; in one in which some have, their share is
    written. A cell without finished configs is empty.
    """
    page, seen = canvas.page, canvas.seen
    across, up = canvas.roles.axes["x"], canvas.roles.axes["hue"]
    cells = {}
    for key, group in split(points, ("row", "col")):
        mean = np.full((up.size, across.size), np.nan)
        some = np.zeros((*mean.shape, 2), dtype=np.int64)
        for level, members in split(group, ("hue", "x")):
            finite = members.values[np.isfinite(members.values)]
            place = level["hue"], level["x"]
            some[place] = len(finite), len(members)
            if len(finite):
                mean[place] = finite.mean()
                seen.counts.add(len(finite))
        cells[key["row"], key["col"]] = mean, some
        seen.values.append(mean)
    norm = colour_norm(seen.all_values)
    for place, (mean, some) in cells.items():
        panel = page.panels[place]
        mesh = panel.pcolormesh(
            np.arange(across.size),
            np.arange(up.size),
            mean,
            norm=norm,
            cmap="viridis",
            rasterized=True,
        )
        panel.grid(visible=False)
        _mark_cells(canvas, panel, mean, some, norm)
    for panel in page.used:
        name_levels(panel.xaxis, across, 0.8 * page.below)
        name_levels(panel.yaxis, up)
    page.add_scale(mesh, title)


def _mark_cells(canvas: Canvas, panel: Axes, mean: Array, some: Array, norm: Any) -> None:
    page, seen = canvas.page, canvas.seen
    values, expected = some[..., 0], some[..., 1]
    fits = 0.8 * page.below / mean.shape[1] > len(f"{values.max()}/{expected.max()}") - 1
    seen.shares = fits
    for row, column in np.argwhere((expected > 0) & (values < expected)):
        if values[row, column]:
            seen.partial += 1
            text = f"{values[row, column]}/{expected[row, column]}" if fits else "○"
        else:
            seen.none += 1
            text = "×"
        panel.annotate(
            text,
            (column, row),
            ha="center",
            va="center",
            color=GREY if not values[row, column] else _readable(norm(mean[row, column])),
            fontsize=0.7 * page.context.font,
        )


def _readable(shade: float) -> str:
    """Return the colour of text on a shade of viridis, 0 (dark) to 1."""
    return "black" if shade > 0.6 else "white"


def name_levels(axis: Any, of: Axis, width: float = 1e6) -> None:
    """Give an axis of a panel a tick per level at 0, 1, ..., with its text.

    Args:
        width: how many characters fit; if the texts are longer, they are turned.
    """
    levels = np.array(spread(of.size, MOST_TICKS))
    places = (levels + 0.5) / of.size
    shown, turned = fitting(places, [of.ticks[i] for i in levels], width, may_turn=True)
    axis.set_ticks(levels[shown], [of.ticks[i] for i in levels[shown]])
    axis.set_tick_params(which="minor", length=0)
    if turned:
        axis.set_tick_params(labelrotation=45)
