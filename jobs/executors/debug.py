"""Training in this very process, for finding out why something fails."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence

from mlpsubmit.errors import UserError
from mlpsubmit.hyperparameters import Hyperparameters
from mlpsubmit.jobs.executors.base import Executor, Job
from mlpsubmit.jobs.heartbeat import process_start
from mlpsubmit.jobs.store import RunDirectory
from mlpsubmit.jobs.task import run_task, task_name

__all__ = ["DebugExecutor"]


class DebugExecutor(Executor):
    """Runs the tasks one after another in this process; the first failing pack stops it."""

    name = "debug"

    def __init__(self, hyperparameters: Hyperparameters, tasks: int | None) -> None:
        if tasks not in (None, 1):
            raise UserError(f"--tasks {tasks}: the debug executor has one task; leave --tasks out")
        import torch

        self.slots = 1
        self.threads = torch.get_num_threads()

    def threads_of(self, tasks: int) -> int:
        """Return the threads that torch computes with in this process."""
        return self.threads

    def side_by_side(self, threads: int) -> int:
        """Return one."""
        return 1

    def submit(self, run: RunDirectory, submission: int, tasks: Sequence[int]) -> Iterator[Job]:
        """Train one task after another."""
        pid, host = os.getpid(), socket.gethostname()
        for task in tasks:
            name = task_name(submission, task)
            yield Job(name, str(pid), host, pid, process_start(pid), time.time())
            if run_task(str(run.path), submission, task, on_failure=self._show) != "done":
                return

    def _show(self, error: BaseException) -> None:
        traceback.print_exception(error)
        if self.pdb:
            import pdb

            # Where the user's own function raised, not where the train loop reports it.
            cause = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            pdb.post_mortem(cause.__traceback__)
        print("stopped at the first failing pack", file=sys.stderr)
