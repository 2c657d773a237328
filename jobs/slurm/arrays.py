"""The tasks of a submission as job arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Array", "cut_arrays", "job_name"]


@dataclass(frozen=True)
class Array:
    """One job array.

    Attributes:
        name: of its job; no other job has it, so that the job is found by it.
        first: the index of its first task.
        count: how many tasks it has.
        limit: how many of them may run side by side; None for no limit.
        after: which array must have ended before this one starts, by its place; None for none.
    """

    name: str
    first: int
    count: int
    limit: int | None = None
    after: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the array as intent.json holds it."""
        return asdict(self)


def job_name(label: str, submission: int, part: str | int = 0) -> str:
    """Return the name of a job, by which it is told from all others.

    Args:
        label: the sweep's name and the run's id.
    """
    tail = f".{part}" if part else ""
    return f"{label}.{submission:03d}{tail}"


def cut_arrays(names: Sequence[str], tasks: int, largest: int, limit: int | None) -> list[Array]:
    """Share tasks out to as few arrays as can be, of nearly equal size.

    The limit is shared among them; where there are more arrays than the limit has room for, some
    wait for others to end.

    Args:
        names: of the arrays, at least as many as there will be.
        tasks: how many.
        largest: tasks that one array may have.
        limit: tasks of all arrays together that may run side by side; None for no limit.
    """
    count = -(-tasks // largest)
    lanes = min(count, limit or count)
    bounds = [tasks * place // count for place in range(count + 1)]
    return [
        Array(
            name=names[place],
            first=bounds[place],
            count=bounds[place + 1] - bounds[place],
            limit=None
            if limit is None
            else limit * (place % lanes + 1) // lanes - limit * (place % lanes) // lanes,
            after=place - lanes if place >= lanes else None,
        )
        for place in range(count)
    ]
