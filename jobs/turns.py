"""Packs side by side on one GPU: each queues its steps while the device works on those of others.

A pack of few or narrow networks leaves most of a GPU idle: its kernels are short, and each waits
for the one before. So the packs of a task train on streams of their own. They take turns in one
thread, each up to where it would wait for the device: so a pack computes what it computes alone, in
the same order, and no two functions of the user run at the same time.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from greenlet import getcurrent, greenlet

from mlpsubmit.training.global_state import global_state_kept
from mlpsubmit.training.precision import settings_kept

__all__ = ["Turns"]

T = TypeVar("T")


@dataclass(frozen=True)
class _Work:
    """A function that is under way.

    Attributes:
        resumes: called before each of its turns.
        stream: of its own; None where the device has none.
    """

    run: greenlet
    resumes: Callable[[], None]
    stream: torch.cuda.Stream | None


class Turns(Generic[T]):
    """Functions that take turns in one thread: each runs until it passes on.

    Args:
        device: on which they queue work; on a GPU each on a stream of its own.

    Attributes:
        several: whether several functions are to be under way at a time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._works = device, deque[_Work]()
        self.several = False
        #: Those that wait until they are alone, the first one first; it stays until it ends.
        self._waiting: list[greenlet] = []

    def __len__(self) -> int:
        """Return how many are under way."""
        return len(self._works)

    @property
    def open(self) -> bool:
        """Whether another one may start: none waits until it is alone."""
        return not self._waiting

    @property
    def alone(self) -> bool:
        """Whether the others that are under way, if any, wait until they are alone.

        Of the function that is under way now.
        """
        return len(self._works) == 1 or self._waiting[:1] == [getcurrent()]

    def start(self, function: Callable[[], T], resumes: Callable[[], None]) -> None:
        """Add a function: its first turn comes after those of all others.

        Args:
            resumes: called before each of its turns.
        """
        run, stream = greenlet(function), None
        run.gr_context = contextvars.copy_context()  # of NumPy's error handling, for example
        if self._device.type == "cuda":
            stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._works.append(_Work(run, resumes, stream))

    def take(self) -> list[T]:
        """Let the next function take its turn; return its result in a list, if it has ended.

        Raises:
            BaseException: what the function raises; it has then ended.
        """
        work = self._works[0]
        self._works.rotate(-1)
        work.resumes()
        on_stream = torch.cuda.stream(work.stream) if work.stream else contextlib.nullcontext()
        try:
            with on_stream, settings_kept(), global_state_kept():
                result: T = work.run.switch()
        finally:
            if work.run.dead:
                self._works.remove(work)
                self._waiting = [run for run in self._waiting if not run.dead]
        return [result] if work.run.dead else []

    def pass_on(self) -> None:
        """Let the others take their turns. Called by a function that is under way."""
        parent = getcurrent().parent
        if parent is not None:
            with settings_kept(), global_state_kept():
                parent.switch()

    def wait_until_alone(self) -> None:
        """Return once the others have ended, or wait for the same; none starts before this ends.

        Called by a function that is under way.
        """
        own = getcurrent()
        self._waiting.append(own)
        while len(self._works) > len(self._waiting) or self._waiting[0] is not own:
            self.pass_on()
