"""The parent of a task's process: it continues the task in another one if that is killed in a pack.

It trains nothing and loads nothing: memory that runs out, a segmentation fault or ``os._exit`` in
a function of the user end its child alone. As the parent it gets the exit status of the child, and
reads from shared memory which pack was in training. Under SLURM both run in the same job step; what
ends both was not caused by the pack, or SLURM reports it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import mmap
import os
import re
import resource
import signal
import struct
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from mlpsubmit.display.output import echo
from mlpsubmit.jobs.process_end import ProcessEnd
from mlpsubmit.jobs.signals import STOP_SIGNALS, handled

__all__ = ["Supervision", "end_with_parent", "supervised"]

#: What a child notes for its parent: the number of its pack plus one, and whether it ends itself.
_NOTE = struct.Struct("qq")

#: The folder of this package, as tracebacks name it.
_PACKAGE = Path(__file__).parent.parent

#: Linux's prctl option: the signal that a process gets when its parent ends.
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Supervision:
    """The parent of this process.

    Attributes:
        pid: its process id.
        last: the pack number in which the previous child was killed, and how; None if none was.
    """

    pid: int
    last: tuple[int, ProcessEnd] | None
    _note: mmap.mmap

    def begin_pack(self, number: int) -> None:
        """Note the pack in training."""
        _NOTE.pack_into(self._note, 0, number + 1, 0)

    def end(self) -> None:
        """Note that this process ends itself, however the task has gone."""
        number, _ = _NOTE.unpack_from(self._note)
        _NOTE.pack_into(self._note, 0, number, 1)


def supervised(report: Callable[[ProcessEnd], None]) -> Supervision:
    """Return in a child process; the parent does not return, and ends as the last child did.

    The child has the signals of :data:`STOP_SIGNALS` blocked, so that none is lost before it
    handles them.

    Args:
        report: called in the parent if a child is killed and no other will continue the task.
    """
    note, last = mmap.mmap(-1, _NOTE.size), None
    with tempfile.TemporaryFile("w+") as fault, _forwarded() as forwarding:
        while True:
            _NOTE.pack_into(note, 0, 0, 0)
            fault.seek(0)
            fault.truncate()
            kills_before = _memory_kills()
            child = _fork(forwarding)
            if child == 0:
                faulthandler.enable(os.dup(fault.fileno()))  # writes where a signal found it
                return Supervision(os.getppid(), last, note)
            _, status = os.waitpid(child, 0)
            forwarding.child = 0
            number, ended = _NOTE.unpack_from(note)
            if ended or forwarding.stopped:
                _end_like(status)
            fault.seek(0)
            trace, memory = fault.read(), _memory_kills() > kills_before
            echo(trace, newline=False)
            end = replace(ProcessEnd.of_status(status, memory=memory), where=_place(trace))
            if not number:
                report(end)
                _end_like(status)
            last = number - 1, end


def _place(trace: str) -> str:
    """Return the innermost line of the user's code in what faulthandler wrote; empty if none."""
    current = trace.partition("Current thread")[2].partition("\n\n")[0]
    folders = [*map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), str(_PACKAGE)]
    for file, line, name in re.findall(r'File "([^"<]+)", line (\d+) in (.+)', current):
        if not file.startswith(tuple(folders)):
            return f"{Path(file).name}:{line} in {name}"
    return ""


@dataclass
class _Forwarding:
    """Passes signals on to the child.

    Attributes:
        child: its process id; 0 if there is none.
        stopped: whether any signal has arrived: then no other child is started.
    """

    child: int = 0
    stopped: bool = False

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.stopped = True
        if self.child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child, number)


@contextlib.contextmanager
def _forwarded() -> Iterator[_Forwarding]:
    """Forward the signals on which a task saves and stops; restore the handlers in a child."""
    forwarding = _Forwarding()
    with handled(STOP_SIGNALS, forwarding):
        yield forwarding


def _fork(forwarding: _Forwarding) -> int:
    """Fork; return 0 in the child, which has the stop signals blocked."""
    parent = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    child = os.fork()
    if child == 0:
        # A group of its own: Ctrl-C, and os.killpg in a function of the user, reach one of the two.
        os.setpgid(0, 0)
        end_with_parent(parent)
        return 0
    forwarding.child = child
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    return child


def end_with_parent(parent: int) -> None:
    """Make the kernel kill this process when its parent ends; only Linux can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _memory_kills() -> int:
    """Return how many processes the kernel of this machine has killed for memory; 0 if unknown."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _end_like(status: int) -> NoReturn:
    """End this process as a child with this wait status did."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        sys.exit(code)
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child has dumped what there is to see
    os.kill(os.getpid(), -code)
    sys.exit(128 - code)  # not reached, unless the signal is blocked
