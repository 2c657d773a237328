"""The states of a SLURM submission's tasks, from their heartbeats or else from the scheduler."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mlpsubmit import files
from mlpsubmit.display.text import counted
from mlpsubmit.errors import RunError
from mlpsubmit.jobs.liveness import Watch, three_intervals
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, configured, installed, settings
from mlpsubmit.jobs.slurm.memory_kills import memory_kill
from mlpsubmit.jobs.slurm.queue import JobState, Queue, sacct_records
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.owners import user_name
from mlpsubmit.jobs.store.records import Beat, JobRecord, Jobs
from mlpsubmit.jobs.store.run_directory import RunDirectory, task_name
from mlpsubmit.jobs.submission import Job
from mlpsubmit.jobs.task_status import TaskStatus

__all__ = ["LiveJobs", "Scheduler", "in_queue", "live_jobs", "slurm_retry", "slurm_tasks"]

#: Seconds between two queries of the scheduler: at first, where the jobs of all users are queried,
#: and at most.
_SHORTEST_INTERVAL = 2.0
_OF_ALL_USERS = 15.0
_LONGEST_INTERVAL = 60.0

#: How long a network file system may show an old version of a file to another machine.
SEEN_LATE_SECONDS = 90.0

_T = TypeVar("_T")


@dataclass
class Scheduler:
    """Cached queries of the scheduler, so that watching a run does not burden the cluster.

    The longer somebody watches, the longer is the interval between two queries.

    Attributes:
        watch: what was seen of the run's files between two queries.

    Args:
        exact: for a process that is about to submit: it holds the run's lock, so that no other
            process is submitting, and does not take a fresh heartbeat as proof of a running task.
        watches: whether somebody is waiting: only then is it asked which jobs come before.
        interval: seconds between two equal queries, at least.
    """

    exact: bool = False
    watches: bool = False
    interval: float = _SHORTEST_INTERVAL
    watch: Watch = field(default_factory=Watch)
    _since: float = field(default_factory=lambda: time.monotonic())
    _cache: dict[tuple[Any, ...], tuple[float, Any]] = field(default_factory=dict)
    #: Threads that show several runs share one query.
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _some_wait: bool = True
    _recorded: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def expect(self, run: RunDirectory, number: int, jobs: int) -> None:
        """Query again if a run has jobs that it did not have when its jobs were last looked up.

        They may have been submitted after a query that would still be recent enough.

        Args:
            number: of its last submission.
            jobs: how many jobs and arrays of that are recorded.
        """
        with self._lock:
            if self._recorded.get(run.path, (number, jobs)) != (number, jobs):
                self._cache.clear()
            self._recorded[run.path] = number, jobs

    def queue(self, user: int) -> Queue:
        """Return the jobs of a user, by a query that may be some seconds old.

        It has :attr:`Queue.ahead` if somebody watches, unless no job waited for others at last.
        """
        ahead = self.watches and self._some_wait
        queue = self.cached(Queue.query, user, ahead, least=_OF_ALL_USERS if ahead else 0.0)
        self._some_wait = any(job.waits_for_others for job in queue.jobs.values())
        return queue

    def cached(self, query: Callable[..., _T], *arguments: Hashable, least: float = 0.0) -> _T:
        """Return the result of a query with these arguments, which may be some seconds old.

        Args:
            least: seconds between two queries at least.
        """
        key = (query, *arguments)
        with self._lock:
            now = time.monotonic()
            interval = max(min((now - self._since) / 10, _LONGEST_INTERVAL), self.interval, least)
            if key not in self._cache or now - self._cache[key][0] > interval:
                result = query(*arguments)
                # The interval starts after the query, which is slow if the scheduler is.
                self._cache[key] = (time.monotonic(), result)
            cached: _T = self._cache[key][1]
            return cached


def slurm_tasks(
    run: RunDirectory, number: int, heartbeats: Mapping[str, Beat], scheduler: Scheduler
) -> list[TaskStatus]:
    """Return the status of each task of a submission to SLURM."""
    intent = run.intent(number)
    names = [task_name(number, index) for index in range(len(intent["slices"]))]
    ended = run.ended(number)
    signs = {name: _Signs(run, name, heartbeats.get(name, {}), scheduler) for name in names}
    resolved = {name: _state_from_heartbeat(signs[name]) for name in names}
    queue = Queue()
    if None in resolved.values():
        scheduler.expect(run, number, len(_recorded_jobs(run, number)))
        queue = scheduler.queue(intent["user"]).named(_job_names(intent))
        _record_found_jobs(run, number, queue, scheduler)
    ids = {name: str(job["id"]) for name, job in run.task_jobs(number).items()}
    for found in _unrecorded_jobs(run, number, queue):  # another user's, who alone may record them
        for place in range(found["count"]):
            ids[task_name(number, int(found["first"]) + place)] = f"{found['id']}_{place}"
    unresolved = {ids[name] for name in names if resolved[name] is None and name in ids}
    unnamed = any(resolved[name] is None and name not in ids for name in names)
    jobs = _job_states(unresolved, queue, intent, scheduler, unrecorded=unnamed)
    jobs = _with_places(jobs, queue.ahead)
    several = intent.get("workers", 1) > 1
    submitting = len(ids) < len(names) and _is_submitting(run, scheduler)
    tasks = []
    for index, name in enumerate(names):
        beat: Mapping[str, Any] = heartbeats.get(name, {})
        id = ids.get(name)
        job = jobs.states.get(id or "")
        state, why = resolved[name] or _resolve_state(
            signs[name], job, id, jobs.error, submitting, ended, several
        )
        log, job_log = _logs(run, number, name, id)
        lasting = state == "unknown" and jobs.lasting
        task = TaskStatus(name, state, beat, log, why, lasting=lasting)
        if several:
            task = replace(task, job=id, array_task=index // intent["workers"])
        tasks.append(_explained(task, job, job_log) if state == "crashed" else task)
    return tasks


def _logs(run: RunDirectory, number: int, name: str, id: str | None) -> tuple[Path | None, ...]:
    """Return the log of a worker, which is that of its job until it has one, and its job's."""
    if id is None:
        return None, None
    own, of_job = run.worker_log(number, name, id), run.log(number, id)
    return (own if own == of_job or own.exists() else of_job), of_job


class _Jobs(NamedTuple):
    """The states of jobs by id, and why some may be missing; empty if none is.

    ``lasting``: whether another query on this machine would give no others.
    """

    states: Mapping[str, JobState]
    error: str = ""
    lasting: bool = False


def _job_states(
    jobs: Collection[str],
    queue: Queue,
    intent: Mapping[str, Any],
    scheduler: Scheduler,
    *,
    unrecorded: bool,
) -> _Jobs:
    """Return the states of jobs.

    Args:
        unrecorded: whether there may be more, whose ids are not recorded.
    """
    gone = set(jobs) - set(queue.jobs)
    if queue.error:
        return _Jobs(queue.jobs, queue.error, lasting=not installed())
    if not gone and not (unrecorded and intent["user"] != os.getuid()):
        return _Jobs(queue.jobs)
    error, lasting = _unreachable_reason(intent, partial(scheduler.cached, _cluster))
    if error:
        return _Jobs(queue.jobs, error, lasting)
    if not gone:
        return _Jobs(queue.jobs)
    arrays = tuple(sorted({job.partition("_")[0] for job in gone}))
    created, names = float(intent["created"]), _job_names(intent)
    records = scheduler.cached(sacct_records, arrays, created, names)
    # Accounting may lag behind: a job that has left the queue does not run any more.
    return _Jobs(queue.jobs | {id: job for id, job in records.items() if not job.alive})


def _with_places(jobs: _Jobs, ahead: Mapping[str, int]) -> _Jobs:
    """Return the states of jobs; those that wait for others name how many come before them."""
    states = dict(jobs.states)
    for id, job in jobs.states.items():
        if job.waits_for_others and (before := ahead.get(id.partition("_")[0])):
            reason = f"{job.reason}, behind {counted(before, 'job')} of higher priority"
            states[id] = replace(job, reason=reason)
    return jobs._replace(states=states)


def _explained(task: TaskStatus, job: JobState | None, job_log: Path | None) -> TaskStatus:
    """Return a crashed task with a more specific reason than SLURM's state, if there is one.

    Args:
        job_log: where SLURM's own messages are.
    """
    ran = job is not None and job.state in ("FAILED", "COMPLETED")
    if ran and not task.heartbeat and task.log is not None and not task.log.exists():
        hint = "its node cannot see the run's folder, or cannot write there"
        return replace(task, why=f"{hint} (mlpsubmit doctor checks it); {task.why}")
    reported = task.heartbeat.get("state") == "crashed"  # a worker that ended alone
    lines = [] if reported and job_log != task.log else replace(task, log=job_log).last_lines()
    kill = memory_kill(job, lines)
    return task if kill is None else replace(task, why=kill, memory_kill=True)


@dataclass(frozen=True)
class _Signs:
    """The heartbeat of a task, and whether it is recent by the clock of its file system."""

    run: RunDirectory
    task: str
    beat: Mapping[str, Any]
    scheduler: Scheduler

    def trains(self, seconds: float | None = None) -> bool:
        """Return whether it is from training, and certainly not older than some seconds.

        Args:
            seconds: three intervals between heartbeats by default.
        """
        if self.beat.get("state") not in ("starting", "training"):
            return False
        limit = seconds or three_intervals(self.beat)
        return self.scheduler.watch.is_moving(self.run.heartbeat(self.task), limit) is True


def _state_from_heartbeat(signs: _Signs) -> tuple[str, str] | None:
    """Return the state of a task and the reason for it, if its heartbeat decides; else None."""
    state = signs.beat.get("state")
    if state == "done":
        return "done", ""
    if state == "crashed":
        return "crashed", str(signs.beat.get("error", ""))
    return ("running", "") if not signs.scheduler.exact and signs.trains() else None


def _resolve_state(
    signs: _Signs,
    job: JobState | None,
    id: str | None,
    error: str,
    submitting: bool,
    ended: str | None,
    several: bool,
) -> tuple[str, str]:
    """Return the state of a task that its heartbeat does not decide, and the reason for it."""
    beat, stopped = signs.beat, signs.beat.get("state") == "interrupted"
    if stopped and ended is not None:
        return "interrupted", ended
    if job is not None and job.alive and not job.pending and several and stopped:
        return "waiting", "saved; it goes on when its task is started again"
    if job is not None and job.alive:
        again = " again" if beat else ""
        queued = f"queued{again}: {job.pending_reason}"
        return ("waiting", queued) if job.pending else ("running", "")
    if job is not None and job.state == "COMPLETED" and signs.trains(SEEN_LATE_SECONDS):
        return "running", "its final heartbeat is not visible yet"
    if job is not None:
        if job.state == "CANCELLED" or (job.state == "COMPLETED" and (stopped or ended)):
            return "interrupted", "" if stopped else ended or "cancelled"
        # Of several workers, one that fails does not end the others, which have saved.
        return "interrupted" if several and stopped else "crashed", f"SLURM reports {job}"
    if error and signs.trains():
        return "running", ""
    if error:
        return "unknown", f"the scheduler does not answer: {error}"
    if id is None and submitting:
        return "waiting", "it is being submitted"
    if stopped or ended is not None:
        return "interrupted", ended or ""
    if id is None and not beat:
        return "crashed", "its launch ended before the cluster had its job"
    return "crashed", "its job has left the queue, and the cluster has no accounting record of why"


def _unreachable_reason(
    intent: Mapping[str, Any], cluster: Callable[[], tuple[str | None, bool, str]]
) -> tuple[str, bool]:
    """Return why this machine's scheduler may not list the jobs of a run; empty if it must.

    Also whether it never will.

    Args:
        cluster: is called if need be; see :func:`_cluster`.
    """
    here, hides, error = cluster()
    if error:
        return error, False
    if here != intent["cluster"]:
        there = intent["cluster"]
        return f"the run is on the cluster {there}, and this machine belongs to {here}", True
    if intent["user"] != os.getuid() and hides:
        return (
            f"its jobs are those of {user_name(intent['user'])}, and this cluster hides other "
            "users' jobs (PrivateData)",
            True,
        )
    return "", False


def _cluster() -> tuple[str | None, bool, str]:
    """Return this machine's cluster, whether it hides others' jobs, and why that is unknown."""
    try:
        found = settings()
    except SlurmUnavailable as error:
        return None, True, str(error)
    hidden = found.get("PrivateData", "jobs").replace(" ", "").split(",")
    return found.get("ClusterName"), "jobs" in hidden or "all" in hidden, ""


def _is_submitting(run: RunDirectory, scheduler: Scheduler) -> bool:
    """Return whether a launch or resume, or an sbatch that outlived it, holds the run's lock."""
    if scheduler.exact:
        return False
    try:
        with files.locked(run.path / run_directory.PLAN, wait=0):
            return False
    except BlockingIOError:
        return True
    except (OSError, RunError):
        return False  # a folder that this user may not write, or that has no locks


def _record_found_jobs(run: RunDirectory, number: int, queue: Queue, scheduler: Scheduler) -> None:
    """Add to jobs.json the queued jobs that it lacks because their launch died in between."""
    if not _unrecorded_jobs(run, number, queue):
        return
    lock = files.locked(run.path / run_directory.PLAN, wait=0)
    with (
        contextlib.suppress(OSError, RunError),
        contextlib.nullcontext() if scheduler.exact else lock,
    ):
        jobs = [*_recorded_jobs(run, number), *_unrecorded_jobs(run, number, queue)]
        jobs.sort(key=lambda job: int(job["first"]))
        files.publish_json(run.submission(number) / run_directory.JOBS, {"jobs": jobs})


def _recorded_jobs(run: RunDirectory, number: int) -> list[JobRecord]:
    return (run.jobs(number) or Jobs(jobs=[]))["jobs"]


def _unrecorded_jobs(
    run: RunDirectory, number: int, queue: Queue
) -> list[JobRecord] | list[dict[str, Any]]:
    """Return the queued arrays that jobs.json lacks, in its format."""
    have = {job["first"] for job in _recorded_jobs(run, number)}
    return [
        Job(queue.ids[array["name"]][-1], array["first"], array["count"], array=True).to_json()
        for array in run.intent(number)["arrays"]
        if array["first"] not in have and queue.ids.get(array["name"])
    ]


def slurm_retry(run: RunDirectory, number: int, scheduler: Scheduler) -> JobState | None:
    """Return the job that will resume, or has tried to resume, what is missing; else None."""
    intent = run.intent(number)
    if not intent["retry"] or run.ended(number) is not None:
        return None
    queue = scheduler.queue(intent["user"])
    if queue.ids.get(intent["retry"]):
        return queue.jobs[queue.ids[intent["retry"]][-1]]
    if run.followed(earlier := min(run.chain(number))) == number != earlier:
        before = [run.intent(one)["retry"] or "" for one in run.chain(number)[1:]]
        found = [queue.jobs[id] for name in before for id in queue.ids.get(name, ())]
        if alive := next((job for job in found if job.alive), None):
            return alive
    recorded = tuple(job["id"] for job in _recorded_jobs(run, number) if not job["count"])
    if not recorded or queue.error:
        return None
    created, names = float(intent["created"]), _job_names(intent)
    job = scheduler.cached(sacct_records, recorded, created, names).get(recorded[0])
    return None if job is None or job.alive else job  # accounting may lag behind


def _job_names(intent: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the jobs of a submission."""
    retry = [intent["retry"]] if intent["retry"] else []
    return (*(array["name"] for array in intent["arrays"]), *retry)


def in_queue(run: RunDirectory, scheduler: Scheduler) -> str:
    """Return which job of any submission of a run is in the queue; empty if none is.

    Whatever heartbeats say: a retry job may wait although all is done, and a job that has ended
    may have been requeued. If the scheduler of this machine does not answer, that is returned.
    """
    intents = filter(None, map(run.readable_intent, run.submissions()))
    for intent in intents:
        if intent["executor"] != "slurm" or not scheduler.cached(configured):
            continue
        queue = scheduler.queue(intent["user"]).named(_job_names(intent))
        if queue.error:
            return f"may have jobs in the queue (the scheduler does not answer: {queue.error})"
        for job in queue.jobs.values():
            if job.alive:
                return f"has job {job.id} in the queue ({job.state})"
    return ""


class LiveJobs(NamedTuple):
    """The jobs of a submission that may still run.

    Attributes:
        ids: of the jobs and arrays, as arguments of scancel.
        tasks: how many tasks of the arrays are queued or running.
    """

    ids: list[str]
    tasks: int


def live_jobs(run: RunDirectory, number: int) -> LiveJobs:
    """Return the jobs of a submission that may still run, by one query for their names.

    A cluster that has begun to count again may have given a recorded id to another job.

    Raises:
        SlurmUnavailable: if this machine's scheduler may not list them all.
    """
    intent = run.intent(number)
    # A job that follows an earlier submission may follow this one, too.
    intents = filter(None, map(run.readable_intent, run.chain(number)))
    names = [name for one in intents for name in _job_names(one)]
    queue = Queue.query(intent["user"]).named(names)
    if error := queue.error or _unreachable_reason(intent, _cluster)[0]:
        raise SlurmUnavailable(error)
    ids = set[str]().union(*queue.ids.values())
    # scancel takes them as arguments, among which an option would select other jobs.
    valid = sorted((id for id in ids if id.isascii() and id.isdecimal()), key=int)
    # A task that has reported its end may not have left its node yet.
    beats = run.heartbeats(number)
    open_ = {
        str(job["id"])
        for name, job in run.task_jobs(number).items()
        if name not in beats or beats[name].get("state") not in ("done", "crashed")
    }
    over = {str(job["id"]) for job in run.task_jobs(number).values()} - open_
    alive = {id for id, job in queue.jobs.items() if job.alive and "_" in id}
    return LiveJobs(valid, len(alive - over))
