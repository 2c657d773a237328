"""How tasks get to run: the only code that knows submitit."""

from __future__ import annotations

from mlpsubmit.errors import UserError, did_you_mean
from mlpsubmit.hyperparameters import Hyperparameters
from mlpsubmit.jobs.executors.base import Executor, Job

__all__ = ["NAMES", "Executor", "Job", "by_name", "choose"]

#: What ``--executor`` takes.
NAMES = ("auto", "local", "debug")


def choose(name: str, hyperparameters: Hyperparameters, tasks: int | None) -> Executor:
    """Return an executor for at most so many tasks.

    Raises:
        UserError: for an unknown name, or tasks that cannot be had.
    """
    if tasks is not None and (not isinstance(tasks, int) or tasks < 1):
        raise UserError(f"tasks: got {tasks!r}; should be an integer >= 1")
    return by_name(name)(hyperparameters, tasks)


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
