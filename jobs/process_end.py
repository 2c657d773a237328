"""How a process ended that did not report it: what its signal or exit code usually means."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

__all__ = ["ProcessEnd", "signal_meaning"]

_MEANINGS = {
    "SIGKILL": "usually out of memory",
    "SIGSEGV": "an invalid memory access, usually in compiled code",
    "SIGBUS": "usually a memory-mapped file that became shorter, or a full disk or /dev/shm",
    "SIGABRT": "a failed check in compiled code",
    "SIGFPE": "an integer division by zero in compiled code",
    "SIGILL": "usually a library that was built for another CPU",
    "SIGTERM": "another process asked it to end",
    "SIGHUP": "its terminal was closed",
    "SIGPIPE": "the reader of its output has ended",
    "SIGXCPU": "its limit of CPU time, see ulimit -t",
    "SIGXFSZ": "its limit of the size of a file, see ulimit -f",
}


def signal_meaning(number: int) -> str:
    """Return the name of a signal, and what it usually means: ``SIGKILL (usually ...)``."""
    name = _name(number)
    meaning = _MEANINGS.get(name)
    return f"{name} ({meaning})" if meaning else name


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@dataclass(frozen=True)
class ProcessEnd:
    """The end of a process that trained a pack and did not report its end itself.

    Attributes:
        attempt: the attempt of a task that it was, such as ``000-0003.1``.
        signal: the signal that killed it; None if it exited, or if that is not known.
        code: its exit code; None if it was killed, or if that is not known.
        memory: whether it was certainly killed for its memory.
        where: the line of the user's code in which it ended, if known.
    """

    attempt: str = ""
    signal: int | None = None
    code: int | None = None
    memory: bool = False
    where: str = ""

    @classmethod
    def of_status(cls, status: int, *, memory: bool = False) -> ProcessEnd:
        """Return the end with a wait status, as ``os.waitpid`` returns it."""
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            return cls(signal=-code, memory=memory and code == -signal.SIGKILL)
        return cls(code=code)

    def __str__(self) -> str:
        if self.memory:
            return "was killed for its memory" + (f" ({_name(self.signal)})" if self.signal else "")
        if self.signal is not None:
            return f"was killed by {signal_meaning(self.signal)}"
        if self.code is not None:
            return f"ended with exit code {self.code} (os._exit, or a library that ends it)"
        return "was killed (by which signal is not known)"
