"""A task with several workers: ``python -m mlpsubmit.jobs.node RUN SUBMISSION HASH TASK``.

It starts a worker (:mod:`mlpsubmit.jobs.worker`) on each GPU of the task or, without GPUs, several
on its cores, each of which trains a slice of its own, and waits for them all. It passes signals on
to them; once all have ended, its exit code asks for the job to be queued again if any has saved. It
trains nothing and loads no torch. A worker that is killed ends alone, and is reported here.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from mlpsubmit.display.output import echo
from mlpsubmit.display.text import counted
from mlpsubmit.errors import RunError
from mlpsubmit.jobs.command_line import WORKER, module_command
from mlpsubmit.jobs.process_end import ProcessEnd
from mlpsubmit.jobs.slurm.requeue import REQUEUE
from mlpsubmit.jobs.store.run_directory import RunDirectory, task_name
from mlpsubmit.jobs.workers import Workers, devices
from mlpsubmit.slurm_templates import Template

__all__ = ["exit_code", "main", "record_end", "unfinished"]

#: Seconds until a killed worker counts as killed alone: SLURM may be killing the whole job.
ALONE_SECONDS = 2.0


def main(path: str, submission: int, sweep_hash: str, task: int) -> int:
    """Train the slices of a task; return the exit code of the process."""
    with Workers.of_this_process() as workers:
        try:
            if why := RunDirectory(Path(path)).superseded(submission):
                echo(f"nothing to do: {why}")
                return 0
            run = RunDirectory.open(Path(path).absolute())
            chosen = unfinished(run, submission, task)
            places, missing = _places(run, submission, task, chosen)
        except RunError as error:
            echo(error)
            return 1
        for index in chosen[len(places) :]:
            run.record_crash(task_name(submission, index), missing)
        with workers.blocked():
            for index, device in zip(chosen, places, strict=False):
                name = task_name(submission, index)
                log = run.log(submission, name)
                echo(f"worker {name}{f' on {device}' if device else ''}: its log is {log}")
                command = module_command(WORKER, path, submission, sweep_hash, index)
                workers.start(name, command, device, int(run.plan["threads"]), log)
        codes = workers.wait(partial(record_end, run))
        return exit_code([*codes.values(), int(bool(missing))])


def unfinished(run: RunDirectory, submission: int, task: int) -> list[int]:
    """Return the workers of a task, as indices of slices, that have not reported to be done.

    After a requeue, the others need not even be started.
    """
    own = run.workers_of(submission, task)
    beats = {index: run.last_heartbeat(task_name(submission, index)) for index in own}
    left = [index for index, beat in beats.items() if not beat or beat.get("state") != "done"]
    if done := len(own) - len(left):
        echo(f"{counted(done, 'worker')} of {len(own)} had trained everything before")
    return left


def _places(
    run: RunDirectory, submission: int, task: int, chosen: Sequence[int]
) -> tuple[list[str], str]:
    """Return the device of each worker, and why there are too few; empty devices mean cores."""
    intent = run.intent(submission)
    if not intent["gpus"]:
        return [""] * len(chosen), ""
    template = Template(**intent["template"])
    found = devices(os.environ, whole_node=template.whole_node)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    asked, node = template.gpu_count, os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    if len(found) > asked and visible is None and not template.whole_node:
        why = (
            f"{node} shows {counted(len(found), 'GPU')} to a task that asked for {asked}, and "
            "nothing says which of them are its own: it trains on none; resume with whole nodes "
            "(--whole-node), or on CPUs (--gpus 0)"
        )
        found = []
    elif len(found) >= len(chosen):
        if len(found) > intent["workers"]:
            echo(_idle(node, found, intent["workers"]))
        return found[: len(chosen)], ""
    else:
        shown = "not set" if visible is None else repr(visible)
        why = (
            f"no GPU is left for this worker: its task needs {len(chosen)}, and {node} has "
            f"{len(found)} for it (CUDA_VISIBLE_DEVICES is {shown}); resume on nodes that have as "
            f"many, or with --gpus {len(found)}"
        )
    echo(why)
    return found, why


def _idle(node: str, found: Sequence[str], workers: int) -> str:
    idle = ", ".join(found[workers:])
    return (
        f"{node} has {counted(len(found), 'GPU')}, and this task {counted(workers, 'worker')}: "
        f"{idle} will be idle; to use them: --gpus {len(found)}"
    )


def record_end(run: RunDirectory, name: str, code: int) -> None:
    """Record the end of a worker that has not reported it itself."""
    if code in (0, REQUEUE):
        return
    end = ProcessEnd(signal=-code) if code < 0 else ProcessEnd(code=code)
    echo(f"worker {name} {end}" if code < 0 else f"worker {name} failed (exit code {code})")
    if code == -signal.SIGKILL:
        time.sleep(ALONE_SECONDS)
    beat = run.last_heartbeat(name)
    if not beat or beat.get("state") not in ("done", "crashed"):
        run.record_crash(name, f"its process {end}")


def exit_code(codes: Collection[int]) -> int:
    """Return the exit code of a task, from those of its workers: one that saved asks for more."""
    return REQUEUE if REQUEUE in codes else int(any(codes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
