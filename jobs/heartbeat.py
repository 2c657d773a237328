"""Heartbeats, which a task publishes while it runs, and the identity of processes."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlpsubmit import files
from mlpsubmit.display.output import echo
from mlpsubmit.errors import error_text

__all__ = [
    "HEARTBEAT_SECONDS",
    "SLOWEST_BEAT",
    "Heartbeat",
    "PackHeartbeat",
    "is_alive",
    "is_elsewhere",
    "pack_share",
    "pid_namespace",
    "process_age",
    "process_start",
    "same_boot",
]

HEARTBEAT_SECONDS = 2.0

#: Seconds between heartbeats at most, however many tasks share a file system.
SLOWEST_BEAT = 30.0

#: Seconds between two beats at least, where packs are shorter: a shared disk has many tasks.
PROMPT_SECONDS = 1.0


class Heartbeat:
    """Publishes the progress of one task, from a separate thread.

    Args:
        interval: seconds between two heartbeats.
        overtaken: returns why another process trains the task's packs now; empty if none does.
        on_overtaken: called once if one does. Nothing is published from then on.
        pid: of the process whose end is the end of the task: this one by default.
        fields: the initial content, besides the fields that identify the process.
    """

    def __init__(
        self,
        path: Path,
        interval: float,
        *,
        overtaken: Callable[[], str] = str,
        on_overtaken: Callable[[], object] = lambda: None,
        pid: int | None = None,
        **fields: Any,
    ) -> None:
        pid = pid or os.getpid()
        self._path = path
        self._interval = interval
        self._find_overtaken, self._on_overtaken = overtaken, on_overtaken
        #: Why another process trains the task's packs by now; empty as long as this one does.
        self.overtaken = ""
        #: Of the fields, held for a moment only: the train loop updates them.
        self._lock = threading.Lock()
        #: Of the file, held while it is written: a slow disk must not stop the train loop.
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._fields: dict[str, Any] = {
            "state": "starting",
            "host": socket.gethostname(),
            "pid": pid,
            "pid_namespace": pid_namespace(),
            "process_start": process_start(pid),
            "started": time.time(),
            "interval": interval,
            **fields,
        }
        #: When the file was last written, and the state in it.
        self._written = 0.0, ""
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._packs: list[PackHeartbeat] = []

    def __enter__(self) -> Heartbeat:
        self.publish()
        self._thread.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            self.update(state="crashed", error=error_text(error))
        self._ended.set()
        self._thread.join()
        self.publish()

    def update(self, **fields: Any) -> None:
        """Change some fields; they are published with the next beat."""
        with self._lock:
            self._fields.update(fields)

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def publish(self) -> None:
        """Write the file now; a full disk is reported in the log and does not end the training."""
        with self._writing:
            if self.is_overtaken():
                return
            with self._lock:
                fields = {**self._fields, "updated": time.time()}
            self._written = time.monotonic(), str(fields["state"])
            try:
                files.publish_json(self._path, fields, sync=False)
            except OSError as error:
                echo(f"heartbeat not written: {error}")

    def publish_soon(self) -> None:
        """Write the file now; with the next beat if it has the same state and is a second old."""
        at, state = self._written
        if time.monotonic() - at >= PROMPT_SECONDS or state != self["state"]:
            self.publish()

    def of_pack(self) -> PackHeartbeat:
        """Return the heartbeat of one more pack in training."""
        return PackHeartbeat(self, self._packs)

    def is_overtaken(self) -> bool:
        """Look up whether another process trains the packs of this task now."""
        if not self.overtaken:
            with contextlib.suppress(OSError):  # a disk that is away for a while
                self.overtaken = self._find_overtaken()
            if self.overtaken:
                echo(f"stopping, nothing more is saved: {self.overtaken}")
                self._on_overtaken()
        return bool(self.overtaken)

    def _beat(self) -> None:
        while not self._ended.wait(self._interval):
            self.publish()


#: Fields that describe one pack: of several in training, the one that began first.
_OF_A_PACK = frozenset(
    {"pack", "pack_started", "configs", "settled", "stack", "step", "first_step", "first_share"}
    | {"max_iter", "active", "loss", "losses", "doing"}
)


def pack_share(beat: Mapping[str, Any]) -> float:
    """Return the trained fraction of the pack that a heartbeat describes: of all its stacks."""
    if not beat.get("max_iter"):
        return 0.0
    configs = int(beat.get("configs", 1))
    current: float = beat.get("stack", configs) * beat.get("step", 0) / beat["max_iter"]
    return (int(beat.get("settled", 0)) + current) / configs


class PackHeartbeat:
    """The heartbeat of a task, for one of its packs.

    Get one from :meth:`Heartbeat.of_pack`. Of packs that train side by side, the one that began
    first is shown.
    """

    def __init__(self, task: Heartbeat, packs: list[PackHeartbeat]) -> None:
        self._task, self._packs, self._fields = task, packs, dict[str, Any]()
        packs.append(self)

    def update(self, **fields: Any) -> None:
        """Change some fields of the task, and those of the pack where that is shown."""
        own = {name: value for name, value in fields.items() if name in _OF_A_PACK}
        self._fields |= own
        shown = fields if self._packs[0] is self else fields.keys() - own
        self._task.update(**{name: fields[name] for name in shown})

    def __getitem__(self, name: str) -> Any:
        return self._task[name]

    @property
    def share(self) -> float:
        """The trained fraction of the pack."""
        return pack_share(self._fields)

    def publish_soon(self) -> None:
        """Write the file now; with the next beat if it has the same state and is a second old."""
        self._task.publish_soon()

    def is_overtaken(self) -> bool:
        """Look up whether another process trains the packs of this task now."""
        return self._task.is_overtaken()

    def end(self) -> None:
        """Show the next pack in place of this one."""
        self._packs.remove(self)
        if self._packs:
            self._task.update(**self._packs[0]._fields)


def _start_ticks(pid: int) -> int | None:
    """Return when a live process started, in clock ticks since boot; None if it cannot be read."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = content.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def process_start(pid: int) -> str | None:
    """Return the boot and the clock tick at which a process of this machine started, as text.

    With the process id it identifies a process: ids are reused, wall clocks are set, and ticks
    start again at every boot.
    """
    ticks = _start_ticks(pid)
    if ticks is None:
        return None
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{ticks}"


def same_boot(process: Mapping[str, Any]) -> bool:
    """Return whether this machine has not been started again since a process; or it ran elsewhere.

    Args:
        process: a heartbeat.
    """
    now, then = process_start(os.getpid()), process.get("process_start")
    if process.get("host") != socket.gethostname() or now is None or then is None:
        return True
    return now.partition(":")[0] == str(then).partition(":")[0]


def process_age() -> float | None:
    """Return for how many seconds this process has run; None if that cannot be read."""
    ticks = _start_ticks(os.getpid())
    if ticks is None or not hasattr(time, "CLOCK_BOOTTIME"):
        return None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def pid_namespace() -> str | None:
    """Return the namespace of this process's ids: containers on one machine have different ones."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return None


def is_elsewhere(process: Mapping[str, Any]) -> bool:
    """Return whether a process runs on another machine or in another container than this one.

    Also if its id is not known, or the machine hides other users' processes (hidepid): only its
    heartbeats show that it lives.

    Args:
        process: a heartbeat, or a job as jobs.json holds it.
    """
    namespace = process.get("pid_namespace")
    here = process.get("host") == socket.gethostname() and namespace in (None, pid_namespace())
    return not here or process.get("pid") is None or _is_hidden(int(process["pid"]))


def _is_hidden(pid: int) -> bool:
    """Return whether there is a process with an id of which this user sees no more than that."""
    if os.geteuid() == 0 or _start_ticks(pid) is not None:
        return False
    with contextlib.suppress(ProcessLookupError):
        try:
            os.kill(pid, 0)
        except PermissionError:
            return not Path(f"/proc/{pid}/stat").exists()  # else nobody has waited for its end
    return False


def is_alive(process: Mapping[str, Any]) -> bool:
    """Return whether a process of this machine is alive.

    Args:
        process: a heartbeat, or a job as jobs.json holds it; not :func:`is_elsewhere`.
    """
    pid = int(process["pid"])
    if process.get("process_start") is not None and Path("/proc/self/stat").exists():
        return process_start(pid) == str(process["process_start"])
    import psutil

    return bool(psutil.pid_exists(pid))
