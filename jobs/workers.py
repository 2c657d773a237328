"""Worker processes side by side in one job: their devices, and the signals that they get."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from mlpsubmit import files
from mlpsubmit.jobs.gpus import all_devices, listed_devices, uuids
from mlpsubmit.jobs.signals import STOP_SIGNALS, handled
from mlpsubmit.jobs.slurm.allocation import allocation
from mlpsubmit.jobs.supervisor import end_with_parent

__all__ = ["Workers", "devices"]


def devices(environ: Mapping[str, str], *, whole_node: bool) -> list[str]:
    """Return the GPUs of this job on this node, as entries of CUDA_VISIBLE_DEVICES.

    Args:
        whole_node: whether all GPUs of the node belong to it.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    # Where SLURM does not know the GPUs of the node, it shows NoDevFiles.
    if visible is not None and ((listed := listed_devices(visible)) or not whole_node):
        return listed
    own = allocation(environ)
    if own is not None and own.gpus and not whole_node:
        return uuids(own.gpus)
    return all_devices()


class Workers:
    """Processes that get the signals of this one.

    Attributes:
        stopped: whether any signal has arrived.
    """

    def __init__(self) -> None:
        self._running: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
        self.stopped = False

    @classmethod
    @contextlib.contextmanager
    def of_this_process(cls) -> Iterator[Workers]:
        """Pass the signals on which a task saves and stops on to the workers."""
        workers = cls()
        with handled(STOP_SIGNALS, workers._pass_on):
            yield workers

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self.stopped = True
        for process in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Hold signals back in the block, and in processes started there until they handle them."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def start(
        self, name: str, command: Sequence[str], device: str, threads: int, log: Path | None
    ) -> None:
        """Start a process that sees one GPU alone, or none; it ends with this one.

        Args:
            log: the file that its output is appended to; None for that of this process.
        """
        environment = {
            "CUDA_VISIBLE_DEVICES": device,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }
        with contextlib.ExitStack() as held:
            output = None
            if log is not None:
                with contextlib.suppress(OSError):  # a full disk: then its lines are in the job's
                    output = held.enter_context(log.open("ab"))
                    files.share_file(log)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                env={**os.environ, **environment},
                preexec_fn=partial(end_with_parent, os.getpid()),
            )
        self._running[process.pid] = name, process

    def wait(self, on_end: Callable[[str, int], None]) -> dict[str, int]:
        """Wait for all; return their exit codes, negative for a signal.

        Args:
            on_end: called with the name and the exit code of each as soon as it ends.
        """
        codes: dict[str, int] = {}
        while self._running:
            pid, status = os.waitpid(-1, 0)
            if pid in self._running:
                name, process = self._running.pop(pid)
                process.returncode = codes[name] = os.waitstatus_to_exitcode(status)
                on_end(name, codes[name])
        return codes
