"""Shards: the results of one attempt, as an ordinary tar of ordinary npz files."""

from __future__ import annotations

import contextlib
import os
import re
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.checksums import parsed_json, summed_json
from mlpsubmit.errors import RunError
from mlpsubmit.files import LARGEST_JSON, full_disk_named, open_regular, share_file, sync_folder
from mlpsubmit.jobs.store.npz import ArrayHeader, stored_arrays, stored_headers
from mlpsubmit.jobs.store.pack_schema import CHECKED, MOST_ARRAYS, PackSchema
from mlpsubmit.jobs.store.records import FailedPack, checked
from mlpsubmit.results.names import TRAINED_BY, TRAINED_ON
from mlpsubmit.results.source import Failure

__all__ = [
    "FAILED_SUFFIX",
    "FINISHED_SUFFIX",
    "PARTIAL_SUFFIX",
    "Member",
    "PackFailures",
    "Shard",
    "StoredPack",
    "failures_json",
    "members",
    "pack_name",
    "read_failures",
]

#: Members of a shard: a finished pack; the configs with a result of a pack in which others have
#: failed; and after it, the failures of those.
FINISHED_SUFFIX = ".npz"
PARTIAL_SUFFIX = ".partial.npz"
FAILED_SUFFIX = ".failed.json"

#: The number of an attempt in the names of its files.
_ATTEMPT = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Member:
    """The position of one whole member in a shard."""

    shard: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the content."""
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    @contextlib.contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """Open the content as a seekable file, so that an npz is read array by array."""
        info = tarfile.TarInfo(self.name)
        info.size, info.offset_data = self.size, self.offset
        with tarfile.open(self.shard, "r:") as tar:
            file = tar.extractfile(info)
            assert file is not None  # it is for folders and links alone
            with file:
                yield file


class Shard:
    """The results file of one attempt, open for appending: an ordinary tar.

    Each append is flushed and fsynced before it returns, unless ``sync`` is False; a process that
    dies within one leaves a torn tail, which readers ignore.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] = path.open("xb")
        share_file(path)
        sync_folder(path.parent)

    @classmethod
    def claim(cls, results: Path, task: str) -> Shard:
        """Open the shard of the next attempt of a task; no two processes get the same.

        It is the claim to the packs of the task, see :meth:`overtaken`. No number is used again,
        also not that of an attempt whose shard was removed because it was empty.
        """
        numbers = [file.name.split(".")[1] for file in results.glob(f"{task}.*.*")]
        attempt = max((int(one) for one in numbers if _ATTEMPT.fullmatch(one)), default=-1) + 1
        while True:
            try:
                return cls(results / f"{task}.{attempt}.tar")
            except FileExistsError:
                attempt += 1

    @property
    def attempt(self) -> int:
        """The number of the attempt of its task, from 0."""
        return int(self.path.name.rsplit(".", 2)[1])

    def overtaken(self) -> str:
        """Return which later attempt trains the packs of the task; empty if none does.

        SLURM starts a task again if it believes a node dead that only does not answer.
        """
        task, attempt = self.path.name.split(".")[0], self.attempt + 1
        later = [self.path.with_name(f"{task}.{attempt}{suffix}") for suffix in (".tar", ".json")]
        return f"attempt {attempt} has taken its place" if any(f.exists() for f in later) else ""

    def append(self, name: str, content: bytes, *, sync: bool = True) -> None:
        """Append one member and flush it to the disk.

        Args:
            sync: False if nobody reads the shard before it is closed, which flushes all of it at
                once; a shared disk may take hundredths of a second for every member.
        """
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = len(content), int(time.time()), 0o644
        with full_disk_named(self.path, lambda: self._file.tell() + len(content)):
            self._file.write(info.tobuf(tarfile.GNU_FORMAT))  # its sizes go beyond 8 GiB
            self._file.write(content)
            self._file.write(bytes(-len(content) % tarfile.BLOCKSIZE))
            if sync:
                self._flush()

    def _flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the tar; a shard in which nothing finished is removed."""
        empty = self._file.tell() == 0
        try:
            if not empty:
                with full_disk_named(self.path, self._file.tell):
                    self._file.write(bytes(2 * tarfile.BLOCKSIZE))
                    self._flush()
        finally:
            with contextlib.suppress(OSError):  # it has been raised already
                self._file.close()
        if empty:
            self.path.unlink()

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def members(shard: Path) -> Iterator[Member]:
    """Yield the whole members of a shard; a torn tail ends the iteration.

    Raises:
        RunError: it is not a regular file.
    """
    try:
        file = open_regular(shard)
    except FileNotFoundError:
        return  # a task that finished nothing removes its empty shard
    offset, size = 0, os.fstat(file.fileno()).st_size
    with file:
        while offset + tarfile.BLOCKSIZE <= size:
            file.seek(offset)
            try:
                info = tarfile.TarInfo.frombuf(
                    file.read(tarfile.BLOCKSIZE), tarfile.ENCODING, "surrogateescape"
                )
            except (tarfile.HeaderError, ValueError):
                return  # the end blocks, or a header that was never written whole
            if info.size < 0:
                return
            start = offset + tarfile.BLOCKSIZE
            offset = start + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if start + info.size > size:
                return
            yield Member(shard, info.name, start, info.size)


#: Bytes of a pack that is read at once rather than array by array.
SMALL_PACK = 1 << 18


class StoredPack:
    """A finished pack in a shard, a :class:`mlpsubmit.results.source.FinishedPack`.

    The arrays of a large one are read one by one, when they are used.

    Args:
        schema: of the packs of its run, which an intact one fits.
        device: the kind of device of the attempt that wrote it. With it the pack also has the
            arrays ``trained_on`` and ``trained_by``; one that has them in its file, as it was
            trained on several devices or in an earlier run, has those.
    """

    def __init__(
        self, member: Member, schema: PackSchema | None = None, device: str | None = None
    ) -> None:
        self.member = member
        self.name = pack_name(member)
        self._schema = schema
        self.device = device

    @cached_property
    def _small(self) -> dict[str, NDArray[Any]] | None:
        """All arrays, their checksums compared; None if the pack is large or damaged."""
        return stored_arrays(self.member.read()) if self.member.size <= SMALL_PACK else None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        with self.member.opened() as file, np.load(file, allow_pickle=False) as npz:
            yield npz

    def arrays(self) -> list[str]:
        """Return the names of the arrays."""
        return list(dict.fromkeys([*self._stored, *self._origin]))

    @cached_property
    def _stored(self) -> list[str]:
        """The names of the arrays in the file."""
        if self._small is not None:
            return list(self._small)
        with self._opened() as npz:
            return list(npz.files)

    @cached_property
    def _origin(self) -> dict[str, bytes]:
        """What trained each of its configs, unless the file says it."""
        if self.device is None:
            return {}
        parts = self.member.shard.parts
        by = f"{''.join(parts[-3:-2])}/{parts[-1].partition('.')[0]}"
        return {TRAINED_ON: self.device.encode(), TRAINED_BY: by.encode()}

    def __getitem__(self, array: str) -> NDArray[Any]:
        if array in self._origin and array not in self._stored:
            return np.full(len(self["index"]), self._origin[array])
        if self._small is not None:
            return self._small[array]
        with self._opened() as npz:
            return np.asarray(npz[array])

    def intact(self) -> bool:
        """Return whether every array is there, can be one of the run, and has its checksum."""
        if (small := self._small) is not None:
            headers = {name: ArrayHeader(a.shape, a.dtype) for name, a in small.items()}
            return self._fits(headers)
        if self.member.size <= SMALL_PACK:
            return False
        try:
            if self._count() > MOST_ARRAYS:
                return False
            with self._opened() as npz:
                headers = stored_headers(npz.zip)
                whole = len(headers) == self._count() and self._fits(headers)
                return whole and npz.zip.testzip() is None
        except Exception:  # zipfile and numpy raise half a dozen kinds for damaged bytes
            return False

    def _fits(self, headers: Mapping[str, ArrayHeader]) -> bool:
        if self._schema is None:
            return True
        return self._schema.fits(self.name, headers) and self._schema.fits_values(
            {name: self[name] for name in CHECKED if name in headers}
        )

    def _count(self) -> int:
        """Return how many arrays there are by the record that ends the zip."""
        with self.member.opened() as file:
            file.seek(-12, os.SEEK_END)
            return int.from_bytes(file.read(2), "little")


def pack_name(member: Member) -> str:
    """Return the name of the pack whose result or failure a member is."""
    for suffix in (FAILED_SUFFIX, PARTIAL_SUFFIX, FINISHED_SUFFIX):
        if member.name.endswith(suffix):
            return member.name.removesuffix(suffix)
    return member.name


def failures_json(finished: Sequence[int], failures: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the content of a member for a pack in which configs have failed.

    Args:
        finished: indices of its configs with a result.
        failures: the fields of the :class:`Failure` of the others, but for ``pack``.
    """
    return summed_json({"finished": list(finished), "failures": list(failures)})


class PackFailures(NamedTuple):
    """What is recorded of a pack in which configs have failed.

    Attributes:
        finished: (n,) indices of its configs with a result.
        failures: those of the others.
    """

    finished: NDArray[np.int64]
    failures: list[Failure]


def read_failures(pack: str, member: Member, points: int) -> PackFailures | None:
    """Return the failures of a pack; None if they are damaged: it then counts as missing.

    Args:
        points: of the product of the axes.
    """
    try:
        if member.size > LARGEST_JSON:
            return None
        content = checked(parsed_json(member.read()), FailedPack, member.name)
    except (ValueError, RecursionError, RunError):
        return None
    failures = [
        Failure(
            _indices(one["indices"]),
            one["error"],
            one["traceback"],
            pack,
            one["where"],
            one["line"],
        )
        for one in content["failures"]
    ]
    indices = [content["finished"], *(one["indices"] for one in content["failures"])]
    every = _indices([index for own in indices for index in own])
    if len(np.unique(every)) < len(every) or (every >= points).any():
        return None
    return PackFailures(_indices(content["finished"]), failures)


def _indices(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)
