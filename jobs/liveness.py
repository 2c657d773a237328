"""Whether the file that a task replaces while it runs still changes.

The clocks of two machines are never compared: if one is some minutes ahead, its tasks would seem to
be dead, or alive for too long. The age of a file is the difference of two times from its file
system. Where that is unknown, the file is watched, with the monotonic clock of this process.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlpsubmit.jobs.heartbeat import HEARTBEAT_SECONDS, SLOWEST_BEAT

__all__ = ["Watch", "patience", "three_intervals"]

#: Seconds without a heartbeat, at least, after which a process on another machine counts as dead.
#: A busy machine may be that late. Should the process be alive after all, it ends once it has seen
#: that another one has taken its place.
DEAD_SECONDS = 30.0

#: Seconds between two looks at files that are watched.
LOOK_SECONDS = 0.5

#: For how long the time of a file system is extrapolated with the clock of this process.
_PROBE_SECONDS = 2.0

#: A file that is further in the future than this was not stamped by its file system: in some, as
#: Lustre, the machine that writes a file stamps it too.
_TOLERANCE = 2.0


def patience(heartbeat: Mapping[str, Any]) -> float:
    """Return for how many seconds a task may publish no heartbeat before it counts as dead."""
    return max(DEAD_SECONDS, three_intervals(heartbeat))


def three_intervals(heartbeat: Mapping[str, Any]) -> float:
    """Return the seconds of three intervals between heartbeats, whatever anybody wrote into one."""
    return 3 * min(float(heartbeat.get("interval", HEARTBEAT_SECONDS)), SLOWEST_BEAT)


class _Seen(NamedTuple):
    """A version of a file, since when it is known, and whether it replaced one seen before."""

    version: tuple[int, int] | None
    since: float
    moved: bool


class Watch:
    """What this process has seen of files that other processes replace."""

    def __init__(self) -> None:
        self._seen: dict[Path, _Seen] = {}
        #: By folder, the time of its file system less the monotonic time, and when that was found.
        self._offsets: dict[Path, tuple[float | None, float]] = {}

    def is_moving(self, file: Path, seconds: float) -> bool | None:
        """Return whether a file was replaced in the last seconds; None if that is not known yet."""
        seen = self._look(file)
        if time.monotonic() - seen.since >= seconds:
            return False
        if seen.moved:
            return True
        if seen.version is None:
            return None
        age = self._now(file.parent)
        age = None if age is None else age - seen.version[1] / 1e9
        return None if age is None or age < -_TOLERANCE else age < seconds

    def settle(self, waits: Mapping[Path, float]) -> None:
        """Wait until it is known of every file whether it moves, or of one that it does.

        Args:
            waits: by file, the seconds within which it is replaced if it moves.
        """
        while not self._is_settled(waits):
            time.sleep(LOOK_SECONDS)
            for folder in {file.parent for file in waits}:
                self._offsets.pop(folder, None)
                self._now(folder)  # a new file in it makes NFS look at the folder anew

    def _is_settled(self, waits: Mapping[Path, float]) -> bool:
        seen = {file: self._look(file) for file in waits}
        now = time.monotonic()
        if any(one.moved for one in seen.values()):
            return True
        return all(now - seen[file].since >= wait for file, wait in waits.items())

    def _look(self, file: Path) -> _Seen:
        version = None
        with contextlib.suppress(OSError):
            status = file.stat()
            version = status.st_ino, status.st_mtime_ns
        last = self._seen.get(file)
        if last is None or last.version != version:
            self._seen[file] = _Seen(version, time.monotonic(), last is not None)
        return self._seen[file]

    def _now(self, folder: Path) -> float | None:
        """Return the time of a folder's file system; None if this user may not write there."""
        now = time.monotonic()
        if folder not in self._offsets or now - self._offsets[folder][1] > _PROBE_SECONDS:
            probed = _probe(folder)
            self._offsets[folder] = None if probed is None else probed - time.monotonic(), now
        offset = self._offsets[folder][0]
        return None if offset is None else offset + time.monotonic()


def _probe(folder: Path) -> float | None:
    """Return the time that a file system gives to a file that is written to a folder now."""
    probe = folder / f".clock.{os.urandom(6).hex()}"
    try:
        with probe.open("xb") as file:
            file.write(b"\0")
            file.flush()
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
