"""The interface of all executors."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mlpsubmit.display.text import counted
from mlpsubmit.errors import UserError
from mlpsubmit.jobs.environment import environment
from mlpsubmit.jobs.gpus import device_name, task_device
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.submission import Job, Submission
from mlpsubmit.native.cpu import cpu_name
from mlpsubmit.results.names import device_kind

__all__ = ["Executor"]


class Executor(abc.ABC):
    """Runs the slices of a submission as tasks.

    A constructor declares what it needs of ``hyperparameters``, ``tasks``, ``template``, ``pdb``
    and ``keep_going``, as :func:`mlpsubmit.jobs.executors.choose` describes them, and raises a
    UserError for what this machine does not have.

    Attributes:
        name: as ``--executor`` takes it.
        same_device: whether all tasks of the run are to train on one kind of device; None if the
            user does not say.
    """

    name: ClassVar[str]
    same_device: bool | None = None

    @abc.abstractmethod
    def max_tasks(self, cost: float) -> int:
        """Return the number of tasks to plan a sweep for.

        Args:
            cost: the sweep's estimated floating-point operations.
        """

    @property
    def workers_per_task(self) -> int:
        """How many processes train in each task, each a slice of its own."""
        return 1

    @abc.abstractmethod
    def threads_per_worker(self, workers: int) -> int:
        """Return the CPU threads of each worker if ``workers`` run concurrently."""

    def tasks(self, threads: int, packs: int, cost: float, retries: int = 0) -> int:
        """Return the number of tasks to divide the missing packs into.

        Args:
            threads: the plan's CPU threads per worker.
            packs: the number of missing packs.
            cost: their estimated floating-point operations.
            retries: how often missing packs are resumed automatically at the end.

        Raises:
            UserError: not even one task can be submitted now.
        """
        return min(self.max_tasks(cost), -(-packs // self.workers_per_task))

    def at_once(self, tasks: int, retries: int) -> int:
        """Return how many of some tasks can be submitted now; the run submits the others itself.

        Raises:
            UserError: none can, or the others never could.
        """
        return tasks

    def notes(self, submission: Submission) -> Sequence[str]:
        """Return lines on what is submitted otherwise than asked for, and why."""
        return []

    def memory(self, earlier: Iterable[RunDirectory] = ()) -> int | None:
        """Return the GPU memory in bytes to plan for in each task; None without GPUs.

        Args:
            earlier: runs, the newest first, whose tasks may have found how much there is.
        """
        return None

    def device_error(self, device: str) -> str:
        """Return why tasks would not all train on one kind of device; empty if they may.

        Args:
            device: the kind that it must be; empty for any.
        """
        own = device_kind(environment(task_device()))
        if device in ("", own):
            return ""
        return (
            f"the results so far were made on {device}, and this machine has {own}; go on where "
            "they were made, or leave it out (--no-same-device)"
        )

    def device_lines(self, *, planned: bool) -> Sequence[str]:
        """Return which devices tasks may get, as far as that is not certain, for a dry run.

        Args:
            planned: whether :meth:`memory` was what the packs are planned for.
        """
        return []

    @property
    def has_gpus(self) -> bool:
        """Whether each worker has a GPU, without which it must not train."""
        return False

    @property
    def in_container(self) -> bool:
        """Whether tasks see nothing but what is bound: the run, and what their submission names."""
        return False

    def intent(self, submission: Submission) -> Mapping[str, Any]:
        """Return further entries for intent.json."""
        return {}

    def check(self, submission: Submission) -> None:  # noqa: B027  # optional
        """Check what of a submission can be checked before it is made.

        Raises:
            UserError: if it would fail.
        """

    def try_submission(self, submission: Submission) -> None:  # noqa: B027  # optional
        """Check also what only the submission itself finds out, for a dry run.

        Raises:
            UserError: if it would fail.
        """

    def own_files(self, submission: Submission) -> int:
        """Return how many files are written for a submission besides those of every executor."""
        return submission.tasks  # the logs

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
        """Return a description of the device that tasks train on: this machine's, by default."""
        name = " or ".join(dict.fromkeys(self.device_names()))
        return name if name != "cpu" else f"{cpu_name()}, {counted(threads, 'thread')} per task"

    def same_hardware(
        self, threads: int, intent: Mapping[str, Any], beat: Mapping[str, Any]
    ) -> bool:
        """Return whether an earlier task trained on the same device as tasks would: on this
        machine's GPU or, with as many threads, on its CPU, by default.

        Args:
            threads: the plan's CPU threads per task.
            intent: the intent of the earlier task's submission.
            beat: its heartbeat.
        """
        if (names := self.device_names()) != ["cpu"]:
            return beat.get("device") in names
        own = {"device": "cpu", "cpu_name": cpu_name(), "threads": threads}
        return own.items() <= beat.items()

    def device_names(self) -> Sequence[str]:
        """Return the names of the GPUs of tasks, or ``cpu``: of this machine, by default."""
        return [device_name(task_device())]

    def unmeasured(self, devices: Sequence[str]) -> Sequence[str]:
        """Return types of devices that tasks may get besides some, as far as that is known.

        Args:
            devices: those of which speeds are known, by name.
        """
        return []

    @property
    def can_calibrate(self) -> bool:
        """Whether the executor can measure packs in separate processes."""
        return type(self).calibrate is not Executor.calibrate

    def calibrate(
        self, submission: Submission, write_order: Callable[[Path], None]
    ) -> list[Mapping[str, Any]]:
        """Train some packs for a short while as the tasks would; leave nothing behind.

        Args:
            submission: the tasks that are imitated.
            write_order: writes the input of :mod:`mlpsubmit.jobs.throughput.calibrate` to a folder.

        Returns:
            The answer of each process.

        Raises:
            UserError: if a process gives no answer.
        """
        raise UserError(
            f"--calibrate: the {self.name} executor starts no processes to measure; leave "
            "one of the two out"
        )

    @abc.abstractmethod
    def submit(self, submission: Submission) -> Iterator[Job]:
        """Start the tasks of a submission; yield each job once it has been started."""
