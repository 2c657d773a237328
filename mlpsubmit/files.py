"""Files that are whole or not there: written under another name, flushed, renamed into place."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mlpsubmit.errors import RunError

__all__ = [
    "json_bytes",
    "locked",
    "publish",
    "publish_folder",
    "publish_json",
    "read_json",
    "sync_folder",
]


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to the disk: a rename is lost in a power cut until then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(path: Path, write: Callable[[BinaryIO], Any] | bytes, *, sync: bool = True) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it into place.

    Readers see the old content or the new, whole. ``sync=False`` leaves the flush out, for files
    that may be lost in a power cut (heartbeats).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with temporary.open("wb") as file:
            if callable(write):
                write(file)
            else:
                file.write(write)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def publish_folder(temporary: Path, path: Path) -> None:
    """Rename a folder whose files are on the disk into place."""
    sync_folder(temporary)
    temporary.rename(path)
    sync_folder(path.parent)


def json_bytes(content: Any) -> bytes:
    """Return the content as JSON."""
    return json.dumps(content, indent=1).encode()


def publish_json(path: Path, content: Any, *, sync: bool = True) -> None:
    """Publish a JSON file."""
    publish(path, json_bytes(content), sync=sync)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        RunError: where it is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise RunError(f"{path}: is damaged ({error})") from error


#: Seconds between two tries for a lock.
_LOCK_REST = 0.1


@contextlib.contextmanager
def locked(path: Path, *, wait: float = math.inf) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel frees it however the process ends.

    Child processes that are started with ``close_fds=False`` hold it as well.

    Args:
        wait: seconds to wait for it.

    Raises:
        BlockingIOError: where another process holds it for longer.
        RunError: where the file system has no locks.
    """
    with path.open("ab") as file:
        # A submission that outlives the process that made it keeps the lock until it ends too.
        os.set_inheritable(file.fileno(), True)
        try:
            _lock(file, wait)
        except BlockingIOError:
            raise
        except OSError as error:
            raise RunError(
                f"{path}: cannot be locked ({error.strerror}); keep runs on a file system that has "
                "locks, with --runs-dir"
            ) from error
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _lock(file: BinaryIO, wait: float) -> None:
    end = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait == math.inf else fcntl.LOCK_NB))
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            time.sleep(min(_LOCK_REST, max(0.0, end - time.monotonic())))
