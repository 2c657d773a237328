"""Training in this process, to find out why something fails."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import torch

from mlpsubmit.display.output import echo
from mlpsubmit.errors import UserError
from mlpsubmit.jobs.as_launched import as_launched
from mlpsubmit.jobs.executors.base import Executor
from mlpsubmit.jobs.garbage import resume_collection
from mlpsubmit.jobs.signals import stop_on_signals, stopped
from mlpsubmit.jobs.store.run_directory import RunDirectory, task_name
from mlpsubmit.jobs.submission import Job, Submission
from mlpsubmit.jobs.task import run_task
from mlpsubmit.training.global_state import global_state_kept

__all__ = ["DebugExecutor"]


class DebugExecutor(Executor):
    """Runs the tasks one after another in this process; the first failing pack stops it."""

    name = "debug"

    def __init__(self, tasks: int | None, pdb: bool, keep_going: bool) -> None:
        if tasks not in (None, 1):
            raise UserError(f"--tasks {tasks}: the debug executor has one task; leave --tasks out")
        self._pdb, self._keep_going = pdb, keep_going

    def max_tasks(self, cost: float) -> int:
        """Return one."""
        return 1

    def memory(self, earlier: Iterable[RunDirectory] = ()) -> int | None:
        """Return what is free on the GPU of this process."""
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None

    def threads_per_worker(self, workers: int) -> int:
        """Return the threads that torch computes with in this process."""
        return torch.get_num_threads()

    def own_files(self, submission: Submission) -> int:
        """Return 0: what is printed goes to the terminal."""
        return 0

    def submit(self, submission: Submission) -> Iterator[Job]:
        """Train the task; the state of this process is restored afterwards.

        Raises:
            KeyboardInterrupt: a signal has come, be it in the last steps.
        """
        yield Job.of_process(task_name(submission.number, 0), 0, os.getpid())
        on_failure = None if self._keep_going else self._show
        resume_collection()
        if torch.cuda.is_available():
            torch.cuda.current_stream()  # so that its generators have a state to restore
        with (
            global_state_kept(),
            stop_on_signals() as stop,
            as_launched(submission.run, submission.sweep_hash) as sweep,
        ):
            ended = run_task(submission.run, sweep, submission.number, 0, stop, on_failure)
        if stop.is_set() and ended != "overtaken":
            raise stopped(submission.run.path)

    def _show(self, error: BaseException) -> None:
        if self._pdb:
            import pdb

            # The frame in which the user's function raised, not the train loop's.
            cause = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            pdb.post_mortem(cause.__traceback__)
        echo("stopped at the first failing pack", err=True)
