"""The files that a data function reads: recorded while it runs, compared before results are reused.

Python reports what it opens to an audit hook (PEP 578). Code, libraries, files of the system and
files that the function itself writes are no inputs. What other processes or C libraries (HDF5,
Parquet) read is not reported; ``sys.audit("mlpsubmit.input", path)`` names such a file, as the
library's own recipes do for theirs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.machinery
import os
import stat
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from mlpsubmit.spec.libraries import in_library_folder, is_library

__all__ = ["Recording", "changes", "record"]

Result = TypeVar("Result")

#: Names a file that a data function reads, for what no hook reports.
NAMED = "mlpsubmit.input"

#: Events whose first argument is the path of a file, or of a folder whose entries are listed.
_FILES = frozenset({NAMED, "open", "sqlite3.connect"})
_FOLDERS = frozenset({"os.listdir", "os.scandir"})

#: Events after which something may be read that is not reported.
_PROCESSES = frozenset(
    {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}
    | {"subprocess.Popen"}
)
_NETWORK = frozenset({"urllib.Request", "socket.connect"})

#: Libraries that open files without a report, whose use shows by their import alone.
_SILENT = ("h5py", "netCDF4", "tables")

_EVENTS = _FILES | _FOLDERS | _PROCESSES | _NETWORK

_WRITES = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND

#: The module that compiles this package's own functions, at the first draw, say.
_COMPILES = "mlpsubmit.native.compiler"

#: Folders of the system, none of whose files is an input.
_SYSTEM = ("/proc/", "/sys/", "/etc/", "/usr/lib/", "/usr/share/locale/", "/usr/share/zoneinfo/")
_CODE = tuple(importlib.machinery.all_suffixes())

#: Larger files are compared by their size and times alone: hashing takes a second per GB.
LARGEST_HASHED = 1 << 34

_BLOCK = 1 << 20


@dataclass
class Recording:
    """What a function reads.

    Attributes:
        ignored: a folder none of whose files is an input.
        opened: paths of files, with their size and times when they were opened first.
        written: paths of files that were opened for writing too.
        listed: paths of folders whose entries were listed.
        unseen: sources that are known by name alone: processes, addresses on the network, and
            libraries that open files without a report.
    """

    ignored: str
    opened: dict[str, dict[str, int]] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    listed: set[str] = field(default_factory=set)
    unseen: set[str] = field(default_factory=set)

    def see(self, event: str, arguments: tuple[Any, ...], frame: FrameType) -> None:
        """Record an event of the interpreter, raised in a frame."""
        if _compiles(frame):
            return
        if event in _PROCESSES:
            self.unseen.add(f"process {_program(arguments)}")
        elif event == "urllib.Request":
            self.unseen.add(str(arguments[0]))
        elif event == "socket.connect":
            if isinstance(arguments[1], tuple):  # else of this machine
                self.unseen.add(f"{arguments[1][0]}:{arguments[1][1]}")
        elif isinstance(arguments[0], (str, bytes, os.PathLike)):  # not a descriptor
            path = os.path.abspath(os.fsdecode(os.fspath(arguments[0])))
            if event == "open" and arguments[2] & _WRITES:
                self.written.add(path)
            elif path not in self.opened and not (_is_foreign(path) or _imports(frame)):
                self._add(path, event)
        elif event in _FOLDERS and arguments[0] is None:
            self.listed.add(os.getcwd())

    def _add(self, path: str, event: str) -> None:
        if event in _FOLDERS:
            self.listed.add(path)
            return
        with contextlib.suppress(OSError):  # then it cannot be opened either
            self.opened[path] = _times(os.stat(path))

    def paths(self) -> list[str]:
        """Return the sorted paths of the files that were read, and that still exist."""
        inside = self.ignored + os.sep
        return sorted(
            path
            for path in self.opened
            if path not in self.written and not path.startswith(inside) and os.path.isfile(path)
        )

    def to_json(self) -> dict[str, Any]:
        """Return the files with their hashes, and what else was read."""
        paths = self.paths()
        parents: dict[str, set[str]] = {}
        for path in paths:
            parents.setdefault(os.path.dirname(path), set()).add(os.path.splitext(path)[1])
        folders = [
            {"path": path, "suffixes": sorted(parents[path]), "names": _names(path, parents[path])}
            for path in sorted(self.listed & set(parents))
        ]
        return {
            "files": [_described(path, self.opened[path]) for path in paths],
            "folders": folders,
            "unseen": sorted(self.unseen),
        }


def _program(arguments: Sequence[Any]) -> str:
    """Return the program that a process runs; empty for a copy of this one."""
    name = arguments[0] if arguments else ""
    return os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else str(name)


def _is_foreign(path: str) -> bool:
    """Return whether a file is code, or belongs to the system or to Python."""
    return path.endswith(_CODE) or path.startswith(_SYSTEM) or in_library_folder(Path(path))


# ---- the hook ------------------------------------------------------------------------------------

_recording: Recording | None = None


def record(function: Callable[[], Result], ignored: Path) -> tuple[Result, Recording]:
    """Call a function; return its result and what this process read meanwhile, in all its threads.

    Args:
        ignored: a folder none of whose files is an input.
    """
    global _recording
    _install_hook()
    recording = Recording(os.path.abspath(ignored))
    outer, _recording = _recording, recording
    try:
        result = function()
    finally:
        _recording = outer
    recording.unseen.update(name for name in _SILENT if name in sys.modules)
    return result, recording


@functools.cache
def _install_hook() -> None:
    """Add the hook, once: Python has no way to remove one."""
    sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    recording = _recording
    if recording is None or event not in _EVENTS:
        return
    try:
        recording.see(event, arguments, sys._getframe(1))
    except Exception as error:  # raised here, it would end what the function does
        recording.unseen.add(f"{event}: {error}")


def _imports(frame: FrameType | None) -> bool:
    """Return whether a file is opened for an import: the module, or what a library loads then."""
    inner: FrameType | None = None
    while frame is not None and frame.f_code is not record.__code__:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return inner is None or is_library(inner.f_globals.get("__name__", ""))
        inner, frame = frame, frame.f_back
    return False


def _compiles(frame: FrameType | None) -> bool:
    """Return whether this package is compiling its functions in C, which a function may call."""
    while frame is not None and frame.f_code is not record.__code__:
        if frame.f_globals.get("__name__") == _COMPILES:
            return True
        frame = frame.f_back
    return False


# ---- files as they are now -----------------------------------------------------------------------


def _hash_file(path: str) -> str:
    """Return the hex BLAKE2b hash of a file's content, read block by block."""
    content = hashlib.blake2b(digest_size=16)
    buffer = memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            content.update(buffer[:size])
    return content.hexdigest()


def _times(status: os.stat_result) -> dict[str, int]:
    return {
        "size": status.st_size,
        "mtime": status.st_mtime_ns,
        # Cannot be set, so that a content of equal size and mtime is noticed too.
        "ctime": status.st_ctime_ns,
    }


def _described(path: str, opened: Mapping[str, int]) -> dict[str, Any]:
    """Return what is recorded of a file; no hash if it is large, or not as it was when opened."""
    known = opened["size"] <= LARGEST_HASHED and _times(os.stat(path)) == opened
    return {"path": path, **opened, "hash": _hash_file(path) if known else None}


def _names(folder: str, suffixes: Iterable[str]) -> list[str]:
    """Return the sorted names of the files in a folder that have one of the suffixes."""
    wanted = set(suffixes)
    return sorted(name for name in os.listdir(folder) if os.path.splitext(name)[1] in wanted)


def changes(record: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Compare the files of a record with those that there are now.

    A file of the same size and times is taken as unchanged; a touched one is hashed.

    Returns:
        One text per file or folder that has changed; and the files that cannot be read.
    """
    changed, absent = [], []
    for file in record["files"]:
        try:
            if (change := _change(file)) is not None:
                changed.append(change)
        except OSError:
            absent.append(str(file["path"]))
    for folder in record["folders"]:
        with contextlib.suppress(OSError):  # its files are reported
            if new := set(_names(folder["path"], folder["suffixes"])) - set(folder["names"]):
                names = ", ".join(sorted(new)[:3]) + ", ..." * (len(new) > 3)
                changed.append(f"{folder['path']}, which it listed, has new files ({names})")
    return changed, absent


def _change(file: Mapping[str, Any]) -> str | None:
    path = file["path"]
    now = os.stat(path)
    if not stat.S_ISREG(now.st_mode):
        return f"{path} has become something else than a file"
    if _times(now).items() <= file.items():
        return None
    if now.st_size != file["size"]:
        return f"{path} has changed ({file['size']} bytes then, {now.st_size} now)"
    if file["hash"] is None:
        return f"{path} has been modified (its content at that time was not hashed)"
    same = _hash_file(path) == file["hash"]
    return None if same else f"{path} has changed (another content of the same size)"
