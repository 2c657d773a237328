"""Executors: how the tasks of a submission are started."""

from __future__ import annotations

from mlpsubmit.errors import UserError, did_you_mean
from mlpsubmit.jobs.executors.base import Executor
from mlpsubmit.jobs.slurm.commands import configured
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.slurm_templates import SlurmRequest, Template
from mlpsubmit.spec.hyperparameters import Hyperparameters

__all__ = ["NAMES", "Executor", "check_name", "choose", "follows"]

#: The values of ``--executor``.
NAMES = ("auto", "slurm", "local", "debug")


def follows(run: RunDirectory) -> bool:
    """Return whether a launch follows a run's progress by default: on a cluster it does not."""
    submissions = run.submissions()
    return bool(submissions) and run.intent(submissions[-1])["executor"] != "slurm"


def check_name(name: str) -> None:
    """Check that an executor exists.

    Raises:
        UserError: with the valid names, if it does not.
    """
    if name not in NAMES:
        raise UserError(
            f"--executor {name}: no such executor{did_you_mean(name, NAMES)}; "
            f"valid are {', '.join(NAMES)}"
        )


def choose(
    name: str,
    hyperparameters: Hyperparameters,
    tasks: int | None,
    slurm: SlurmRequest | None = None,
    base: Template | None = None,
) -> Executor:
    """Return an executor for at most so many tasks.

    Args:
        name: the executor; ``auto`` is ``slurm`` if this machine belongs to a cluster, else
            ``local``.
        slurm: the template, its changes and the retries.
        base: the template if ``slurm`` names none.

    Raises:
        UserError: for an unknown name, or invalid tasks, retries or template.
    """
    if tasks is not None and (not isinstance(tasks, int) or tasks < 1):
        raise UserError(f"tasks: got {tasks!r}; should be an integer >= 1")
    retries = slurm.retries if slurm else 0
    if not isinstance(retries, int) or retries < 0:
        raise UserError(f"retries: got {retries!r}; should be an integer >= 0")
    check_name(name)
    if name == "auto":
        name = "slurm" if configured() else "local"
    slurm = slurm or SlurmRequest()
    if name != "slurm" and slurm.options:
        raise UserError(
            f"--executor {name}: {', '.join(slurm.options)} are for SLURM; leave them out"
            + ("" if configured() else " (this machine has no sbatch configured for a cluster)")
        )
    if name == "slurm":
        from mlpsubmit.jobs.executors.slurm import SlurmExecutor

        return SlurmExecutor(hyperparameters, tasks, slurm.resolve(base))
    if name == "debug":
        from mlpsubmit.jobs.executors.debug import DebugExecutor

        return DebugExecutor(hyperparameters, tasks)
    from mlpsubmit.jobs.executors.local import LocalExecutor

    return LocalExecutor(hyperparameters, tasks)
