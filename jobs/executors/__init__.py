"""How tasks get to run: the only code that knows submitit."""

from __future__ import annotations

from mlpsubmit.errors import UserError, did_you_mean
from mlpsubmit.jobs.executors.base import Executor, Job

__all__ = ["NAMES", "Executor", "Job", "by_name"]

#: What ``--executor`` takes.
NAMES = ("auto", "local", "debug")


def by_name(name: str) -> type[Executor]:
    """Return the executor of a name; ``auto`` is the best that this machine has.

    Raises:
        UserError: for an unknown name.
    """
    if name in ("auto", "local"):
        from mlpsubmit.jobs.executors.local import LocalExecutor

        return LocalExecutor
    if name == "debug":
        from mlpsubmit.jobs.executors.debug import DebugExecutor

        return DebugExecutor
    raise UserError(
        f"--executor {name}: no such executor{did_you_mean(name, NAMES)}; "
        f"valid are {', '.join(NAMES)}"
    )
