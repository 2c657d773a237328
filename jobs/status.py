"""How far a run is, from its own files alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlpsubmit.jobs.heartbeat import is_alive
from mlpsubmit.jobs.plan import Plan
from mlpsubmit.jobs.store import REUSED_PREFIX, Failure, RunDirectory

__all__ = ["Status", "TaskStatus", "read_status"]


@dataclass(frozen=True)
class TaskStatus:
    """One task of the latest submission.

    Attributes:
        state: ``waiting`` (its process has not said anything yet), ``running``, ``done``,
            ``interrupted`` (it saved its pack on a signal) or ``crashed``.
        heartbeat: what it said last; empty where it never did.
        log: its log file.
    """

    name: str
    state: str
    heartbeat: dict[str, Any]
    log: Path | None


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        configs: how many the sweep has; ``done``, ``failed`` and ``missing`` add up to it.
        reused: how many of those done came from earlier runs.
        fraction: done, by estimated cost, counting packs in training by their steps; 0 to 1.
        speed: model-steps per second, all running tasks together.
        remaining_seconds: until the end at the speed so far; None where it cannot be told.
    """

    run: str
    name: str
    path: str
    state: str
    configs: int
    done: int
    failed: int
    missing: int
    reused: int
    fraction: float
    speed: float
    remaining_seconds: float | None
    tasks: Sequence[TaskStatus]
    failures: Sequence[Failure]

    @property
    def running(self) -> bool:
        """Whether any task lives or is about to."""
        return any(task.state in ("waiting", "running") for task in self.tasks)

    @property
    def complete(self) -> bool:
        """Whether every config has a result."""
        return self.done == self.configs

    def to_json(self) -> dict[str, Any]:
        """Return what ``status --json`` prints."""
        fields = {name: value for name, value in vars(self).items() if name != "failures"}
        fields["tasks"] = [
            {**t.heartbeat, "task": t.name, "state": t.state, "log": t.log and str(t.log)}
            for t in self.tasks
        ]
        fields["failures"] = [
            {"pack": f.pack, "configs": f.indices.tolist(), "error": f.error} for f in self.failures
        ]
        return fields


def read_status(run: RunDirectory) -> Status:
    """Read how far a run is."""
    plan = Plan.from_json(run.plan)
    tasks = _tasks(run)
    names, failures = run.outcomes()
    finished = _numbers(names, plan)
    sizes = plan.pack_sizes
    failed = sum(len(failure.indices) for failure in failures)
    reused = _reused(run, names)
    done = reused + int(sizes[finished].sum())
    configs = int(run.sweep["configs"])
    fraction, remaining = _progress(run, plan, finished, tasks)
    live = [task for task in tasks if task.state == "running"]
    return Status(
        run=run.id,
        name=str(run.sweep["name"]),
        path=str(run.path),
        state=_state(tasks, configs - done, failed),
        configs=configs,
        done=done,
        failed=failed,
        missing=configs - done - failed,
        reused=reused,
        fraction=fraction,
        speed=sum(float(task.heartbeat.get("speed") or 0) for task in live),
        remaining_seconds=remaining,
        tasks=tasks,
        failures=failures,
    )


def _reused(run: RunDirectory, names: set[str]) -> int:
    """Return how many configs taken over from earlier runs are there."""
    record = run.sweep["reused"]
    present = sum(name.startswith(REUSED_PREFIX) for name in names)
    return int(record["configs"]) if present == record["members"] else run.reused()


def _numbers(names: set[str], plan: Plan) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the finished packs that the plan has; reused results carry names of their own."""
    numbers = sorted(int(name) for name in names if name.isdigit())
    return np.array([number for number in numbers if number < plan.packs], dtype=np.int64)


def _state(tasks: Sequence[TaskStatus], left: int, failed: int) -> str:
    if any(task.state in ("waiting", "running") for task in tasks):
        return "running"
    if left == 0:
        return "done"
    if any(task.state == "crashed" for task in tasks):
        return "crashed"
    return "failed" if failed == left else "stopped"


def _tasks(run: RunDirectory) -> list[TaskStatus]:
    """Return the tasks of the latest submission."""
    submissions = run.submissions()
    if not submissions:
        return []
    number = submissions[-1]
    jobs = {job["task"]: job for job in (run.jobs(number) or {"jobs": []})["jobs"]}
    heartbeats = run.heartbeats()
    names = [f"{number:03d}-{index:04d}" for index in range(len(run.intent(number)["slices"]))]
    return [_task(run, number, name, heartbeats.get(name, {}), jobs.get(name)) for name in names]


def _task(
    run: RunDirectory, submission: int, name: str, heartbeat: dict[str, Any], job: Any
) -> TaskStatus:
    state = str(heartbeat.get("state", ""))
    if state not in ("done", "interrupted", "crashed"):
        process = heartbeat or job
        alive = process is not None and is_alive(process)
        state = ("running" if heartbeat else "waiting") if alive else "crashed"
    log = job and run.log(submission, job["id"])
    return TaskStatus(name, state, heartbeat, log)


def _progress(
    run: RunDirectory,
    plan: Plan,
    finished: np.ndarray[Any, np.dtype[np.int64]],
    tasks: Sequence[TaskStatus],
) -> tuple[float, float | None]:
    """Return the fraction done by cost, and the seconds that remain at the rate so far."""
    if plan.packs == 0:
        return 1.0, 0.0
    costs = plan.pack_costs
    done = float(costs[finished].sum())
    under_way, since = 0.0, []
    for task in tasks:
        beat = task.heartbeat
        if task.state == "running" and "pack" in beat:
            pack = int(beat["pack"])
            if pack not in finished:  # a heartbeat may be a little behind the results
                share = beat.get("step", 0) / max(beat.get("max_iter") or 1, 1)
                under_way += float(costs[pack]) * share
            since.append(float(beat["started"]))
    fraction = min(1.0, (done + under_way) / plan.cost)
    if not since:
        return fraction, None
    before = float(run.intent(run.submissions()[-1]).get("cost_done", 0.0))
    made = done + under_way - before
    elapsed = time.time() - min(since)
    if made <= 0 or elapsed < 1:
        return fraction, None
    return fraction, max(0.0, plan.cost - done - under_way) * elapsed / made
