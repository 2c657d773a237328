"""Lines through means over trials, and curves against the step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlpsubmit.results.figures.canvas import Canvas
from mlpsubmit.results.figures.estimates import NO_BAND, Curve, estimate, mean_curve
from mlpsubmit.results.figures.points import Points, level_values, split
from mlpsubmit.results.figures.roles import spread
from mlpsubmit.results.source import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MOST_TAILS", "STYLES", "draw_curves", "draw_means"]

#: Of several variables, in their order.
STYLES: tuple[Any, ...] = ("-", (0, (4, 2)), ":", "-.")

#: The most curves of a figure; the most points of a curve, more than a panel has pixels across; and
#: the most curves that go on after their mean has ended.
MOST_CURVES = 400
MOST_STEPS = 600
MOST_TAILS = 20


def draw_means(canvas: Canvas, points: Points, style: Any) -> None:
    """Draw a line through the means at each level of x, and its band.

    The marker of a mean that leaves configs out is hollow; places without any value have crosses.
    """
    page, colours, seen = canvas.page, canvas.colours, canvas.seen
    across = canvas.roles.axes.get("x")
    for key, group in split(points, ("row", "col", "hue")):
        panel, colour = page.panels[key["row"], key["col"]], colours[key["hue"]]
        places, means, missed = [], [], []
        for level, members in split(group, ("x",)):
            finite = members.values[np.isfinite(members.values)]
            places.append(0.0 if across is None else level_values(across)[level["x"]])
            missed.append(len(finite) < len(members))
            means.append(estimate(finite, canvas.errorbar) if len(finite) else None)
        x = np.array(places)
        ends = [[np.nan] * 3 if m is None else [m.mean, m.low, m.high] for m in means]
        mean, low, high = np.array(ends, dtype=np.float64).T
        joined = across is not None and across.numeric
        panel.plot(x, mean, color=colour, marker="o", linestyle=style if joined else "none")
        some = {m.count for m in means if m is not None}
        if max(some, default=0) > 1 and canvas.errorbar != NO_BAND:
            _draw_band(panel, x, (mean, low, high), colour, joined)
        hollow = np.array(missed) & ~np.isnan(mean)
        if hollow.any():
            panel.plot(x[hollow], mean[hollow], "o", color=colour, markerfacecolor="white")
        canvas.draw_crosses(panel, x[np.isnan(mean)], colour)
        seen.counts |= some
        seen.partial += int(hollow.sum())
        seen.values += [mean, high]
        seen.lower.append(low)


def _draw_band(
    panel: Axes, x: Array, ends: tuple[Array, Array, Array], colour: Any, joined: bool
) -> None:
    mean, low, high = ends
    if joined and np.isfinite(mean).sum() > 1:
        panel.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    else:
        panel.vlines(x, low, high, colors=colour)


def draw_curves(canvas: Canvas, points: Points, steps: Array, offset: int, style: Any) -> None:
    """Draw traces until their configs stopped; over trials their mean while all of them train.

    Args:
        steps: of the traces.
        offset: what is added to steps, so that a logarithmic scale shows step 0.
    """
    page, colours, seen = canvas.page, canvas.colours, canvas.seen
    groups = list(split(points, ("row", "col", "hue")))
    shown = spread(len(groups), MOST_CURVES)
    for key, group in (groups[i] for i in shown):
        panel, colour = page.panels[key["row"], key["col"]], colours[key["hue"]]
        found = mean_curve(
            steps, group.values, group.last, group.diverged, canvas.errorbar, MOST_TAILS
        )
        line = {"color": colour, "linestyle": style}
        diverged = [one for one in found if one.diverged]
        alone = page.context.thin if len(found) > 1 else {}
        for one in (one for one in found if not one.diverged):
            _draw_curve(canvas, panel, one, offset, line)
        for i in spread(len(diverged), MOST_TAILS):
            _draw_curve(canvas, panel, diverged[i], offset, {**line, **alone})
        seen.cut |= len(diverged) > MOST_TAILS or any(one.cut for one in found)
    seen.curves += len(groups)
    seen.drawn += len(shown)


def _draw_curve(
    canvas: Canvas, panel: Axes, curve: Curve, offset: int, style: dict[str, Any]
) -> None:
    seen = canvas.seen
    mean = curve.estimate
    kept = np.isfinite(mean.mean)
    if not kept.any():
        return
    steps, values = curve.steps[kept] + offset, mean.mean[kept]
    at = _thinned(steps)
    thin = {**style, **canvas.page.context.thin}
    single = "." if len(steps) == 1 else ""
    panel.plot(steps[at], values[at], marker=single, **style)
    (seen.diverged if curve.diverged else seen.values).append(values)
    seen.counts.add(mean.count)
    if mean.count > 1 and canvas.errorbar != NO_BAND:
        low, high = mean.low[kept][at], mean.high[kept][at]
        panel.fill_between(steps[at], low, high, color=style["color"], alpha=0.2, linewidth=0)
        seen.values.append(high)
        seen.lower.append(low)
    for its_steps, its_values in curve.tails:
        finite = np.isfinite(its_values)
        its_steps, its_values = its_steps[finite] + offset, its_values[finite]
        at = _thinned(its_steps)
        panel.plot(its_steps[at], its_values[at], **thin)
        seen.values.append(its_values)
        seen.tails = True


def _thinned(steps: Array) -> Array:
    """Return the positions of the steps that are drawn: all, or some that are evenly spread."""
    if len(steps) <= MOST_STEPS:
        return np.arange(len(steps))
    wanted = np.geomspace(steps[0] + 1, steps[-1] + 1, MOST_STEPS) - 1
    wanted = np.concatenate([wanted, np.linspace(steps[0], steps[-1], MOST_STEPS)])
    chosen: Array = np.unique(np.searchsorted(steps, wanted).clip(max=len(steps) - 1))
    return chosen
