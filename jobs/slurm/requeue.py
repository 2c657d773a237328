"""How an interrupted array task requeues itself."""

from __future__ import annotations

import os
import re
import time

from mlpsubmit.display.output import echo
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, error_lines, run, run_checked

__all__ = ["this_job", "unless_cancelled"]

#: How often a requeue is tried if the controller is slow, and the seconds in between.
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
            shown = run_checked("scontrol", "show", "job", "--oneliner", job)
            state = re.search(r"JobState=(\w+)", shown)
            echo(f"interrupted in the job state {state[1] if state else 'unknown'}")
            if state and state[1] == "RUNNING":
                _requeue(job)
            return
        except SlurmUnavailable as error:
            echo(f"not requeued: {error}")
        if attempt + 1 < ATTEMPTS:
            time.sleep(REST_SECONDS)
    echo("continue with mlpsubmit resume")


def _requeue(job: str) -> None:
    """Requeue a job; this ends the job, and may kill the command with it."""
    result = run("scontrol", "requeue", job)
    if result.returncode > 0:
        raise SlurmUnavailable(f"scontrol: {'; '.join(error_lines(result.stderr))}")
    echo("requeued")
