"""One figure of a dataset: its plan, drawn into matplotlib's figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpsubmit.results.dataset import load_empty
from mlpsubmit.results.figures.estimates import ERRORBARS
from mlpsubmit.results.figures.fields import draw_heatmap, draw_scatter
from mlpsubmit.results.figures.lines import MOST_TAILS, STYLES, Seen, draw_curves, draw_means
from mlpsubmit.results.figures.page import (
    CONTEXTS,
    GREY,
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
    check_values(plan, points, request)
    page = Page(figure, plan.roles, CONTEXTS[request.context])
    shown, seen = plan.roles.shown("hue"), Seen()
    is_heatmap = plan.kind == "heatmap"
    colours = Colours(None if is_heatmap else plan.roles.axes.get("hue"), shown)
    xscale = _xscale(plan, request)
    title = _joined_title([one.title for one in plan.shown])
    errorbar = request.errorbar or "se"
    for one, own, style in zip(plan.shown, points, STYLES, strict=False):
        if plan.kind == "scatter":
            draw_scatter(page, plan.roles, own, colours, seen)
        elif is_heatmap:
            draw_heatmap(page, plan.roles, own, title, seen)
        elif one.steps is not None:
            offset = int(xscale == "log")
            draw_curves(page, plan.roles, own, one.steps, offset, colours, errorbar, style, seen)
        else:
            draw_means(page, plan.roles, own, colours, errorbar, style, seen)
    if not is_heatmap:
        _scale(page, plan, seen, xscale, request.yscale)
    page.label(_across_title(plan, xscale), _up_title(plan, title), _title(plan, request))
    if colours.is_scale and colours.axis is not None:
        page.add_scale(colours.mappable(), colours.axis.title)
    others = _further_handles(page, plan, seen, errorbar)
    page.add_legends(legend_title(colours), legend_handles(colours, _marks(plan)), others)
    return Drawn(page.axes, _status_line(plan.dataset), _notes(plan, seen, request))


def _xscale(plan: Plan, request: Request) -> str:
    if plan.has_curves:
        return request.xscale or "log"
    x = plan.roles.axes.get("x")
    if plan.beside is not None:
        values = plan.beside.values[np.isfinite(plan.beside.values)]
        return request.xscale or ("linear" if plan.beside.is_share else scale_of_values(values, 10))
    if x is None or not x.numeric:
        return "linear"
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
    for panel in page.used:
        panel.set_yscale(yscale)
        panel.set_xscale(xscale)
    limits(page.used, values, seen.lower_ends)
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


def _marks(plan: Plan) -> dict[str, Any]:
    """Return how the legend shows a colour: as a line, a marker, or both."""
    if plan.has_curves:
        return {}
    x = plan.roles.axes.get("x")
    joined = plan.kind == "line" and x is not None and x.numeric
    return {"marker": "o"} if joined else {"marker": "o", "linestyle": "none"}


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


def _further_handles(page: Page, plan: Plan, seen: Seen, errorbar: str) -> list[Any]:
    """Return the entries of the legend that are no colours: what lines, bands and marks mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    none: dict[str, Any] = {"color": GREY, "linestyle": "none"}
    handles: list[Any] = []
    if len(plan.shown) > 1:
        lines = zip(plan.shown, STYLES, strict=False)
        handles += [Line2D([], [], color=GREY, linestyle=s, label=one.title) for one, s in lines]
    over = ", ".join(plan.roles.averaged)
    if plan.kind == "scatter" and over:
        handles.append(Line2D([], [], marker="o", label=f"a point per {over}", **none))
    elif over and seen.counts and max(seen.counts) > 1:
        least, most = min(seen.counts), max(seen.counts)
        count = f"{most}" if least == most else f"{least}–{most}"
        if plan.kind == "heatmap":
            handles.append(Line2D([], [], label=f"mean over {over} ({count})", **none))
        else:
            text = f"mean and {ERRORBARS[errorbar]} over {over} ({count})"
            handles.append(Patch(facecolor=GREY, alpha=0.25, label=text))
    if seen.tails:
        thin: dict[str, Any] = {"color": GREY, "linewidth": 0.55 * page.context.line, "alpha": 0.7}
        handles.append(Line2D([], [], label=f"each {over}, once the first has stopped", **thin))
    did = "crossed" if plan.shown[0].of_steps else "are finite"
    if seen.partial and plan.kind == "heatmap":
        text = f"1/2: one of two {did}" if seen.shares else f"○: not all {did}"
        handles.append(Line2D([], [], label=text, **none))
    elif seen.partial:
        text = f"mean over those that {did}"
        handles.append(Line2D([], [], marker="o", markerfacecolor="white", label=text, **none))
    if seen.none:
        text = ("not " if plan.kind == "scatter" else "none ") + did.removeprefix("are ")
        handles.append(Line2D([], [], marker="x", label=text, **none))
    return handles


def _status_line(dataset: xr.Dataset) -> str:
    """Return how many configs have no point in the figure, and why; nothing if all have one."""
    status = dataset["status"].values
    counts = {name: int((status == name).sum()) for name in ("diverged", "failed", "missing")}
    have = "has" if counts["missing"] == 1 else "have"
    words = {"diverged": "diverged", "failed": "failed", "missing": f"{have} no result yet"}
    parts = [f"{count:,} {words[name]}" for name, count in counts.items() if count]
    total = int((status != "excluded").sum())
    return f"of {total:,} config{'' if total == 1 else 's'} {', '.join(parts)}" if parts else ""


def _notes(plan: Plan, seen: Seen, request: Request) -> list[str]:
    """Return what the figure leaves out."""
    notes = []
    for role, levels in plan.roles.thinned.items():
        axis = plan.roles.axes[role]
        notes.append(
            f"{len(levels)} of {axis.size} values of {axis.name} are shown; choose them with sel"
        )
    if seen.drawn < seen.curves:
        notes.append(
            f"{seen.drawn:,} of {seen.curves:,} curves are drawn; choose them with sel, or average "
            "an axis with mean"
        )
    if seen.cut:
        notes.append(
            f"of more than {MOST_TAILS} configs, only the mean is drawn until the first of them "
            f"stopped, and at most {MOST_TAILS} that diverged"
        )
    if request.errorbar is not None and max(seen.counts, default=0) < 2:
        notes.append(f"no band of {request.errorbar}: no value is a mean of several configs")
    return notes
