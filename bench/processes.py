"""Time and memory of commands, and of functions that are called in a new process."""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Cost", "apart", "command"]


@dataclass(frozen=True)
class Cost:
    """Wall seconds of a process, and the peak of its resident memory in MB (2^20 bytes)."""

    seconds: float
    peak: float


def command(*arguments: str | Path, folder: Path, fails: bool = False) -> Cost:
    """Run an mlpsubmit command in a folder.

    Args:
        fails: expect exit code 1, as of ``status`` if packs are missing, instead of 0.

    Raises:
        RuntimeError: if it ends with another exit code.
    """
    line = [sys.executable, "-m", "mlpsubmit", *map(str, arguments)]
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(line, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        _, state, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(state)
        if process.returncode != int(fails):
            output.seek(0)
            raise RuntimeError(f"{' '.join(line)}: {output.read().decode()}")
    return Cost(seconds, usage.ru_maxrss / 1024)


def apart(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Cost]:
    """Call a function in a new process; return its result and the cost of the call.

    This process must stay small: its memory counts towards the peak of the processes it starts.

    Raises:
        RuntimeError: if the process ends without a result; it has printed the traceback.
    """
    spawning = multiprocessing.get_context("spawn")
    receiver, sender = spawning.Pipe(duplex=False)
    process = spawning.Process(target=_send_result, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        outcome: tuple[Any, Cost] = receiver.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__} failed") from None
    finally:
        process.join()
    return outcome


def _send_result(sender: Any, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    begin = time.perf_counter()
    result = function(*arguments)
    seconds = time.perf_counter() - begin
    sender.send((result, Cost(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)))
