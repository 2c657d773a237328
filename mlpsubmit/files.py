"""Files and directories that appear complete or not at all, locks, and JSON.

Everything that must be complete is written under a temporary name, flushed and renamed into place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mlpsubmit.errors import RunError

__all__ = [
    "full_disk_named",
    "json_bytes",
    "locked",
    "publish",
    "publish_json",
    "published",
    "read_json",
    "sync_folder",
]

#: What it means that a flush fails: data is lost. Other errors are of file systems that cannot
#: flush folders, each with one of its own, and of folders without read permission.
_LOST = (errno.EIO, errno.ENOSPC, errno.EDQUOT)

#: Errors of a disk without space, for this user at least.
_FULL = (errno.ENOSPC, errno.EDQUOT)

#: Bytes below which a disk is full for a library that does not report why it could not write.
_NOTHING_FREE = 1 << 16


@contextlib.contextmanager
def published(path: Path, *, sync: bool = True, size: int = 0) -> Iterator[Path]:
    """Yield a temporary sibling to create; then flush it to the disk and rename it to the path.

    Works for files and for directories. Readers see the old content or the new one, whole; if the
    block raises, the old content stays and the temporary one is removed.

    Args:
        sync: whether to flush; not needed for files that may be lost in a power cut (heartbeats).
        size: how many bytes will be written at least, as far as known.
    """
    temporary = _sibling(path)
    try:
        with full_disk_named(path, lambda: max(size, _size(temporary))):
            yield temporary
            if sync:
                _sync_tree(temporary)
            _rename(temporary, path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


@contextlib.contextmanager
def full_disk_named(path: Path, needed: Callable[[], int]) -> Iterator[None]:
    """Raise an OSError that names the file and the space it needs, if the disk is full.

    Args:
        needed: returns how many bytes the file needs, at least.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # libraries report a full disk as either
        number = getattr(error, "errno", None)
        free = _free(path.parent)
        if number not in _FULL and not (number is None and free < _NOTHING_FREE):
            raise
        number = number or errno.ENOSPC
        text = (
            f"{os.strerror(number)}: the file needs {needed():,} bytes or more, and {free:,} are "
            "free; free some space, and repeat the command"
        )
        raise OSError(number, text, str(path)) from error


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return _NOTHING_FREE


def _size(path: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    with contextlib.suppress(OSError):
        return sum(e.stat().st_size for e in (path, *path.rglob("*")) if e.is_file())
    return 0


def _sibling(path: Path) -> Path:
    """Return an unused hidden name in the same folder, and so on the same file system."""
    return path.with_name(f".{path.name}.{os.urandom(6).hex()}")


def _sync_tree(path: Path) -> None:
    for entry in (path, *path.rglob("*")):
        sync_folder(entry) if entry.is_dir() else _sync(entry)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries: until then, a power cut can undo a rename or a new file in it."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno in _LOST:
            raise


def _rename(temporary: Path, path: Path) -> None:
    if not (temporary.is_dir() and path.exists()):
        os.replace(temporary, path)
        return
    # A directory that is not empty cannot be replaced in one step: move it aside, and back again
    # if the rename of the new one fails.
    aside = _sibling(path)
    os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except BaseException:
        os.rename(aside, path)
        raise
    shutil.rmtree(aside)


def publish(
    path: Path,
    content: Callable[[BinaryIO], Any] | bytes,
    *,
    sync: bool = True,
    private: bool = False,
) -> None:
    """Publish a file; see :func:`published`.

    Args:
        content: the bytes, or a function that writes them to an open file.
        private: whether only this user may read it, at any time. Whatever the umask, only this
            user may write it.
    """
    mode = 0o600 if private else 0o644
    size = 0 if callable(content) else len(content)

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, mode)

    with (
        published(path, sync=sync, size=size) as temporary,
        open(temporary, "wb", opener=opener) as file,
    ):
        if callable(content):
            content(file)
        else:
            file.write(content)


def json_bytes(content: Any) -> bytes:
    """Return the content as JSON."""
    return json.dumps(content, indent=1).encode()


def publish_json(path: Path, content: Any, *, sync: bool = True) -> None:
    """Publish a JSON file."""
    publish(path, json_bytes(content), sync=sync)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        RunError: if it is not valid JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise RunError(f"{path}: is damaged ({error})") from error


#: Seconds between two attempts to get a lock.
_LOCK_PAUSE = 0.1


@contextlib.contextmanager
def locked(path: Path, *, wait: float = math.inf) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel releases it however the process ends.

    Child processes that are started with ``close_fds=False`` hold it as well.

    Args:
        wait: seconds to wait for it.

    Raises:
        BlockingIOError: another process holds it longer.
        RunError: the file system does not support locks.
    """
    end = time.monotonic() + wait
    operation = fcntl.LOCK_EX | (0 if wait == math.inf else fcntl.LOCK_NB)
    with path.open("ab") as file:
        # An sbatch that outlives the process that started it also holds the lock until it ends.
        os.set_inheritable(file.fileno(), True)
        while True:
            try:
                fcntl.flock(file, operation)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise
                time.sleep(_LOCK_PAUSE)
            except OSError as error:
                raise RunError(
                    f"{path}: cannot be locked ({error.strerror}); keep runs on a file system that "
                    "supports locks, with --runs-dir"
                ) from error
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
