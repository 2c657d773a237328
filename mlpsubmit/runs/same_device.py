"""Runs whose tasks all train on one kind of device, so that equal plans give equal bits.

A launch or resume with ``same_device`` checks what can be known beforehand. The first task to train
binds the run to its device (results/device.json), and one that gets another trains nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlpsubmit.errors import UserError
from mlpsubmit.jobs.store.run_directory import CHECKPOINTS, RunDirectory
from mlpsubmit.results.names import device_kind

if TYPE_CHECKING:
    from mlpsubmit.jobs.executors.base import Executor

__all__ = ["check_executor", "check_same_device", "kinds_of", "wanted"]


def wanted(run: RunDirectory, executor: Executor) -> bool:
    """Return whether all tasks of a run are to train on one kind of device.

    What the user says now, or else what holds for the run's latest submission.
    """
    if executor.same_device is not None:
        return executor.same_device
    read = map(run.readable_intent, reversed(run.submissions()))
    return next((intent["same_device"] for intent in read if intent is not None), False)


def kinds_of(environments: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the kinds of devices in environments, as far as they are known."""
    return list(dict.fromkeys(filter(None, map(device_kind, environments))))


def check_same_device(run: RunDirectory, executor: Executor) -> None:
    """Check that all tasks of a run can train on one device: that of its results, if it has any.

    If so, the run is bound to that. A run that has nothing yet is not: its next task decides.

    Raises:
        UserError: its results were made on several, or its tasks may get another one.
    """
    kinds, bound = kinds_of(run.results.environments()), run.device
    if bound is not None:
        kinds = list(dict.fromkeys([bound["device"], *kinds]))
        if not run.results.shards() and not any((run.path / CHECKPOINTS).glob("[!.]*.pt")):
            kinds = []
            run.release_device()
    check_executor(executor, kinds, f"run {run.id}")
    if kinds and bound is None:
        run.release_device()  # a damaged record
        run.bind_to_device(kinds[0], "", "")


def check_executor(executor: Executor, kinds: Sequence[str], which: str) -> None:
    """Check that all tasks of an executor can train on one device.

    Args:
        kinds: of devices on which results were made already.
        which: what these are results of, for a message.

    Raises:
        UserError: they were made on several, or tasks may get another one.
    """
    if len(kinds) > 1:
        raise UserError(
            f"--same-device: results of {which} were made on {' and on '.join(kinds)} already; "
            "leave it out (--no-same-device), or train everything again: launch with --fresh"
        )
    if error := executor.device_error(kinds[0] if kinds else ""):
        raise UserError(f"--same-device: {error}")
