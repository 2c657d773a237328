"""What processes take: commands, and functions that are called in a process of their own."""

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
    """What a process took: seconds, and the peak of its resident memory in MB."""

    seconds: float
    peak: float


def command(*arguments: str | Path, folder: Path, fails: bool = False) -> Cost:
    """Run an mlpsubmit command in a folder.

    Args:
        fails: whether its exit code is to be 1, as that of ``status`` where packs are missing.

    Raises:
        RuntimeError: where it ends in another way than it should.
    """
    words = [sys.executable, "-m", "mlpsubmit", *map(str, arguments)]
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(words, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        _, state, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(state)
        if process.returncode != int(fails):
            output.seek(0)
            raise RuntimeError(f"{' '.join(words)}: {output.read().decode()}")
    return Cost(seconds, usage.ru_maxrss / 1024)


def apart(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Cost]:
    """Call a function in a new process; return what it returns, and what the call took.

    This process must stay small: what it holds counts for the peak of those that it starts.

    Raises:
        RuntimeError: where the process ends without an answer; it has said why.
    """
    spawning = multiprocessing.get_context("spawn")
    receiver, sender = spawning.Pipe(duplex=False)
    process = spawning.Process(target=_answer, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        answer: tuple[Any, Cost] = receiver.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__} failed") from None
    finally:
        process.join()
    return answer


def _answer(sender: Any, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    begin = time.perf_counter()
    result = function(*arguments)
    seconds = time.perf_counter() - begin
    sender.send((result, Cost(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)))
