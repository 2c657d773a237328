"""A submission: what of a run is handed to an executor, and the jobs that it answers with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlpsubmit.jobs.store.run_directory import RunDirectory

__all__ = ["Job", "Submission"]


@dataclass(frozen=True)
class Job:
    """What an executor answered, as jobs.json keeps it.

    Attributes:
        id: the executor's id of the job; its logs carry it.
        first: the index of its first task.
        count: how many tasks it stands for; none for the job that resumes what they leave.
        array: whether each of its tasks has an index behind the id.
        host: where the job was submitted.
        pid: the process that controls a local job; None where a scheduler does.
        process_start: when that process started, so that its id names it for good.
        updated: when it was submitted; on another machine it counts as alive for a while.
    """

    id: str
    first: int
    count: int
    array: bool
    host: str
    pid: int | None
    process_start: str | None
    updated: float

    def to_json(self) -> dict[str, Any]:
        """Return the job as jobs.json holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Submission:
    """What is handed to an executor.

    Attributes:
        path: the run directory; it need not be there yet where nothing is submitted.
        label: what names of its jobs begin with: the sweep's name and the run's id, wherever the
            run lies by now.
        number: which submission of the run it is.
        tasks: how many tasks it has.
        retries: how often what is missing at its end is resumed without anybody's doing.
    """

    path: Path
    label: str
    number: int
    tasks: int
    retries: int = 0

    @property
    def run(self) -> RunDirectory:
        """The run directory."""
        return RunDirectory(self.path)

    @property
    def folder(self) -> Path:
        """Where the submission lies in the run directory."""
        return self.run.submission(self.number)
