"""Failures by reason, with the axis values that failed configs have and finished ones have not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.display.text import counted, cut
from mlpsubmit.results.source import Failure

__all__ = ["FailureGroup", "Points", "grouped"]

#: Errors that differ in numbers alone, such as the step, are one reason.
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")

#: The most characters of a reason, of a line of code, and of a value of an axis.
LONGEST_REASON, LONGEST_LINE, LONGEST_VALUE = 500, 200, 80

#: The most values of one axis that are listed.
_VALUES = 4


@dataclass(frozen=True, eq=False)
class Points:
    """The points of a sweep that have a result.

    Attributes:
        axes: as in sweep.json.
        finished: (n,) their indices in the product.
    """

    axes: Sequence[Mapping[str, Any]]
    finished: NDArray[np.int64]

    def common(self, failed: NDArray[np.int64]) -> str:
        """Return the axis values that all failed configs share, and no finished one has.

        ``noise=0.3``; several values of one axis, or values of several axes together, if only these
        are not those of a finished config, too; an empty string if there are none such.

        Args:
            failed: (m,) their indices in the product.
        """
        if not self.axes or not len(self.finished):
            return ""
        shape = [len(axis["values"][0]) for axis in self.axes]
        bad, good = (np.unravel_index(i, shape) for i in (failed, self.finished))
        own = [np.unique(column) for column in bad]
        apart = [a for a in range(len(shape)) if not np.isin(good[a], own[a]).any()]
        if single := [a for a in apart if len(own[a]) == 1]:
            return ", ".join(self._label(a, own[a]) for a in single)
        shared = [a for a in range(len(shape)) if len(own[a]) == 1 and shape[a] > 1]
        together = _smallest(shared, {a: good[a] == own[a][0] for a in shared})
        if together:
            return " and ".join(self._label(a, own[a]) for a in together)
        fewest = min(apart, key=lambda a: len(own[a]), default=None)
        return "" if fewest is None else self._label(fewest, own[fewest])

    def _label(self, axis: int, places: NDArray[np.int64]) -> str:
        names, values = self.axes[axis]["names"], self.axes[axis]["values"]
        more = ",..." if len(places) > _VALUES else ""
        return " ".join(
            f"{name}={','.join(cut(str(own[p]), LONGEST_VALUE) for p in places[:_VALUES])}{more}"
            for name, own in zip(names, values, strict=True)
        )


def _smallest(axes: Sequence[int], matches: Mapping[int, NDArray[np.bool_]]) -> list[int]:
    """Return few of the axes such that no finished config matches in all of them; none if one does.

    Args:
        matches: by axis, (n,) bool, which finished configs have the value of the failed ones.
    """

    def excluded(kept: Sequence[int]) -> bool:
        return bool(kept) and not np.logical_and.reduce([matches[a] for a in kept]).any()

    kept = list(axes)
    if not excluded(kept):
        return []
    for axis in reversed(axes):
        rest = [a for a in kept if a != axis]
        if excluded(rest):
            kept = rest
    return kept


@dataclass(frozen=True)
class FailureGroup:
    """The configs that failed for one reason.

    Attributes:
        first: one of their failures.
        configs: how many there are.
        values: the axis values that they share, and no finished config has; may be empty.
        others: how to see the error of one for which it has other numbers; may be empty.
    """

    first: Failure
    configs: int
    values: str
    others: str = ""

    def __str__(self) -> str:
        """Return the reason, with the number of configs: ``error (2 configs: a=1)``.

        A long one is cut: the log and the traceback have all of it.
        """
        error = cut(self.first.error, LONGEST_REASON)
        values = f": {self.values}" if self.values else ""
        others = f"; others with other numbers: {self.others}" if self.others else ""
        return f"{error} ({counted(self.configs, 'config')}{values}{others})"

    @property
    def place(self) -> str:
        """The line of the user's code: ``spec.py:12 in batch_fn: raise ...``; may be empty."""
        line = cut(self.first.line, LONGEST_LINE)
        return ": ".join(part for part in (self.first.where, line) if part)


def grouped(failures: Sequence[Failure], points: Points | None, run: str) -> list[FailureGroup]:
    """Return failures of a run by reason, the most frequent first."""
    reasons: dict[tuple[str, str], list[Failure]] = {}
    for failure in failures:
        key = failure.where, _NUMBER.sub("#", failure.error)
        reasons.setdefault(key, []).append(failure)
    return sorted(_groups(reasons.values(), points, run), key=lambda group: -group.configs)


def _groups(
    reasons: Iterable[Sequence[Failure]], points: Points | None, run: str
) -> Iterator[FailureGroup]:
    for failures in reasons:
        indices = np.concatenate([failure.indices for failure in failures])
        values = "" if points is None else points.common(indices)
        other = next((one for one in failures if one.error != failures[0].error), None)
        others = "" if other is None else f"mlpsubmit show {run} --config {other.indices[0]}"
        yield FailureGroup(failures[0], len(indices), values, others)
