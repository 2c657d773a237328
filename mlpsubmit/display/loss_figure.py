"""The losses of tasks in training, as one small figure for a page."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence

__all__ = ["loss_figure"]

#: Steps and losses of one task, with its name.
Curve = tuple[str, tuple[tuple[int, float | None], ...]]

_INCHES = (6.4, 2.4)


@functools.lru_cache(maxsize=1)  # a status is read more often than losses change
def loss_figure(curves: tuple[Curve, ...]) -> str:
    """Return an SVG of losses against steps, with a line for each task; empty without losses."""
    drawn = [(name, _finite(points)) for name, points in curves]
    if not any(points for _, points in drawn):
        return ""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot()
    for name, points in drawn:
        axes.plot(*zip(*points, strict=True), marker="." if len(points) == 1 else "", label=name)
    positive = all(loss > 0 for _, points in drawn for _, loss in points)
    axes.set(xlabel="step", ylabel="train loss", yscale="log" if positive else "linear")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    file = io.StringIO()
    figure.savefig(file, format="svg")
    return file.getvalue()[file.getvalue().index("<svg") :]


def _finite(points: Sequence[tuple[int, float | None]]) -> tuple[tuple[int, float], ...]:
    return tuple((step, loss) for step, loss in points if loss is not None)
