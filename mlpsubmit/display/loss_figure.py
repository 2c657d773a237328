"""The losses of tasks in training, as one small figure for a page."""

from __future__ import annotations

import functools
import io
import math
import warnings
from collections.abc import Sequence

__all__ = ["loss_figure"]

#: Steps and losses of one task, with its name.
Curve = tuple[str, tuple[tuple[int, float | None], ...]]

_INCHES = (6.4, 2.4)

#: The largest loss that is drawn; the smallest is its inverse.
_MOST = 1e100


@functools.lru_cache(maxsize=1)  # a status is read more often than losses change
def loss_figure(curves: tuple[Curve, ...]) -> str:
    """Return an SVG of losses against steps, with a line for each task; empty without losses."""
    drawn = [(name, _finite(points)) for name, points in curves]
    if not any(points for _, points in drawn):
        return ""
    import matplotlib as mpl

    # A notebook's own style may need what its kernel lacks (LaTeX), or suit another background.
    try:
        with mpl.rc_context(), warnings.catch_warnings():
            mpl.rcdefaults()
            warnings.simplefilter("ignore")  # of characters that its fonts lack
            return _svg(drawn)
    except Exception:  # a run is waited for, whatever of it can be drawn
        return ""


def _svg(drawn: Sequence[tuple[str, tuple[tuple[int, float], ...]]]) -> str:
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
    """Return the points that can be drawn; what is beyond the range of axes is at its end."""
    return tuple(
        (step, math.copysign(min(max(abs(loss), 1 / _MOST), _MOST), loss) if loss else 0.0)
        for step, loss in points
        if loss is not None
    )
