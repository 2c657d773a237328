"""What of a cluster works, and what it has: the part of ``mlpsubmit doctor`` about SLURM."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mlpsubmit.errors import UserError
from mlpsubmit.jobs.slurm import filesystems
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, answered, settings
from mlpsubmit.jobs.slurm.nodes import gpus_of, misfits
from mlpsubmit.jobs.slurm.probe import Check, Finding, tried_out
from mlpsubmit.jobs.slurm.sbatch import Sbatch

if TYPE_CHECKING:
    from mlpsubmit.slurm_templates import SlurmRequest, Template

__all__ = ["Check", "Cluster", "Finding", "partitions", "start"]

#: Partition, up or down, time limit, nodes, cores, memory, GPUs, preemption, state, features.
_SINFO = "%P|%a|%l|%D|%c|%m|%G|%M|%T|%f"


class Cluster:
    """The checks of the cluster that this machine belongs to.

    Args:
        slurm: which template to try, with changes.
        folder: where runs are kept, or the nearest folder above that is there already.
        seconds: how long to wait for a job; 0 for submitting none.
    """

    def __init__(self, slurm: SlurmRequest, folder: Path, seconds: float) -> None:
        self._slurm = slurm
        self._folder = folder
        self._seconds = seconds
        self._settings: Mapping[str, str] = {}
        self._template: Template | None = None

    def checks(self) -> Iterator[tuple[str, Check]]:
        """Yield every check by its name; those that an earlier one has made pointless are left out.

        A controller that is silent takes seconds for each question that it does not answer.
        """
        yield "slurm", self._controller
        yield "sacct", _accounting
        if not self._settings:
            return
        yield "squeue", _told(_queue)
        yield "limits", lambda: _limits(self._settings)
        yield "partitions", _told(_partitions)
        yield "template", _told(self._resolve)
        if self._template is not None:
            template = self._template
            yield "sbatch", _told(lambda: _sbatch(template, self._folder))
            yield "shared", lambda: _shared(self._folder, template.partition)
            yield "nodes", _told(lambda: self._nodes(template))

    def _controller(self) -> Finding:
        try:
            self._settings = settings()
        except SlurmUnavailable as error:
            return False, f"the controller does not answer, so that nothing can be run: {error}"
        name, release = (self._settings.get(key, "?") for key in ("ClusterName", "SLURM_VERSION"))
        return True, f"{release}, cluster {name}, its controller answers"

    def _resolve(self) -> Finding:
        """Find the template, and see whether any node has what it asks for, as a launch does."""
        self._template = self._slurm.resolve()
        errors = misfits(self._template)
        return not errors, "\n".join(
            [f"{self._template.name}, from {self._template.path}", *errors]
        )

    def _nodes(self, template: Template) -> Finding:
        if not self._seconds:
            return None, "no job was submitted to find out what nodes can see (--timeout 0)"
        return tried_out(self._folder, template, self._seconds)


def _told(check: Check) -> Check:
    """Return a check whose failure is a finding in its own words."""

    def telling() -> Finding:
        try:
            return check()
        except (SlurmUnavailable, UserError) as error:
            return False, str(error)

    return telling


# ---- what SLURM says ---------------------------------------------------------------------------


def _accounting() -> Finding:
    """Without accounts, nobody can say later why a job ended: a loss, but no fault."""
    try:
        answered("sacct", "--noheader", "--format=JobID", "--starttime=now-1minute")
    except SlurmUnavailable as error:
        return None, f"why a job was killed will not be known for long: {error}"
    return True, "works"


def _queue() -> Finding:
    rows = answered("squeue", "--noheader", f"--user={os.getuid()}", "--format=%i").splitlines()
    jobs = [row for row in rows if row[:1].isdigit()]  # without headlines
    return True, f"works; your jobs in it: {len(jobs)}"


def _limits(config: Mapping[str, str]) -> Finding:
    """Say what bounds the arrays, and how a task is ended."""
    largest = config.get("MaxArraySize", "?")
    preemption = config.get("PreemptType", "").partition("/")[2] or "none"
    how = f" ({config['PreemptMode']})" if preemption != "none" and "PreemptMode" in config else ""
    text = (
        f"job arrays of {largest} tasks at most (MaxArraySize), "
        f"{config.get('MaxJobCount', '?')} jobs in the queue (MaxJobCount)\n"
        f"a task is killed {config.get('KillWait', '?')} after it was told to end (KillWait)\n"
        f"preemption: {preemption}{how}"
    )
    return (False if largest == "0" else None), text


def _partitions() -> Finding:
    return None, partitions(answered("sinfo", "--noheader", "--exact", f"--format={_SINFO}"))


def partitions(shown: str) -> str:
    """Return a line for each kind of node in each partition, from the rows of ``sinfo``."""
    states: dict[tuple[str, ...], Counter[str]] = {}
    for row in shown.splitlines():
        if row.count("|") != _SINFO.count("|"):
            continue  # a headline
        name, up, limit, count, cores, memory, gres, preempted, state, features = row.split("|")
        kind = (name, up, limit, cores, memory, gres, preempted, features.strip())
        states.setdefault(kind, Counter())[state] += int(count)
    return (
        "\n".join(_partition(kind, counts) for kind, counts in states.items()) or "there are none"
    )


def _partition(kind: tuple[str, ...], states: Counter[str]) -> str:
    name, up, limit, cores, memory, gres, preempted, features = kind
    count = states.total()
    words = [
        name.rstrip("*") + (" (the default)" if name.endswith("*") else ""),
        up,
        "no time limit" if limit == "infinite" else f"time limit {limit}",
    ]
    nodes = ", ".join(f"{number} {state}" for state, number in sorted(states.items()) if number)
    has = [f"{cores} {'core' if cores == '1' else 'cores'}, {memory}M, {_gpus(gres)}"]
    has += [f"features {features}"] if features != "(null)" else []
    has += [f"preemption {preempted}"] if preempted not in ("OFF", "n/a", "") else []
    what = f"{_counted(count, 'node')} ({nodes}) of {'; '.join(has)}" if count else "no nodes"
    return f"{', '.join(words)}: {what}"


def _gpus(gres: str) -> str:
    """Return the GPUs of a node in words."""
    found = [f"{_counted(number, 'GPU')} {kind}".rstrip() for kind, number in gpus_of(gres)]
    return ", ".join(found) or "no GPU"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


# ---- what it would do, and does ----------------------------------------------------------------


def _sbatch(template: Template, folder: Path) -> Finding:
    """Let sbatch look at a task as a launch would submit it."""
    from mlpsubmit.jobs.slurm.arrays import Array
    from mlpsubmit.jobs.slurm.script import script
    from mlpsubmit.jobs.submission import Submission

    task = Submission(folder, "doctor", number=0, tasks=1)
    text = script(template, task, Array("mlpsubmit-doctor", first=0, count=1))
    told = Sbatch(template).check(text)
    if not told:
        return None, f"does not say beforehand whether it takes a task of {template.name}"
    return True, f"takes a task of the template {template.name}{start(told)}"


def start(told: str) -> str:
    """Return when and where ``sbatch --test-only`` says that a job could start."""
    found = re.search(r"to start at (\S+) using .* on nodes (\S+)", told)
    return f"; it could start at {found[1].replace('T', ' ')} on {found[2]}" if found else ""


def _shared(folder: Path, partition: str | None) -> Finding:
    if reason := filesystems.unusable(folder, partition):
        return False, reason
    return None, f"{folder}: nothing here says that nodes cannot see it"
