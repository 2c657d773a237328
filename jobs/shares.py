"""How many workers share the cores of a machine that trains without GPUs."""

from __future__ import annotations

import math

__all__ = ["LARGEST_SHARE", "WORKER_MEMORY", "workers_in_memory", "workers_on_cores"]

#: Worker processes at most on a large server: more of them cost memory and gain nothing.
LARGEST_SHARE = 16

#: MiB of memory that a worker on the cores takes, at least.
WORKER_MEMORY = 512


def workers_in_memory(megabytes: int | None) -> float:
    """Return how many workers some MiB of memory hold, one at least; no limit where unknown."""
    return math.inf if megabytes is None else max(1, megabytes // WORKER_MEMORY)


def workers_on_cores(cores: int, megabytes: int | None) -> int:
    """Return how many workers are to share some cores, and MiB of memory."""
    return max(1, int(min(cores, workers_in_memory(megabytes), LARGEST_SHARE)))
