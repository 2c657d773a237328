"""Files and directories that appear complete or not at all, locks, and JSON.

Everything that must be complete is written under a temporary name, flushed and renamed into place.
What is read must be a regular file: a FIFO or a device in its place blocks, or has no end.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mlpsubmit.errors import RunError

__all__ = [
    "LARGEST_JSON",
    "SMALL_JSON",
    "json_bytes",
    "locked",
    "open_regular",
    "publish",
    "publish_json",
    "published",
    "read_json",
    "sync_folder",
]

#: The most bytes of a JSON file that is read or written, and of one of a few fields.
LARGEST_JSON = 1 << 27
SMALL_JSON = 1 << 20

#: Errors of file systems that cannot flush folders, and of folders without read permission.
_CANNOT_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.EACCES)


@contextlib.contextmanager
def published(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary sibling to create; then flush it to the disk and rename it to the path.

    Works for files and for directories. Readers see the old content or the new one, whole; if the
    block raises, the old content stays and the temporary one is removed.

    Args:
        sync: whether to flush; not needed for files that may be lost in a power cut (heartbeats).
    """
    temporary = _sibling(path)
    try:
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
        if error.errno not in _CANNOT_SYNC:
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
        private: whether only this user may read it (mode 0600), at any time.
    """
    opener = (lambda name, flags: os.open(name, flags, 0o600)) if private else None
    with published(path, sync=sync) as temporary, open(temporary, "wb", opener=opener) as file:
        if callable(content):
            content(file)
        else:
            file.write(content)


def json_bytes(content: Any) -> bytes:
    """Return the content as JSON."""
    return json.dumps(content, indent=1).encode()


def publish_json(path: Path, content: Any, *, sync: bool = True) -> None:
    """Publish a JSON file.

    Raises:
        RunError: it would be larger than :func:`read_json` reads.
    """
    encoded = json_bytes(content)
    if len(encoded) > LARGEST_JSON:
        raise RunError(f"{path}: would have {_too_large(len(encoded), LARGEST_JSON)}")
    publish(path, encoded, sync=sync)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, without ever waiting for a writer.

    Raises:
        RunError: the path is a FIFO, a device, a socket or a folder.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise RunError(f"{path}: is {_KINDS.get(stat.S_IFMT(mode), 'a folder')}; should be a file")
    # Without waiting all the same: it may have been replaced since.
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_json(path: Path, most: int = LARGEST_JSON) -> Any:
    """Return the content of a JSON file.

    Args:
        most: the bytes that it may have; a larger one is not read.

    Raises:
        RunError: if it is not valid JSON, too large, or not a regular file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > most else file.read(most + 1)
    if max(size, len(content)) > most:
        raise RunError(f"{path}: is damaged (it has {_too_large(size, most)})")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: is damaged ({error})") from error


def _too_large(size: int, most: int) -> str:
    return f"{size} bytes; the most is {most}"


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
    # A FIFO in its place has no reader: without O_NONBLOCK, opening it would wait for one.
    opener = lambda name, flags: os.open(name, flags | os.O_NONBLOCK, 0o666)  # noqa: E731
    with open(path, "ab", opener=opener) as file:
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
