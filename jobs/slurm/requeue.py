"""An interrupted array task puts itself back into the queue."""

from __future__ import annotations

import os
import re
import time

from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, first_line, run, run_checked

__all__ = ["this_job", "unless_cancelled"]

#: How often a requeue is tried where the controller is slow, and the seconds in between.
ATTEMPTS = 6
REST_SECONDS = 5.0


def this_job() -> str:
    """Return the id of the array task that this process runs in."""
    return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"


def unless_cancelled(job: str) -> None:
    """Requeue the job of this process, unless it was cancelled or SLURM does so itself.

    A signal has no sender: the time limit and preemption must be followed by another attempt,
    ``scancel`` must not. The state of the job distinguishes them: it is RUNNING before the time
    limit, within the grace time of a preemption and after a plain signal; it is COMPLETING, and
    nothing is to be done, once it was cancelled or SLURM has requeued it.
    """
    for attempt in range(ATTEMPTS):
        try:
            state = _state(run_checked("scontrol", "show", "job", "--oneliner", job))
            print(f"interrupted in the job state {state}", flush=True)
            if state == "RUNNING":
                _requeue(job)
            return
        except SlurmUnavailable as error:
            print(f"not requeued: {error}", flush=True)
        if attempt + 1 < ATTEMPTS:
            time.sleep(REST_SECONDS)
    print("go on with mlpsubmit resume", flush=True)


def _requeue(job: str) -> None:
    """Put a job back into the queue; that ends this very job, and with it perhaps the command."""
    result = run("scontrol", "requeue", job)
    if result.code > 0:
        raise SlurmUnavailable(f"scontrol: {first_line(result.err)}")
    print("requeued", flush=True)


def _state(shown: str) -> str:
    found = re.search(r"JobState=(\w+)", shown)
    return found[1] if found else "unknown"
