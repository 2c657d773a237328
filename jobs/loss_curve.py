"""The loss of a pack in training, as few points as a heartbeat can carry."""

from __future__ import annotations

__all__ = ["LossCurve"]

#: The most points. Once there are half as many, there are never fewer.
MOST = 64


class LossCurve:
    """Points at equal distances of read-backs: as more come, every other one is dropped."""

    def __init__(self) -> None:
        self._points: list[tuple[int, float | None]] = []
        self._every, self._seen = 1, 0

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

    def to_json(self) -> list[tuple[int, float | None]]:
        """Return the steps and losses, oldest first."""
        return list(self._points)
