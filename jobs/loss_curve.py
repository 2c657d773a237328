"""The loss of a pack in training, as few points as a heartbeat can carry."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["LossCurve"]

#: The most points. Once there are half as many, there are never fewer.
MOST = 64

#: A step, and its loss; None if that of no config was finite.
Point = tuple[int, float | None]


class LossCurve:
    """Points at equal distances of read-backs: as more come, every other one is dropped."""

    def __init__(self) -> None:
        self._points: list[Point] = []
        self._every, self._seen = 1, 0

    @classmethod
    def restored(cls, saved: Any, step: int) -> LossCurve:
        """Return the curve of a pack that goes on from a step.

        Args:
            saved: what :meth:`to_state` returned at that step or later; anything else is an empty
                curve, since no result depends on it.
        """
        curve = cls()
        try:
            points = [(int(at), _finite(loss)) for at, loss in saved["points"]]
            every, seen = max(int(saved["every"]), 1), int(saved["seen"])
        except (TypeError, ValueError, LookupError, OverflowError):
            return curve
        curve._points = [point for point in points if 0 <= point[0] <= step][:MOST]
        kept = len(curve._points)
        curve._every = every
        curve._seen = seen if kept == len(points) else every * (kept - 1) + 1 if kept else 0
        return curve

    def add(self, step: int, loss: float | None) -> None:
        """Add a read-back.

        Args:
            loss: None if that of no config was finite.
        """
        if self._seen % self._every == 0:
            self._points.append((step, loss))
        self._seen += 1
        if len(self._points) > MOST:
            self._points, self._every = self._points[::2], 2 * self._every

    def to_json(self) -> list[Point]:
        """Return the steps and losses, oldest first."""
        return list(self._points)

    def to_state(self) -> dict[str, Any]:
        """Return what the curve of a later attempt goes on from."""
        return {"points": self.to_json(), "every": self._every, "seen": self._seen}


def _finite(loss: Any) -> float | None:
    return None if loss is None or not math.isfinite(loss) else float(loss)
