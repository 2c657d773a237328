"""What a job array runs: ``python -m mlpsubmit.jobs.slurm.array_task RUN SUBMISSION FIRST``.

FIRST is the index of the array's first task; the job's own index in the array is added to it.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

from mlpsubmit.jobs.signals import stop_on_signals
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, first_line, run, run_checked
from mlpsubmit.jobs.store.run_directory import RunDirectory

__all__ = ["main"]

#: How often a task asks to be requeued, where the controller is slow, and the seconds in between.
ATTEMPTS = 6
REST_SECONDS = 5.0


def main(path: str, submission: int, first: int) -> int:
    """Train one slice; where SLURM ends the task before that is done, see that it goes on later.

    Returns:
        The exit code of the job.
    """
    # From now on, so that a signal that comes while torch is being imported is not the end.
    with stop_on_signals() as stop:
        run = RunDirectory(Path(path))
        if why := run.superseded(submission):
            print(f"nothing to do: {why}", flush=True)
            return 0
        from mlpsubmit.jobs.train_pack import run_task

        index = first + int(os.environ["SLURM_ARRAY_TASK_ID"])
        outcome = run_task(path, submission, index, stop=stop)
        if outcome == "interrupted" and run.ended(submission) is None:
            _go_on_later(os.environ["SLURM_ARRAY_JOB_ID"] + "_" + os.environ["SLURM_ARRAY_TASK_ID"])
    return 0 if outcome in ("done", "interrupted") else 1


def _go_on_later(job: str) -> None:
    """Put this job back into the queue, unless SLURM does so itself or somebody cancelled it.

    A signal does not tell where it comes from: the end of the time and preemption must be followed
    by another life, ``scancel`` must not. The state of the job tells: it is RUNNING before the time
    limit, within the grace of a preemption and after a plain signal; it is COMPLETING, and needs
    nothing from here, once it was cancelled or SLURM has requeued it.
    """
    for attempt in range(ATTEMPTS):
        try:
            state = _state(run_checked("scontrol", "show", "job", "--oneliner", job))
            print(f"interrupted while SLURM calls the job {state}", flush=True)
            if state == "RUNNING":
                _requeue(job)
            return
        except SlurmUnavailable as error:
            print(f"not requeued: {error}", flush=True)
        if attempt + 1 < ATTEMPTS:
            time.sleep(REST_SECONDS)
    print("go on with mlpsubmit resume", flush=True)


def _requeue(job: str) -> None:
    """Put a job back into the queue; that ends this very job, and with it may end the command."""
    answer = run("scontrol", "requeue", job)
    if answer.code > 0:
        raise SlurmUnavailable(f"scontrol: {first_line(answer.err)}")
    print("requeued", flush=True)


def _state(shown: str) -> str:
    found = re.search(r"JobState=(\w+)", shown)
    return found[1] if found else "unknown"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
