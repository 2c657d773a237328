"""Job arrays on a SLURM cluster."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from mlpsubmit.display.output import echo
from mlpsubmit.display.progress import doing
from mlpsubmit.display.text import counted
from mlpsubmit.errors import SpecError, UserError
from mlpsubmit.jobs.executors.base import Executor
from mlpsubmit.jobs.gpu_models import model_of
from mlpsubmit.jobs.slurm import filesystems, gpu_types, sbatch
from mlpsubmit.jobs.slurm.arrays import Array, cut_arrays, job_name
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, configured, settings
from mlpsubmit.jobs.slurm.gpu_types import GpuType
from mlpsubmit.jobs.slurm.helper_job import last_lines, no_result, run_helper_job, scratch_dir
from mlpsubmit.jobs.slurm.limits import Limit, Limits, NoRoom, read_limits
from mlpsubmit.jobs.slurm.nodes import Node, nodes_of, possible_nodes, resource_errors
from mlpsubmit.jobs.slurm.queue import JobState
from mlpsubmit.jobs.slurm.rejections import Rejected
from mlpsubmit.jobs.slurm.script import retry_script, script
from mlpsubmit.jobs.slurm.task_command import program_errors
from mlpsubmit.jobs.slurm.task_resources import TaskResources, idle_hint, task_resources
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.submission import Job, Submission
from mlpsubmit.jobs.throughput import calibrate, calibrate_node
from mlpsubmit.slurm_templates import Template, time_limit

__all__ = ["SlurmExecutor", "missing_result"]

#: SLURM's default of MaxArraySize.
DEFAULT_ARRAY_SIZE = 1001

#: The most tasks that a sweep is divided into, unless the user gives the number.
MOST_TASKS = 64

#: Floating-point operations per task at least: seconds on a GPU.
TASK_COST = 2e13

#: The room below which tasks cannot be submitted in pieces: one, and the job that submits the next.
LEAST_ROOM = 2

#: Resources of the job that resumes a run: minutes, and memory for the largest plans.
RETRY_MINUTES = 15
RETRY_MEMORY = "2G"

#: A calibration job's time limit in minutes, and for how many seconds it is waited for.
CALIBRATION_MINUTES = 10
CALIBRATION_WAIT = 300.0

#: Template keys that decide the hardware of its tasks.
DEVICE_KEYS = ("partition", "gpus", "constraint", "cpus", "whole_node", "workers")


class SlurmExecutor(Executor):
    """Array tasks with the GPUs and cores of a template; a worker in each of them per GPU."""

    name = "slurm"

    def __init__(self, tasks: int | None, template: Template) -> None:
        if not configured():
            file = os.environ.get("SLURM_CONF")
            hint = f" ($SLURM_CONF is {file})" if file else ""
            raise UserError(
                f"--executor slurm: this machine has no sbatch configured for a cluster{hint}; log "
                "in to a node that has one, or train here: --executor local"
            )
        self.template = template
        self._tasks = tasks
        self.same_device = template.same_device
        #: By host, the bytes of each GPU that earlier tasks found, by its name.
        self._recorded: dict[str, dict[str, int]] = {}
        #: How many tasks there would be without limits, if that is more.
        self._shrunk: int | None = None

    def max_tasks(self, cost: float) -> int:
        """Return the number that the user gave, else as many as are worth starting."""
        worth = -(-cost // (TASK_COST * self.workers_per_task))
        return self._tasks or int(min(max(1, worth), MOST_TASKS))

    @property
    def has_gpus(self) -> bool:
        """Whether the template asks for any."""
        return bool(self.template.gpu_count)

    def memory(self, earlier: Iterable[RunDirectory] = ()) -> int | None:
        """Return the least memory of the types of GPU that a task may get."""
        if not self.template.gpu_count:
            return None
        with contextlib.suppress(UserError):  # the cluster does not answer
            self._recorded = gpu_types.recorded_gpus(earlier, self._settings.get("ClusterName"))
        return self._gpu_types[0].memory

    @cached_property
    def _nodes(self) -> list[Node]:
        """The nodes of the partition; empty if the scheduler does not answer."""
        return nodes_of(self.template.partition)

    @cached_property
    def resources(self) -> TaskResources:
        """What each task has.

        Raises:
            SpecError: if tasks get whole nodes, and no node has what the template asks for.
        """
        return task_resources(self.template, self._nodes if self.template.whole_node else [])

    @property
    def workers_per_task(self) -> int:
        """One for each GPU of a task, or the number that the user gave."""
        return self.resources.workers

    @property
    def _gpu_types(self) -> list[GpuType]:
        """The types of GPU that a task may get, the one with the least memory first."""
        if not self.template.gpu_count:
            return []
        return gpu_types.gpu_types(self.template, self._nodes, self._recorded)

    def device_error(self, device: str) -> str:
        """Return why tasks may get several types of GPU, or another one than they must."""
        return gpu_types.error(self._gpu_types, device)

    def device_lines(self, *, planned: bool) -> list[str]:
        """Return the types of GPU that tasks may get; of CPUs, whether nodes differ in anything."""
        if self.template.gpu_count or not self.same_device:
            return gpu_types.lines(self._gpu_types, planned=planned)
        nodes = possible_nodes(self.template, self._nodes)
        if len({(node.cores, node.memory, node.features) for node in nodes}) < 2:
            return []
        return [
            "same_device: nodes that tasks may get differ in cores, memory or features; on another "
            "model of CPU than that of the first, a task trains nothing: --constraint or "
            "--partition with nodes of one kind"
        ]

    @property
    def in_container(self) -> bool:
        """Whether the template names one."""
        return self.template.container is not None

    def threads_per_worker(self, workers: int) -> int:
        """Return a worker's share of the cores of its task."""
        return self.resources.threads

    @cached_property
    def _settings(self) -> Mapping[str, str]:
        try:
            return settings()
        except SlurmUnavailable as error:
            raise UserError(
                f"the cluster does not answer: {error}; nothing was submitted"
            ) from None

    @cached_property
    def _limits(self) -> Limits:
        with doing("reading the limits on your jobs"):
            return read_limits(self.resources.request, self._settings)

    def tasks(self, threads: int, packs: int, cost: float, retries: int = 0) -> int:
        """Return as many as there is room for in the queue, unless the user gave the number."""
        most = super().tasks(threads, packs, cost, retries)
        limit = self._limits.tightest
        if self._tasks is not None or limit is None or most + bool(retries) <= limit.room:
            return most
        if limit.room <= bool(retries):
            raise no_room(limit, retries)
        self._shrunk = most
        return limit.room - bool(retries)

    def at_once(self, tasks: int, retries: int) -> int:
        """Return as many as there is room for, beside the job that submits the others."""
        limit, smallest = self._limits.tightest, self._limits.smallest
        if limit is None or smallest is None or tasks + bool(retries) <= limit.room:
            return tasks
        # That job takes a place while it submits a task and the next such job.
        if limit.room < LEAST_ROOM:
            raise no_room(limit, retries, tasks)
        if smallest.most <= LEAST_ROOM:
            raise no_room(smallest, retries, tasks)
        return min(tasks, limit.room) - 1

    def notes(self, submission: Submission) -> list[str]:
        """Return a line on tasks that are submitted later, or not at all, and the limit."""
        limit = self._limits.tightest
        if limit is None:
            return []
        if submission.later:
            now = counted(submission.tasks, "task")
            return [
                f"{now} now, and {submission.later} more when these have ended, by a job of the "
                f"run: {limit} ({limit.in_use})"
            ]
        if self._shrunk is not None:
            return [
                f"{counted(submission.tasks, 'task')} instead of {self._shrunk}: {limit} "
                f"({limit.in_use}); to have more, some of them later: --tasks {self._shrunk}"
            ]
        return []

    @cached_property
    def _largest_array(self) -> int:
        largest = int(self._settings.get("MaxArraySize") or DEFAULT_ARRAY_SIZE)
        if largest < 1:
            raise UserError("this cluster allows no job arrays (its MaxArraySize is 0)")
        return largest

    def arrays(self, submission: Submission) -> list[Array]:
        """Return the job arrays of a submission."""
        return cut_arrays(submission, self._largest_array, self.template.max_parallel)

    def intent(self, submission: Submission) -> Mapping[str, Any]:
        """Return the arrays with their names, by which the jobs are found, and the template."""
        return {
            "arrays": [asdict(array) for array in self.arrays(submission)],
            "retries": submission.retries,
            "retry": job_name(submission, "retry") if submission.has_helper else None,
            "limit": str(self._limits.tightest) if submission.later else None,
            "template": self.template.to_json(),
            "tasks": self._tasks,
            "cluster": self._settings.get("ClusterName"),
            "user": os.getuid(),
        }

    def check(self, submission: Submission) -> None:
        """Check that the tasks fit on a node, and the script of the job that follows them.

        That job is submitted last, when the others may have started.

        Raises:
            SpecError: for resources that no node has, or that a limit excludes.
            UserError: for a runs folder that the nodes cannot see.
            Rejected: if sbatch would reject that job.
        """
        if errors := [*resource_errors(self.template, self._nodes), *self._limits.errors]:
            raise SpecError(errors, f"template {self.template.name}")
        if errors := program_errors(self.template, (submission.path, *submission.reads)):
            raise SpecError(errors, f"template {self.template.name}")
        if reason := filesystems.unusable(submission.path, self._nodes):
            raise UserError(reason)
        if hint := idle_hint(self.template, self._nodes):
            warnings.warn(hint, stacklevel=3)
        if submission.has_helper:
            with doing("asking SLURM whether it takes the job that follows the tasks"):
                sbatch.check(self._helper, retry_script(self._helper, submission, after=[]))

    def try_submission(self, submission: Submission) -> None:
        """Check the first script with ``sbatch --test-only``, for which SLURM looks at its queue.

        Raises:
            Rejected: if sbatch would reject the job.
        """
        array = self.arrays(submission)[0]
        with doing("asking SLURM whether it takes such a job"):
            sbatch.check(self.template, script(self.resources.request, submission, array))

    def own_files(self, submission: Submission) -> int:
        """Return the logs, and the scripts of the arrays and of the job that follows them."""
        logs = submission.tasks + submission.workers * (submission.workers_per_task > 1)
        return logs + len(self.arrays(submission)) + submission.has_helper

    def describe(self, submission: Submission) -> list[str]:
        """Return the first array's script, and an upper bound of the cost."""
        arrays = self.arrays(submission)
        lines = [self._cost_line(submission)]
        if len(arrays) > 1:
            lines.append(
                f"{len(arrays)} job arrays of up to {self._largest_array} tasks; the first:"
            )
        lines.append(script(self.resources.request, submission, arrays[0]))
        if submission.has_helper:
            lines += [
                "and when it has ended:",
                retry_script(self._helper, submission, after=["ID"]),
            ]
        return lines

    def _cost_line(self, submission: Submission) -> str:
        """Return an upper bound of the cost: the tasks' time limit on all of their resources."""
        every = submission.tasks + submission.later
        text = counted(every, "task")
        if submission.workers_per_task > 1:
            text += f" of {counted(submission.workers_per_task, 'worker')}"
        text += f" with {self.resources.described}, " if self.template.whole_node else ", "
        text += f"{self.max_concurrent(submission)} side by side at most"
        limit = self._limits.concurrent
        if limit is not None and limit.most == self.max_concurrent(submission) < submission.tasks:
            text += f" ({limit})"
        if self.template.minutes is None:
            return f"{text}; without a time limit their cost has no upper bound"
        unit, count = self.units(submission.threads)
        hours = every * self.template.minutes / 60 * count
        return f"{text}; at most {hours:.4g} {unit} until every task has met its time limit once"

    def max_concurrent(self, submission: Submission) -> int:
        """Return as many as the template and limits allow, if there are enough nodes."""
        limit = self._limits.concurrent
        allowed = submission.tasks if limit is None else max(1, limit.most)
        return min(submission.tasks, self.template.max_parallel or submission.tasks, allowed)

    def units(self, threads: int) -> tuple[str, int]:
        """Return GPU-hours if tasks have GPUs, else core-hours."""
        count = self.resources.gpus
        return ("GPU-hours", count) if count else ("core-hours", self.resources.cores)

    def device(self, threads: int) -> str:
        """Return the partition, GPUs and cores of the template."""
        partition = self.template.partition
        where = "the default partition" if partition is None else f"partition {partition}"
        return f"{where}, {self.resources.described}"

    def same_hardware(
        self, threads: int, intent: Mapping[str, Any], beat: Mapping[str, Any]
    ) -> bool:
        """Return whether a task was requested with the same hardware, or has got a GPU of it."""
        if intent["executor"] != "slurm" or beat.get("threads") != threads:
            return False
        own, other = self.template.to_json(), intent["template"]
        differing = {key for key in DEVICE_KEYS if other.get(key) != own.get(key)}
        if not differing or not differing <= {"gpus", "constraint"}:
            return not differing
        counts = {str(template.get("gpus")).rpartition(":")[2] for template in (own, other)}
        device = str(beat.get("device", ""))
        return len(counts) == 1 and any(gpu_type.has(device) for gpu_type in self._gpu_types)

    def unmeasured(self, devices: Sequence[str]) -> list[str]:
        """Return the types of GPU that tasks may get besides some."""
        named = [own for own in self._gpu_types if model_of(own.name)]
        return [own.name for own in named if not any(own.has(device) for device in devices)]

    def calibrate(
        self, submission: Submission, write_order: Callable[[Path], None]
    ) -> list[Mapping[str, Any]]:
        """Train in one job with the resources of a task, but a shorter time limit."""
        parent = next(path for path in submission.path.parents if path.exists())
        minutes = min(self.template.minutes or CALIBRATION_MINUTES, CALIBRATION_MINUTES)
        limit = {"time": time_limit.normalised(minutes), "notice": None}
        workers = min(self.workers_per_task, submission.workers)
        with scratch_dir(parent, ".calibrate-") as folder:
            write_order(folder)
            with doing(f"calibrating in a job on the cluster (at most {CALIBRATION_WAIT:.0f} s)"):
                result, job = run_helper_job(
                    folder,
                    self.resources.request.model_copy(update=limit),
                    calibrate.answers_file(folder),
                    CALIBRATION_WAIT,
                    calibrate_node.__name__,
                    str(workers),
                    "gpus" if self.has_gpus else "cores",
                    "whole" if self.template.whole_node else "part",
                    paths=submission.reads,
                )
            if result is None:
                raise UserError(missing_result(job, last_lines(folder)))
        return list(result["answers"])

    @property
    def _helper(self) -> Template:
        longest = self._limits.minutes
        minutes = RETRY_MINUTES if longest is None else min(RETRY_MINUTES, longest)
        return self.template.for_helper(minutes, RETRY_MEMORY)

    def submit(self, submission: Submission) -> Iterator[Job]:
        """Submit the arrays, and then the job that resumes what is missing afterwards."""
        ids: list[str] = []
        try:
            for number, array in enumerate(self.arrays(submission)):
                after = [] if array.after is None else [ids[array.after]]
                text = script(self.resources.request, submission, array, after)
                file = submission.folder / f"array.{number}.sh"
                with doing(f"submitting job array {array.name} to SLURM"):
                    ids.append(sbatch.submit(self.template, file, text, array.name))
                yield Job(ids[-1], array.first, array.count, array=True)
        except UserError as error:  # tasks that start all the same end at once
            left = _cancelled(ids)
            if ids and isinstance(error, Rejected):
                raise error.after(left) from None
            raise
        if submission.has_helper:
            yield from self._submit_helper(submission, ids)

    def _submit_helper(self, submission: Submission, ids: Sequence[str]) -> Iterator[Job]:
        """Submit the job that follows some arrays; they train also if the cluster rejects it."""
        text = retry_script(self._helper, submission, ids)
        file = submission.folder / "retry.sh"
        try:
            helper = sbatch.submit(self._helper, file, text, job_name(submission, "retry"))
        except UserError as error:
            what = error.what if isinstance(error, Rejected) else str(error)
            what = what.removeprefix("the job array: ")
            missing = "resume what is missing"
            if submission.later:
                missing = f"submit the other {counted(submission.later, 'task')}"
            echo(
                f"the job that would {missing} when the tasks have ended is not queued: {what}; "
                f"the tasks are (job {', '.join(ids)}); then continue with: mlpsubmit resume"
            )
            return
        yield Job(helper, submission.tasks, count=0, array=False)


def no_room(limit: Limit, retries: int, tasks: int | None = None) -> NoRoom:
    """Return the error that a limit leaves no room for tasks and the job that follows them.

    Args:
        tasks: how many the user wants; None if as many as there is room for.
    """
    room = limit.room - bool(retries)
    advice = "wait until other jobs have ended, or give another --qos, --account or --partition"
    if tasks is not None and room > 0:
        advice = f"give --tasks {room}, which trains the same configs, or {advice}"
    elif retries and limit.room:
        advice = f"leave out --retries, whose job takes a place, or {advice}"
    wanted = f" for {tasks} tasks, not even one by one" if (tasks or 0) > 1 else ""
    return NoRoom(
        f"{limit} leaves no room{wanted} ({limit.in_use}); nothing was submitted; {advice}"
    )


def _cancelled(ids: Sequence[str]) -> str:
    """Cancel job arrays; return what is left of them, for a message."""
    arrays = counted(len(ids), "job array")
    try:
        sbatch.cancel(ids)
    except SlurmUnavailable as error:
        return (
            f"{arrays} submitted before it could not be cancelled ({error}): the tasks end when "
            f"they start, or: scancel {' '.join(ids)}"
        )
    return f"{arrays} submitted before it {'was' if len(ids) == 1 else 'were'} cancelled"


def missing_result(job: JobState | None, log: str) -> str:
    """Explain why a calibration job has no result, as far as known."""
    why = no_result(job, log, CALIBRATION_WAIT)
    if job is not None and job.state == "OUT_OF_MEMORY":
        hint = "give the tasks more memory (--mem)"
    else:
        hint = "try again when the cluster is less busy (mlpsubmit doctor shows what of it works)"
    return f"--calibrate: {why}; nothing of it is left; leave --calibrate out, or {hint}"
