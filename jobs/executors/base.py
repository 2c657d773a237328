"""What every executor offers."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from mlpsubmit.errors import UserError
from mlpsubmit.hyperparameters import Hyperparameters
from mlpsubmit.jobs.speeds import Device
from mlpsubmit.jobs.store import RunDirectory

__all__ = ["Executor", "Job", "Submission"]


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


class Executor(abc.ABC):
    """Runs the slices of a submission as tasks.

    Attributes:
        threads: processor threads of each task.
        pdb: open a post-mortem debugger where a pack fails, if tasks run in this process.
        keep_going: train the other packs where one has failed, also if tasks run in this process.
    """

    name: ClassVar[str]
    threads: int
    pdb: bool = False
    keep_going: bool = False

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
    def slots(self, cost: float) -> int:
        """Return how many tasks a sweep of an estimated cost is to be planned for."""

    @abc.abstractmethod
    def threads_of(self, tasks: int) -> int:
        """Return the processor threads of each task where so many run side by side."""

    @abc.abstractmethod
    def tasks(self, threads: int, packs: int, cost: float) -> int:
        """Return into how many tasks what is missing is to be cut.

        Args:
            threads: processor threads that the plan gives each task.
            packs: how many packs are missing.
            cost: their estimated cost.
        """

    def memory(self) -> int | None:
        """Return the bytes to count on on the GPU of each task; None where it has none."""
        return None

    def intent(self, submission: Submission) -> Mapping[str, Any]:
        """Return what intent.json is to say beyond the slices."""
        return {}

    def check(self, submission: Submission) -> None:  # noqa: B027  # most take whatever there is
        """Find out whether a submission would be taken, and change nothing.

        Raises:
            UserError: where it would not.
        """

    def describe(self, submission: Submission) -> Sequence[str]:
        """Return lines that say what would be submitted, for a dry run."""
        return []

    def side_by_side(self, submission: Submission) -> int:
        """Return how many of its tasks run at once, as far as it is known beforehand."""
        return submission.tasks

    def units(self, threads: int) -> tuple[str, int]:
        """Return what the cost of tasks is counted in, and how many of these each of them has."""
        return "core-hours", threads

    def device(self, threads: int) -> str:
        """Return what tasks of so many threads would train on, for people: this machine's GPU, or
        its processor, unless an executor has others."""
        return str(Device.of_this_machine(threads))

    def trained_alike(
        self, threads: int, intent: Mapping[str, Any], beat: Mapping[str, Any]
    ) -> bool:
        """Tell whether an earlier task trained on what tasks of so many threads would train on.

        Args:
            intent: of the earlier task's submission.
            beat: its heartbeat.
        """
        return Device.of_this_machine(threads).wrote(beat)

    @property
    def can_calibrate(self) -> bool:
        """Whether there are processes of its own to measure packs in."""
        return type(self).calibrate is not Executor.calibrate

    def calibrate(
        self, submission: Submission, write_order: Callable[[Path], None]
    ) -> list[Mapping[str, Any]]:
        """Train some packs for a short while where, and as, the tasks would; leave nothing behind.

        Args:
            submission: whose tasks they are.
            write_order: writes what :mod:`mlpsubmit.jobs.calibration` reads into a folder.

        Returns:
            What each process answered.

        Raises:
            UserError: where there was no answer.
        """
        raise UserError(
            f"--calibrate: the {self.name} executor has no processes of its own to measure; leave "
            "one of the two out"
        )

    @abc.abstractmethod
    def submit(self, submission: Submission) -> Iterator[Job]:
        """Start the tasks of a submission; yield each job as it is started."""
