"""Submission with sbatch, such that no job is lost or submitted twice."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

from mlpsubmit import files
from mlpsubmit.errors import UserError
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, run
from mlpsubmit.jobs.slurm.queue import Queue
from mlpsubmit.jobs.slurm.rejections import Rejected, is_outcome_unknown, rejection
from mlpsubmit.slurm_templates import Template

__all__ = ["OutcomeUnknown", "cancel", "check", "run_sbatch", "submit"]

#: Timeout of what changes the queue: sbatch and scancel retry by themselves for as long as a
#: controller may take that is under load, or limits requests.
CHANGE_SECONDS = 60.0

#: Timeout of ``--test-only``, which simulates the whole queue; if it takes longer, it is skipped.
CHECK_SECONDS = 10.0

#: If sbatch does not report a job id: how often the queue is queried, and seconds in between.
_QUERIES = 3
_BETWEEN_QUERIES = 2.0

#: sbatch's environment variables that are not named after their option.
_VARIABLES = {
    "array": "SBATCH_ARRAY_INX",
    "mem": "SBATCH_MEM_PER_NODE",
    "requeue": "SBATCH_NO_REQUEUE",
    "time": "SBATCH_TIMELIMIT",
}

#: Options that exclude or add to each other: if a script sets one, the variables of all are hidden.
_RELATED = (
    {"mem", "mem-per-cpu", "mem-per-gpu"},
    {"gpus-per-node", "gpus", "gpus-per-task", "gpus-per-socket", "gres", "cpus-per-gpu"},
)

#: Never meant for these jobs: another cluster, another array size, waiting for the job to end.
_NEVER = {"SBATCH_ARRAY_INX", "SBATCH_CLUSTERS", "SBATCH_DEBUG", "SBATCH_WAIT"}

_NO_NODES = "node configuration is not available"


class OutcomeUnknown(UserError):
    """It cannot be found out whether the cluster has a job."""


def run_sbatch(
    template: Template, file: Path, script: str, *options: str, seconds: float
) -> CompletedProcess[str]:
    """Write a script to a file and run sbatch on it; return its output.

    Args:
        template: the template that the script was made from, for the message of a rejection.
        options: further options of sbatch.
        seconds: the timeout.

    Raises:
        Rejected: if the cluster rejects the job.
        SlurmUnavailable: if it is unknown whether the cluster has the job.
    """
    files.publish(file, script.encode())
    unset = overriding_variables(script)
    result = run("sbatch", *options, str(file), seconds=seconds, keep_locks=True, unset=unset)
    if result.returncode == 0:
        return result
    if is_outcome_unknown(result):
        raise SlurmUnavailable(result.stderr.strip())
    raise rejection(result, template)


def check(template: Template, script: str) -> str:
    """Check with ``sbatch --test-only`` whether a script would be accepted.

    It tests whether the job could start now, so it also fails for jobs that have to wait for
    nodes that are down. Such failures are ignored: the submission itself will decide.

    Returns:
        sbatch's output about when and where the job could start; empty if unknown.

    Raises:
        Rejected: if the script would not be accepted.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "check.sh"
        try:
            result = run_sbatch(template, file, script, "--test-only", seconds=CHECK_SECONDS)
        except SlurmUnavailable:
            return ""  # the submission fails too if it cannot be made
        except Rejected as error:
            if _NO_NODES in str(error):
                return ""
            raise
    return result.stdout + result.stderr


def submit(template: Template, file: Path, script: str, name: str) -> str:
    """Write a script to a file and submit it; return the job id.

    If sbatch does not report one, the job is looked up in the queue by its name.

    Raises:
        Rejected: if the cluster rejects the job.
        OutcomeUnknown: if it cannot be found out whether the cluster has it.
    """
    try:
        result = run_sbatch(template, file, script, "--parsable", seconds=CHANGE_SECONDS)
    except SlurmUnavailable as error:
        return _find(name, str(error))
    output = result.stdout.strip()
    if re.fullmatch(r"\d+", output):
        return output
    return _find(name, f"sbatch answered {output[:200]!r}, not a job id")


def _find(name: str, why: str) -> str:
    """Return the id of the job of a name from the queue."""
    for query in range(_QUERIES):
        time.sleep(_BETWEEN_QUERIES if query else 0)
        queue = Queue.query(os.getuid())
        if queue.ids.get(name):
            return queue.ids[name][-1]
    if queue.error:
        why += f"; and the queue cannot be queried: {queue.error}"
    raise OutcomeUnknown(
        f"{why}; no job of this run is known to be queued, and one that starts after all will "
        "end at once; when the cluster answers again (mlpsubmit doctor), continue with: "
        "mlpsubmit resume"
    )


def overriding_variables(script: str) -> set[str]:
    """Return the environment variables that would override a script's options."""
    names = set(re.findall(r"^#SBATCH --([\w-]+)", script, re.MULTILINE))
    for group in _RELATED:
        names |= group if names & group else set()
    own = {_VARIABLES.get(name, f"SBATCH_{name.replace('-', '_').upper()}") for name in names}
    return own | _NEVER


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs; running ones are signalled first, so that they save their state.

    Raises:
        SlurmUnavailable: if scancel fails.
    """
    if not ids:
        return
    result = run("scancel", *ids, seconds=CHANGE_SECONDS)
    if result.returncode != 0 and "invalid job id" not in result.stderr.lower():
        reason = result.stderr.strip() or f"exit code {result.returncode}"
        raise SlurmUnavailable(f"scancel: {reason}")
