"""Files and directories that appear complete or not at all, locks, and JSON.

Everything that must be complete is written under a temporary name, flushed and renamed into place.
What is read must be a regular file: a FIFO or a device in its place blocks, or has no end.

Where several users write, the folder decides what they share, and no writer's umask: what is made
in a folder with setgid that its group can read is readable by that group, too, and a lock in one
that its group can write can be taken by all of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mlpsubmit.checksums import SEAL_SIZE, Verifier, parsed_json, summed_json
from mlpsubmit.errors import DamageError, RunError

__all__ = [
    "LARGEST_JSON",
    "SMALL_JSON",
    "checked",
    "checked_content",
    "full_disk_named",
    "is_shared",
    "leftovers",
    "locked",
    "make_folder",
    "open_regular",
    "publish",
    "publish_json",
    "published",
    "read_json",
    "refresh",
    "remove_folder",
    "remove_hidden",
    "remove_leftovers",
    "set_modes",
    "share_file",
    "share_output",
    "sync_folder",
    "verify",
    "verify_open",
    "without_leftovers",
]

#: The most bytes of a JSON file that is read or written, and of one of a few fields.
LARGEST_JSON = 1 << 27
SMALL_JSON = 1 << 20

_CHUNK = 1 << 20

#: What it means that a flush fails: data is lost. Other errors are of file systems that cannot
#: flush folders, each with one of its own, and of folders without read permission.
_LOST = (errno.EIO, errno.ENOSPC, errno.EDQUOT)

#: Errors of a disk without space, for this user at least.
_FULL = (errno.ENOSPC, errno.EDQUOT)

#: Bytes below which a disk is full for a library that does not report why it could not write.
_NOTHING_FREE = 1 << 16


@contextlib.contextmanager
def published(path: Path, *, sync: bool = True, size: int = 0, called: str = "") -> Iterator[Path]:
    """Yield a temporary sibling to create; then flush it to the disk and rename it to the path.

    Works for files and for directories. Readers see the old content or the new one, whole; if the
    block raises, the old content stays and the temporary one is removed.

    Args:
        sync: whether to flush; not needed for files that may be lost in a power cut (heartbeats).
        size: how many bytes will be written at least, as far as known.
        called: a name for the temporary one to contain in place of the path's own, if others read
            whatever contains that.
    """
    temporary = _sibling(path.with_name(called) if called else path)
    try:
        with full_disk_named(path, lambda: max(size, _size(temporary))):
            yield temporary
            if not temporary.is_dir():
                share_file(temporary)
            if sync:
                _sync_tree(temporary)
            _rename(temporary, path)
    except BaseException:
        if temporary.is_dir():
            remove_hidden(temporary)
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


def is_shared(folder: Path, *, writable: bool = False) -> bool:
    """Return whether a folder shares what is made in it with its group: setgid, and readable.

    Args:
        writable: whether its group can write to it as well.
    """
    wanted = stat.S_ISGID | stat.S_IRGRP | stat.S_IXGRP | (stat.S_IWGRP if writable else 0)
    return folder.stat().st_mode & wanted == wanted


def share_file(path: Path) -> None:
    """Let the group read a file that this process has made, where its folder is shared.

    Others who may write to the folder may have put something else in its place.
    """
    if is_shared(path.parent):
        set_modes(path, stat.S_IRGRP)


def share_output(folder: Path) -> None:
    """Let the group read the log to which this process prints, if it is in a shared folder."""
    with contextlib.suppress(OSError):
        found = os.fstat(1)
        own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        if own and is_shared(folder):
            os.fchmod(1, stat.S_IMODE(found.st_mode) | stat.S_IRGRP)


def set_modes(path: Path, mode: int, gid: int | None = None) -> None:
    """Add to the mode of a file or a folder, if it is this user's and no link.

    Args:
        gid: the group to give it.
    """
    with contextlib.suppress(OSError):  # replaced by a link, or by another user's
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            if found.st_uid != os.geteuid() or stat.S_IFMT(found.st_mode) not in _KEPT_MODES:
                return
            if gid is not None and found.st_gid != gid:
                os.fchown(descriptor, -1, gid)  # before the mode: it drops setgid
            os.fchmod(descriptor, stat.S_IMODE(found.st_mode) | mode)
        finally:
            os.close(descriptor)


_KEPT_MODES = (stat.S_IFREG, stat.S_IFDIR)


def make_folder(path: Path) -> None:
    """Make a folder that only this user can write to; where its folder is shared, all can read it.

    Raises:
        FileExistsError: there is something of that name.
    """
    shared = is_shared(path.parent)
    with _umask(0o022 if shared else None):
        path.mkdir(mode=0o755)
    if shared:
        set_modes(path, stat.S_ISGID | stat.S_IRGRP | stat.S_IXGRP)


@contextlib.contextmanager
def _umask(mask: int | None) -> Iterator[None]:
    """Make files and folders with their modes at once, unless the mask is None.

    A process that dies before it sets modes must leave nothing that other users cannot open.
    """
    before = None if mask is None else os.umask(mask)
    try:
        yield
    finally:
        if before is not None:
            os.umask(before)


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


#: What :func:`_sibling` returns, with the name that was to be published.
_LEFTOVER = re.compile(r"\.(.+)\.[0-9a-f]{12}", re.DOTALL)


def remove_leftovers(folder: Path, owned: Callable[[str], bool] = lambda name: True) -> None:
    """Remove what killed processes have left in a folder of files that they were to publish.

    Args:
        owned: returns whether no other process can be publishing a file of this name now.
    """
    for path in leftovers(folder, owned):
        if path.is_dir() and not path.is_symlink():
            remove_hidden(path)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def leftovers(folder: Path, owned: Callable[[str], bool] = lambda name: True) -> list[Path]:
    """Return what killed processes have left in a folder; see :func:`remove_leftovers`."""
    found = []
    with contextlib.suppress(OSError):  # no such folder, or one of another user
        for entry in list(os.scandir(folder)):
            name = _LEFTOVER.fullmatch(entry.name)
            if name is not None and owned(name[1]):
                found.append(Path(entry.path))
    return found


def remove_folder(path: Path) -> str:
    """Remove a folder: it disappears whole, whenever this process or the machine ends.

    Returns:
        Why something of it is left, as by :func:`remove_hidden`.
    """
    hidden = _sibling(path)
    os.rename(path, hidden)
    sync_folder(path.parent)
    return remove_hidden(hidden)


def remove_hidden(path: Path) -> str:
    """Remove what can be removed of a folder that nobody sees any more.

    On a network file system a file that a process has open is renamed where it is removed
    (``.nfs...``), and stays, with its folder, until it is closed.

    Returns:
        Why something of it is left, for the next removal of leftovers; empty if nothing is.
    """
    shutil.rmtree(path, ignore_errors=True)
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


@contextlib.contextmanager
def without_leftovers(path: Path) -> Iterator[None]:
    """Remove the leftovers of a path that any process may publish, unless one is doing so now.

    All that publish it do so within this context: they lock the folder while they do, shared.
    """
    with contextlib.ExitStack() as stack:
        # Nothing is removed while another process writes, nor where folders cannot be locked (NFS).
        with contextlib.suppress(OSError):
            descriptor = os.open(path.parent, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists():  # else one may be the old directory, moved aside by _rename
                    remove_leftovers(path.parent, path.name.__eq__)
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


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


def refresh(folder: Path) -> None:
    """Let this machine see the present entries of a folder on a network file system.

    Such a file system (NFS by default) shows a machine the entries that it has read within the last
    minute, but compares them with those of the server when the machine itself changes the folder.
    """
    probe = _sibling(folder / "refresh")
    with contextlib.suppress(OSError):  # a full disk: whatever needs the entries will fail, too
        probe.touch()
        probe.unlink()


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
    remove_hidden(aside)


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
        private: whether only this user may read it, and those with whom its folder is shared.
            Whatever the umask, only this user may write it.
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


def publish_json(path: Path, content: Mapping[str, Any], *, sync: bool = True) -> None:
    """Publish a JSON object with its checksum.

    Raises:
        RunError: it would be larger than :func:`read_json` reads.
    """
    encoded = summed_json(content)
    if len(encoded) > LARGEST_JSON:
        raise RunError(f"{path}: would have {_too_large(len(encoded), LARGEST_JSON)}")
    publish(path, encoded, sync=sync)


def publish_first(path: Path, content: Mapping[str, Any]) -> bool:
    """Publish a JSON object unless the file exists: of several processes one alone does it.

    Returns:
        Whether this was the one.
    """
    temporary = _sibling(path)
    try:
        with full_disk_named(path, lambda: _size(temporary)), temporary.open("xb") as file:
            file.write(summed_json(content))
            file.flush()
            share_file(temporary)
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


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


def verify(path: Path) -> str:
    """Return the checksum of a file that :func:`mlpsubmit.checksums.sealed` wrote, in hex.

    Raises:
        DamageError: it is not that of the content.
    """
    with open_regular(path) as file:
        if (checksum := verify_open(file)) is None:
            raise _damaged(path)
    return checksum


def verify_open(file: BinaryIO) -> str | None:
    """Return the checksum of an open file, in hex; None if it is not that of the content."""
    file.seek(0)
    verifier = Verifier(os.fstat(file.fileno()).st_size)
    while part := file.read(_CHUNK):
        verifier.add(part)
    return verifier.checksum()


def checked(path: Path) -> bytes:
    """Return the content of a file that :func:`mlpsubmit.checksums.sealed` wrote.

    Raises:
        DamageError: the checksum is not that of the content.
    """
    with open_regular(path) as file:
        return checked_content(path, file.read())


def checked_content(path: Path, content: bytes) -> bytes:
    """Return the content of a file of that path, which was read, without its checksum.

    Raises:
        DamageError: the checksum is not that of the content.
    """
    verifier = Verifier(len(content))
    verifier.add(content)
    if verifier.checksum() is None:
        raise _damaged(path)
    return content[:-SEAL_SIZE]


def _damaged(path: Path) -> DamageError:
    return DamageError(f"{path}: is damaged (its checksum differs from that of its content)")


def read_json(path: Path, most: int = LARGEST_JSON) -> Any:
    """Return the object in a file of :func:`publish_json`.

    Args:
        most: the bytes that it may have; a larger one is not read.

    Raises:
        DamageError: if it is not valid JSON, too large, or not as it was written.
        RunError: if it is not a regular file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > most else file.read(most + 1)
    if max(size, len(content)) > most:
        raise DamageError(f"{path}: is damaged (it has {_too_large(size, most)})")
    try:
        return parsed_json(content)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{path}: is damaged ({error})") from error


def _too_large(size: int, most: int) -> str:
    return f"{size} bytes; the most is {most}"


#: Seconds between two attempts to get a lock, at first and at most: each is a request to the server
#: of a network file system.
_LOCK_PAUSE = 0.1
_LONGEST_LOCK_PAUSE = 2.0


@contextlib.contextmanager
def locked(
    path: Path, *, wait: float = math.inf, waiting: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel releases it however the process ends.

    Child processes that are started with ``close_fds=False`` hold it as well.

    Args:
        wait: seconds to wait for it.
        waiting: called before each pause; what it raises ends the wait.

    Raises:
        BlockingIOError: another process holds it longer.
        RunError: the file system does not support locks.
    """
    end = time.monotonic() + wait
    while True:
        with open(path, "ab", opener=_open_lock) as file:
            # An sbatch that outlives the process that started it also holds the lock until it ends.
            os.set_inheritable(file.fileno(), True)
            _lock(file, path, end, waiting)
            if not _is_at(file, path):  # its last owner has removed it
                continue
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)
            return


def _open_lock(name: str, flags: int) -> int:
    """Open the file of a lock, which is made if need be, for all who may write to its folder.

    A FIFO in its place has no reader: without O_NONBLOCK, opening it would wait for one. In sticky
    folders the kernel refuses O_CREAT for files of other users that exist.
    """
    flags |= os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        return os.open(name, flags & ~os.O_CREAT)
    except FileNotFoundError:
        shared = is_shared(Path(name).parent, writable=True)
        with _umask(0o007 if shared else None):
            return os.open(name, flags, 0o666)


def _lock(file: BinaryIO, path: Path, end: float, waiting: Callable[[], object]) -> None:
    pause = _LOCK_PAUSE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            waiting()
            time.sleep(min(pause, max(0.0, end - time.monotonic())))
            pause = min(1.5 * pause, _LONGEST_LOCK_PAUSE)
        except OSError as error:
            raise RunError(
                f"{path}: cannot be locked ({error.strerror}); keep runs on a file system that "
                "supports locks, with --runs-dir"
            ) from error


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Return whether an open file is the one that has a path now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
