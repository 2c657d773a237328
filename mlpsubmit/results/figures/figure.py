"""One figure of a dataset: its plan, drawn into matplotlib's figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlpsubmit.results.dataset import load_empty
from mlpsubmit.results.figures.canvas import Canvas, Seen
from mlpsubmit.results.figures.estimates import NO_BAND
from mlpsubmit.results.figures.fields import draw_heatmap, draw_scatter
from mlpsubmit.results.figures.legend import explanations, left_out, marks, status_line
from mlpsubmit.results.figures.lines import STYLES, draw_curves, draw_means
from mlpsubmit.results.figures.page import (
    CONTEXTS,
    Colours,
    Page,
    legend_handles,
    legend_title,
)
from mlpsubmit.results.figures.plan import Plan, check_values, planned
from mlpsubmit.results.figures.points import points_of
from mlpsubmit.results.figures.request import Request
from mlpsubmit.results.figures.scales import (
    MOST_NAMED,
    limits,
    log_axis,
    name_ticks,
    scale_of_values,
)
from mlpsubmit.results.source import Array

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

__all__ = ["Drawn", "draw"]


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure that was drawn.

    Args:
        axes: its panels, shape (rows, columns).
        status: how many of its configs diverged, failed or are missing; empty if none.
        notes: what it leaves out, and how to change that.
    """

    axes: Array
    status: str
    notes: list[str]


def draw(dataset: xr.Dataset, request: Request, figure: Figure) -> Drawn:
    """Draw a dataset into an empty figure.

    Raises:
        SpecError: with a message per name and value of the request that does not fit.
        UserError: there is nothing to draw.
    """
    plan = planned(load_empty(dataset), request)
    points = [points_of(plan.dataset, one, plan.roles, plan.beside) for one in plan.shown]
    check_values(plan, points, request, dataset)
    page = Page(figure, plan.roles, CONTEXTS[request.context])
    hue = None if plan.kind == "heatmap" else plan.roles.axes.get("hue")
    colours = Colours(hue, plan.roles.shown("hue"))
    canvas = Canvas(page, plan.roles, colours, request.errorbar or NO_BAND)
    xscale = _xscale(plan, request)
    title = _joined_title([one.title for one in plan.shown])
    for one, own, style in zip(plan.shown, points, STYLES, strict=False):
        if plan.kind == "scatter":
            draw_scatter(canvas, own)
        elif plan.kind == "heatmap":
            draw_heatmap(canvas, own, title)
        elif one.steps is not None:
            draw_curves(canvas, own, one.steps, int(xscale == "log"), style)
        else:
            draw_means(canvas, own, style)
    if plan.kind != "heatmap":
        _scale(page, plan, canvas.seen, xscale, request.yscale)
    page.label(_across_title(plan, xscale), _up_title(plan, title), _title(plan, request))
    if colours.is_scale and hue is not None:
        page.add_scale(colours.mappable, hue.title)
    handles = legend_handles(colours, marks(plan))
    page.add_legends(legend_title(colours), handles, explanations(canvas, plan))
    return Drawn(page.axes, status_line(plan.dataset), left_out(plan, canvas.seen, request))


def _xscale(plan: Plan, request: Request) -> str:
    if plan.has_curves:
        return request.xscale or "log"
    x = plan.roles.axes.get("x")
    if plan.beside is not None:
        values = plan.beside.values[np.isfinite(plan.beside.values)]
        return request.xscale or ("linear" if plan.beside.is_share else scale_of_values(values, 10))
    if x is None or not x.numeric:
        return "linear"
    if request.xscale is None and x.is_wide_above_zero:
        return "symlog"
    return request.xscale or ("log" if x.is_wide else "linear")


def _scale(page: Page, plan: Plan, seen: Seen, xscale: str, yscale: str | None) -> None:
    """Set the scales of the panels, and their ticks."""
    is_loss = all(one.name.endswith("_loss") for one in plan.shown)
    is_share = any(one.is_share for one in plan.shown)
    values = seen.all_values
    if yscale is None and is_loss and plan.has_curves:
        yscale = "log" if values.size and values.min() >= 0 < values.max() else "linear"
    if yscale is None:
        small = is_loss or any(one.of_steps for one in plan.shown)
        yscale = "linear" if is_share else scale_of_values(values, 3 if small else 10)
    x = plan.roles.axes.get("x")
    first = page.used[0]
    # Across first: a logarithmic y would set the limits of x, of a linear scale, for good.
    for panel in page.used:
        if xscale == "symlog" and x is not None:  # 0 has a place half a decade below the others
            panel.set_xscale(xscale, linthresh=float(x.levels[1]), linscale=0.5)
        else:
            panel.set_xscale(xscale)
    for panel in page.used:
        panel.set_yscale(yscale)
    limits(page.used, values, seen.lower_ends, seen.height_of_crosses)
    if yscale == "log":
        log_axis(page.used, "y")
    if plan.has_curves or plan.beside is not None:
        if xscale == "log":
            log_axis(page.used, "x")
    elif x is None:
        first.set_xticks([])
    elif not x.numeric or x.size <= MOST_NAMED:
        width = page.figure.get_size_inches()[0] / page.axes.shape[1]
        name_ticks(page.used, x, 0.85 * page.characters(width))
    elif xscale == "log":
        log_axis(page.used, "x")


def _joined_title(titles: Sequence[str]) -> str:
    """Return the title of several variables: the words that all end with, if there are any."""
    if len(titles) == 1:
        return titles[0]
    words = [title.split()[::-1] for title in titles]
    common: list[str] = []
    for at in zip(*words, strict=False):
        if len(set(at)) > 1:
            break
        common.insert(0, at[0])
    return " ".join(common) or ", ".join(titles)


def _across_title(plan: Plan, xscale: str) -> str:
    if plan.has_curves:
        return "step + 1" if xscale == "log" else "step"
    if plan.beside is not None:
        return plan.beside.title
    x = plan.roles.axes.get("x")
    return "" if x is None else x.title


def _up_title(plan: Plan, title: str) -> str:
    return plan.roles.axes["hue"].title if plan.kind == "heatmap" else title


def _title(plan: Plan, request: Request) -> str:
    return plan.title if request.title is None else request.title
