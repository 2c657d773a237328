"""The checks of a cluster in ``mlpsubmit doctor``."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlpsubmit.display.text import counted
from mlpsubmit.errors import UserError
from mlpsubmit.jobs.slurm import filesystems
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, run_checked, settings
from mlpsubmit.jobs.slurm.limits import Limits, read_limits
from mlpsubmit.jobs.slurm.nodes import gpus_of, nodes_of, resource_errors
from mlpsubmit.jobs.slurm.probe import Check, CheckResult, run_gpu_probe, run_probe
from mlpsubmit.jobs.slurm.sbatch import check
from mlpsubmit.jobs.slurm.task_command import program_errors
from mlpsubmit.jobs.slurm.task_resources import TaskResources, task_resources
from mlpsubmit.slurm_templates import SlurmRequest, Template

__all__ = ["cluster_checks", "expected_start", "partitions"]

#: Partition, up or down, time limit, nodes, cores, memory, GPUs, preemption, state, features.
_SINFO = "%P|%a|%l|%D|%c|%m|%G|%M|%T|%f"


def cluster_checks(
    slurm: SlurmRequest, folder: Path, seconds: float
) -> Iterator[tuple[str, Check]]:
    """Yield each check of this machine's cluster with its name.

    Checks that an earlier failure makes pointless are left out: if the controller is down, every
    query takes seconds to fail.

    Args:
        slurm: the template to check, with changes.
        folder: where runs are kept, or the nearest existing folder above.
        seconds: how long to wait for a job; with 0 no job is submitted.

    A check may raise SlurmUnavailable or UserError: then it has failed with that message.
    """
    config, down = {}, ""
    try:
        config = settings()
    except SlurmUnavailable as error:
        down = f"the controller does not answer, so nothing can be run: {error}"
    yield "slurm", lambda: (False, down) if down else _controller(config)
    yield "sacct", _accounting
    if down:
        return
    yield "squeue", _queue
    yield "limits", lambda: _limits(config)
    yield "partitions", _partitions
    try:
        template = slurm.resolve()
    except UserError as error:
        invalid = str(error)
        yield "template", lambda: (False, invalid)
        return
    try:
        task = task_resources(template, nodes_of(template.partition))
    except UserError as error:
        unfit = str(error)
        yield "template", lambda: (False, unfit)
        return
    yield "template", lambda: _resources(template, task)
    yield "room", lambda: _room(read_limits(task.request, config))
    yield "sbatch", lambda: _sbatch(task, folder)
    yield "shared", lambda: _shared(folder, template.partition)
    if seconds:
        yield "nodes", lambda: run_probe(folder, template, seconds)
        if template.gpu_count:
            yield "gpu", lambda: run_gpu_probe(folder, task.request, seconds)
    else:
        text = "no job was submitted to find out what nodes can see (--timeout 0)"
        yield "nodes", lambda: (None, text)


# ---- the cluster's resources and limits --------------------------------------------------------


def _controller(config: Mapping[str, str]) -> CheckResult:
    name, release = (config.get(key, "?") for key in ("ClusterName", "SLURM_VERSION"))
    return True, f"{release}, cluster {name}, its controller answers"


def _accounting() -> CheckResult:
    """Check sacct; without it, SLURM soon forgets why a job ended, which is no failure."""
    try:
        run_checked("sacct", "--noheader", "--format=JobID", "--starttime=now-1minute")
    except SlurmUnavailable as error:
        return None, f"the reason why a job was killed is not kept for long: {error}"
    return True, "works"


def _queue() -> CheckResult:
    rows = run_checked("squeue", "--noheader", f"--user={os.getuid()}", "--format=%i").splitlines()
    jobs = [row for row in rows if row[:1].isdigit()]  # without headers
    return True, f"works; your jobs in it: {len(jobs)}"


def _limits(config: Mapping[str, str]) -> CheckResult:
    largest = config.get("MaxArraySize", "?")
    preemption = config.get("PreemptType", "").partition("/")[2] or "none"
    how = f" ({config['PreemptMode']})" if preemption != "none" and "PreemptMode" in config else ""
    text = (
        f"job arrays of {largest} tasks at most (MaxArraySize), "
        f"{config.get('MaxJobCount', '?')} jobs in the queue (MaxJobCount)\n"
        f"a task is killed {config.get('KillWait', '?')} after SIGTERM (KillWait)\n"
        f"preemption: {preemption}{how}"
    )
    return (False if largest == "0" else None), text


def _partitions() -> CheckResult:
    return None, partitions(run_checked("sinfo", "--noheader", "--exact", f"--format={_SINFO}"))


def partitions(rows: str) -> str:
    """Return a line for each type of node in each partition, from the output of ``sinfo``."""
    states: dict[tuple[str, ...], Counter[str]] = {}
    for row in rows.splitlines():
        if row.count("|") != _SINFO.count("|"):
            continue  # a header
        name, up, limit, count, cores, memory, gres, preemption, state, features = row.split("|")
        node_type = (name, up, limit, cores, memory, gres, preemption, features.strip())
        states.setdefault(node_type, Counter())[state] += int(count)
    lines = [_partition(node_type, counts) for node_type, counts in states.items()]
    return "\n".join(lines) or "there are none"


def _partition(node_type: tuple[str, ...], states: Counter[str]) -> str:
    name, up, limit, cores, memory, gres, preemption, features = node_type
    default = " (the default)" if name.endswith("*") else ""
    time = "no time limit" if limit == "infinite" else f"time limit {limit}"
    partition = f"{name.rstrip('*')}{default}, {up}, {time}"
    if not states.total():
        return f"{partition}: no nodes"
    nodes = ", ".join(f"{number} {state}" for state, number in sorted(states.items()) if number)
    has = [f"{cores} {'core' if cores == '1' else 'cores'}, {memory}M, {_gpus(gres)}"]
    has += [f"features {features}"] if features != "(null)" else []
    has += [f"preemption {preemption}"] if preemption not in ("OFF", "n/a", "") else []
    return f"{partition}: {counted(states.total(), 'node')} ({nodes}) of {'; '.join(has)}"


def _gpus(gres: str) -> str:
    found = [f"{counted(count, 'GPU')} {gpu_type}".rstrip() for gpu_type, count in gpus_of(gres)]
    return ", ".join(found) or "no GPU"


# ---- a task of the template --------------------------------------------------------------------


def _resources(template: Template, task: TaskResources) -> CheckResult:
    """Check that some node has the template's resources, as a launch does."""
    has = ""
    if task.workers > 1 or template.whole_node:
        has = f"; {task.described}: {counted(task.workers, 'worker')}"
    errors = [*resource_errors(template, nodes_of(template.partition)), *program_errors(template)]
    return not errors, "\n".join([f"{template.name}, from {template.path}{has}", *errors])


def _room(limits: Limits) -> CheckResult:
    """Check the user's limits, which accounting enforces, and how many jobs they leave room for."""
    own = [one for one in limits.submitted if one.name != "MaxJobCount"]  # shown before
    used = [f"{one}: {counted(one.room, 'more job')} may be queued" for one in own]
    running = [f"{one}: {counted(one.most, 'task')} may run at once" for one in limits.running]
    fits = not limits.errors and (limits.tightest is None or limits.tightest.room > 0)
    return fits, "\n".join([*limits.errors, *used, *running]) or "no limit on your jobs is known"


def _sbatch(task: TaskResources, folder: Path) -> CheckResult:
    """Check with sbatch a task as a launch would submit it."""
    from mlpsubmit.jobs.slurm.arrays import Array
    from mlpsubmit.jobs.slurm.script import script  # imports submitit
    from mlpsubmit.jobs.submission import Submission

    template, each = task.request, task.workers
    one = Submission(folder, "doctor", number=0, tasks=1, threads=1, workers_per_task=each)
    text = script(template, one, Array("mlpsubmit-doctor", first=0, count=1))
    output = check(template, text)
    if not output:
        return None, f"cannot check beforehand whether it accepts a task of {template.name}"
    return True, f"accepts a task of the template {template.name}{expected_start(output)}"


def expected_start(output: str) -> str:
    """Return when and where a job could start, from the output of ``sbatch --test-only``."""
    found = re.search(r"to start at (\S+) using .* on nodes (\S+)", output)
    return f"; it could start at {found[1].replace('T', ' ')} on {found[2]}" if found else ""


def _shared(folder: Path, partition: str | None) -> CheckResult:
    if reason := filesystems.unusable(folder, nodes_of(partition)):
        return False, reason
    return None, f"{folder}: no sign here that nodes cannot see it"
