"""The configs of a pack that are still to be trained, and which of them together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

__all__ = ["PackParts"]

#: Configs in a row found to fail alone, from which on a part that fails is divided into its configs
#: at once: bisection would take twice as many trainings.
_DISSOLVED_AFTER = 2


@dataclass
class PackParts:
    """The parts that a pack is trained in: one, unless its configs cannot train together.

    A pack is divided if it runs out of memory, if its models cannot be stacked, if configs of it
    fail, and if the processes that train it are killed. The division is saved with the state of the
    pack, so that a resume trains the same parts, and thus computes the same numbers.

    Attributes:
        left: the rows of the configs that are not yet trained, one list per part. A part is
            assembled as a whole and trains as one stack or, if shapes differ, as several.
        siblings: how many of the first parts were split from the same part, and so need as much
            memory as each other.
        halved: whether the pack has ever run out of memory.
        divided: whether it was trained in other parts than it began with, for any reason.
        failed_alone: how many configs were found to fail alone since a part was last trained.
        kills: how many processes in a row were killed that trained the first part, and made no
            progress.
        suspect: whether a config of the parts left is known to kill its process: then one more
            process that is killed is enough.
    """

    left: list[list[int]]
    siblings: int = 1
    halved: bool = False
    divided: bool = False
    failed_alone: int = 0
    kills: int = 0
    suspect: bool = False

    @classmethod
    def whole(cls, configs: int) -> PackParts:
        """Return the single part of a pack that has not been divided."""
        return cls([list(range(configs))])

    def drop_first(self) -> None:
        """Remove the first part, which is trained."""
        self.left.pop(0)
        self.siblings = max(1, self.siblings - 1)
        self.failed_alone = self.kills = 0

    def halve(self, rows: Sequence[int], done: Collection[int]) -> int:
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
        self.siblings, self.halved, self.divided, self.kills = len(halves), True, True, 0
        return size

    def divide(self, rows: Sequence[int], done: Collection[int]) -> int:
        """Divide configs of the first part, of which any may be the one that failed.

        In two; but into single configs if several have failed alone, and none was trained since.

        Args:
            rows: the configs that were assembled or in training.
            done: the rows of configs with a result.

        Returns:
            The number of configs of a part, at most.
        """
        size = 1 if self.failed_alone >= _DISSOLVED_AFTER else (len(rows) + 1) // 2
        parts = [list(rows[start : start + size]) for start in range(0, len(rows), size)]
        self._replace_first(parts, done)
        self.siblings = 1
        return size

    def set_aside(
        self, failed: Collection[int], alone: Sequence[int], done: Collection[int]
    ) -> None:
        """Remove configs of the first part that have failed, and let others train alone.

        Args:
            failed: the rows of the former.
            alone: the rows of the latter.
            done: the rows of configs with a result.
        """
        if len(self.left[0]) == 1 and failed:
            self.failed_alone += 1
        count = len(self.left)
        self._replace_first([], {*done, *failed, *alone})
        if len(self.left) < count:
            self.siblings = max(1, self.siblings - 1)
        self.left += [[row] for row in alone]

    def separate(self, groups: Sequence[Sequence[int]], done: Collection[int]) -> None:
        """Divide the first part into groups, and a part of the configs that are in none of them.

        Args:
            groups: rows of the configs that cannot be trained together.
            done: the rows of configs with a result.
        """
        parts = [[row for row in group if row not in done] for group in groups]
        self._replace_first([part for part in parts if part], done)
        self.siblings = 1

    def _replace_first(self, parts: Sequence[list[int]], gone: Collection[int]) -> None:
        """Replace the first part by parts of it, and by what remains without those and others."""
        named = {*gone, *(row for part in parts for row in part)}
        rest = [row for row in self.left[0] if row not in named]
        self.left[:1] = [*parts, *([rest] if rest else [])]
        self.divided, self.kills = True, 0
