"""Detection of tasks that SLURM killed for their memory."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlpsubmit.jobs.slurm.queue import JobState

__all__ = ["memory_kill"]

#: slurmstepd's line in a job's log if it polls the memory of processes; in bytes.
_POLLED = re.compile(r"exceeded memory limit \((\d+) > (\d+)\)")

#: Its line if the kernel's control groups enforce the limit.
_BY_THE_KERNEL = re.compile(r"oom[-_]kill|out of memory handler", re.IGNORECASE)


def memory_kill(job: JobState | None, log: Sequence[str]) -> str | None:
    """Return a message with the known figures if SLURM killed a task for its memory, else None.

    Args:
        job: its state, if known.
        log: the last lines of its log.
    """
    figures = "the cluster has no accounting record of how much it used"
    over = next((found for line in log if (found := _POLLED.search(line))), None)
    if over:
        used, limit = (_gigabytes(int(size)) for size in over.groups())
        figures = f"it used {used}, and its limit was {limit}"
    elif job is not None and job.state == "OUT_OF_MEMORY":
        figures = job.memory or figures
    elif not any(_BY_THE_KERNEL.search(line) for line in log):
        return None
    return f"SLURM killed it for its memory: {figures}; resume with more: --mem"


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.2f}G" if size >= 2**30 else f"{size / 2**20:.0f}M"
