"""The progress of a run: from its files and, if those leave it open, from the scheduler."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.display.text import (
    abridged,
    counted,
    crossed_at_start,
    diverged,
    duration,
    throughput,
)
from mlpsubmit.jobs.failure_groups import FailureGroup, Points, grouped
from mlpsubmit.jobs.heartbeat import is_alive, is_elsewhere, pack_share
from mlpsubmit.jobs.liveness import Watch, patience
from mlpsubmit.jobs.plan import Plan
from mlpsubmit.jobs.slurm.queue import JobState
from mlpsubmit.jobs.slurm.task_states import Scheduler, slurm_retry, slurm_tasks
from mlpsubmit.jobs.store.environments import NOT_IDENTICAL
from mlpsubmit.jobs.store.masks import decode_mask
from mlpsubmit.jobs.store.records import Beat, JobRecord, Jobs
from mlpsubmit.jobs.store.run_directory import INTENT, JOBS, RunDirectory, task_name
from mlpsubmit.jobs.task_status import STARTING, TaskStatus, mean_utilization
from mlpsubmit.results.source import Failure

__all__ = ["FINAL_STATES", "Status", "TaskStatus", "read_status"]


#: The last heartbeat of every task of a run, by its name.
Beats = Mapping[str, Beat]

#: States in which a heartbeat says that its process has ended.
FINAL_STATES = ("done", "interrupted", "crashed")

#: Seconds of training from which on the pack in training shows how fast a task is.
ENOUGH_SECONDS = 10.0


@dataclass(frozen=True, repr=False)
class Status:
    """The progress of a run.

    Attributes:
        configs: how many the sweep has; ``done``, ``failed`` and ``missing`` add up to it.
        reused: how many of the done configs came from earlier runs.
        fraction: done, by estimated cost, counting packs in training by their steps; 0 to 1.
        speed: model-steps per second: recently, of all running tasks together; if none runs, the
            mean over the time from the first heartbeat of a submission's tasks to the last.
        matmul_utilization: FLOPs of the method over the measured matmul rate, 0 to 1, over the same
            time; None if it was not measured.
        remaining_seconds: until the end at the speed so far; None if unknown.
        retry: the state of the job that will resume what is missing; empty if there is none.
        retry_failure: the state of a retry job that failed; empty if none did.
        later: how many tasks are not submitted yet, as a limit of the cluster leaves no room.
        awaits: when the retry job will submit them, and the limit; empty if no job will.
        points: the axes, and the configs of this run that are done; None if none has failed.
        unreadable: why files of the run cannot be read, a text for each; what is in them does not
            count.
        devices: the GPUs and CPUs on which tasks of the run have trained, by name.
        damaged: results that were found to be damaged and count as missing: shard and member.
        user: who has launched or resumed it last; empty if nothing was submitted.
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
    retry: str = ""
    retry_failure: str = ""
    later: int = 0
    awaits: str = ""
    matmul_utilization: float | None = None
    points: Points | None = None
    unreadable: Sequence[str] = ()
    damaged: Sequence[str] = ()
    devices: Sequence[str] = ()
    user: str = ""

    def __repr__(self) -> str:
        return f"Status({self.name} {self.run} {self.state}: {self.summary})"

    @property
    def summary(self) -> str:
        """One line: configs done and failed, the throughput, the remaining time."""
        parts = [f"{self.done}/{self.configs} configs"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.reused:
            parts.append(f"{self.reused} reused")
        parts.append(f"{100 * self.fraction:.0f}%")
        if self.speed:
            mean = "" if any(task.state == "running" for task in self.tasks) else "mean "
            parts.append(mean + throughput(self.speed, self.matmul_utilization))
        if self.remaining_seconds is not None and self.running:
            parts.append(f"about {duration(self.remaining_seconds)} left")
        return "  ".join(parts)

    @property
    def awaited(self) -> str:
        """What the first task that does not train does, or waits for; empty if all train."""
        return next((f"{task.name}: {task.awaited}" for task in self.tasks if task.awaited), "")

    @property
    def failure_groups(self) -> list[FailureGroup]:
        """The failures by reason, the most frequent first."""
        return grouped(self.failures, self.points, self.run)

    @property
    def outstanding(self) -> str:
        """One line on the tasks that are not submitted yet; empty if all are."""
        if not self.later or self.complete:
            return ""
        more = counted(self.later, "more task")
        if self.awaits:
            return f"{more} to be submitted {self.awaits}"
        return f"{more} not submitted, and no job that will do it"

    @property
    def early_crossings(self) -> str:
        """One line on configs that crossed a threshold at step 0; empty if none did.

        Of those that the current attempts of the tasks have trained.
        """
        configs = self._counted("crossed_at_start")
        return crossed_at_start(configs) if configs else ""

    @property
    def divergence(self) -> str:
        """One line on configs that diverged; empty if none did.

        Of those that the current attempts of the tasks have trained.
        """
        configs = self._counted("diverged")
        return diverged(configs) if configs else ""

    def _counted(self, field: str) -> int:
        return sum(int(task.heartbeat.get(field, 0)) for task in self.tasks)

    @property
    def damage(self) -> str:
        """One line on damaged results; empty if there are none."""
        if not self.damaged:
            return ""
        return (
            f"damaged: {abridged(self.damaged)}; its configs count as missing (to find all damage: "
            f"mlpsubmit verify {self.run})"
        )

    @property
    def mixed_devices(self) -> str:
        """One line on several kinds of devices; empty if there are not."""
        if len(self.devices) < 2:
            return ""
        return f"trained on {' and on '.join(self.devices)}: {NOT_IDENTICAL}"

    @property
    def busy(self) -> bool:
        """Whether any task runs or is about to, or may do so as far as is known."""
        return any(task.live or task.state == "unknown" for task in self.tasks)

    @property
    def running(self) -> bool:
        """Whether the run continues by itself: a task runs, or a retry job is queued.

        Also while that cannot be checked, if it may be possible later and there is work left.
        """
        live = any(task.live for task in self.tasks)
        open_ = any(task.state == "unknown" and not task.lasting for task in self.tasks)
        awaits = bool(self.retry or self.awaits)
        return live or awaits or (open_ and not self.complete)

    @property
    def complete(self) -> bool:
        """Whether every config has a result."""
        return self.done == self.configs

    def to_json(self) -> dict[str, Any]:
        """Return the status as ``status --json`` prints it."""
        left_out = ("failures", "points", "speed", "awaits")
        fields = {name: value for name, value in vars(self).items() if name not in left_out}
        return {
            **fields,
            "path": os.path.abspath(self.path),
            "model_steps_per_second": self.speed,
            "retry": self.retry or None,
            "user": self.user or None,
            "retry_failure": self.retry_failure or None,
            "outstanding": self.outstanding or None,
            "tasks": [task.to_json() for task in self.tasks],
            "failures": [
                {
                    "pack": failure.pack,
                    "indices": failure.indices.tolist(),
                    "error": failure.error,
                    "error_place": failure.where or None,
                }
                for failure in self.failures
            ],
        }


def read_status(run: RunDirectory, scheduler: Scheduler | None = None) -> Status:
    """Read the progress of a run.

    Args:
        scheduler: queries SLURM; a scheduler that is reused does not query it again too soon.
    """
    scheduler = scheduler or Scheduler()
    plan = Plan.from_json(run.plan)
    beats = run.heartbeats()
    tasks, job = _submitted(run, scheduler, beats)
    later, awaits = _later(run, scheduler, tasks, job)
    names, failures, partly, reused, damaged = run.results.outcomes()
    finished = np.array(sorted(map(int, names)), dtype=np.int64)
    sizes = plan.pack_sizes
    failed = sum(len(failure.indices) for failure in failures)
    done = reused + int(sizes[finished].sum()) + len(partly)
    configs = int(run.sweep["configs"])
    retry = str(job) if job is not None and job.alive and done < configs and not later else ""
    failed_retry = job is not None and not job.alive and job.state != "COMPLETED"
    fraction, own, remaining = _progress(run, plan, finished, failures, tasks, beats)
    speed, matmul_utilization = _speed(tasks, beats)
    tasks = [
        replace(_with_unreadable(run, task), remaining_seconds=own.get(task.name)) for task in tasks
    ]
    return Status(
        run=run.id,
        name=str(run.sweep["name"]),
        path=str(run.path),
        state=_state(tasks, configs - done, failed, retry or awaits),
        configs=configs,
        done=done,
        failed=failed,
        missing=configs - done - failed,
        reused=reused,
        fraction=fraction,
        speed=speed,
        remaining_seconds=remaining,
        tasks=tasks,
        failures=failures,
        retry=retry,
        retry_failure=str(job) if failed_retry and done < configs else "",
        later=later,
        awaits=awaits,
        matmul_utilization=matmul_utilization,
        points=_points(run, plan, finished, partly) if failures else None,
        unreadable=tuple(run.unreadable[file] for file in sorted(run.unreadable)),
        devices=_devices(beats),
        damaged=[f"{member.shard.name}: {member.name}" for member in damaged],
        user=next(reversed(run.users()), ""),
    )


def _devices(beats: Beats) -> list[str]:
    """Return the kinds of devices on which tasks have made steps."""
    trained = [beat for beat in beats.values() if beat.get("model_steps")]
    found = [TaskStatus("", "", beat, None).device for beat in trained]
    return list(dict.fromkeys(filter(None, found)))


def _points(
    run: RunDirectory, plan: Plan, finished: NDArray[np.int64], partly: NDArray[np.int64]
) -> Points:
    done = np.concatenate([plan.indices_of(finished), partly, _reused(run, plan)])
    return Points(run.sweep["axes"], done)


def _reused(run: RunDirectory, plan: Plan) -> NDArray[np.int64]:
    """Return the flat indices of the configs that the plan leaves out: earlier runs have them."""
    if not run.sweep["reused"]:
        return np.zeros(0, np.int64)
    points, included = math.prod(plan.order.shape), run.sweep["included"]
    own = np.arange(points) if included is None else np.flatnonzero(decode_mask(included, points))
    return np.setdiff1d(own, plan.indices_of(np.arange(plan.packs)))


def _submitted(
    run: RunDirectory, scheduler: Scheduler, beats: Beats
) -> tuple[list[TaskStatus], JobState | None]:
    """Return the tasks of the latest submission, and its retry job, if there is one.

    If it has continued others, for which there was no room, theirs come first.
    """
    submissions = run.submissions()
    if not submissions:
        return [], None
    number = submissions[-1]
    intent = run.readable_intent(number)
    if intent is None:
        return [_unknown_tasks(run, number)], None
    if intent["executor"] != "slurm":
        return _local_tasks(run, number, beats, scheduler.watch), None
    numbers = run.chain(number)[::-1]
    tasks = [task for one in numbers for task in slurm_tasks(run, one, beats, scheduler)]
    if any(task.live for task in tasks):
        return tasks, None
    job = slurm_retry(run, number, scheduler)
    if (job is None or not job.alive) and run.submissions()[-1] != number:
        return _submitted(run, scheduler, run.heartbeats())  # which that job has made meanwhile
    return tasks, job


def _later(
    run: RunDirectory, scheduler: Scheduler, tasks: Sequence[TaskStatus], job: JobState | None
) -> tuple[int, str]:
    """Return how many tasks are still to be submitted, and what that waits for.

    Args:
        tasks, job: as by :func:`_submitted`.
    """
    number = max(run.submissions(), default=None)
    intent = None if number is None else run.readable_intent(number)
    if number is None or intent is None or not intent.get("later"):
        return 0, ""
    left = -(-len(intent["later"]) // intent.get("workers", 1))
    if run.ended(number) is not None:
        return left, ""
    limit = intent["limit"]
    if any(task.live for task in tasks):
        recorded = (run.jobs(number) or Jobs(jobs=[]))["jobs"]
        if all(one["count"] for one in recorded) and slurm_retry(run, number, scheduler) is None:
            return left, ""
        arrays = ", ".join(str(one["id"]) for one in recorded if one["count"])
        return left, f"when job {arrays} has ended ({limit})"
    if job is None or not job.alive:
        return left, ""
    return left, f"as room frees ({limit}): {job}" if job.pending else f"now ({limit})"


def _unknown_tasks(run: RunDirectory, number: int) -> TaskStatus:
    """Return one status for all tasks of a submission whose intent is unreadable."""
    folder = run.submission(number)
    why = (
        f"{run.unreadable[folder / INTENT]}; if no process or job of this submission is left, "
        f"remove {folder}, and resume"
    )
    return TaskStatus(f"{folder.name}-*", "unknown", {}, None, why, lasting=True)


def _with_unreadable(run: RunDirectory, task: TaskStatus) -> TaskStatus:
    """Return a task with a word about its heartbeat in its reason if that is unreadable."""
    problem = run.unreadable.get(run.heartbeat(task.name))
    if problem is None:
        return task
    return replace(task, why="; ".join(filter(None, (task.why, problem))))


def _state(tasks: Sequence[TaskStatus], left: int, failed: int, retry: str) -> str:
    states = {task.state for task in tasks}
    if any(task.live for task in tasks) or retry:
        return "running"
    if left == 0:
        return "done"
    for state in ("unknown", "crashed"):
        if state in states:
            return state
    return "failed" if failed == left else "stopped"


def _local_tasks(run: RunDirectory, number: int, beats: Beats, watch: Watch) -> list[TaskStatus]:
    """Return the tasks of a submission to the machine that launched it."""
    jobs = run.task_jobs(number)
    names = [task_name(number, index) for index in range(len(run.intent(number)["slices"]))]
    return [_local_task(run, n, beats.get(n, {}), jobs.get(n), watch) for n in names]


def _local_task(
    run: RunDirectory,
    name: str,
    heartbeat: Mapping[str, Any],
    job: JobRecord | None,
    watch: Watch,
) -> TaskStatus:
    submission, state, why = int(name.partition("-")[0]), str(heartbeat.get("state", "")), ""
    process: Mapping[str, Any] | None = heartbeat or job
    if process is None and (lost := run.unreadable.get(run.submission(submission) / JOBS)):
        return TaskStatus(name, "unknown", {}, None, lost, lasting=True)
    if state not in FINAL_STATES:
        alive = process is not None and _process_lives(run, name, process, watch)
        state = "unknown" if alive is None else "waiting" if alive else "crashed"
        state = "running" if alive and heartbeat else state
        why = STARTING if state == "waiting" else ""
    if state == "crashed":
        why = str(heartbeat.get("error") or _without_report(process))
    if state == "unknown":
        assert process is not None
        why = f"it runs on {process['host']}, and whether it still does is not known yet"
    log = None if job is None else run.log(submission, job["id"])
    return TaskStatus(name, state, heartbeat, log, why)


def _process_lives(
    run: RunDirectory, name: str, process: Mapping[str, Any], watch: Watch
) -> bool | None:
    """Return whether the process of a task is alive; None if that is not known yet."""
    if not is_elsewhere(process):
        return is_alive(process)
    moving = watch.is_moving(run.heartbeat(name), patience(process))
    if moving is None and "state" not in process:  # no heartbeat so far: is the job new?
        jobs = run.submission(int(name.partition("-")[0])) / JOBS
        return watch.is_moving(jobs, patience(process))
    return moving


def _without_report(process: Mapping[str, Any] | None) -> str:
    if process is None or "host" not in process or not is_elsewhere(process):
        return "its process exited without reporting"
    return f"no sign of it from {process['host']} for {patience(process):.0f} s"


def _progress(
    run: RunDirectory,
    plan: Plan,
    finished: NDArray[np.int64],
    failures: Sequence[Failure],
    tasks: Sequence[TaskStatus],
    beats: Beats,
) -> tuple[float, dict[str, float], float | None]:
    """Return the fraction done by cost, and the seconds that remain at the rate so far.

    Those of each running task, by name, and those of the run.
    """
    if plan.packs == 0:
        return 1.0, {}, 0.0
    left = plan.pack_costs.copy()
    left[finished] = 0.0
    failed: Counter[int] = Counter()
    for failure in failures:
        failed[int(failure.pack)] += len(failure.indices)
    for pack, configs in failed.items():
        left[pack] *= configs / plan.pack_sizes[pack]
    running = {t.name: t.heartbeat for t in tasks if t.state == "running" and "pack" in t.heartbeat}
    for pack, share in _shares(run, beats, running).items():
        if pack not in failed:
            left[pack] *= max(0.0, 1.0 - share)
    rates = {name: _rate(beat, plan) for name, beat in running.items()}
    costs = _costs_ahead(run, left, tasks)
    own = {name: costs[name] / rate for name, rate in rates.items() if rate > 0}
    return 1.0 - float(left.sum()) / (plan.cost or 1.0), own, _remaining(costs, rates)


def _shares(run: RunDirectory, beats: Beats, running: Container[str]) -> dict[int, float]:
    """Return the trained fraction of the packs that are in training or have a saved state.

    The latter count whichever submission trained them.
    """
    shares: dict[int, float] = {}
    for name, beat in beats.items():
        share = pack_share(beat)
        if share and (name in running or run.checkpoint(beat["pack"]).exists()):
            pack = int(beat["pack"])
            shares[pack] = max(shares.get(pack, 0.0), share)
    return shares


def _rate(beat: Mapping[str, Any], plan: Plan) -> float:
    """Return the cost that a task trains per second.

    It is measured on the pack in training once that has trained for a while: packs that thresholds
    ended early count as done in full, but were not computed in full.
    """
    own = float(plan.pack_costs[int(beat["pack"])])
    made = own * (pack_share(beat) - float(beat.get("first_share", 0.0)))
    updated = float(beat["updated"])
    in_pack = updated - float(beat.get("pack_started", updated))
    if made > 0 and in_pack >= ENOUGH_SECONDS:
        return made / in_pack
    return (float(beat["cost_done"]) + made) / max(updated - float(beat["started"]), 1.0)


def _costs_ahead(
    run: RunDirectory, left: NDArray[np.float64], tasks: Sequence[TaskStatus]
) -> dict[str, float]:
    """Return the cost that is left to each task that trains or is about to, by name.

    Args:
        left: (packs,) the cost of each that is still to be trained.
    """
    slices: dict[int, Sequence[Sequence[Sequence[int]]]] = {}
    costs = {}
    for task in tasks:
        if task.live:
            number, index = map(int, task.name.split("-"))
            if number not in slices:
                slices[number] = run.intent(number)["slices"]
            costs[task.name] = float(left[_packs_ahead(slices[number][index], task)].sum())
    return costs


def _remaining(costs: Mapping[str, float], rates: Mapping[str, float]) -> float | None:
    """Return the seconds until the last task ends; None if a running task has no rate yet.

    Args:
        costs: what is left to each task that trains or is about to.
        rates: the cost per second of each running task.
    """
    if not rates or min(rates.values()) <= 0:
        return None
    longest = max(
        (cost / rates[name] for name, cost in costs.items() if name in rates), default=0.0
    )
    # Waiting tasks start as others end.
    return max(longest, sum(costs.values()) / sum(rates.values()))


def _packs_ahead(ranges: Sequence[Sequence[int]], task: TaskStatus) -> NDArray[np.int64]:
    """Return the numbers of a task's packs from the pack in training on."""
    packs: NDArray[np.int64] = np.concatenate([np.arange(low, high) for low, high in ranges])
    at = np.flatnonzero(packs == int(task.heartbeat.get("pack", -1)))
    return packs[at[0] :] if task.state == "running" and len(at) else packs


def _speed(tasks: Sequence[TaskStatus], beats: Beats) -> tuple[float, float | None]:
    """Return model-steps per second, and the matmul utilization."""
    running = [task.heartbeat for task in tasks if task.state == "running"]
    if running:
        shares = [beat.get("matmul_utilization") for beat in running]
        known = [float(share) for share in shares if share is not None]
        matmul_utilization = sum(known) / len(known) if len(known) == len(running) else None
        return sum(float(beat.get("speed") or 0) for beat in running), matmul_utilization
    trained = {name: beat for name, beat in beats.items() if beat.get("model_steps")}
    steps = sum(int(beat["model_steps"]) for beat in trained.values())
    return steps / max(_elapsed(trained), 1e-9), mean_utilization(trained.values())


def _elapsed(beats: Beats) -> float:
    """Return the seconds in which tasks trained; tasks of one submission ran concurrently."""
    spans: dict[str, tuple[float, float]] = {}
    for name, beat in beats.items():
        submission = name.partition("-")[0]
        began, ended = spans.get(submission, (float("inf"), 0.0))
        spans[submission] = (min(began, beat["started"]), max(ended, beat["updated"]))
    return sum(ended - began for began, ended in spans.values())
