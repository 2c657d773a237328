"""What every executor offers."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mlpsubmit.errors import UserError
from mlpsubmit.jobs.submission import Job, Submission
from mlpsubmit.jobs.throughput.speeds import Device
from mlpsubmit.spec.hyperparameters import Hyperparameters

__all__ = ["Executor"]


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
    def max_tasks(self, cost: float) -> int:
        """Return how many tasks a sweep of an estimated cost is to be planned for."""

    @abc.abstractmethod
    def threads_per_task(self, tasks: int) -> int:
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

    def max_concurrent(self, submission: Submission) -> int:
        """Return how many of its tasks run at once, as far as it is known beforehand."""
        return submission.tasks

    def units(self, threads: int) -> tuple[str, int]:
        """Return what the cost of tasks is counted in, and how many of these each of them has."""
        return "core-hours", threads

    def device(self, threads: int) -> str:
        """Return what tasks of so many threads would train on, for people: this machine's GPU, or
        its processor, unless an executor has others."""
        return str(Device.of_this_machine(threads))

    def same_hardware(
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
            write_order: writes what :mod:`mlpsubmit.jobs.throughput.calibrate` reads into a folder.

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
