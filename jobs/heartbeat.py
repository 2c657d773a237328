"""Heartbeats, which a task publishes while it runs, and the identity of processes."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlpsubmit import files
from mlpsubmit.display.output import echo

__all__ = [
    "HEARTBEAT_SECONDS",
    "SLOWEST_BEAT",
    "Heartbeat",
    "is_alive",
    "is_fresh",
    "process_age",
    "process_start",
    "same_boot",
]

HEARTBEAT_SECONDS = 2.0

#: Seconds between heartbeats at most, however many tasks share a file system.
SLOWEST_BEAT = 30.0

#: A process on another machine whose heartbeat is older than this counts as dead.
DEAD_SECONDS = 60.0


class Heartbeat:
    """Publishes the progress of one task, from a separate thread.

    Args:
        interval: seconds between two heartbeats.
        pid: of the process whose end is the end of the task: this one by default.
        fields: the initial content, besides the fields that identify the process.
    """

    def __init__(
        self, path: Path, interval: float, *, pid: int | None = None, **fields: Any
    ) -> None:
        pid = pid or os.getpid()
        self._path = path
        self._interval = interval
        #: Of the fields, held for a moment only: the train loop updates them.
        self._lock = threading.Lock()
        #: Of the file, held while it is written: a slow disk must not stop the train loop.
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._fields: dict[str, Any] = {
            "state": "starting",
            "host": socket.gethostname(),
            "pid": pid,
            "process_start": process_start(pid),
            "started": time.time(),
            "interval": interval,
            **fields,
        }
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        self.publish()
        self._thread.start()
        return self

    def __exit__(self, type_: type[BaseException] | None, error: object, _: object) -> None:
        if type_ is not None:
            self.update(state="crashed", error=f"{type_.__name__}: {error}")
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
            with self._lock:
                fields = {**self._fields, "updated": time.time()}
            try:
                files.publish_json(self._path, fields, sync=False)
            except OSError as error:
                echo(f"heartbeat not written: {error}")

    def _beat(self) -> None:
        while not self._ended.wait(self._interval):
            self.publish()


def is_fresh(heartbeat: Mapping[str, Any]) -> bool:
    """Return whether a heartbeat is so recent that its task is alive, by two machines' clocks.

    A heartbeat from as far in the future is not fresh either: the clocks disagree.
    """
    age = abs(time.time() - float(heartbeat.get("updated", 0)))
    return age < 3 * float(heartbeat.get("interval", HEARTBEAT_SECONDS))


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


def is_alive(process: dict[str, Any]) -> bool:
    """Return whether a process is alive.

    Args:
        process: a heartbeat, or a job as jobs.json holds it.
    """
    if process.get("host") != socket.gethostname():
        return time.time() - float(process.get("updated", 0)) < DEAD_SECONDS
    pid = int(process["pid"])
    if process.get("process_start") is not None and Path("/proc/self/stat").exists():
        return process_start(pid) == str(process["process_start"])
    import psutil

    return bool(psutil.pid_exists(pid))
