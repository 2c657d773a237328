"""A folder whose content after a crash is known at every operation on it.

The process works on real files. Before each operation that changes the folder (open for writing,
rename, link, unlink, mkdir, fsync), the tree is read, with all that was written since the last one.
The state of each inode at its last fsync is kept, which gives the tree after a power cut: by POSIX,
a file then has the content, and a folder the entries, that were flushed.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = ["Crash", "Disk", "Tree"]

#: The names that :func:`mlpsubmit.files.published` gives to what is not complete.
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}")

#: Audit events before changes of a file system: which arguments are paths, and which are the
#: descriptors of the folders that these are relative to.
CHANGES: Mapping[str, Sequence[tuple[int, int | None]]] = {
    "os.rename": [(0, 2), (1, 3)],
    "os.link": [(0, 2), (1, 3)],
    "os.symlink": [(1, 2)],
    "os.remove": [(0, 1)],
    "os.rmdir": [(0, 1)],
    "os.mkdir": [(0, 2)],
    "os.truncate": [(0, None)],
    "open": [(0, None)],
}


@dataclass(frozen=True)
class Node:
    """A file with its bytes, or a folder with the inodes of its entries by name."""

    mode: int
    content: bytes | Mapping[str, int]

    @property
    def empty(self) -> Node:
        """The same without content."""
        return replace(self, content=b"" if isinstance(self.content, bytes) else {})


@dataclass(frozen=True)
class Tree:
    """A folder: its inode, and all nodes by inode."""

    root: int
    nodes: Mapping[int, Node]

    def write(self, folder: Path) -> None:
        """Replace a folder by this tree; names of one inode become hard links."""
        shutil.rmtree(folder, ignore_errors=True)
        self._write(folder, self.root, {})

    def _write(self, path: Path, inode: int, written: dict[int, Path]) -> None:
        node = self.nodes[inode]
        if not isinstance(node.content, bytes):
            path.mkdir()
            for name, child in node.content.items():
                self._write(path / name, child, written)
        elif inode in written:
            os.link(written[inode], path)
        else:
            path.write_bytes(node.content)
            written[inode] = path
        path.chmod(stat.S_IMODE(node.mode))

    def named(self, *, temporary: bool) -> frozenset[tuple[str, int, bytes]]:
        """Return path, mode and bytes of everything: equal trees give equal sets.

        Args:
            temporary: with the files and folders that were not complete.
        """
        return frozenset(self._named("", self.root, temporary))

    def _named(self, path: str, inode: int, temporary: bool) -> Iterator[tuple[str, int, bytes]]:
        node = self.nodes[inode]
        if isinstance(node.content, bytes):
            yield path, node.mode, node.content
            return
        yield path, node.mode, b""
        for name, child in node.content.items():
            if temporary or not TEMPORARY.fullmatch(name):
                yield from self._named(f"{path}/{name}", child, temporary)


@dataclass(frozen=True, repr=False)
class Crash:
    """A crash before an operation.

    Attributes:
        number: of the operation, from 0.
        operation: its name and paths.
        kind: what survives: see :meth:`Disk.crashes`.
        note: what the caller had noted of the process by then.
    """

    number: int
    operation: str
    kind: str
    tree: Tree
    note: Any

    def __repr__(self) -> str:
        return f"{self.kind} before operation {self.number} ({self.operation})"


@dataclass
class Disk:
    """A folder under watch.

    Attributes:
        before: called before each change with the number of the operation, its name, and the inode
            of the file that it flushes, if it is an fsync.
        operations: how many there were.
    """

    root: Path
    before: Callable[[int, str, int | None], None] | None = None
    operations: int = 0
    #: Descriptors that keep the number of an inode from being used again.
    _held: dict[int, int] = field(default_factory=dict)
    #: By inode, all that were ever seen, and those that were flushed, as they were then.
    _seen: dict[int, Node] = field(default_factory=dict)
    _synced: dict[int, Node] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def watch(self) -> None:
        """Watch the folder until this process ends."""
        self._synced = dict(self.read().nodes)
        sys.addaudithook(self._audit)
        fsync = os.fsync

        def watched_fsync(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            path = Path(_path_of(number))
            if not self._holds(path):
                fsync(number)
                return
            inode = os.fstat(number).st_ino
            self._change(f"fsync {path.relative_to(self.root)}", inode)
            with self._lock:  # not flushed: what a power cut leaves is computed
                self._synced[inode] = self.read().nodes.get(inode) or self._seen[inode]

        os.fsync = watched_fsync

    def _holds(self, path: Path) -> bool:
        return path == self.root or self.root in path.parents

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or (event == "open" and not _writes(*arguments)):
            return
        paths = [
            _absolute(arguments[path], -1 if folder is None else arguments[folder])
            for path, folder in CHANGES[event]
        ]
        if any(map(self._holds, paths)):
            names = " -> ".join(os.path.relpath(path, self.root) for path in paths)
            self._change(f"{event.removeprefix('os.')} {names}")

    def _change(self, operation: str, inode: int | None = None) -> None:
        with self._lock:
            number, self.operations = self.operations, self.operations + 1
            if self.before is not None:
                self.before(number, operation, inode)

    def read(self) -> Tree:
        """Return the tree as it is for every process now."""
        nodes: dict[int, Node] = {}
        root = self._read(self.root, nodes)
        self._seen.update(nodes)
        return Tree(root, nodes)

    def _read(self, path: Path, nodes: dict[int, Node]) -> int:
        status = path.lstat()
        inode = status.st_ino
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        if inode not in nodes:
            content = (
                {child.name: self._read(child, nodes) for child in sorted(path.iterdir())}
                if stat.S_ISDIR(status.st_mode)
                else path.read_bytes()
            )
            nodes[inode] = Node(status.st_mode, content)
        return inode

    def crashes(self, number: int, operation: str, inode: int | None, note: Any) -> Iterator[Crash]:
        """Yield what may be left if the process or the machine ends now.

        - ``kill``: everything; the machine goes on.
        - ``power cut``: what was flushed.
        - ``power cut, names``: all names, and of the files what was flushed;
        - ``power cut, data``: the names that were flushed, and all of these files.
        - ``torn``: everything, but some bytes of the file to be flushed are missing or zero.

        Args:
            inode: that of the file that is to be flushed, if the operation is its fsync.
            note: of the caller.
        """
        now = self.read()
        every = {**self._seen, **now.nodes}
        flushed = {known: self._synced.get(known, node.empty) for known, node in every.items()}

        def mixed(names: Mapping[int, Node], data: Mapping[int, Node]) -> Tree:
            nodes = {
                known: (data if isinstance(node.content, bytes) else names)[known]
                for known, node in every.items()
            }
            return Tree(now.root, nodes)

        trees = [
            ("kill", now),
            ("power cut", mixed(flushed, flushed)),
            ("power cut, names", mixed(every, flushed)),
            ("power cut, data", mixed(flushed, every)),
        ]
        if inode is not None and inode in now.nodes:
            node, before = now.nodes[inode], flushed[inode].content
            if isinstance(node.content, bytes) and isinstance(before, bytes):
                for part in _torn(before, node.content):
                    torn = {**now.nodes, inode: replace(node, content=part)}
                    trees.append(("torn", Tree(now.root, torn)))
        for kind, tree in trees:
            yield Crash(number, operation, kind, tree, note)


def _writes(path: object, _: object, flags: int) -> bool:
    changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    return not isinstance(path, int) and bool(flags & changing)


def _absolute(path: Any, folder: int) -> Path:
    name = os.fsdecode(path)
    return Path(os.path.abspath(name) if folder < 0 else f"{_path_of(folder)}/{name}")


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _torn(before: bytes, after: bytes) -> Iterator[bytes]:
    """Yield what a file may hold whose growth was not flushed: a part, or zeros for a part."""
    kept = len(before) if after.startswith(before) else 0
    grown = len(after) - kept
    for some in sorted({1, 511, 512, 513, grown // 2, grown - 1} & set(range(1, grown))):
        yield after[: kept + some]
    for some in sorted({0, 512, 1024, grown // 2} & set(range(grown))):
        yield after[: kept + some] + bytes(grown - some)
    if grown > 512:
        yield after[:kept] + bytes(512) + after[kept + 512 :]
