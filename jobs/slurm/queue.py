"""The states of jobs: from squeue while they are in the queue, from sacct afterwards."""

from __future__ import annotations

import bisect
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mlpsubmit.jobs.process_end import signal_meaning
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, run_checked

__all__ = ["JobState", "Queue", "array_indices", "sacct_records"]

#: States of jobs that have ended for good; in any other state a job may still run.
_ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"}
    | {"PREEMPTED", "REVOKED", "TIMEOUT"}
)

_SEPARATOR = "|"
#: Array job, index in it, user id, state, nodes, partition, priority, reason, and last the name,
#: which may contain separators.
_SQUEUE = "%F|%K|%U|%T|%N|%P|%Q|%r|%j"
_SACCT = ("JobID", "State", "ExitCode", "MaxRSS", "ReqMem", "Timelimit", "NodeList")

_DAY = 24 * 3600


@dataclass(frozen=True)
class JobState:
    """The state of one job.

    Attributes:
        id: the job id, followed by the array index if it is in an array.
        state: SLURM's state, such as ``PENDING``.
        reason: why it is pending, or why it ended.
        node: where it runs or ran.
        memory: how much it used and requested, if it was killed for that.
    """

    id: str
    state: str
    reason: str = ""
    node: str = ""
    memory: str = ""

    @property
    def alive(self) -> bool:
        """Whether it may still run."""
        return self.state not in _ENDED

    @property
    def pending(self) -> bool:
        """Whether it is queued, for the first time or again."""
        return self.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")

    @property
    def waits_for_others(self) -> bool:
        """Whether it is pending because other jobs come before it."""
        return self.reason in ("Priority", "Resources")

    @property
    def pending_reason(self) -> str:
        """Why it is queued, for people."""
        return self.reason or "no reason given yet"

    def __str__(self) -> str:
        details = self.memory or self.reason
        text = f"{self.state} ({details})" if details else self.state
        return f"{text} on {self.node}" if self.node and not self.pending else text


@dataclass
class Queue:
    """A snapshot of the queue: the jobs of one user.

    Attributes:
        error: why the query failed; empty if it succeeded.
        ids: by name, the ids of the jobs or arrays with that name, oldest first.
        jobs: by job id, for tasks of an array followed by the index.
        ahead: by the id of a pending job or array, how many pending jobs of the same partition have
            a higher priority, of all users whose jobs the cluster shows; an array counts as one.
            Empty unless the query was for this.
    """

    error: str = ""
    ids: dict[str, list[str]] = field(default_factory=dict)
    jobs: dict[str, JobState] = field(default_factory=dict)
    ahead: dict[str, int] = field(default_factory=dict)

    @classmethod
    def query(cls, user: int, ahead: bool = False) -> Queue:
        """Run squeue once; a failure is recorded in ``error``.

        The jobs of one user are a smaller query for the controller than all jobs, among which
        squeue itself would look for names or arrays.

        Args:
            user: whose jobs, by the user id.
            ahead: whether to query the jobs of all users, and count those that come before.
        """
        # Without --all it leaves out jobs in partitions that are hidden, or closed to this user.
        command = ("squeue", "--all", "--noheader", "--states=all", f"--format={_SQUEUE}")
        try:
            text = run_checked(*command, *([] if ahead else [f"--user={user}"]))
        except SlurmUnavailable as error:
            return cls(str(error))
        queue, ids, pending = cls(), dict[str, set[str]](), dict[str, tuple[str, int]]()
        rows = (line.strip().split(_SEPARATOR, 8) for line in text.splitlines())
        for array, indices, owner, state, node, partition, priority, reason, name in (
            row for row in rows if len(row) == 9
        ):
            if ahead and state == "PENDING" and priority.isdecimal():
                pending[array] = partition, int(priority)
            if owner != str(user):
                continue
            ids.setdefault(name, set()).add(array)
            for job in _job_ids(array, indices):
                queue.jobs[job] = JobState(job, state, "" if reason == "None" else reason, node)
        queue.ids = {name: sorted(own, key=int) for name, own in ids.items()}
        queue.ahead = _ahead(pending)
        return queue

    def named(self, names: Collection[str]) -> Queue:
        """Return those of the jobs that have some names.

        Others may have the ids that they had, where a cluster has begun to count again.
        """
        ids = {name: own for name, own in self.ids.items() if name in names}
        arrays = {array for own in ids.values() for array in own}
        jobs = {id: job for id, job in self.jobs.items() if id.partition("_")[0] in arrays}
        return replace(self, ids=ids, jobs=jobs)


def _ahead(pending: Mapping[str, tuple[str, int]]) -> dict[str, int]:
    """Return how many jobs come before each, from the partition and the priority of all."""
    priorities: dict[str, list[int]] = {}
    for partition, priority in pending.values():
        priorities.setdefault(partition, []).append(priority)
    for sorted_ in priorities.values():
        sorted_.sort()
    return {
        job: len(priorities[partition]) - bisect.bisect_right(priorities[partition], priority)
        for job, (partition, priority) in pending.items()
    }


def sacct_records(arrays: Sequence[str], since: float, names: Sequence[str]) -> dict[str, JobState]:
    """Run sacct once; return the states by job id, for tasks of an array followed by the index.

    Without accounting, or if the query fails, there are none.

    Args:
        arrays: ids of jobs or arrays.
        since: when the first of them was submitted, by this machine's clock.
        names: of the jobs; others have the same ids where a cluster has begun to count again.
    """
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since - _DAY))
    command = ["sacct", "--noheader", "--parsable2", f"--format={','.join(_SACCT)}"]
    command += [f"--starttime={start}", f"--jobs={','.join(arrays)}", f"--name={','.join(names)}"]
    try:
        rows = [line.split(_SEPARATOR) for line in run_checked(*command).splitlines()]
    except SlurmUnavailable:
        return {}
    rows = [row for row in rows if len(row) == len(_SACCT)]
    peak = _peak_memory(rows)
    jobs = {}
    for job, state, code, _, requested, limit, node in rows:
        if "." in job:
            continue  # a step of a job
        name, _, by = state.partition(" ")  # "CANCELLED by 1000"
        reason, memory = by or ("" if code == "0:0" else _exit_reason(code)), ""
        if name == "TIMEOUT":
            reason = f"its time limit was {limit}"
        if name == "OUT_OF_MEMORY":
            used, limit = peak.get(job, 0) >> 10, requested.rstrip("nc")
            memory = f"it used {used}M at least and had requested {limit}"
        array, _, indices = job.partition("_")
        for id in _job_ids(array, indices):
            jobs[id] = JobState(id, name, reason, node, memory)
    return jobs


def _exit_reason(code: str) -> str:
    """Return an exit code as SLURM writes it, ``code:signal``, and what its signal means."""
    exited, _, killed = code.partition(":")
    number = int(killed or 0) or max(0, int(exited) - 128)  # a shell's way to report a signal
    return f"exit code {code}" + (f": {signal_meaning(number)}" if 0 < number < 65 else "")


def _job_ids(array: str, indices: str) -> Iterator[str]:
    """Yield the id of a job, or of each task of an array that SLURM prints on one line."""
    if not re.match(r"\[?\d", indices):
        yield array
    for index in array_indices(indices):
        yield f"{array}_{index}"


def array_indices(text: str) -> Iterator[int]:
    """Yield the indices that SLURM writes as ``[0-3,7%2]`` or ``5``."""
    for part in re.findall(r"(?<![%\d])(\d+)(?:-(\d+)(?::(\d+))?)?", text):
        first, last, step = part
        yield from range(int(first), int(last or first) + 1, int(step or 1))


def _peak_memory(rows: Sequence[Sequence[str]]) -> dict[str, int]:
    """Return the largest resident set of any step of each job, in KiB."""
    peak: dict[str, int] = {}
    for step, _, _, resident, *_ in rows:
        job = step.partition(".")[0]
        peak[job] = max(peak.get(job, 0), _kib(resident))
    return peak


def _kib(text: str) -> int:
    """Return a size as sacct writes it, such as ``2104K`` or ``1.50G``, in KiB."""
    found = re.fullmatch(r"([\d.]+)([KMGTP]?)", text)
    if not found:
        return 0
    power = " KMGTP".index(found[2] or " ")
    return int(float(found[1]) * 1024.0 ** (power - 1))
