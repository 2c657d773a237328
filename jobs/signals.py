"""The signals on which a task saves its pack and stops."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

__all__ = ["STOP_SIGNALS", "StopFlag", "handled", "stop_on_signals", "stopped", "stopped_run"]

#: The end of its time, preemption, cancel, Ctrl-C.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


def stopped(run: Path) -> KeyboardInterrupt:
    """Return what is raised where a signal has come while a run trained in this process.

    What it has trained is saved. A script ends on it, as it would without a training: what follows
    the launch would find results missing. It is no subclass: only then does Python end by the
    signal, so that the loop of a shell ends, too.

    Args:
        run: the folder of the run.
    """
    error = KeyboardInterrupt(
        f"run {run.name}: stopped by a signal; what it has trained is saved; launch or resume it "
        "to go on"
    )
    vars(error)["run"] = run
    return error


def stopped_run(error: KeyboardInterrupt) -> Path | None:
    """Return the folder of the run that a signal has stopped in this process, if it trained one."""
    run: Path | None = vars(error).get("run")
    return run


class StopFlag:
    """Whether a task is to save its pack and stop.

    Not a threading.Event: a signal that arrives while another one's handler sets it would wait
    forever for the lock that the interrupted handler holds.
    """

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """Ask the task to stop."""
        self._is_set = True

    def is_set(self) -> bool:
        """Return whether the task is to stop."""
        return self._is_set


@contextlib.contextmanager
def handled(
    numbers: Sequence[int], handler: Callable[[int, FrameType | None], object]
) -> Iterator[None]:
    """Handle signals in the block, and restore the handlers that they had."""
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Turn the signals that end a task into a flag that the train loop checks at every step."""
    stop = StopFlag()

    def handle(number: int, _: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C: the user's function does not return
        stop.set()

    is_main = threading.current_thread() is threading.main_thread()  # others cannot handle any
    with handled(STOP_SIGNALS if is_main else (), handle):
        yield stop
