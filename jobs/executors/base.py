"""The interface of all executors."""

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
        name: as ``--executor`` takes it.
        threads: CPU threads of each task.
        pdb: open a post-mortem debugger where a pack fails, if tasks run in this process.
        keep_going: train the other packs after one has failed, also if tasks run in this process.
    """

    name: ClassVar[str]
    threads: int
    pdb: bool = False
    keep_going: bool = False

    @abc.abstractmethod
    def __init__(self, hyperparameters: Hyperparameters, tasks: int | None) -> None:
        """Find out which GPUs and cores there are.

        Args:
            hyperparameters: of the sweep; DEVICES selects the GPUs.
            tasks: the most tasks that the user allows; None for no limit.

        Raises:
            UserError: if there are not as many GPUs or cores.
        """

    @abc.abstractmethod
    def max_tasks(self, cost: float) -> int:
        """Return the number of tasks to plan a sweep for.

        Args:
            cost: the sweep's estimated floating-point operations.
        """

    @abc.abstractmethod
    def threads_per_task(self, tasks: int) -> int:
        """Return the CPU threads of each task if so many run concurrently."""

    @abc.abstractmethod
    def tasks(self, threads: int, packs: int, cost: float) -> int:
        """Return the number of tasks to divide the missing packs into.

        Args:
            threads: the plan's CPU threads per task.
            packs: the number of missing packs.
            cost: their estimated floating-point operations.
        """

    def memory(self) -> int | None:
        """Return the GPU memory in bytes to plan for in each task; None without GPUs."""
        return None

    def intent(self, submission: Submission) -> Mapping[str, Any]:
        """Return further entries for intent.json."""
        return {}

    def check(self, submission: Submission) -> None:  # noqa: B027  # optional
        """Check that a submission would be accepted, without changing anything.

        Raises:
            UserError: if it would not.
        """

    def describe(self, submission: Submission) -> Sequence[str]:
        """Return lines that show what would be submitted, for a dry run."""
        return []

    def max_concurrent(self, submission: Submission) -> int:
        """Return how many of its tasks can run at once, as far as known beforehand."""
        return submission.tasks

    def units(self, threads: int) -> tuple[str, int]:
        """Return the unit of a task's cost per hour, and how many of them a task has.

        ``("core-hours", 4)``: an hour of a task costs 4 core-hours.
        """
        return "core-hours", threads

    def device(self, threads: int) -> str:
        """Return a description of the device that tasks train on: by default this machine's GPU,
        or its CPU with so many threads."""
        return str(Device.of_this_machine(threads))

    def same_hardware(
        self, threads: int, intent: Mapping[str, Any], beat: Mapping[str, Any]
    ) -> bool:
        """Return whether an earlier task trained on the device that tasks would train on.

        Args:
            threads: the plan's CPU threads per task.
            intent: the intent of the earlier task's submission.
            beat: its heartbeat.
        """
        return Device.of_this_machine(threads).matches(beat)

    @property
    def can_calibrate(self) -> bool:
        """Whether it can measure packs in processes of their own."""
        return type(self).calibrate is not Executor.calibrate

    def calibrate(
        self, submission: Submission, write_order: Callable[[Path], None]
    ) -> list[Mapping[str, Any]]:
        """Train some packs for a short while as the tasks would; leave nothing behind.

        Args:
            submission: the tasks that are imitated.
            write_order: writes the input of :mod:`mlpsubmit.jobs.throughput.calibrate` to a folder.

        Returns:
            The result of each process.

        Raises:
            UserError: if a process has no result.
        """
        raise UserError(
            f"--calibrate: the {self.name} executor has no processes of its own to measure; leave "
            "one of the two out"
        )

    @abc.abstractmethod
    def submit(self, submission: Submission) -> Iterator[Job]:
        """Start the tasks of a submission; yield each job once it has been started."""
