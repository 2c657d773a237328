"""How every task starts: ``python -m mlpsubmit.jobs.worker RUN SUBMISSION TASK``.

TASK is the index of a slice of the submission. The local executor starts one process per task;
under SLURM each element of a job array is one. A parent may start several, one per device: a worker
takes the first GPU that is visible to it, and shares nothing but the run directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mlpsubmit.jobs.signals import stop_on_signals

__all__ = ["main"]


def main(path: str, submission: int, task: int) -> int:
    """Train one slice; if SLURM ends the job earlier, put it back into the queue.

    Returns:
        The exit code of the process.
    """
    # Before the imports: torch takes seconds, in which a signal must not kill the process.
    with stop_on_signals() as stop:
        from mlpsubmit.jobs.slurm import requeue
        from mlpsubmit.jobs.store.run_directory import RunDirectory

        if why := RunDirectory(Path(path)).superseded(submission):
            print(f"nothing to do: {why}", flush=True)
            return 0
        from mlpsubmit.jobs.as_launched import as_launched

        run = RunDirectory.open(Path(path).absolute())
        with as_launched(run) as sweep:
            from mlpsubmit.jobs.task import run_task

            outcome = run_task(run, sweep, submission, task, stop)
        # The launch of a local run may itself be part of a job, which is not to be requeued.
        under_slurm = run.intent(submission)["executor"] == "slurm"
        if outcome == "interrupted" and under_slurm and run.ended(submission) is None:
            requeue.unless_cancelled(requeue.this_job())
    return 0 if outcome in ("done", "interrupted") else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
