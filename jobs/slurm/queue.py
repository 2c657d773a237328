"""What the scheduler says of jobs: its queue, and its accounts of those that have left it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, answered

__all__ = ["Accounts", "JobState", "Queue", "indices"]

#: States of jobs that have ended for good; whatever else SLURM says, the job may still run.
_ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"}
    | {"PREEMPTED", "REVOKED", "TIMEOUT"}
)

_SEPARATOR = "|"
#: Array job, index in it, state, nodes, reason, and last the name, which may hold anything.
_SQUEUE = _SEPARATOR.join(("%F", "%K", "%T", "%N", "%r", "%j"))
_SACCT = ("JobID", "State", "ExitCode", "MaxRSS", "ReqMem", "Timelimit", "NodeList")

_DAY = 24 * 3600


@dataclass(frozen=True)
class JobState:
    """What SLURM says of one job.

    Attributes:
        id: with the index in its array, if it is in one.
        state: in SLURM's words, such as ``PENDING``.
        reason: why it waits, or why it ended.
        node: where it runs or ran.
        memory: of a job killed for its memory, what it used and what it had asked for.
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
        """Whether it waits, for the first time or again."""
        return self.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")

    def __str__(self) -> str:
        reason = self.reason if self.reason not in ("", "None", "0:0") else ""
        told = self.memory or reason
        text = f"{self.state} ({told})" if told else self.state
        return f"{text} on {self.node}" if self.node and not self.pending else text


@dataclass
class Queue:
    """One look at the queue, for the jobs of some names.

    Attributes:
        silence: why there was no answer; empty where there was one.
        ids: by name, the ids of the jobs or arrays that have it, oldest first.
        jobs: by id, with the index of an array's task behind it.
    """

    silence: str = ""
    ids: dict[str, list[str]] = field(default_factory=dict)
    jobs: dict[str, JobState] = field(default_factory=dict)

    @classmethod
    def look(cls, names: Iterable[str]) -> Queue:
        """Ask once; the scheduler's silence is an answer too."""
        wanted = sorted(set(names))
        queue = cls()
        command = ("squeue", "--noheader", "--states=all", f"--format={_SQUEUE}")
        try:
            text = answered(*command, f"--name={','.join(wanted)}")
        except SlurmUnavailable as error:
            queue.silence = str(error)
            return queue
        for line in text.splitlines():
            if line.count(_SEPARATOR) >= 5:
                queue._add(line)
        return queue

    def _add(self, line: str) -> None:
        array, places, state, node, reason, name = line.strip().split(_SEPARATOR, 5)
        own = self.ids.setdefault(name, [])
        if array not in own:
            own.append(array)
            own.sort(key=int)
        for job in _job_ids(array, places):
            self.jobs[job] = JobState(job, state, reason, node)


@dataclass
class Accounts:
    """What the accounts hold of jobs that have left the queue."""

    jobs: dict[str, JobState] = field(default_factory=dict)

    @classmethod
    def look(cls, arrays: Sequence[str], since: float) -> Accounts:
        """Ask once; a cluster without accounting knows of nothing.

        Args:
            arrays: ids of jobs or arrays.
            since: when the first of them was submitted, by the clock of this machine.
        """
        accounts = cls()
        start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since - _DAY))
        command = ["sacct", "--noheader", "--parsable2", f"--format={','.join(_SACCT)}"]
        command += [f"--starttime={start}", f"--jobs={','.join(arrays)}"]
        try:
            rows = [line.split(_SEPARATOR) for line in answered(*command).splitlines()]
        except SlurmUnavailable:
            return accounts
        rows = [row for row in rows if len(row) == len(_SACCT)]
        used = _used(rows)
        for job, state, code, _, asked, limit, node in rows:
            if "." not in job:
                accounts._add(job, state, code, used.get(job, 0), asked, limit, node)
        return accounts

    def _add(
        self, job: str, state: str, code: str, used: int, asked: str, limit: str, node: str
    ) -> None:
        word, _, by = state.partition(" ")
        reason = by if by else ("" if code == "0:0" else f"exit code {code}")
        if word == "TIMEOUT":
            reason = f"its time limit was {limit}"
        memory = f"it used {used >> 10}M at least and had asked for {asked.rstrip('nc')}"
        array, _, places = job.partition("_")
        for own in _job_ids(array, places):
            self.jobs[own] = JobState(
                own, word, reason, node, memory if word == "OUT_OF_MEMORY" else ""
            )


def _job_ids(array: str, places: str) -> Iterator[str]:
    """Yield the id of a job, or of each task of an array that SLURM shows in one line."""
    if not re.match(r"\[?\d", places):
        yield array
    for index in indices(places):
        yield f"{array}_{index}"


def indices(places: str) -> Iterator[int]:
    """Yield the indices that SLURM writes as ``[0-3,7%2]`` or ``5``."""
    for part in re.findall(r"(?<![%\d])(\d+)(?:-(\d+)(?::(\d+))?)?", places):
        first, last, step = part
        yield from range(int(first), int(last or first) + 1, int(step or 1))


def _used(rows: Sequence[Sequence[str]]) -> dict[str, int]:
    """Return the largest resident set, in KiB, that any step of each job had."""
    used: dict[str, int] = {}
    for step, _, _, resident, *_ in rows:
        job = step.partition(".")[0]
        used[job] = max(used.get(job, 0), _kib(resident))
    return used


def _kib(text: str) -> int:
    """Return a size of sacct's, such as ``2104K`` or ``1.50G``, in KiB."""
    found = re.fullmatch(r"([\d.]+)([KMGTP]?)", text)
    if not found:
        return 0
    power = " KMGTP".index(found[2] or " ")
    return int(float(found[1]) * 1024.0 ** (power - 1))
