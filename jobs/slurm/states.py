"""How the tasks of a submission to SLURM are doing: from their files, and what those can't tell
from the scheduler."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mlpsubmit.jobs import store
from mlpsubmit.jobs.heartbeat import is_fresh
from mlpsubmit.jobs.slurm.memory import memory_kill
from mlpsubmit.jobs.slurm.queue import Accounts, JobState, Queue
from mlpsubmit.jobs.store import RunDirectory, task_name
from mlpsubmit.jobs.tasks import TaskStatus

__all__ = ["Scheduler", "job_ids", "slurm_retry", "slurm_tasks"]

#: Seconds between two questions to the scheduler: at first, and at most.
_SHORTEST_REST = 2.0
_LONGEST_REST = 15.0


@dataclass
class Scheduler:
    """Asks the scheduler now and then: whoever watches a run must not burden the cluster.

    Args:
        exact: for a process that is about to submit: it holds the lock of the run, so that no other
            is submitting, and it takes no heartbeat, however young, for a sign of life.
    """

    exact: bool = False
    _since: float = field(default_factory=time.monotonic)
    _asked: dict[tuple[str, ...], tuple[float, Any]] = field(default_factory=dict)

    def queue(self, names: Sequence[str]) -> Queue:
        """Return what the queue holds of jobs with these names."""
        return self._recent(("squeue", *names), lambda: Queue.look(names))  # type: ignore[no-any-return]

    def accounts(self, ids: Sequence[str], since: float) -> Accounts:
        """Return what the accounts hold of these jobs."""
        return self._recent(("sacct", *ids), lambda: Accounts.look(ids, since))  # type: ignore[no-any-return]

    def _recent(self, key: tuple[str, ...], look: Any) -> Any:
        now = time.monotonic()
        rest = min(max((now - self._since) / 10, _SHORTEST_REST), _LONGEST_REST)
        if key not in self._asked or now - self._asked[key][0] > rest:
            self._asked[key] = (now, look())
        return self._asked[key][1]


def slurm_tasks(
    run: RunDirectory, number: int, heartbeats: Mapping[str, dict[str, Any]], scheduler: Scheduler
) -> list[TaskStatus]:
    """Return the tasks of a submission to SLURM."""
    intent = run.intent(number)
    names = [task_name(number, index) for index in range(len(intent["slices"]))]
    ended = run.ended(number)
    told = {name: _from_files(heartbeats.get(name, {}), scheduler.exact) for name in names}
    queue = Queue()
    if None in told.values():
        queue = scheduler.queue(_job_names(intent))
        _adopt(run, number, queue, scheduler)
    jobs = run.task_jobs(number)
    ids = {name: str(job["id"]) for name, job in jobs.items()}
    states = dict(queue.jobs)
    lost = {job for name, job in ids.items() if told[name] is None}
    lost = set() if queue.silence else lost - set(states)
    if lost:
        arrays = sorted({job.partition("_")[0] for job in lost})
        states |= scheduler.accounts(arrays, float(intent["created"])).jobs
    submitting = len(ids) < len(names) and _submitting(run, scheduler)
    tasks = []
    for name in names:
        beat: dict[str, Any] = heartbeats.get(name, {})
        job = ids.get(name)
        state, why = told[name] or _judged(
            beat, states.get(job or ""), job, queue.silence, submitting, ended
        )
        task = TaskStatus(name, state, beat, None if job is None else run.log(number, job), why)
        tasks.append(_explained(task, states.get(job or "")) if state == "crashed" else task)
    return tasks


def _explained(task: TaskStatus, job: JobState | None) -> TaskStatus:
    """Return a crashed task that says more where more is known than SLURM's word for it."""
    if job is not None and not task.heartbeat and task.log is not None and not task.log.exists():
        hint = "its node cannot see the run's folder, or cannot write there"
        return replace(task, why=f"{hint} (mlpsubmit doctor tries it out); {task.why}")
    kill = memory_kill(job, task.last_lines())
    return task if kill is None else replace(task, why=kill)


def _from_files(beat: Mapping[str, Any], exact: bool) -> tuple[str, str] | None:
    """Return the state of a task where its heartbeat tells, and why; else None."""
    state = beat.get("state")
    if state == "done":
        return "done", ""
    if state == "crashed":
        return "crashed", str(beat.get("error", ""))
    return ("running", "") if not exact and _breathes(beat) else None


def _breathes(beat: Mapping[str, Any]) -> bool:
    return beat.get("state") in ("starting", "training") and is_fresh(beat)


def _judged(
    beat: Mapping[str, Any],
    job: JobState | None,
    id: str | None,
    silence: str,
    submitting: bool,
    ended: str | None,
) -> tuple[str, str]:
    """Return the state of a task that its heartbeat leaves open, and why."""
    if job is not None and job.alive:
        return ("waiting", _queued(job, beat)) if job.pending else ("running", "")
    stopped = beat.get("state") == "interrupted"
    if job is not None:
        if stopped or job.state == "CANCELLED" or (ended and job.state == "COMPLETED"):
            return "interrupted", "" if stopped else ended or "cancelled"
        return "crashed", f"SLURM says {job}"
    if silence and _breathes(beat):
        return "running", ""
    if silence:
        return "unknown", f"the scheduler does not answer: {silence}"
    if id is None and submitting:
        return "waiting", "it is being submitted"
    if stopped or ended is not None:
        return "interrupted", ended or ""
    if id is None:
        return "crashed", "its launch ended before the cluster had its job"
    return "crashed", "its job has left the queue, and the cluster keeps no account of why"


def _queued(job: JobState, beat: Mapping[str, Any]) -> str:
    again = "again: " if beat else ""
    reason = job.reason if job.reason not in ("", "None") else "no reason given yet"
    return f"queued {again}{reason}"


def _job_names(intent: Mapping[str, Any]) -> list[str]:
    retry = [intent["retry"]] if intent["retry"] else []
    return [array["name"] for array in intent["arrays"]] + retry


def _submitting(run: RunDirectory, scheduler: Scheduler) -> bool:
    """Tell whether a launch or resume, or an sbatch that it left behind, is at work."""
    if scheduler.exact:
        return False
    try:
        with store.locked(run.path / store.PLAN, wait=False):
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False  # a run of somebody else's, which this user may not write


def _adopt(run: RunDirectory, number: int, queue: Queue, scheduler: Scheduler) -> None:
    """Write down jobs that the cluster has and jobs.json lacks: their launch died in between."""
    known = (run.jobs(number) or {"jobs": []})["jobs"]
    have = {job["first"] for job in known}
    found = [
        {
            "id": queue.ids[array["name"]][-1],
            "first": array["first"],
            "count": array["count"],
            "array": True,
            "host": socket.gethostname(),
            "pid": None,
            "process_start": None,
            "updated": time.time(),
        }
        for array in run.intent(number)["arrays"]
        if array["first"] not in have and queue.ids.get(array["name"])
    ]
    if found and not _submitting(run, scheduler):
        with contextlib.suppress(OSError):
            jobs = sorted([*known, *found], key=lambda job: int(job["first"]))
            store.publish_json(run.submission(number) / store.JOBS, {"jobs": jobs})


def slurm_retry(run: RunDirectory, number: int, scheduler: Scheduler) -> JobState | None:
    """Return the job that will resume what is missing, while it waits or is at work."""
    intent = run.intent(number)
    if not intent["retry"] or run.ended(number) is not None:
        return None
    queue = scheduler.queue(_job_names(intent))
    states = (queue.jobs.get(job) for job in queue.ids.get(intent["retry"], []))
    return next((state for state in states if state is not None and state.alive), None)


def job_ids(run: RunDirectory, number: int, scheduler: Scheduler) -> Iterator[str]:
    """Yield the ids of all jobs of a submission that may still run, as far as files or queue know.

    Raises:
        NoAnswer: where the scheduler does not answer, so that some may be missing.
    """
    intent = run.intent(number)
    queue = scheduler.queue(_job_names(intent))
    known = {str(job["id"]) for job in (run.jobs(number) or {"jobs": []})["jobs"]}
    yield from sorted(known.union(*queue.ids.values()), key=int)
