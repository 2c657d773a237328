"""Processes of simulated machines, which run one at a time in virtual time.

Every process is one or several greenlets of this Python process. They change over only where they
sleep or call the disk or the scheduler, and a seeded generator decides when, so that a seed gives
one order of events, whatever the speed of the machine.
"""

from __future__ import annotations

import contextlib
import heapq
import random
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import greenlet

from mlpsubmit.errors import UserError

__all__ = ["Killed", "Machine", "Process", "World", "current"]

#: Virtual seconds since the epoch at the start of a schedule.
START = 1.8e9

_real = SimpleNamespace(**{name: getattr(time, name) for name in ("time", "monotonic", "sleep")})
_real.time_ns, _real.strftime, _real.localtime = time.time_ns, time.strftime, time.localtime


class Killed(BaseException):
    """Raised in every greenlet of a process that is killed, and at all it calls from then on."""


@dataclass(eq=False)
class Machine:
    """A machine: its name, and how far its clock is ahead of the true time, in seconds."""

    name: str
    skew: float = 0.0
    processes: list[Process] = field(default_factory=list)


#: The users of a schedule have this id and the ones after it.
FIRST_USER = 1001


@dataclass(eq=False)
class Process:
    """A process of a machine.

    Attributes:
        world: the schedule that it is part of.
        on_signal: called when SIGTERM arrives; None if that ends the process.
        environment: its environment variables.
        output: what it printed.
        code: its exit code, once it has ended; -9 if it was killed.
        error: the exception that ended it.
        ends: called once it has ended.
        handles: the numbers of its open files.
        children: how many commands that it has started hold its locks.
        user: the user id, by default that of the process that starts it; its files have it.
        umask: None for that of its user.
    """

    world: World
    name: str
    machine: Machine
    environment: dict[str, str] = field(default_factory=dict)
    on_signal: Callable[[], None] | None = None
    output: Callable[[str], None] = lambda _: None
    code: int | None = None
    error: BaseException | None = None
    result: Any = None
    greenlets: list[greenlet.greenlet] = field(default_factory=list)
    ends: list[Callable[[], None]] = field(default_factory=list)
    handles: set[Any] = field(default_factory=set)
    children: int = 0
    user: int = FIRST_USER
    umask: int | None = None

    @property
    def alive(self) -> bool:
        return self.code is None

    def end(self, code: int) -> None:
        """Note the end of the process, once."""
        if self.alive:
            self.code = code
            self.machine.processes.remove(self)
            self.world.note(f"ends with code {code}", self)
            for call in self.ends:
                call()

    def kill(self) -> None:
        """End the process as kill -9 does: what it does from now on has no effect."""
        self.end(-9)
        for one in self.greenlets:
            if one is greenlet.getcurrent():
                raise Killed
            self.world.wake(one)

    def signal(self) -> None:
        """Send SIGTERM."""
        if not self.alive:
            return
        self.world.note("gets SIGTERM", self)
        if self.on_signal is None:
            self.kill()
        else:
            self.on_signal()


def current() -> Process | None:
    """Return the simulated process that runs; None outside the simulation."""
    return _process_of(greenlet.getcurrent())


def _process_of(one: greenlet.greenlet) -> Process | None:
    """Return the process of a greenlet: the product may have started it in another one."""
    above: greenlet.greenlet | None = one
    while above is not None:
        if (process := getattr(above, "process", None)) is not None:
            return process
        above = above.parent
    return None


class World:
    """One schedule: its virtual clock, its events and its generator.

    Attributes:
        random: decides everything that is left to chance.
        now: seconds since the start.
        trace: what has happened, oldest first.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.trace: list[str] = []
        self._events: list[tuple[float, int, Any]] = []
        self._count = 0
        self._hub = greenlet.getcurrent()
        #: The probability that a call of the disk lets others run.
        self.interleaving = self.random.choice([0.02, 0.1, 0.3])

    def note(self, text: str, process: Process | None = None) -> None:
        """Append to the trace."""
        process = process or current()
        who = "" if process is None else f"{process.name}@{process.machine.name}: "
        self.trace.append(f"{self.now:10.2f}  {who}{text}")

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    # ---- events

    def at(self, delay: float, call: Callable[[], Any]) -> None:
        """Call a function after a number of seconds."""
        self._count += 1
        heapq.heappush(self._events, (self.now + delay, self._count, call))

    def wake(self, one: greenlet.greenlet, delay: float = 0) -> None:
        """Continue a greenlet after a number of seconds, unless it has continued before."""
        process, turn = _process_of(one), getattr(one, "turn", 0)
        assert process is not None

        def go() -> None:
            if one.dead:
                return
            if not process.alive:
                with contextlib.suppress(Killed):
                    if one:  # it has begun
                        one.throw(Killed)
            elif getattr(one, "turn", 0) == turn:
                one.turn = turn + 1
                one.switch()

        self.at(delay, go)

    def start(
        self, name: str, machine: Machine, function: Callable[[], Any], **fields: Any
    ) -> Process:
        """Start a process."""
        if (parent := current()) is not None:
            fields.setdefault("user", parent.user)
        process = Process(self, name, machine, **fields)
        machine.processes.append(process)

        def run() -> None:
            try:
                process.result = function()
                process.end(0)
            except Killed:
                process.end(-9)
            except SystemExit as ended:
                process.end(int(ended.code or 0))
            except BaseException as error:
                if not process.alive:
                    return
                process.error = error
                shown = (
                    [] if isinstance(error, UserError) else traceback.format_exception(error)[-4:]
                )
                self.note(f"raises {type(error).__name__}: {error}\n{''.join(shown)}", process)
                process.end(1)

        self.thread(process, run)
        return process

    def thread(self, process: Process, function: Callable[[], Any]) -> greenlet.greenlet:
        """Start a further thread of a process."""
        one = greenlet.greenlet(function, self._hub)
        one.process = process
        process.greenlets.append(one)
        self.wake(one)
        return one

    def run(self, until: Callable[[], bool], limit: float) -> None:
        """Let the events happen until a condition holds, or for a number of seconds."""
        end = self.now + limit
        while self._events and not until():
            when, _, call = self._events[0]
            if when > end:
                self.now = end
                break
            heapq.heappop(self._events)
            self.now = when
            call()

    def sleep(self, seconds: float) -> None:
        """Let the current greenlet wait."""
        process = current()
        assert process is not None
        self.check(process)
        self.wake(greenlet.getcurrent(), seconds)
        self.pause()

    def pause(self) -> None:
        """Let others run until the current greenlet is woken."""
        self._hub.switch()
        process = current()
        assert process is not None
        self.check(process)

    def check(self, process: Process) -> None:
        """End the current greenlet if its process has been killed."""
        if not process.alive:
            raise Killed

    def step(self) -> None:
        """Let others run now and then; called wherever a process uses the disk."""
        process = current()
        if process is None:
            return
        self.check(process)
        if self.chance(self.interleaving):
            stalled = self.chance(0.01)
            self.sleep(self.random.uniform(0, 20.0 if stalled else 0.05))


# ---- the seam: Python's module time, and the parts of threading that wait ------------------------


class Lock:
    """As threading.Lock: a greenlet that waits for it lets the others run."""

    def __init__(self) -> None:
        self._held = False

    def __enter__(self) -> None:
        process = current()
        while self._held:
            assert process is not None
            process.world.sleep(0.01)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False


class Event:
    """As threading.Event."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[Any] = []

    def set(self) -> None:
        self._is_set = True
        process = current()
        for one in self._waiting if process is not None else ():
            process.world.wake(one)
        self._waiting.clear()

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float) -> bool:
        process = current()
        assert process is not None
        world, end = process.world, process.world.now + timeout
        while not self._is_set and world.now < end:
            world.check(process)
            self._waiting.append(greenlet.getcurrent())
            world.wake(greenlet.getcurrent(), end - world.now)
            world.pause()
        return self._is_set


class Thread:
    """As threading.Thread."""

    def __init__(self, target: Callable[[], Any], daemon: bool = False) -> None:
        self._target, self._ended = target, False

    def start(self) -> None:
        process = current()
        assert process is not None

        def run() -> None:
            with contextlib.suppress(Killed):
                self._target()
            self._ended = True

        process.world.thread(process, run)

    def join(self) -> None:
        process = current()
        assert process is not None
        while not self._ended:
            process.world.sleep(0.01)


def patch_time() -> None:
    """Give simulated processes the virtual clock of their machine; all others keep the real one."""

    def wall() -> float:
        process = current()
        if process is None:
            return _real.time()
        return START + process.world.now + process.machine.skew

    def monotonic() -> float:
        process = current()
        return _real.monotonic() if process is None else process.world.now

    def sleep(seconds: float) -> None:
        process = current()
        _real.sleep(seconds) if process is None else process.world.sleep(seconds)

    time.time, time.monotonic, time.sleep = wall, monotonic, sleep
    time.time_ns = lambda: _real.time_ns() if current() is None else int(wall() * 1e9)
    time.localtime = lambda seconds=None: _real.localtime(wall() if seconds is None else seconds)
    time.strftime = lambda form, at=None: _real.strftime(form, at or time.localtime())


#: What a module that starts threads gets in the place of ``threading``.
THREADING = SimpleNamespace(
    Lock=Lock,
    Event=Event,
    Thread=Thread,
    current_thread=threading.current_thread,
    main_thread=threading.main_thread,
)
