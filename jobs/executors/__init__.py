"""Executors: how the tasks of a submission are started."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

from mlpsubmit.arguments import call
from mlpsubmit.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from mlpsubmit.jobs.executors.base import Executor
    from mlpsubmit.jobs.store.run_directory import RunDirectory
    from mlpsubmit.slurm_templates import SlurmRequest, Template
    from mlpsubmit.spec.hyperparameters import Hyperparameters

__all__ = ["EXECUTORS", "NAMES", "check_name", "choose", "follows"]

#: The class of each executor, imported when it is chosen: ``--help`` reads the names alone.
EXECUTORS = {
    "slurm": "mlpsubmit.jobs.executors.slurm:SlurmExecutor",
    "local": "mlpsubmit.jobs.executors.local:LocalExecutor",
    "debug": "mlpsubmit.jobs.executors.debug:DebugExecutor",
}

#: The values of ``--executor``.
NAMES = ("auto", *EXECUTORS)


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
    slurm: SlurmRequest,
    base: Template | None = None,
    *,
    pdb: bool = False,
    keep_going: bool = False,
    same_device: bool | None = None,
) -> Executor:
    """Return an executor, constructed with the settings that its class declares.

    Args:
        name: the executor; ``auto`` is ``slurm`` if this machine belongs to a cluster, else
            ``local``.
        hyperparameters: of the sweep; DEVICES selects the GPUs.
        tasks: the most tasks that the user allows; None for no limit.
        slurm: the template, its changes and the retries.
        base: the template if ``slurm`` names none.
        pdb: with ``debug``, open a debugger when a pack fails.
        keep_going: with ``debug``, train the other packs when one has failed.
        same_device: whether all tasks of the run are to train on one kind of device; by default
            what the template says.

    Raises:
        UserError: for an unknown name, invalid tasks, retries or template, or if there are not as
            many GPUs or cores.
    """
    from mlpsubmit.jobs.slurm.commands import configured

    if tasks is not None and (not isinstance(tasks, int) or tasks < 1):
        raise UserError(f"tasks: got {tasks!r}; should be an integer >= 1")
    if not isinstance(slurm.retries, int) or slurm.retries < 0:
        raise UserError(f"retries: got {slurm.retries!r}; should be an integer >= 0")
    check_name(name)
    if name == "auto":
        name = "slurm" if configured() else "local"
    if name != "slurm" and slurm.options:
        raise UserError(
            f"--executor {name}: only SLURM takes {', '.join(slurm.options)}; leave that out"
            + ("" if configured() else " (this machine has no sbatch configured for a cluster)")
        )
    template = slurm.resolve(base) if name == "slurm" else None
    if template is not None and same_device is not None:
        template = template.model_copy(update={"same_device": same_device})
    settings = {
        "hyperparameters": hyperparameters,
        "tasks": tasks,
        "template": template,
        "pdb": pdb,
        "keep_going": keep_going,
    }
    executor: Executor = call(pkgutil.resolve_name(EXECUTORS[name]), settings)
    if same_device is not None:
        executor.same_device = same_device
    return executor
