"""Signals to the processes of tasks on this machine, and to no other process."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlpsubmit.jobs.command_line import WORKER
from mlpsubmit.jobs.heartbeat import process_start
from mlpsubmit.jobs.store.run_directory import task_name

__all__ = ["terminate"]


def terminate(process: Mapping[str, Any], run: str, task: str) -> str | None:
    """Send SIGTERM to the process of a task, if it is that by its start time and command line.

    Args:
        process: a heartbeat or a job of this machine, which anybody may have written.
        run: the id of the run.
        task: the name of the task.

    Returns:
        Why nothing was sent: its id now means another process. None if it was, or has ended.
    """
    import psutil  # most commands need none of it

    pid = process.get("pid")
    if type(pid) is not int or pid <= 1:  # 0 and below mean groups of processes
        return f"its process id is {pid!r}"
    with contextlib.ExitStack() as held:
        try:
            # From here on it is this process that gets the signal, even if it ends meanwhile.
            handle = os.pidfd_open(pid)
            held.callback(os.close, handle)
        except (AttributeError, OSError):  # not Linux, or an old one; or there is no such process
            handle = None
        try:
            command = psutil.Process(pid).cmdline()
        except psutil.NoSuchProcess:
            return None
        except psutil.AccessDenied:
            command = []
        # Where start times cannot be read, the command line alone identifies a worker.
        started = process_start(pid) in (None, process.get("process_start"))
        if not (started and _is_of(command, run, task)):
            shown = " ".join(command)[:80] or "of another user"
            return f"the process {pid} now belongs to another program: {shown}"
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            if handle is None:
                os.kill(pid, signal.SIGTERM)
            else:
                signal.pidfd_send_signal(handle, signal.SIGTERM)
    return None


def _is_of(command: Sequence[str], run: str, task: str) -> bool:
    """Return whether a command line is that of the worker of a task.

    Of the debug executor it is that of a launch or resume, in the process of the command.
    """
    if WORKER in command:
        path, submission, _, index = [*command[command.index(WORKER) + 1 :], *[""] * 4][:4]
        given = submission.isdecimal() and index.isdecimal()
        same = given and task_name(int(submission), int(index)) == task
        return same and Path(path).name == run
    names = [Path(argument).name for argument in command[:4]]
    return "mlpsubmit" in names and bool({"launch", "resume"} & set(command))
