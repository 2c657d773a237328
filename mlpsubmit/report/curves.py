"""Traces as curves of few points that look like the whole ones."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Curves", "most_curves", "points_per_curve", "thinned"]

Floats = npt.NDArray[np.float64]

#: Bytes of a report that are curves, and of one of their points: two numbers in base64.
CURVE_BYTES = 4_000_000
POINT_BYTES = 32 / 3

MOST_POINTS, FEWEST_POINTS = 400, 24


def most_curves() -> int:
    """Return how many curves of the fewest points a page has room for."""
    return int(CURVE_BYTES / POINT_BYTES / FEWEST_POINTS)


def points_per_curve(curves: int) -> int:
    """Return how many points each of so many curves may have, so that the page stays small."""
    share = int(CURVE_BYTES / POINT_BYTES / max(curves, 1))
    return min(max(share, FEWEST_POINTS), MOST_POINTS)


def thinned(steps: Floats, values: Floats, most: int) -> tuple[Floats, Floats]:
    """Return at most so many points of a curve: of each interval the smallest and the largest.

    The intervals are evenly spread, half of them over the steps and half over their logarithms. The
    first point and the last one are kept.

    Args:
        steps: (n,) ascending, at least 0.
        values: (n,) finite.
        most: how many points, at least 8.
    """
    count = len(steps)
    if count <= most:
        return steps, values
    intervals = (most - 2) // 4
    first, last = steps[0] + 1, steps[-1] + 1
    edges = np.concatenate(
        [np.geomspace(first, last, intervals + 1), np.linspace(first, last, intervals + 1)]
    )
    cuts = [0, *np.searchsorted(steps + 1, np.unique(edges)[1:-1]).tolist(), count]
    chosen = {0, count - 1}
    for low, high in itertools.pairwise(cuts):
        if low < high:
            chosen.add(low + int(values[low:high].argmin()))
            chosen.add(low + int(values[low:high].argmax()))
    kept = sorted(chosen)
    return steps[kept], values[kept]


@dataclass
class Curves:
    """The curves of one variable, one for each config that has any.

    Attributes:
        name: of the variable.
        most: points of a curve.
        configs: the row of each curve's config.
        points: the steps and the values of each curve.
        recorded: the most points that a curve had before it was thinned.
    """

    name: str
    label: str
    most: int
    configs: list[int] = field(default_factory=list)
    points: list[tuple[Floats, Floats]] = field(default_factory=list)
    recorded: int = 0

    def add(self, config: int, steps: Floats, values: Floats) -> None:
        """Add the curve of a config; points that are not finite are left out."""
        finite = np.isfinite(values)
        steps, values = steps[finite], values[finite]
        if len(steps):
            self.recorded = max(self.recorded, len(steps))
            self.configs.append(config)
            self.points.append(thinned(steps, values, self.most))

    def to_json(self) -> dict[str, Any]:
        """Return them for the page: steps and values one curve after the other, as float32."""
        return {
            "name": self.name,
            "label": self.label,
            "configs": self.configs,
            "sizes": [len(steps) for steps, _ in self.points],
            **self._steps(),
            "y": _encoded(values for _, values in self.points),
        }

    def _steps(self) -> dict[str, Any]:
        """Return the steps of all curves, once if they are the first ones of the longest."""
        steps: Sequence[Floats] = [own for own, _ in self.points]
        longest = max(steps, key=len, default=np.zeros(0))
        shared = all(np.array_equal(own, longest[: len(own)]) for own in steps)
        return {"shared": shared, "x": _encoded([longest] if shared else steps)}


def _encoded(arrays: Iterable[Floats]) -> str:
    """Return numbers as base64 of float32 in little-endian order."""
    joined = np.concatenate([np.zeros(0), *arrays])
    # Beyond float32 there is no curve that could be drawn; what is positive stays so.
    limits = np.finfo(np.float32)
    sizes = np.clip(np.abs(joined), limits.tiny, limits.max)
    single = (np.sign(joined) * sizes).astype("<f4")
    return base64.b64encode(single.tobytes()).decode()
