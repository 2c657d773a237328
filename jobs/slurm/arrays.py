"""The tasks of a submission, divided into job arrays."""

from __future__ import annotations

from dataclasses import dataclass

from mlpsubmit.jobs.submission import Submission

__all__ = ["Array", "cut_arrays", "job_name"]


@dataclass(frozen=True)
class Array:
    """One job array.

    Attributes:
        name: its job name, which is unique, so that the job can be found by it.
        first: the index of its first task.
        count: the number of its tasks.
        limit: how many of them may run concurrently; None for no limit.
        after: the number of the array that must end before this one starts; None for none.
    """

    name: str
    first: int
    count: int
    limit: int | None = None
    after: int | None = None


def job_name(submission: Submission, part: str | int = 0) -> str:
    """Return a job name that no other job has.

    Args:
        part: the number of an array, or another name that is unique in the submission.
    """
    tail = f".{part}" if part else ""
    return f"{submission.label}.{submission.number:03d}{tail}"


def cut_arrays(submission: Submission, largest: int, limit: int | None) -> list[Array]:
    """Divide the tasks of a submission into as few arrays as possible, of nearly equal size.

    The limit is divided among them. If it is smaller than the number of arrays, some arrays wait
    for others to end.

    Args:
        largest: the largest size of one array.
        limit: how many tasks of all arrays may run concurrently; None for no limit.
    """
    tasks = submission.tasks
    count = -(-tasks // largest)
    chains = min(count, limit or count)  # of arrays that run one after another
    bounds = [tasks * number // count for number in range(count + 1)]
    limits = [
        None if limit is None else limit * (chain + 1) // chains - limit * chain // chains
        for chain in range(chains)
    ]
    return [
        Array(
            name=job_name(submission, number),
            first=bounds[number],
            count=bounds[number + 1] - bounds[number],
            limit=limits[number % chains],
            after=number - chains if number >= chains else None,
        )
        for number in range(count)
    ]
