"""A paper's claim beside the number that we measured."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A number that a figure is judged by.

    Attributes:
        text: what is measured, as it stands in the table of the page.
        paper: the paper's number, or the form of its claim where it gives none.
        ours: what was measured.
        low: the smallest value for which the claim holds.
        high: the largest such value.
    """

    text: str
    paper: str
    ours: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def holds(self) -> bool:
        """Whether low <= ours <= high; never for NaN."""
        return bool(self.low <= self.ours <= self.high)

    @property
    def tolerance(self) -> str:
        """The values for which the claim holds, as text."""
        if self.low == -math.inf:
            return f"at most {self.high:.4g}"
        if self.high == math.inf:
            return f"at least {self.low:.4g}"
        return f"{self.low:.4g} to {self.high:.4g}"
