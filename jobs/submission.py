"""A submission, the part of a run that an executor gets, and its jobs."""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlpsubmit.jobs.heartbeat import pid_namespace, process_start
from mlpsubmit.jobs.store.run_directory import RunDirectory

__all__ = ["Job", "Submission"]


@dataclass(frozen=True)
class Job:
    """One job of a submission, as jobs.json keeps it.

    Attributes:
        id: SLURM's id of the job, or the name of the task that runs here; its logs are named so.
        first: which task of the submission is its first.
        count: how many tasks it covers; none for the job that resumes what they leave.
        array: whether each of its tasks has an array index at the end of the id.
        host: where the job was submitted.
        pid: the process of a task that runs here; None if a scheduler starts it.
        pid_namespace: where that process has this id.
        process_start: when that process started, as process ids are used again.
    """

    id: str
    first: int
    count: int
    array: bool
    host: str = field(default_factory=lambda: socket.gethostname())
    pid: int | None = None
    pid_namespace: str | None = field(default_factory=pid_namespace)
    process_start: str | None = None

    @classmethod
    def of_process(cls, name: str, task: int, pid: int) -> Job:
        """Return the job of one task that a process of this machine trains."""
        return cls(name, task, 1, False, pid=pid, process_start=process_start(pid))

    def to_json(self) -> dict[str, Any]:
        """Return the job as jobs.json holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Submission:
    """The part of a run that is handed to an executor.

    Attributes:
        path: the run directory; it need not exist if nothing is submitted.
        label: the prefix of its jobs' names: the sweep's name and the run's id, even if the run
            directory has been moved.
        number: which submission of the run it is.
        tasks: how many tasks it has.
        threads: CPU threads of each worker.
        retries: how often missing packs are resumed automatically at its end.
        sweep_hash: the hash of the sweep that its tasks execute.
        later: how many tasks more a job of the run will submit, as limits of the cluster allow.
        reads: files and folders that its tasks read besides the run, if they run in a container.
        workers_per_task: how many workers a task has, of which the last task may have fewer.
        slices: how many workers all tasks have, also later ones; as many as they can by default.
    """

    path: Path
    label: str
    number: int
    tasks: int
    threads: int
    retries: int = 0
    sweep_hash: str = ""
    later: int = 0
    reads: tuple[str, ...] = ()
    workers_per_task: int = 1
    slices: int | None = None

    @property
    def has_helper(self) -> bool:
        """Whether a job of its own follows its tasks: it submits others, or resumes the run."""
        return bool(self.retries or self.later)

    @property
    def all_workers(self) -> int:
        """How many workers all tasks have together, also later ones: one for each slice."""
        most = (self.tasks + self.later) * self.workers_per_task
        return most if self.slices is None else min(self.slices, most)

    @property
    def workers(self) -> int:
        """How many workers the tasks have that are submitted now."""
        return min(self.tasks * self.workers_per_task, self.all_workers)

    @property
    def run(self) -> RunDirectory:
        """The run directory."""
        return RunDirectory(self.path)

    @property
    def folder(self) -> Path:
        """The folder of the submission in the run directory."""
        return self.run.submission(self.number)
