"""The signals on which a task saves its pack and stops."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

__all__ = ["STOP_SIGNALS", "StopFlag", "Stopped", "handled", "stop_on_signals"]

#: The end of its time, preemption, cancel, Ctrl-C.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Stopped(KeyboardInterrupt):
    """A signal has come while a run trained in this process; what it has trained is saved.

    A script ends on it, as it would without a training: what follows the launch would find results
    missing.

    Args:
        run: the folder of the run.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(
            f"run {run.name}: stopped by a signal; what it has trained is saved; launch or resume "
            "it to go on"
        )
        self.run = run


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
