"""What a figure says about itself: in its legend, and beside it in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlpsubmit.results.figures.canvas import Canvas, Seen
from mlpsubmit.results.figures.estimates import ERRORBARS, NO_BAND
from mlpsubmit.results.figures.lines import MOST_TAILS, STYLES
from mlpsubmit.results.figures.page import GREY
from mlpsubmit.results.figures.plan import Plan
from mlpsubmit.results.figures.request import Request
from mlpsubmit.results.figures.text import label

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.artist import Artist

__all__ = ["explanations", "left_out", "marks", "status_line"]


def marks(plan: Plan) -> dict[str, Any]:
    """Return how the legend shows a colour: as a line, a marker, or both."""
    if plan.has_curves:
        return {}
    x = plan.roles.axes.get("x")
    joined = plan.kind == "line" and x is not None and x.numeric
    return {"marker": "o"} if joined else {"marker": "o", "linestyle": "none"}


def explanations(canvas: Canvas, plan: Plan) -> list[Artist]:
    """Return the entries of the legend that are no colours: what lines, bands and marks mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    seen = canvas.seen
    none: dict[str, Any] = {"color": GREY, "linestyle": "none"}
    handles: list[Artist] = []
    if len(plan.shown) > 1:
        lines = zip(plan.shown, STYLES, strict=False)
        handles += [Line2D([], [], color=GREY, linestyle=s, label=one.title) for one, s in lines]
    over = ", ".join(plan.roles.averaged)
    if plan.kind == "scatter" and over:
        handles.append(Line2D([], [], marker="o", label=f"a point per {over}", **none))
    elif over and seen.counts and max(seen.counts) > 1:
        least, most = min(seen.counts), max(seen.counts)
        count = f"{most}" if least == most else f"{least}–{most}"
        if plan.kind == "heatmap" or canvas.errorbar == NO_BAND:
            handles.append(Line2D([], [], label=f"mean over {over} ({count})", **none))
        else:
            text = f"mean and {ERRORBARS[canvas.errorbar]} over {over} ({count})"
            handles.append(Patch(facecolor=GREY, alpha=0.25, label=text))
    if seen.tails:
        text = f"each {over}, once the first has stopped"
        handles.append(Line2D([], [], color=GREY, label=text, **canvas.page.context.thin))
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
    for handle in handles:
        handle.set_label(label(handle.get_label(), 120))
    return handles


def status_line(dataset: xr.Dataset) -> str:
    """Return how many configs have no point in the figure, and why; nothing if all have one."""
    status = dataset["status"].values
    counts = {name: int((status == name).sum()) for name in ("diverged", "failed", "missing")}
    have = "has" if counts["missing"] == 1 else "have"
    words = {"diverged": "diverged", "failed": "failed", "missing": f"{have} no result yet"}
    parts = [f"{count:,} {words[name]}" for name, count in counts.items() if count]
    total = int((status != "excluded").sum())
    return f"of {total:,} config{'' if total == 1 else 's'} {', '.join(parts)}" if parts else ""


def left_out(plan: Plan, seen: Seen, request: Request) -> list[str]:
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
    if seen.unplaced and plan.beside is not None:
        have = "configs have" if seen.unplaced > 1 else "config has"
        notes.append(f"{seen.unplaced:,} {have} no {plan.beside.title}, and no point")
    if seen.cut:
        notes.append(
            f"of more than {MOST_TAILS} configs, only the mean is drawn until the first of them "
            f"stopped, and at most {MOST_TAILS} that diverged"
        )
    if request.errorbar in (ERRORBARS.keys() - {"se"}) and max(seen.counts, default=0) < 2:
        notes.append(f"no band of {request.errorbar}: no value is a mean of several configs")
    return notes
