"""Whether SLURM killed a task for its memory, and how much that was."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlpsubmit.jobs.slurm.queue import JobState

__all__ = ["memory_kill", "size"]

#: What slurmstepd writes into a job's log where it polls the memory of processes, in bytes.
_POLLED = re.compile(r"exceeded memory limit \((\d+) > (\d+)\)")

#: What it writes where the kernel's control groups hold the limit.
_BY_THE_KERNEL = re.compile(r"oom[-_]kill|out of memory handler", re.IGNORECASE)


def memory_kill(job: JobState | None, log: Sequence[str]) -> str | None:
    """Return that SLURM killed a task for its memory, with the figures known; else None.

    Args:
        job: what SLURM says of it, if anything.
        log: the last lines of its log.
    """
    over = next((found for line in log if (found := _POLLED.search(line))), None)
    if over:
        used, limit = (int(figure) >> 10 for figure in over.groups())
        figures = f"it used {size(used)} where its limit was {size(limit)}"
    elif job is not None and job.state == "OUT_OF_MEMORY":
        figures = job.memory or "the cluster keeps no account of how much it used"
    elif any(_BY_THE_KERNEL.search(line) for line in log):
        figures = "the cluster keeps no account of how much it used"
    else:
        return None
    return f"SLURM killed it for its memory: {figures}; resume with more: --mem"


def size(kib: int) -> str:
    """Return a size in KiB as people read it."""
    return f"{kib / 2**20:.2f}G" if kib >= 2**20 else f"{kib / 2**10:.0f}M"
