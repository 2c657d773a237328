"""How every worker starts: ``python -m mlpsubmit.jobs.worker RUN SUBMISSION HASH SLICE``.

HASH is that of the sweep.pkl that was submitted: no other is executed. SLICE is the index of a
slice of the submission. The local executor starts one process per slice; under SLURM each element
of a job array is one or, on several devices, starts several (:mod:`mlpsubmit.jobs.node`). A worker
takes the first GPU that is visible to it, and shares nothing but the run directory.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

from mlpsubmit.display.output import echo
from mlpsubmit.errors import RunError
from mlpsubmit.files import share_output
from mlpsubmit.jobs.garbage import postpone_collection, resume_collection
from mlpsubmit.jobs.process_end import ProcessEnd
from mlpsubmit.jobs.signals import STOP_SIGNALS, stop_on_signals
from mlpsubmit.jobs.slurm.requeue import REQUEUE
from mlpsubmit.jobs.supervisor import Supervision, supervised

__all__ = ["main"]


def main(
    path: str,
    submission: int,
    sweep_hash: str,
    task: int,
    supervision: Supervision | None = None,
) -> int:
    """Train one slice.

    Args:
        supervision: by the parent process, which continues the task if this process is killed.

    Returns:
        The exit code of the process: :data:`REQUEUE` if SLURM should queue the task again.
    """
    # Before the imports: torch takes seconds, in which a signal must not kill the process.
    with stop_on_signals() as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # blocked since the fork
        from mlpsubmit.jobs.store.run_directory import RunDirectory, task_name

        share_output(RunDirectory(Path(path)).submission(submission))  # whatever this user's umask
        try:
            if why := RunDirectory(Path(path)).superseded(submission):
                echo(f"nothing to do: {why}")
                return 0
            from mlpsubmit.jobs.as_launched import as_launched

            run = RunDirectory.open(Path(path).absolute())
            under_slurm = run.intent(submission)["executor"] == "slurm"
            if under_slurm and not run.intent(submission)["gpus"]:
                os.environ["CUDA_VISIBLE_DEVICES"] = ""  # those of its node are others'
            with as_launched(run, sweep_hash) as sweep:
                from mlpsubmit.jobs.task import run_task

                resume_collection()
                outcome = run_task(run, sweep, submission, task, stop, supervision=supervision)
        except RunError as error:
            echo(error)
            RunDirectory(Path(path)).record_crash(task_name(submission, task), str(error))
            return 1
        # The launch of a local run may itself be part of a job, which is not to be requeued.
        if outcome == "interrupted" and under_slurm and run.ended(submission) is None:
            return REQUEUE
    return 0 if outcome in ("done", "interrupted", "overtaken") else 1


def report_end(path: str, submission: int, task: int, end: ProcessEnd) -> None:
    """Make the heartbeat of a task show that its process was killed before it trained anything."""
    from mlpsubmit.jobs.store.run_directory import RunDirectory, task_name

    echo(f"the process {end}, before it trained anything")
    RunDirectory(Path(path)).record_crash(task_name(submission, task), f"its process {end}")


if __name__ == "__main__":
    arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    parent = supervised(partial(report_end, *arguments[:2], arguments[3]))
    postpone_collection()
    try:
        code = main(*arguments, parent)
    finally:
        parent.end()
    sys.exit(code)
