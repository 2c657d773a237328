"""How the tasks of a submission to SLURM are doing: from their files, and what those can't tell
from the scheduler."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mlpsubmit import files
from mlpsubmit.errors import RunError
from mlpsubmit.jobs.heartbeat import is_fresh
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, setting
from mlpsubmit.jobs.slurm.memory_kills import memory_kill
from mlpsubmit.jobs.slurm.queue import Accounts, JobState, Queue
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.run_directory import RunDirectory, task_name
from mlpsubmit.jobs.task_status import TaskStatus

__all__ = ["Scheduler", "job_ids", "slurm_retry", "slurm_tasks"]

#: Seconds between two questions to the scheduler: at first, and at most.
_SHORTEST_REST = 2.0
_LONGEST_REST = 15.0

#: How long another machine may see a file of a shared folder as it was.
SEEN_LATE_SECONDS = 90.0


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

    def stranger(self, intent: Mapping[str, Any]) -> str:
        """Return why this scheduler need not know of a submission's jobs; empty where it must."""
        return self._recent(("stranger",), lambda: _stranger(intent))  # type: ignore[no-any-return]

    def _recent(self, key: tuple[str, ...], look: Any) -> Any:
        now = time.monotonic()
        rest = min(max((now - self._since) / 10, _SHORTEST_REST), _LONGEST_REST)
        if key not in self._asked or now - self._asked[key][0] > rest:
            answer = look()  # a silent scheduler takes its time over it
            self._asked[key] = (time.monotonic(), answer)
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
    ids = {name: str(job["id"]) for name, job in run.task_jobs(number).items()}
    states = dict(queue.jobs)
    lost = {ids[name] for name in names if told[name] is None and name in ids} - set(states)
    silence = queue.silence or (scheduler.stranger(intent) if lost else "")
    if lost and not silence:
        arrays = sorted({job.partition("_")[0] for job in lost})
        accounts = scheduler.accounts(arrays, float(intent["created"])).jobs
        # Accounts may lag behind; a job that has left the queue does not live.
        states |= {job: state for job, state in accounts.items() if not state.alive}
    submitting = len(ids) < len(names) and _submitting(run, scheduler)
    tasks = []
    for name in names:
        beat: dict[str, Any] = heartbeats.get(name, {})
        job = ids.get(name)
        state, why = told[name] or _judged(
            beat, states.get(job or ""), job, silence, submitting, ended
        )
        task = TaskStatus(name, state, beat, None if job is None else run.log(number, job), why)
        tasks.append(_explained(task, states.get(job or "")) if state == "crashed" else task)
    return tasks


def _explained(task: TaskStatus, job: JobState | None) -> TaskStatus:
    """Return a crashed task that says more where more is known than SLURM's word for it."""
    ran = job is not None and job.state in ("FAILED", "COMPLETED")
    if ran and not task.heartbeat and task.log is not None and not task.log.exists():
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
    stopped = beat.get("state") == "interrupted"
    if stopped and ended is not None:
        return "interrupted", ended
    if job is not None and job.alive:
        return ("waiting", _queued(job, beat)) if job.pending else ("running", "")
    if job is not None and job.state == "COMPLETED" and _last_word_is_due(beat):
        return "running", "its last word is on its way"
    if job is not None:
        if job.state == "CANCELLED" or (job.state == "COMPLETED" and (stopped or ended)):
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
    if id is None and not beat:
        return "crashed", "its launch ended before the cluster had its job"
    return "crashed", "its job has left the queue, and the cluster keeps no account of why"


def _last_word_is_due(beat: Mapping[str, Any]) -> bool:
    """Tell whether a task that ended well seems to train still: shared folders are seen late."""
    age = abs(time.time() - float(beat.get("updated", 0)))
    return beat.get("state") in ("starting", "training") and age < SEEN_LATE_SECONDS


def _queued(job: JobState, beat: Mapping[str, Any]) -> str:
    again = " again" if beat else ""
    reason = job.reason if job.reason not in ("", "None") else "no reason given yet"
    return f"queued{again}: {reason}"


def _job_names(intent: Mapping[str, Any]) -> list[str]:
    retry = [intent["retry"]] if intent["retry"] else []
    return [array["name"] for array in intent["arrays"]] + retry


def _stranger(intent: Mapping[str, Any]) -> str:
    """Return why the scheduler of this machine need not know of a submission's jobs."""
    if intent["user"] != os.getuid():
        return "the run is another user's, whose jobs it may hide"
    try:
        here = setting("ClusterName")
    except SlurmUnavailable as error:
        return str(error)
    if here != intent["cluster"]:
        return f"the run is on the cluster {intent['cluster']}, and this machine belongs to {here}"
    return ""


def _submitting(run: RunDirectory, scheduler: Scheduler) -> bool:
    """Tell whether a launch or resume, or an sbatch that it left behind, is at work."""
    if scheduler.exact:
        return False
    try:
        with files.locked(run.path / run_directory.PLAN, wait=0):
            return False
    except BlockingIOError:
        return True
    except (OSError, RunError):
        return False  # a folder that this user may not write, or that has no locks


def _adopt(run: RunDirectory, number: int, queue: Queue, scheduler: Scheduler) -> None:
    """Write down jobs that the cluster has and jobs.json lacks: their launch died in between."""
    if not _unknown(run, number, queue):
        return
    lock = files.locked(run.path / run_directory.PLAN, wait=0)
    with (
        contextlib.suppress(OSError, RunError),
        contextlib.nullcontext() if scheduler.exact else lock,
    ):
        jobs = [*(run.jobs(number) or {"jobs": []})["jobs"], *_unknown(run, number, queue)]
        jobs.sort(key=lambda job: int(job["first"]))
        files.publish_json(run.submission(number) / run_directory.JOBS, {"jobs": jobs})


def _unknown(run: RunDirectory, number: int, queue: Queue) -> list[dict[str, Any]]:
    """Return the jobs of arrays that are queued and of which jobs.json says nothing."""
    have = {job["first"] for job in (run.jobs(number) or {"jobs": []})["jobs"]}
    here = {"host": socket.gethostname(), "pid": None, "process_start": None}
    return [
        {
            "id": queue.ids[array["name"]][-1],
            "first": array["first"],
            "count": array["count"],
            "array": True,
            "updated": time.time(),
            **here,
        }
        for array in run.intent(number)["arrays"]
        if array["first"] not in have and queue.ids.get(array["name"])
    ]


def slurm_retry(run: RunDirectory, number: int, scheduler: Scheduler) -> JobState | None:
    """Return the job that is to resume what is missing, or has tried to; None for none."""
    intent = run.intent(number)
    if not intent["retry"] or run.ended(number) is not None:
        return None
    queue = scheduler.queue(_job_names(intent))
    if queue.ids.get(intent["retry"]):
        return queue.jobs[queue.ids[intent["retry"]][-1]]
    known = [job["id"] for job in (run.jobs(number) or {"jobs": []})["jobs"] if not job["count"]]
    if not known or queue.silence:
        return None
    state = scheduler.accounts(known, float(intent["created"])).jobs.get(known[0])
    return None if state is None or state.alive else state  # accounts may lag behind


def job_ids(run: RunDirectory, number: int) -> list[str]:
    """Return the ids of all jobs of a submission that may still run.

    Raises:
        SlurmUnavailable: where the scheduler of this machine does not know them all.
    """
    intent = run.intent(number)
    queue = Queue.look(_job_names(intent))
    if silence := queue.silence or _stranger(intent):
        raise SlurmUnavailable(silence)
    known = {str(job["id"]) for job in (run.jobs(number) or {"jobs": []})["jobs"]}
    return sorted(known.union(*queue.ids.values()), key=int)
