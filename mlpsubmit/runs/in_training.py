"""Configs of a new run that another run of the sweep is training at the same time."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.display.text import counted
from mlpsubmit.errors import RunError
from mlpsubmit.jobs.slurm.task_states import Scheduler
from mlpsubmit.jobs.status import read_status
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.runs.run_keys import RunKeys

__all__ = ["warn_of_configs_in_training"]

#: The newest runs that are looked at: older ones have ended.
_NEWEST = 16


def warn_of_configs_in_training(keys: NDArray[np.uint64], runs: Iterable[RunDirectory]) -> None:
    """Warn of configs that running runs train, too: nothing is shared before it has finished.

    Args:
        keys: of the configs that are to be trained, (n, 2).
        runs: the earlier runs of the sweep, the newest first.
    """
    wanted = np.ascontiguousarray(keys).view("V16").ravel()
    scheduler = Scheduler(interval=math.inf)  # one query for all
    for run in [*runs][:_NEWEST]:
        with contextlib.suppress(RunError, OSError):  # damaged: there is nothing to compare
            if read_status(run, scheduler).state != "running":
                continue
            if common := int(np.isin(RunKeys(run).all_keys(), wanted).sum()):
                warnings.warn(
                    f"run {run.id} is running, and trains {counted(common, 'config')} of this "
                    "launch: they are trained twice. A launch takes over what has finished; for "
                    "the rest alone, cancel this one, and launch again when that has ended",
                    stacklevel=4,
                )
