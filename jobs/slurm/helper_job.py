"""A small job that writes a result, which this process waits for; it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlpsubmit import files
from mlpsubmit.jobs.signals import handled
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, run
from mlpsubmit.jobs.slurm.queue import JobState, Queue
from mlpsubmit.jobs.slurm.sbatch import CHANGE_SECONDS, run_sbatch
from mlpsubmit.slurm_templates import Template

__all__ = ["exit_on_signals", "last_lines", "no_result", "run_helper_job", "scratch_dir"]

#: Seconds until files that a node wrote to a network file system are visible here.
LAG_SECONDS = 5.0

#: Seconds between two queries of the queue: at first, and at most.
_SHORTEST_INTERVAL = 0.5
_LONGEST_INTERVAL = 5.0


def run_helper_job(
    folder: Path,
    template: Template,
    result_file: Path,
    seconds: float,
    module: str,
    *arguments: str,
    paths: Sequence[str | Path] = (),
    before: Sequence[str] = (),
) -> tuple[Mapping[str, Any] | None, JobState | None]:
    """Submit a job, wait until it has a result or ends, and cancel it if it still runs.

    Args:
        folder: where its script and its log are written; the nodes should see it. Its name is
            unique, and so is the job name made from it.
        template: the resources that it requests.
        result_file: the file that it writes, as JSON.
        seconds: how long to wait for it.
        module: the module that it runs, as ``python -m`` does, with the folder and the arguments.
        paths: what it reads and writes besides the folder, for a container.
        before: lines of the shell that run before it.

    Returns:
        Its result, or None without one; and its last known state, or None without one.

    Raises:
        Rejected: if the cluster rejects the job.
        SlurmUnavailable: if it is unknown whether the cluster has the job.
    """
    from mlpsubmit.jobs.slurm.script import sbatch_text  # imports submitit
    from mlpsubmit.jobs.slurm.task_command import task_command

    name = f"mlpsubmit{folder.name}"
    command = task_command(template, module, folder, *arguments)
    shared = (folder, *paths)
    script = sbatch_text(template, folder, command, paths=shared, before=before, job_name=name)
    try:
        run_sbatch(template, folder / "job.sh", script, seconds=CHANGE_SECONDS)
        return _wait(name, result_file, seconds)
    finally:
        # By name, since it may be queued although sbatch reported no id.
        with contextlib.suppress(SlurmUnavailable):
            run("scancel", f"--name={name}")


def _wait(
    name: str, result_file: Path, seconds: float
) -> tuple[Mapping[str, Any] | None, JobState | None]:
    end = time.monotonic() + seconds
    interval = _SHORTEST_INTERVAL
    job: JobState | None = None
    while (result := _read_result(result_file)) is None and time.monotonic() < end:
        queue = Queue.query(os.getuid())
        job = next((queue.jobs[id] for id in queue.ids.get(name, [])), job)
        if job is not None and not job.alive:
            end = min(end, time.monotonic() + LAG_SECONDS)
        time.sleep(max(0.0, min(interval, end - time.monotonic())))
        interval = min(interval * 1.5, _LONGEST_INTERVAL)
    return result, job


def _read_result(file: Path) -> Mapping[str, Any] | None:
    # A change made here makes a network file system refresh its view of the folder.
    with tempfile.NamedTemporaryFile(dir=file.parent):
        pass
    try:
        result: Mapping[str, Any] = files.read_json(file)
    except FileNotFoundError:
        return None
    return result


def no_result(job: JobState | None, log: str, seconds: float) -> str:
    """Explain why a job has no result after some seconds, as far as known.

    Args:
        log: the last lines of its log.
    """
    waited = f"after {seconds:.0f} s"
    if job is None:
        return f"sbatch accepted a job, but squeue does not list it {waited}"
    if job.pending:
        return f"the job is still queued {waited} ({job.pending_reason})"
    if job.alive:
        return f"the job runs on {job.node}, but has not reported {waited}"
    return f"the job reported no result: {job}" + (f"; its log ends:\n{log}" if log else "")


def last_lines(folder: Path) -> str:
    """Return the last lines of a job's log; empty if the node did not write any."""
    logs = [path.read_text(errors="replace") for path in folder.rglob("*.out")]
    lines = [line for log in logs for line in log.splitlines() if line.strip()]
    return "\n".join(lines[-3:])


@contextlib.contextmanager
def scratch_dir(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a temporary folder; remove it at the end, and if a signal ends this process."""
    with exit_on_signals():
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            yield folder
        finally:
            # A job that is being cancelled may still write to it.
            end = time.monotonic() + LAG_SECONDS
            while folder.exists() and time.monotonic() < end:
                shutil.rmtree(folder, ignore_errors=True)
                time.sleep(0.1 if folder.exists() else 0)


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Exit on SIGTERM and SIGHUP with an exception, so that cleanup runs."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    with handled((signal.SIGTERM, signal.SIGHUP), leave):
        yield
