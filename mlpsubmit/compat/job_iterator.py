"""``run_job_iterator``: MLPscape's loop over jobs, as a run that can be resumed and submitted."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlpsubmit.cli import terminal
from mlpsubmit.compat.exit_codes import exits_with_message
from mlpsubmit.compat.study import Study, read_study
from mlpsubmit.display.console import Console
from mlpsubmit.display.output import echo
from mlpsubmit.errors import RunError, UserError, did_you_mean
from mlpsubmit.jobs.executors import NAMES, follows
from mlpsubmit.jobs.signals import stopped_run
from mlpsubmit.jobs.status import Status
from mlpsubmit.results import Dimension
from mlpsubmit.results.expt_trace import ExptTrace
from mlpsubmit.results.mlpscape import mlpscape_dictionary
from mlpsubmit.runs.launch import launch
from mlpsubmit.runs.run import Run, notebook_display

__all__ = ["EXECUTOR_VARIABLE", "ExptTrace", "run_job_iterator"]

EXECUTOR_VARIABLE = "MLPSUBMIT_EXECUTOR"

_AGAIN = "run the script again to continue where it stopped"


@exits_with_message()
def run_job_iterator(
    iterators: Iterable[Iterable[Any]],
    iterator_names: Sequence[str] | None = None,
    global_config: Mapping[str, Any] | Any = None,
    bfn_config: Mapping[str, Any] | None = None,
    use_mp: bool | None = None,
    *,
    executor: str | None = None,
    name: str | None = None,
    runs_dir: str | Path | None = None,
    tasks: int | None = None,
    template: str | None = None,
    slurm: Mapping[str, Any] | None = None,
    retries: int = 0,
    fresh: bool = False,
) -> dict[str, Any]:
    """Train a model for every combination of the iterators' values, and return the results.

    A second call, as by running a script again, trains only what is missing. Configs that end
    without a result are left out, with the reason on stderr.

    Args:
        iterators: lists of values: the sample sizes, the trials, then any others. One of the others
            that is named like a hyperparameter sets it; the batch function, the grabs and the model
            can declare any by name.
        iterator_names: the name of each.
        global_config: hyperparameters in any spelling; MODEL_CLASS, OPTIMIZER_CLASS, LOSS_CLASS
            and POST_INIT_FN as in modelscape; ``otherreturns`` with the grabs; X_te and y_te for a
            fixed test set; and any other values that functions get by name.
        bfn_config: ``base_bfn``, the batch function, and its arguments. Tensors among them are
            moved to the device of the training.
        use_mp: False trains in this process, without workers.
        executor: ``local`` (worker processes, one per GPU or core), ``slurm``, ``debug`` (this
            process) or ``auto``; else ``$MLPSUBMIT_EXECUTOR``, else ``local``.
        name: the name of the run; else EXPT_NAME, else the name of the script.
        runs_dir: the folder of the runs; else ``$MLPSUBMIT_RUNS``, else ``./mlpruns``.
        tasks: as for :func:`mlpsubmit.launch`, like ``template``, ``slurm``, ``retries`` and
            ``fresh``.

    Returns:
        MLPscape's dictionary: ``jobs``, the values of the iterators per finished config;
        ``var_axes``, their names; and the serialised :class:`ExptTrace` of ``losses`` (of the test
        set; online the train losses), ``timekeys`` (the step that crossed each threshold, -1 for
        never) and each of ``extras``, keyed by the elements of ``jobs``. Values that are not
        numbers are strings.

    Raises:
        SpecError: listing every error, before anything is trained.
        UserError: if there is no such executor.
        RunError: if no config has a result.

    A script that does not catch them prints the message and exits with code 2; after Ctrl-C it
    exits with code 130.

    Example:
        >>> result = run_job_iterator([[64], range(3)], ["ntrain", "trial"], ...)  # doctest: +SKIP
    """
    study = read_study(iterators, iterator_names, global_config, bfn_config, name)
    try:
        run = launch(
            study.sweep,
            executor=_executor(use_mp, executor),
            runs_dir=runs_dir,
            tasks=tasks,
            template=template,
            slurm=slurm,
            retries=retries,
            fresh=fresh,
            keep_going=True,
            command=sys.argv,
        )
    except KeyboardInterrupt as error:
        if stopped_run(error) is not None:
            _print(_AGAIN)
        raise
    _report(run, _wait(run))
    return _results(run, study)


def _executor(use_mp: bool | None, executor: str | None) -> str:
    """Return the name of the executor.

    Raises:
        UserError: if the variable names one that does not exist.
    """
    if use_mp is False:
        return "debug"
    if executor or not (name := os.environ.get(EXECUTOR_VARIABLE)):
        return executor or "local"
    if name not in NAMES:
        raise UserError(
            f"{EXECUTOR_VARIABLE}={name}: no such executor{did_you_mean(name, NAMES)}; "
            f"valid are {', '.join(NAMES)}"
        )
    return name


def _wait(run: Run) -> Status:
    """Show a run until all of its tasks have ended.

    Ctrl-C makes workers on this machine save their state and stop, and ends the script.
    """
    try:
        with terminal.status_display(Console(stderr=True)) as show:
            status = run.wait(notebook_display() or show)
    except KeyboardInterrupt:
        if follows(run.directory):
            _print("stopping: workers save their state (Ctrl-C again to stop waiting for them)")
            terminal.cancel_and_wait(run)
            _print(_AGAIN)
        else:
            _print(f"run {run.id} continues on the cluster; run the script again to wait for it")
        raise
    return status


def _report(run: Run, status: Status) -> None:
    """Print which configs have no result, and why.

    Raises:
        RunError: if no config has one.
    """
    if status.complete:
        return
    console = Console(stderr=True)
    if not console.is_terminal:  # a terminal has shown it all along
        console.print(terminal.render(status), soft_wrap=True)
    if not status.done:
        reasons = "; ".join(group.first.error for group in status.failure_groups)
        raise RunError(
            f"run {run.id}: none of its {status.configs} configs has a result"
            + (f": {reasons}" if reasons else f"; see: mlpsubmit logs {run.id}")
        )
    _print(
        f"{status.configs - status.done} of {status.configs} configs have no result and are left "
        "out of the returned dictionary; run the script again to train them (finished results are "
        "reused)"
    )


def _print(text: str) -> None:
    echo(text, err=True)


def _results(run: Run, study: Study) -> dict[str, Any]:
    """Return MLPscape's dictionary, with the script's names of the axes."""
    layout = run.layout()
    dimensions = [
        Dimension(study.names[axis], {study.names[axis]: values})
        for dimension in layout.dimensions
        for axis, values in dimension.coordinates.items()
    ]
    layout = replace(layout, dimensions=tuple(dimensions), threshold_axis=None)
    result = mlpscape_dictionary(layout, run.directory.results)
    # If every config diverged, a grab has no measurements; its trace is there all the same.
    unmeasured = ExptTrace(result["var_axes"]).serialize()
    keyed = {key for key in result["extras"] if key not in study.sweep.grabs}  # of dictionaries
    for name in study.sweep.grabs:
        if not any(key.startswith(f"{name}_") for key in keyed):
            result["extras"].setdefault(name, unmeasured)
    return result
