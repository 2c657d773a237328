"""One config of a run: its settings, its state, its results in brief, its task and its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlpsubmit.jobs.plan import Plan
from mlpsubmit.jobs.status import Status
from mlpsubmit.jobs.store.pack_schema import SHARED, WEIGHT_SHAPES, WEIGHTS
from mlpsubmit.jobs.store.run_directory import RunDirectory, task_name
from mlpsubmit.jobs.store.shards import FAILED_SUFFIX, StoredPack, pack_name
from mlpsubmit.jobs.store.stored_results import REUSED
from mlpsubmit.jobs.task_status import TaskStatus
from mlpsubmit.protocol import STATUSES
from mlpsubmit.results.grab_arrays import grab_of
from mlpsubmit.results.names import TRAINED_BY, TRAINED_ON, array_names
from mlpsubmit.results.source import Failure
from mlpsubmit.runs.run_keys import RunKeys

__all__ = ["ConfigDetails", "config_details"]

_LEFT_OUT = frozenset(
    {"index", "key", "status", "steps", "seconds", TRAINED_ON, TRAINED_BY, *SHARED}
)


@dataclass(frozen=True)
class ConfigDetails:
    """One config.

    Attributes:
        state: ``done``, ``diverged``, ``failed``, ``running`` or ``missing``.
        settings: all of them by name, those on axes first.
        pack: the name of its pack; empty if its result comes from an earlier run.
        task: the one that trained it, or is to; empty if none.
        device: the one that it was trained on; empty if there is none, or it is not known.
        results: the last value of each variable, or the shape of an array; of timekeys the step at
            which each threshold was crossed.
        failure: why it has no result; None unless it failed.
        progress: the step of its pack in training, and the last one; None unless it is running.
        stack: which configs of its pack make that step, if not all: it may be none of them.
    """

    run: str
    index: int
    key: str
    point: Mapping[str, Any]
    settings: Mapping[str, Any]
    state: str
    pack: str = ""
    task: str = ""
    device: str = ""
    log: Path | None = None
    reused: bool = False
    steps: int | None = None
    seconds: float | None = None
    results: Mapping[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    progress: tuple[int, int] | None = None
    stack: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as ``show --config --json`` prints it."""
        failed = self.failure
        return {
            "run": self.run,
            "index": self.index,
            "key": self.key,
            "point": dict(self.point),
            "settings": dict(self.settings),
            "state": self.state,
            "reused": self.reused,
            "pack": self.pack or None,
            "task": self.task or None,
            "device": self.device or None,
            "log": self.log and self.log.absolute(),
            "steps": self.steps,
            "train_seconds": self.seconds,
            "results": dict(self.results),
            "step": None if self.progress is None or self.stack else self.progress[0],
            "error": None if failed is None else failed.error,
            "error_place": None if failed is None else failed.where or None,
            "traceback": None if failed is None else failed.traceback or None,
        }


def config_details(
    run: RunDirectory, status: Status, selector: str, logs: Mapping[str, Path]
) -> ConfigDetails:
    """Return what is known of one config; nothing in the run is executed.

    Args:
        selector: its index, its key, or values of axes.
        logs: of the run's tasks, by name.

    Raises:
        UserError: there is no such config, or there are several.
    """
    keys = RunKeys(run)
    index = keys.select(selector)
    pack = Plan.from_json(run.plan).pack_of(index)
    name = "" if pack is None else pack.name
    own: dict[str, Any] = {"run": run.id, "index": index, "key": keys.key(index), "pack": name}
    own |= {"point": keys.on_axes(index)}
    own |= {"settings": {**keys.on_axes(index), **keys.values(index)}}
    if (found := _result(run, index, name)) is not None:
        stored, row = found
        return ConfigDetails(**own, **_of_result(keys, index, stored, row, logs))
    failure = next((one for one in status.failures if index in one.indices), None)
    task = _task(run, status.tasks, name)
    progress = None if task is None else _progress(task, name)
    state = "running" if progress else "failed" if failure else "missing"
    own |= {"task": "" if task is None else task.name, "log": None if task is None else task.log}
    own |= {"stack": task.stack if task is not None and progress else ""}
    return ConfigDetails(**own, state=state, failure=failure, progress=progress)


def _result(run: RunDirectory, index: int, pack: str) -> tuple[StoredPack, int] | None:
    """Return the latest intact result of a config, and its row; None if it has none."""
    damaged, found = run.results.damaged(), None
    for member in run.results.members():
        own = member.shard.name == REUSED or (pack and pack_name(member) == pack)
        if not own or member.name.endswith(FAILED_SUFFIX) or member in damaged:
            continue
        stored = run.results.pack(member)
        if stored.intact() and len(rows := np.flatnonzero(stored["index"] == index)):
            found = stored, int(rows[0])
    return found


def _of_result(
    keys: RunKeys, index: int, stored: StoredPack, row: int, logs: Mapping[str, Path]
) -> dict[str, Any]:
    reused = stored.member.shard.name == REUSED
    task = "" if reused else stored.member.shard.name.split(".")[0]
    results: dict[str, Any] = {}
    names = array_names(stored.arrays())
    for name in stored.arrays():
        if name in _LEFT_OUT or name.startswith((WEIGHTS, WEIGHT_SHAPES)):
            continue
        if name == "timekeys" or name.startswith("timekeys."):
            if crossings := _crossings(keys, index, name, stored[name][row]):
                results[names[name]] = crossings
            continue
        traced = grab_of(name) is None or "grab_step" in names
        results[names[name]] = _brief(stored[name][row], traced=traced)
    return {
        "device": stored[TRAINED_ON][row].decode(errors="backslashreplace"),
        "state": STATUSES[int(stored["status"][row])],
        "task": task,
        "log": logs.get(task),
        "reused": reused,
        "steps": int(stored["steps"][row]),
        "seconds": float(stored["seconds"][row]),
        "results": results,
    }


def _crossings(keys: RunKeys, index: int, name: str, steps: Any) -> dict[str, int | None]:
    """Return by threshold the step at which a config crossed it; None if it never did."""
    sweep = keys.run.sweep
    named = {f"timekeys.{one['name']}": one for one in sweep["metric_thresholds"]}
    own = sweep if name == "timekeys" else named[name]
    values, axis = own["thresholds"], own["threshold_axis"]
    if axis is not None:
        number = [one["dimension"] for one in keys.axes].index(axis["dimension"])
        values = axis["values"][keys.place(index)[number]]
    found = zip(values, np.asarray(steps).tolist(), strict=False)
    return {str(value): None if step < 0 else int(step) for value, step in found}


def _brief(value: Any, *, traced: bool) -> Any:
    """Return a number, or the shape of an array; of a trace the last one."""
    array = np.asarray(value)
    if traced and array.ndim and len(array):
        array = array[-1]
    return f"array of shape {array.shape}" if array.ndim else array.item()


def _task(run: RunDirectory, tasks: Sequence[TaskStatus], pack: str) -> TaskStatus | None:
    """Return the task of the latest submission that is to train a pack."""
    submissions = run.submissions()
    intent = run.readable_intent(submissions[-1]) if submissions and pack else None
    if intent is None:
        return None
    for number, ranges in enumerate(intent["slices"]):
        if any(low <= int(pack) < high for low, high in ranges):
            name = task_name(submissions[-1], number)
            return next((task for task in tasks if task.name == name), None)
    return None


def _progress(task: TaskStatus, pack: str) -> tuple[int, int] | None:
    beat = task.heartbeat
    if task.state != "running" or beat.get("pack") != pack:
        return None
    return int(beat.get("step", 0)), int(beat.get("max_iter", 0))
