"""A simulated shared file system, below Python's own functions for files.

- Machines other than the one that changed a folder may see its old entries for up to ``stale``
  seconds, and what is appended to a file once that is flushed or closed (as on NFS).
- A machine that dies loses what its processes had not flushed. A power cut of the server loses
  that and the entries of folders that were not flushed.
- Files have owners, groups and modes, and folders are sticky or hand their group on.
- It can be full, or fail; a process may be killed in the middle of a write.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from virtual_time import START, Machine, Process, World, current

__all__ = ["GROUP", "ROOT", "Disk", "patch_files"]

#: Paths below this one are simulated.
ROOT = "/simulated"

#: The group of all users; each has one of their own besides, with their number.
GROUP = 100

#: The first descriptor of a simulated file; those of real ones are far smaller.
_FIRST = 1 << 20


@dataclass(eq=False)
class Node:
    """A file or a folder.

    Attributes:
        entries: of a folder, by name; None for a file.
        durable: the entries, or the bytes, that a power cut leaves.
        seen: the bytes that other machines see.
        writer: the machine that has bytes which are not flushed.
        steps: the changes of a folder since it was last flushed: name and former entry.
        lock, sharing: the open files that hold its exclusive lock, or a shared one.
    """

    number: int
    mode: int
    owner: int
    group: int
    entries: dict[str, Node] | None = None
    data: bytearray = field(default_factory=bytearray)
    seen: bytes = b""
    durable: Any = None
    writer: Machine | None = None
    mtime: float = 0.0
    links: int = 1
    steps: list[tuple[str, Node | None]] = field(default_factory=list)
    lock: Handle | None = None
    sharing: set[Handle] = field(default_factory=set)

    def allows(self, user: int, wanted: int) -> bool:
        """Return whether a user may read (4), write (2), or look for entries (1)."""
        shift = 6 if user == self.owner else 3 if self.group in (GROUP, user) else 0
        return (self.mode >> shift) & wanted == wanted

    def flush(self) -> None:
        self.seen, self.writer = bytes(self.data), None


@dataclass(eq=False)
class Handle:
    """An open file."""

    node: Node
    flags: int
    process: Process
    path: str
    offset: int = 0

    @property
    def writes(self) -> bool:
        return bool(self.flags & (os.O_WRONLY | os.O_RDWR))


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


class Disk:
    """The file system of one schedule.

    Attributes:
        stale: for how many seconds a machine may see old entries of a folder; 0 for a local disk.
        full: whether nothing more can be written.
        failing: the probability that a call fails with EIO.
        faulted: the processes that have met a full or a failing disk.
    """

    def __init__(self, world: World, stale: float) -> None:
        self.world = world
        self.stale = stale
        self.full = False
        self.failing = 0.0
        self.faulted: set[Process] = set()
        self._count = 0
        self.umasks: dict[int, int] = {}
        self.root = self._node(0, None, {})
        self.root.mode = stat.S_IFDIR | 0o1777
        self.root.durable = {}
        self.handles: dict[int, Handle] = {}
        self._views: dict[tuple[Machine, Node], dict[str, tuple[float, Any]]] = {}

    def _node(
        self,
        mode: int,
        folder: Node | None,
        entries: dict[str, Node] | None = None,
        user: int | None = None,
    ) -> Node:
        """Return a new file or folder of the current user in a folder."""
        self._count += 1
        process = current()
        user = user or (0 if process is None else process.user)
        own = None if process is None else process.umask
        mode &= ~(self.umasks.get(user, 0o022) if own is None else own)
        handed = folder is not None and folder.mode & stat.S_ISGID
        if handed and entries is not None:
            mode |= stat.S_ISGID
        group = folder.group if folder is not None and handed else user
        durable: Any = b"" if entries is None else {}
        return Node(self._count, mode, user, group, entries, durable=durable, mtime=self.world.now)

    def _check(self, node: Node, wanted: int, path: str, process: Process | None) -> None:
        """Raise an error for what the user of a process may not do; daemons may do all."""
        if process is not None and not node.allows(process.user, wanted):
            raise _error(errno.EACCES, path)

    def _check_entry(self, folder: Node, name: str, path: str, process: Process | None) -> None:
        """Raise an error where an entry may not be removed or replaced."""
        self._check(folder, 3, path, process)
        assert folder.entries is not None
        there = folder.entries.get(name)
        if process is None or there is None or not folder.mode & stat.S_ISVTX:
            return
        if process.user not in (folder.owner, there.owner):
            raise _error(errno.EPERM, path)

    # ---- what a machine sees

    def _cached(self, folder: Node, machine: Machine | None, key: str, value: Any) -> Any:
        """Return what a machine has seen of a folder a while ago; else the value, which it keeps.

        Args:
            key: a name, or nothing for the list of all.
        """
        if machine is None or not self.stale:
            return value
        seen = self._views.setdefault((machine, folder), {})
        if key not in seen or seen[key][0] <= self.world.now:
            seen[key] = self.world.now + self.world.random.uniform(0, self.stale), value
        return seen[key][1]

    def entries(self, folder: Node, machine: Machine | None) -> dict[str, Node]:
        """Return the entries of a folder as a machine sees them."""
        assert folder.entries is not None
        entries: dict[str, Node] = self._cached(folder, machine, "", dict(folder.entries))
        return entries

    def _changed(self, folder: Node, name: str, process: Process | None) -> None:
        """Note the change of an entry before it is made; its machine sees it at once."""
        assert folder.entries is not None
        folder.steps.append((name, folder.entries.get(name)))
        folder.mtime = self.world.now
        if process is not None:
            self._views.pop((process.machine, folder), None)

    def find(self, path: str, process: Process | None, *, fresh: bool = False) -> Node | None:
        """Return the node at a path as a process sees it."""
        node: Node | None = self.root
        for name in path[len(ROOT) :].strip("/").split("/"):
            if not name:
                continue
            if node is None or node.entries is None:
                return None
            self._check(node, 1, path, process)
            machine = None if fresh or process is None else process.machine
            node = self._cached(node, machine, name, node.entries.get(name))
        return node

    def _at(self, path: str, process: Process | None) -> Node:
        node = self.find(path, process)
        if node is None:
            raise _error(errno.ENOENT, path)
        return node

    def _place(self, path: str, process: Process | None) -> tuple[Node, str]:
        """Return the folder of a path on the server, and the name in it."""
        above, _, name = path.rstrip("/").rpartition("/")
        folder = self.find(above, process, fresh=True)
        if folder is None:
            raise _error(errno.ENOENT, path)
        if folder.entries is None:
            raise _error(errno.ENOTDIR, path)
        return folder, name

    def _may_fail(self, path: str, *, writes: bool = False) -> Process | None:
        """Let others run; then raise what is wrong with the disk."""
        self.world.step()
        process = current()
        if process is not None and (
            (writes and self.full) or (self.failing and self.world.chance(self.failing))
        ):
            self.faulted.add(process)
            number = errno.ENOSPC if writes and self.full else errno.EIO
            self.world.note(f"{errno.errorcode[number]} at {path}")
            raise _error(number, path)
        return process

    # ---- calls

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        process = self._may_fail(path, writes=bool(flags & os.O_CREAT))
        assert process is not None
        node = self.find(path, process)
        if flags & os.O_CREAT:
            folder, name = self._place(path, process)
            assert folder.entries is not None
            node = folder.entries.get(name)
            if node is not None and flags & os.O_EXCL:
                raise _error(errno.EEXIST, path)
            sticky = folder.mode & stat.S_ISVTX and folder.mode & 0o022
            if node is not None and sticky and node.owner not in (process.user, folder.owner):
                raise _error(errno.EACCES, path)  # fs.protected_regular
            if node is None:
                self._check(folder, 3, path, process)
                node = self._node(stat.S_IFREG | mode, folder)
                self._changed(folder, name, process)
                folder.entries[name] = node
        if node is None:
            raise _error(errno.ENOENT, path)
        if node.entries is not None and flags & (os.O_WRONLY | os.O_RDWR):
            raise _error(errno.EISDIR, path)
        if process.user != node.owner or not flags & os.O_CREAT:
            writes = flags & (os.O_WRONLY | os.O_RDWR)
            self._check(node, 2 if flags & os.O_WRONLY else 6 if writes else 4, path, process)
        if flags & os.O_TRUNC:
            node.data.clear()
        number = _FIRST + self._count
        self._count += 1
        self.handles[number] = Handle(node, flags, process, path)
        process.handles.add(number)
        return number

    def file(self, path: str, user: int) -> Node:
        """Return the file at a path, as a daemon that no fault meets opens it."""
        folder, name = self._place(path, None)
        assert folder.entries is not None
        if name not in folder.entries:
            self._changed(folder, name, None)
            folder.entries[name] = self._node(stat.S_IFREG | 0o644, folder, user=user)
        return folder.entries[name]

    def close(self, number: int) -> None:
        if number not in self.handles:
            return
        if not self.handles[number].process.alive and self.handles[number].process.children:
            return  # a command that it has started holds its files
        handle = self.handles.pop(number)
        handle.process.handles.discard(number)
        if handle.writes:  # also if its process was killed: the kernel closes its files
            handle.node.flush()
        self._unlock(handle)

    def content(self, handle: Handle) -> bytes | bytearray:
        """Return the bytes of an open file as its machine sees them."""
        node = handle.node
        return node.data if node.writer in (None, handle.process.machine) else node.seen

    def _cut(self, first: int, last: int) -> int:
        """Return an integer between two, both included.

        By one draw, whatever they are: randint makes more for some lengths, and that of a heartbeat
        depends on the real number of this process.
        """
        return first + int(self.world.random.random() * (last - first + 1))

    def write(self, number: int, content: bytes) -> int:
        handle = self.handles[number]
        process = self._may_fail(handle.path, writes=True)
        assert process is not None
        node = handle.node
        at = len(node.data) if handle.flags & os.O_APPEND else handle.offset
        half = self._cut(0, len(content))
        if node.writer is None:
            node.seen = bytes(node.data)
        for part in (content[:half], content[half:]):
            node.data[at : at + len(part)] = part
            at, node.writer, node.mtime = at + len(part), process.machine, self.world.now
            self.world.step()  # it may be killed in between
        handle.offset = at
        return len(content)

    def fsync(self, number: int) -> None:
        handle = self.handles[number]
        self._may_fail(handle.path)
        node = handle.node
        if node.entries is None:
            node.flush()
            node.durable = bytes(node.data)
        else:
            node.durable, node.steps = dict(node.entries), []

    def stat(self, path: str) -> os.stat_result:
        return self._stat(self._at(path, self._may_fail(path)))

    def touch(self, path: str) -> None:
        """Do what a change of its time does here."""
        self._at(path, self._may_fail(path))

    def change(self, number: int, *, mode: int | None = None, group: int | None = None) -> None:
        """Change the mode or the group of an open file or folder, as its owner."""
        handle = self.handles[number]
        process = self._may_fail(handle.path)
        assert process is not None
        if process.user != handle.node.owner:
            raise _error(errno.EPERM, handle.path)
        if mode is not None:
            handle.node.mode = stat.S_IFMT(handle.node.mode) | mode
        if group is not None:
            handle.node.group = group

    def fstat(self, number: int) -> os.stat_result:
        handle = self.handles[number]
        return self._stat(handle.node, len(self.content(handle)))

    def _stat(self, node: Node, size: int | None = None) -> os.stat_result:
        process = current()
        if size is None:
            own = process is not None and node.writer in (None, process.machine)
            size = len(node.data if own else node.seen)
        mtime = START + node.mtime
        times = {"st_mtime": mtime, "st_mtime_ns": int(mtime * 1e9)}
        fields = (node.mode, node.number, 1, node.links, node.owner, node.group, size)
        return os.stat_result((*fields, int(mtime), int(mtime), int(mtime)), times)

    def names(self, path: str) -> list[tuple[str, Node]]:
        process = self._may_fail(path)
        node = self._at(path, process)
        if node.entries is None:
            raise _error(errno.ENOTDIR, path)
        self._check(node, 4, path, process)
        machine = None if process is None else process.machine
        return list(self.entries(node, machine).items())

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        process = self._may_fail(path, writes=True)
        folder, name = self._place(path, process)
        assert folder.entries is not None
        if name in folder.entries:
            raise _error(errno.EEXIST, path)
        self._check(folder, 3, path, process)
        self._changed(folder, name, process)
        folder.entries[name] = self._node(stat.S_IFDIR | mode, folder, {})

    def remove(self, path: str, *, folders: bool = False) -> None:
        process = self._may_fail(path)
        folder, name = self._place(path, process)
        assert folder.entries is not None
        node = folder.entries.get(name)
        if node is None:
            raise _error(errno.ENOENT, path)
        if folders != (node.entries is not None):
            raise _error(errno.ENOTDIR if folders else errno.EISDIR, path)
        if node.entries:
            raise _error(errno.ENOTEMPTY, path)
        self._check_entry(folder, name, path, process)
        self._changed(folder, name, process)
        del folder.entries[name]
        node.links -= 1

    def rename(self, source: str, target: str) -> None:
        process = self._may_fail(target)
        before, old = self._place(source, process)
        after, new = self._place(target, process)
        assert before.entries is not None
        assert after.entries is not None
        node, there = before.entries.get(old), after.entries.get(new)
        if node is None:
            raise _error(errno.ENOENT, source)
        if there is not None and there.entries:
            raise _error(errno.ENOTEMPTY, target)
        self._check_entry(before, old, source, process)
        self._check_entry(after, new, target, process)
        if there is not None:
            there.links -= 1
        self._changed(before, old, process)
        self._changed(after, new, process)
        after.entries[new] = before.entries.pop(old)

    def link(self, source: str, target: str) -> None:
        process = self._may_fail(target)
        node = self._at(source, process)
        folder, name = self._place(target, process)
        assert folder.entries is not None
        if name in folder.entries:
            raise _error(errno.EEXIST, target)
        self._check(folder, 3, target, process)
        self._changed(folder, name, process)
        folder.entries[name] = node
        node.links += 1

    def lock(self, number: int, operation: int) -> None:
        """As flock: the lock belongs to the open file, and ends with it."""
        self.world.step()
        handle = self.handles[number]
        node = handle.node
        if operation & fcntl.LOCK_UN:
            self._unlock(handle)
            return
        shared = bool(operation & fcntl.LOCK_SH)
        while node.lock not in (None, handle) or (not shared and node.sharing - {handle}):
            if operation & fcntl.LOCK_NB:
                raise BlockingIOError(errno.EAGAIN, "locked", handle.path)
            self.world.sleep(0.1)
        self._unlock(handle)  # one lock takes the place of the other
        if shared:
            node.sharing.add(handle)
        else:
            node.lock = handle

    def _unlock(self, handle: Handle) -> None:
        node = handle.node
        node.lock = None if node.lock is handle else node.lock
        node.sharing.discard(handle)

    # ---- failures

    def end_process(self, process: Process) -> None:
        """Close the files of a process that has ended."""
        for number in list(process.handles):
            self.close(number)

    def walk(self, node: Node | None = None) -> Iterator[Node]:
        node = node or self.root
        yield node
        for one in (node.entries or {}).values():
            yield from self.walk(one)

    def lose_unflushed(self, machine: Machine) -> None:
        """Lose what a machine that dies had not flushed, from some byte on."""
        for handle in self.handles.values():
            node = handle.node
            if node.writer is machine and handle.writes:
                least = len(node.seen)
                kept = self._cut(least, max(least, len(node.data)))
                del node.data[kept:]
                node.flush()

    def power_cut(self) -> None:
        """Lose what was not flushed to the server's disk; it comes back at once.

        Entries of folders are lost from some change on, the bytes of files from some byte on.
        """
        self._views.clear()
        for node in list(self.walk()):
            if node.entries is None:
                kept = self._cut(0, len(node.data))
                if node.data != node.durable:
                    rest = bytes(node.data[:kept])
                    node.data = bytearray(max(node.durable, rest, key=len))
                node.flush()
                node.durable = bytes(node.data)
                continue
            first = self._cut(0, len(node.steps))
            for name, former in reversed(node.steps[first:]):
                if former is None:
                    node.entries.pop(name, None)
                else:
                    node.entries[name] = former
            node.durable, node.steps = dict(node.entries), []


# ---- the seam: Python's own functions for files --------------------------------------------------


class _Raw(io.RawIOBase):
    """An open file, below Python's buffers."""

    def __init__(self, disk: Disk, number: int) -> None:
        self._disk, self._number = disk, number
        self._handle = disk.handles[number]
        self.name = self._handle.path

    def fileno(self) -> int:
        return self._number

    def readable(self) -> bool:
        return not self._handle.flags & os.O_WRONLY

    def writable(self) -> bool:
        return self._handle.writes

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._disk.content(self._handle)
        part = content[self._handle.offset : self._handle.offset + len(buffer)]
        buffer[: len(part)] = part
        self._handle.offset += len(part)
        return len(part)

    def write(self, content: Any) -> int:
        if not self._handle.process.alive:
            return len(content)  # Python flushes the buffers of a process that is dead here
        return self._disk.write(self._number, bytes(content))

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._handle.offset, len(self._disk.content(self._handle)))[whence]
        self._handle.offset = base + offset
        return self._handle.offset

    def tell(self) -> int:
        return self._handle.offset

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._disk.close(self._number)


class _Entry:
    """As os.DirEntry."""

    def __init__(self, folder: str, name: str, node: Node) -> None:
        self.name, self.path, self._node = name, f"{folder.rstrip('/')}/{name}", node

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._node.entries is not None

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self._node.entries is None

    def is_symlink(self) -> bool:
        return False

    def is_junction(self) -> bool:
        return False

    def __fspath__(self) -> str:
        return self.path

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        return os.stat(self.path)


class _Scan:
    """As the iterator of os.scandir."""

    def __init__(self, entries: list[_Entry]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[_Entry]:
        return self._entries

    def __next__(self) -> _Entry:
        return next(self._entries)

    def __enter__(self) -> _Scan:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass


_FLAGS = {"r": os.O_RDONLY, "w": os.O_CREAT | os.O_TRUNC, "a": os.O_CREAT | os.O_APPEND}
_FLAGS["x"] = os.O_CREAT | os.O_EXCL

_CALLS = ("open", "close", "fsync", "stat", "lstat", "fstat", "scandir", "listdir", "mkdir")
_CALLS += ("rmdir", "unlink", "remove", "rename", "replace", "link", "access", "utime")
_CALLS += ("set_inheritable", "statvfs", "fchmod", "fchown")
_real = SimpleNamespace(**{name: getattr(os, name) for name in _CALLS}, io_open=io.open)


def _simulated(path: Any) -> str | None:
    """Return a path, or the number of a descriptor, as text if it is simulated."""
    if isinstance(path, int):
        return str(path) if path >= _FIRST else None
    if current() is None:
        return None
    text = os.fspath(path)
    return text if isinstance(text, str) and text.startswith(ROOT) else None


def patch_files(disk_of: Callable[[], Disk]) -> None:
    """Let Python's functions for files use the simulated disk below :data:`ROOT`."""

    def redirected(name: str, call: Callable[..., Any]) -> None:
        real = getattr(_real, name)

        def function(path: Any, *arguments: Any, **named: Any) -> Any:
            if _simulated(path) is None:
                return real(path, *arguments, **named)
            named.pop("follow_symlinks", None)
            return call(disk_of(), path, *arguments, **named)

        setattr(os, name, function)

    def text(path: Any) -> str:
        return os.fspath(path)

    def scan(disk: Disk, path: Any) -> _Scan:
        return _Scan([_Entry(text(path), name, node) for name, node in disk.names(text(path))])

    def access(disk: Disk, path: Any, mode: int) -> bool:
        process = current()
        node = disk.find(text(path), process)
        return node is not None and (process is None or node.allows(process.user, mode))

    redirected("open", lambda disk, path, *rest, **named: disk.open(text(path), *rest, **named))
    redirected("close", Disk.close)
    redirected("fsync", Disk.fsync)
    redirected("fstat", Disk.fstat)
    redirected("stat", lambda disk, path: disk.stat(text(path)))
    redirected("lstat", lambda disk, path: disk.stat(text(path)))
    redirected("scandir", scan)
    redirected("listdir", lambda disk, path: [name for name, _ in disk.names(text(path))])
    redirected("mkdir", lambda disk, path, *rest: disk.mkdir(text(path), *rest))
    redirected("rmdir", lambda disk, path: disk.remove(text(path), folders=True))
    redirected("unlink", lambda disk, path: disk.remove(text(path)))
    redirected("remove", lambda disk, path: disk.remove(text(path)))
    redirected("rename", lambda disk, path, to: disk.rename(text(path), text(to)))
    redirected("replace", lambda disk, path, to: disk.rename(text(path), text(to)))
    redirected("link", lambda disk, path, to: disk.link(text(path), text(to)))
    redirected("access", access)
    redirected("fchmod", lambda disk, number, mode: disk.change(number, mode=mode))
    redirected("fchown", lambda disk, number, _, group: disk.change(number, group=group))
    redirected("utime", lambda disk, path, *_, **__: disk.touch(text(path)))
    redirected("set_inheritable", lambda *_: None)

    def opened(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        *rest: Any,
        opener: Any = None,
        **named: Any,
    ) -> Any:
        if _simulated(file) is None:
            return _real.io_open(file, mode, buffering, *rest, opener=opener, **named)
        disk, kind = disk_of(), next(letter for letter in mode if letter in _FLAGS)
        if isinstance(file, int):
            number = file
        else:
            writes = os.O_RDWR if "+" in mode else os.O_WRONLY if kind != "r" else 0
            number = (opener or os.open)(file, _FLAGS[kind] | writes)
        raw = _Raw(disk, number)
        if buffering == 0:
            return raw
        classes = {"r": io.BufferedReader, "+": io.BufferedRandom}
        file = classes.get("+" if "+" in mode else kind, io.BufferedWriter)(raw)
        return file if "b" in mode else io.TextIOWrapper(file, *rest, **named)

    io.open = builtins.open = tarfile.bltn_open = opened
    shutil._use_fd_functions = False  # rmtree then uses paths
    shutil._USE_CP_SENDFILE = False  # copyfile then reads and writes
    flock = fcntl.flock

    def locked(file: Any, operation: int) -> None:
        number = file if isinstance(file, int) else file.fileno()
        flock(file, operation) if number < _FIRST else disk_of().lock(number, operation)

    fcntl.flock = locked
