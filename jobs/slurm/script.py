"""The sbatch script of a job: pure functions from typed settings to text, through submitit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string as make_sbatch_string

from mlpsubmit.jobs.command_line import NODE, WORKER
from mlpsubmit.jobs.slurm import requeue
from mlpsubmit.jobs.slurm.arrays import Array, job_name
from mlpsubmit.jobs.slurm.task_command import container_lines, task_command
from mlpsubmit.jobs.submission import Submission
from mlpsubmit.slurm_templates import Template

__all__ = ["retry_script", "sbatch_text", "script"]


def script(
    template: Template, submission: Submission, array: Array, after: Sequence[str] = ()
) -> str:
    """Return the sbatch script of one job array.

    Args:
        after: ids of jobs that must end before it starts.
    """
    arguments = submission.path, submission.number, submission.sweep_hash
    module = NODE if submission.workers_per_task > 1 else WORKER
    command = task_command(template, module, *arguments)
    return sbatch_text(
        template,
        submission.folder,
        # The shell of the batch script adds, before srun starts.
        f"{command} $(({array.first} + SLURM_ARRAY_TASK_ID)) || {requeue.NAME} $?",
        requeue.FUNCTION,
        (submission.path, *submission.reads),
        job_name=array.name,
        array_parallelism=array.limit or array.count,
        map_count=array.count,
        dependency=_after(after),
    )


def retry_script(helper: Template, submission: Submission, after: Sequence[str]) -> str:
    """Return the script of the small job that follows the arrays: it submits others, or resumes.

    Args:
        helper: the template of such a job.
        after: ids of the arrays.
    """
    after_this = ("--after", submission.number, "--sweep-hash", submission.sweep_hash)
    retries = max(0, submission.retries - 1)
    resume = ("resume", submission.path, *after_this, "--retries", retries)
    command = task_command(helper, "mlpsubmit", *resume)
    names: dict[str, Any] = {
        "job_name": job_name(submission, "retry"),
        "dependency": _after(after),
    }
    command = f"{command} || {requeue.WAIT} $?"
    return sbatch_text(helper, submission.folder, command, requeue.WAIT_FUNCTION, **names)


def _after(jobs: Sequence[str]) -> str | None:
    return f"afterany:{':'.join(jobs)}" if jobs else None


#: Keys of a template that submitit calls the same.
_SAME_NAME = ("partition", "account", "qos", "constraint", "time", "mem")

#: The batch shell must survive the signal on which its task saves, or SLURM kills both.
_IGNORE_SIGTERM = "trap : TERM"


def sbatch_text(
    template: Template,
    folder: Path,
    command: str,
    functions: Sequence[str] = (),
    paths: Sequence[str | Path] = (),
    before: Sequence[str] = (),
    **options: Any,
) -> str:
    """Return a script as submitit writes it, with some of its defaults replaced.

    - wckey: submitit sets its own, which clusters that track wckeys reject.
    - requeue: the clusters' defaults differ, so it is set explicitly.
    - ntasks: some clusters reject a job that leaves it to the default.
    - srun: it must pass on the environment and the cores, which it does not always do by default,
      and append to the log of an earlier attempt of the task.

    Args:
        folder: where the job's log is written.
        functions: lines that define functions of the shell, which the command may call.
        paths: what the command reads and writes, for a container.
        before: lines that run directly before the command.
        options: further arguments of submitit.
    """
    settings: dict[str, Any] = {
        **{key: getattr(template, key) for key in _SAME_NAME},
        "cpus_per_task": template.cpus,
        "gpus_per_node": None if template.gpus_on_node else template.gpus or None,
        "signal_delay_s": template.notice_seconds,
        "wckey": None,
        "setup": [
            _IGNORE_SIGTERM,
            *functions,
            *template.setup,
            *container_lines(template, paths),
            *before,
        ],
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True, "ntasks": 1, **template.sbatch},
        "srun_args": ["--export=ALL", "--open-mode=append", f"--cpus-per-task={template.cpus}"],
    }
    return make_sbatch_string(command, folder, **settings, **options)
