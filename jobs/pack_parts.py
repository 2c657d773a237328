"""The configs of a pack that are still to be trained, and how many of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PackParts"]


@dataclass
class PackParts:
    """The parts that a pack is trained in: one, unless it runs out of memory or cannot be stacked.

    Attributes:
        left: the rows of the configs that are not yet trained, one list per part. A part is
            assembled as a whole and trains as one stack or, if shapes differ, as several.
        siblings: how many of the first parts were split from the same part, and so need as much
            memory as each other.
        halved: whether the pack has ever run out of memory.
    """

    left: list[list[int]]
    siblings: int = 1
    halved: bool = False

    @classmethod
    def whole(cls, configs: int) -> PackParts:
        """Return the single part of a pack that has not run out of memory."""
        return cls([list(range(configs))])

    def drop_first(self) -> None:
        """Remove the first part, which is trained."""
        self.left.pop(0)
        self.siblings = max(1, self.siblings - 1)

    def halve(self, rows: Sequence[int], done: set[int]) -> int:
        """Split the part or stack that ran out of memory, and its siblings, into half the size.

        Args:
            rows: the configs that were assembled or in training when memory ran out.
            done: the rows of configs with a result.

        Returns:
            The number of configs of a part, at most.
        """
        size = (len(rows) + 1) // 2
        first, *others = ([r for r in part if r not in done] for part in self.left[: self.siblings])
        left = [*first, *(row for part in others for row in part)]
        # If it was one of several stacks, the others may well fit.
        split = left if len(rows) == len(first) else list(rows)
        halves = [split[start : start + size] for start in range(0, len(split), size)]
        rest = [row for row in left if row not in split]
        self.left[: self.siblings] = [*halves, rest] if rest else halves
        self.siblings, self.halved = len(halves), True
        return size

    def divide(self, groups: Sequence[Sequence[int]], done: set[int]) -> None:
        """Split the first part into groups, and a part of the configs that are in none of them.

        Args:
            groups: rows of the configs that cannot be trained together.
            done: the rows of configs with a result.
        """
        left = [row for row in self.left[0] if row not in done]
        parts = [[row for row in group if row in left] for group in groups]
        rest = [row for row in left if not any(row in part for part in parts)]
        self.left[:1] = [part for part in (*parts, rest) if part]
        self.siblings = 1

    def rejoin(self, done: set[int]) -> None:
        """Join all parts: a device with more memory may hold them together."""
        self.left = [sorted(row for part in self.left for row in part if row not in done)]
        self.siblings = 1
