"""Job arrays on a SLURM cluster; submitit writes their scripts."""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mlpsubmit.errors import SpecError, UserError
from mlpsubmit.jobs.executors.base import Executor
from mlpsubmit.jobs.gpus import memory_of_type
from mlpsubmit.jobs.slurm import filesystems
from mlpsubmit.jobs.slurm.arrays import Array, cut_arrays, job_name
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, configured, setting
from mlpsubmit.jobs.slurm.helper_job import HelperJob, exit_on_signals, last_lines, scratch_dir
from mlpsubmit.jobs.slurm.nodes import misfits
from mlpsubmit.jobs.slurm.queue import JobState
from mlpsubmit.jobs.slurm.sbatch import Sbatch
from mlpsubmit.jobs.slurm.script import retry_script, script
from mlpsubmit.jobs.submission import Job, Submission
from mlpsubmit.jobs.throughput import calibrate
from mlpsubmit.slurm_templates import Template, time_limit
from mlpsubmit.spec.hyperparameters import Hyperparameters

__all__ = ["SlurmExecutor", "unanswered"]

#: What SLURM allows where it does not say otherwise.
DEFAULT_ARRAY_SIZE = 1001

#: Tasks that a sweep is cut into unless the user says how many.
MOST_TASKS = 64

#: Floating-point operations that a task is worth starting for: seconds on a GPU.
TASK_COST = 2e13

#: What the job which resumes a run may take: minutes, and memory for the largest of plans.
RETRY_MINUTES = 15
RETRY_MEMORY = "2G"


#: What a job that calibrates asks for, in minutes, and for how long it is waited for, in seconds.
CALIBRATION_MINUTES = 10
CALIBRATION_WAIT = 300.0

#: Keys of a template that decide what its tasks train on.
DEVICE_KEYS = ("partition", "gpus", "constraint", "cpus")


class SlurmExecutor(Executor):
    """One array task per slice, each with the GPUs and cores that a template asks for."""

    name = "slurm"

    def __init__(
        self, hyperparameters: Hyperparameters, tasks: int | None, template: Template
    ) -> None:
        if not configured():
            settings = os.environ.get("SLURM_CONF")
            hint = f" ($SLURM_CONF is {settings})" if settings else ""
            raise UserError(
                f"--executor slurm: this machine has no sbatch that knows of a cluster{hint}; log "
                "in to a node that has one, or train here: --executor local"
            )
        self.template = template
        self.threads = template.cpus
        self._tasks = tasks

    def max_tasks(self, cost: float) -> int:
        """Return the tasks that the user asked for, else as many as are worth starting."""
        return self._tasks or int(min(max(1, -(-cost // TASK_COST)), MOST_TASKS))

    def memory(self) -> int | None:
        """Return what the type of GPU in the template says, or an assumption: none is here."""
        return memory_of_type(self.template.gpu_type) if self.template.gpu_count else None

    def threads_per_task(self, tasks: int) -> int:
        """Return the cores that the template gives each task."""
        return self.template.cpus

    def tasks(self, threads: int, packs: int, cost: float) -> int:
        """Return the max_tasks that what is missing is worth."""
        return min(self.max_tasks(cost), packs)

    def _setting(self, name: str) -> str | None:
        try:
            return setting(name)
        except SlurmUnavailable as error:
            raise UserError(
                f"the cluster does not answer: {error}; nothing was submitted"
            ) from None

    @cached_property
    def _largest_array(self) -> int:
        largest = int(self._setting("MaxArraySize") or DEFAULT_ARRAY_SIZE)
        if largest < 1:
            raise UserError("this cluster allows no job arrays (its MaxArraySize is 0)")
        return largest

    def arrays(self, submission: Submission) -> list[Array]:
        """Return the job arrays of a submission."""
        names = [
            job_name(submission.label, submission.number, part)
            for part in range(-(-submission.tasks // self._largest_array))
        ]
        limit = self.template.max_parallel
        return cut_arrays(names, submission.tasks, self._largest_array, limit)

    def intent(self, submission: Submission) -> Mapping[str, Any]:
        """Return the arrays by name, so that they are found whatever happens, and the template."""
        return {
            "arrays": [array.to_json() for array in self.arrays(submission)],
            "retries": submission.retries,
            "retry": _retry_name(submission) if submission.retries else None,
            "template": self.template.to_json(),
            "tasks": self._tasks,
            "cluster": self._setting("ClusterName"),
            "user": os.getuid(),
        }

    def check(self, submission: Submission) -> None:
        """See whether the tasks fit on a node, and let sbatch look at the first script.

        Raises:
            UserError: for what fits nowhere, or a runs folder that the nodes cannot see.
            Refused: for what sbatch would not take.
        """
        if errors := misfits(self.template):
            raise SpecError(errors, f"template {self.template.name}")
        if reason := filesystems.unusable(submission.path, self.template.partition):
            raise UserError(reason)
        array = self.arrays(submission)[0]
        Sbatch(self.template).check(script(self.template, submission, array))
        if submission.retries:
            Sbatch(self._helper).check(self._retry_script(submission, after=[]))

    def describe(self, submission: Submission) -> list[str]:
        """Return the first array's script, and what it may cost at most."""
        arrays = self.arrays(submission)
        lines = [_cost_line(self.template, submission.tasks)]
        if len(arrays) > 1:
            lines.append(
                f"{len(arrays)} job arrays of up to {self._largest_array} tasks; the first:"
            )
        lines.append(script(self.template, submission, arrays[0]))
        if submission.retries:
            lines += ["and when it has ended:", self._retry_script(submission, after=["ID"])]
        return lines

    def max_concurrent(self, submission: Submission) -> int:
        """Return as many as may be, if there are the nodes for them."""
        return min(submission.tasks, self.template.max_parallel or submission.tasks)

    def units(self, threads: int) -> tuple[str, int]:
        """Return what the cluster counts: GPUs where tasks have them."""
        count = self.template.gpu_count
        return ("GPU-hours", count) if count else ("core-hours", self.template.cpus)

    def device(self, threads: int) -> str:
        """Return what the template asks for."""
        partition = self.template.partition
        where = "the default partition" if partition is None else f"partition {partition}"
        count, kind = self.template.gpu_count, self.template.gpu_type
        gpus = f"{_counted(count, 'GPU')} {kind}".rstrip() if count else "no GPU"
        return f"{where}, {gpus} and {_counted(self.template.cpus, 'core')} per task"

    def same_hardware(
        self, threads: int, intent: Mapping[str, Any], beat: Mapping[str, Any]
    ) -> bool:
        """Tell whether a task was asked for in the same way."""
        if intent["executor"] != "slurm" or beat.get("threads") != threads:
            return False
        own = self.template.to_json()
        return all(intent["template"].get(key) == own.get(key) for key in DEVICE_KEYS)

    def calibrate(
        self, submission: Submission, write_order: Callable[[Path], None]
    ) -> list[Mapping[str, Any]]:
        """Train in one job that asks for what a task asks for, but for its time."""
        place = next(path for path in submission.path.parents if path.exists())
        minutes = min(self.template.minutes or CALIBRATION_MINUTES, CALIBRATION_MINUTES)
        limit = {"time": time_limit.normalised(minutes), "notice": None}
        with exit_on_signals(), scratch_dir(place, ".calibrate-") as folder:
            write_order(folder)
            answer, job = HelperJob(
                folder,
                self.template.model_copy(update=limit),
                f"mlpsubmit-calibrate.{secrets.token_hex(6)}",
                calibrate.__name__,
                f"{shlex.quote(str(folder))} 0",
                calibrate.answer_file(folder, 0),
                CALIBRATION_WAIT,
            ).run()
            if answer is None:
                raise UserError(unanswered(job, last_lines(folder)))
        return [answer]

    @property
    def _helper(self) -> Template:
        return self.template.for_helper(RETRY_MINUTES, RETRY_MEMORY)

    def _retry_script(self, submission: Submission, after: Sequence[str]) -> str:
        return retry_script(self._helper, submission, _retry_name(submission), after)

    def submit(self, submission: Submission) -> Iterator[Job]:
        """Hand over the arrays, and then the job that resumes what they leave."""
        sbatch = Sbatch(self.template)
        host = socket.gethostname()
        ids: list[str] = []
        try:
            for place, array in enumerate(self.arrays(submission)):
                after = [] if array.after is None else [ids[array.after]]
                text = script(self.template, submission, array, after)
                file = submission.folder / f"array.{place}.sh"
                ids.append(sbatch.submit(file, text, array.name))
                yield Job(ids[-1], array.first, array.count, True, host, None, None, time.time())
            if submission.retries:
                text = self._retry_script(submission, ids)
                file = submission.folder / "retry.sh"
                retry = Sbatch(self._helper).submit(file, text, _retry_name(submission))
                yield Job(retry, submission.tasks, 0, False, host, None, None, time.time())
        except UserError:
            sbatch.withdraw(ids)
            raise


def _retry_name(submission: Submission) -> str:
    return job_name(submission.label, submission.number, "retry")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _cost_line(template: Template, tasks: int) -> str:
    """Say what the tasks may use at most: their time limit, on all that they ask for."""
    max_concurrent = min(tasks, template.max_parallel or tasks)
    text = f"{tasks} tasks, {max_concurrent} side by side at most"
    if template.minutes is None:
        return f"{text}; without a time limit there is no telling what they may cost"
    hours = tasks * template.minutes / 60
    count = template.gpu_count
    unit = f"{hours * count:.4g} GPU-hours" if count else f"{hours * template.cpus:.4g} core-hours"
    return f"{text}; at most {unit} until every task has met its time limit once"


def unanswered(job: JobState | None, log: str) -> str:
    """Say what is known of a job that was to calibrate and did not answer."""
    waited = f"after {CALIBRATION_WAIT:.0f} s"
    if job is None:
        why = f"sbatch took its job, but squeue does not show it {waited}"
    elif job.pending:
        reason = job.reason if job.reason not in ("", "None") else "no reason given yet"
        why = f"its job is still queued {waited} ({reason})"
    elif job.alive:
        why = f"its job runs on {job.node}, but has not answered {waited}"
    else:
        why = f"its job did not answer: {job}" + (f"; its log ends:\n{log}\n" if log else "")
    if job is not None and job.state == "OUT_OF_MEMORY":
        hint = "give the tasks more memory (--mem)"
    else:
        hint = "try again when the cluster is less busy (mlpsubmit doctor says what of it works)"
    return f"--calibrate: {why.rstrip()}; nothing of it is left; leave --calibrate out, or {hint}"
