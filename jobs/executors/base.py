"""What every executor offers."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from mlpsubmit.hyperparameters import Hyperparameters
from mlpsubmit.jobs.store import RunDirectory

__all__ = ["Executor", "Job"]


@dataclass(frozen=True)
class Job:
    """What an executor answered for one task, as jobs.json keeps it.

    Attributes:
        id: the executor's id of the job; its logs carry it.
        host: where the job was submitted.
        pid: the process that controls a local job.
        process_start: when that process started, so that its id names it for good.
        updated: when it was submitted; on another machine it counts as alive for a while.
    """

    task: str
    id: str
    host: str
    pid: int
    process_start: str | None
    updated: float

    def to_json(self) -> dict[str, Any]:
        """Return the job as jobs.json holds it."""
        return asdict(self)


class Executor(abc.ABC):
    """Runs the slices of a submission as tasks.

    Attributes:
        slots: how many tasks run side by side.
        threads: processor threads of each.
        pdb: open a post-mortem debugger where a pack fails, if tasks run in this process.
    """

    name: ClassVar[str]
    slots: int
    threads: int
    pdb: bool = False

    @abc.abstractmethod
    def __init__(self, hyperparameters: Hyperparameters, tasks: int | None) -> None:
        """Find out what this machine offers.

        Args:
            hyperparameters: of the sweep; DEVICES says which GPUs to use.
            tasks: how many tasks the user asked for at most.

        Raises:
            UserError: where that cannot be had.
        """

    @abc.abstractmethod
    def threads_of(self, tasks: int) -> int:
        """Return the processor threads of each task where so many run side by side."""

    @abc.abstractmethod
    def side_by_side(self, threads: int) -> int:
        """Return how many tasks of so many threads run side by side."""

    @abc.abstractmethod
    def submit(self, run: RunDirectory, submission: int, tasks: Sequence[int]) -> Iterator[Job]:
        """Start the tasks of a submission, given by their index; yield each as it is started."""
