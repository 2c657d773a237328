"""Every name and format in a run directory, in one place, without importing torch.

| path                         | who writes it, and when                                       |
|------------------------------|---------------------------------------------------------------|
| sweep.json                   | launch, once                                                  |
| sweep.pkl                    | launch, once                                                  |
| plan.json                    | launch, once                                                  |
| data/<key>.pt                | the first task that needs it, once, under data/<key>.lock     |
| submissions/NNN/intent.json  | launch or resume, before an executor is asked for anything    |
| submissions/NNN/jobs.json    | launch or resume, after: the ids that the executor answered   |
| submissions/NNN/array.N.sh   | launch or resume: the sbatch script of one job array          |
| submissions/NNN/retry.sh     | the same for the job that resumes what is missing             |
| submissions/NNN/ended.json   | cancel, or a launch that cannot tell: no task of it may train |
| submissions/NNN/*            | submitit and SLURM: pickles and logs                          |
| results/<task>.<attempt>.tar | one attempt of one task, appended per pack and fsynced        |
| results/reused.0.tar         | launch, once: finished configs of earlier runs                |
| checkpoints/<pack>.pt        | the task that trains the pack, replaced atomically            |
| heartbeats/<task>.json       | one task, replaced atomically every few seconds               |
| compiled/<machine>/          | torch, where COMPILE pays: code that other tasks use as well  |

One writer per file. What is published is complete: a temporary name, fsync, rename; or a tar whose
torn tail is ignored. Nothing here unpickles.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import io
import json
import os
import re
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.errors import RunError
from mlpsubmit.jobs.npz import stored_arrays

__all__ = [
    "FORMAT",
    "Failure",
    "Member",
    "PackResult",
    "RunDirectory",
    "Shard",
    "publish",
    "publish_json",
    "read_json",
    "task_name",
]

FORMAT = 1

SWEEP_JSON = "sweep.json"
SWEEP_PICKLE = "sweep.pkl"
PLAN = "plan.json"
DATA = "data"
SUBMISSIONS = "submissions"
INTENT = "intent.json"
JOBS = "jobs.json"
ENDED = "ended.json"
RESULTS = "results"
CHECKPOINTS = "checkpoints"
HEARTBEATS = "heartbeats"
COMPILED = "compiled"
LOCK = ".lock"
REUSED = "reused.0.tar"
REUSED_PREFIX = "reused-"

#: What a new run directory consists of, besides its files.
FOLDERS = (DATA, SUBMISSIONS, RESULTS, CHECKPOINTS, HEARTBEATS)

#: Members of a shard: a finished pack, and a pack whose training raised.
FINISHED_SUFFIX = ".npz"
FAILED_SUFFIX = ".failed.json"

_SHARD_NAME = re.compile(r"(?P<task>[\w-]+)\.(?P<attempt>\d+)\.tar")


def task_name(submission: int, index: int) -> str:
    """Return what a task is called in files."""
    return f"{submission:03d}-{index:04d}"


# ---- publishing --------------------------------------------------------------------------------


def _fsync_folder(folder: Path) -> None:
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
        _fsync_folder(path.parent)


def publish_folder(temporary: Path, path: Path) -> None:
    """Rename a folder whose files are on the disk into place."""
    _fsync_folder(temporary)
    temporary.rename(path)
    _fsync_folder(path.parent)


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


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel frees it however the process ends.

    Child processes that are started with ``close_fds=False`` hold it as well.

    Raises:
        BlockingIOError: where another holds it and ``wait`` is false.
        RunError: where the file system has no locks.
    """
    with path.open("ab") as file:
        # A submission that outlives the process that made it keeps the lock until it ends too.
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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


# ---- shards: results as tar files --------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """One whole member of a shard: where its content lies."""

    shard: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the content."""
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Shard:
    """The results file of one attempt, open for appending: an ordinary tar.

    Each append is flushed and fsynced before it returns, unless it says otherwise; a process that
    dies within one leaves a torn tail, which readers ignore.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] = path.open("xb")
        _fsync_folder(path.parent)

    @classmethod
    def claim(cls, results: Path, task: str) -> Shard:
        """Open the shard of the next attempt of a task; no two processes get the same."""
        attempt = len(list(results.glob(f"{task}.*.tar")))
        while True:
            try:
                return cls(results / f"{task}.{attempt}.tar")
            except FileExistsError:
                attempt += 1

    @property
    def attempt(self) -> int:
        """Which life of its task this shard belongs to, from 0."""
        return int(self.path.name.rsplit(".", 2)[1])

    def append(self, name: str, content: bytes, *, sync: bool = True) -> None:
        """Append one member and flush it to the disk.

        Args:
            sync: false where nobody looks at the shard before it is closed. That flushes all of it
                at once, where a shared disk may take hundredths of a second for every member.
        """
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = len(content), int(time.time()), 0o644
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
        if not empty:
            self._file.write(bytes(2 * tarfile.BLOCKSIZE))
            self._flush()
        self._file.close()
        if empty:
            self.path.unlink()

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def members(shard: Path) -> Iterator[Member]:
    """Yield the whole members of a shard; a torn tail, at whatever byte, ends the iteration."""
    try:
        file = shard.open("rb")
    except FileNotFoundError:
        return  # a task that finished nothing takes its empty shard away
    offset, size = 0, os.fstat(file.fileno()).st_size
    with file:
        while offset + tarfile.BLOCKSIZE <= size:
            file.seek(offset)
            try:
                info = tarfile.TarInfo.frombuf(
                    file.read(tarfile.BLOCKSIZE), tarfile.ENCODING, "surrogateescape"
                )
            except tarfile.HeaderError:
                return  # the end blocks, or a header that was never written whole
            start = offset + tarfile.BLOCKSIZE
            offset = start + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if start + info.size > size:
                return
            yield Member(shard, info.name, start, info.size)


class _Window(io.RawIOBase):
    """The bytes of one member as a file of its own, so that an npz is read array by array."""

    def __init__(self, member: Member) -> None:
        self._file = member.shard.open("rb")
        self._start, self._size, self._place = member.offset, member.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(0, origin + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._place))
        self._file.seek(self._start + self._place)
        content = self._file.read(length)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


#: Bytes of a pack that is read at once rather than array by array.
SMALL_PACK = 1 << 18


class PackResult:
    """The arrays of one finished pack: those of a large one are each read when asked for."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.name = member.name.removesuffix(FINISHED_SUFFIX)

    @cached_property
    def _small(self) -> dict[str, NDArray[Any]] | None:
        """All arrays, their checksums compared; None where the pack is large or damaged."""
        return stored_arrays(self.member.read()) if self.member.size <= SMALL_PACK else None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        with _Window(self.member) as window, np.load(window, allow_pickle=False) as npz:
            yield npz

    def arrays(self) -> list[str]:
        """Return the names of the arrays."""
        if self._small is not None:
            return list(self._small)
        with self._opened() as npz:
            return list(npz.files)

    def __getitem__(self, array: str) -> NDArray[Any]:
        if self._small is not None:
            return self._small[array]
        with self._opened() as npz:
            return np.asarray(npz[array])

    def intact(self) -> bool:
        """Tell whether every array is there and has the checksum it was written with."""
        if self._small is not None:
            return True
        try:
            with self._opened() as npz:
                return len(npz.files) == self._count() and npz.zip.testzip() is None
        except Exception:  # zipfile and numpy raise half a dozen kinds for damaged bytes
            return False

    def _count(self) -> int:
        """Return how many arrays there are by the record that ends the zip."""
        with _Window(self.member) as window:
            window.seek(-12, os.SEEK_END)
            return int.from_bytes(window.read(2), "little")


@dataclass(frozen=True)
class Failure:
    """A pack whose training raised: what, and which configs it cost.

    Attributes:
        indices: (K,) flat indices into the product.
        error: the exception in one line.
        traceback: its traceback.
    """

    pack: str
    indices: NDArray[np.int64]
    error: str
    traceback: str


def pack_mask(mask: NDArray[np.bool_]) -> str:
    """Return a mask as text that is short where the mask is regular."""
    return base64.b64encode(zlib.compress(np.packbits(mask).tobytes())).decode()


def unpack_mask(text: str, size: int) -> NDArray[np.bool_]:
    """Return the (size,) mask that :func:`pack_mask` wrote."""
    content = zlib.decompress(base64.b64decode(text))
    return np.unpackbits(np.frombuffer(content, dtype=np.uint8), count=size).astype(bool)


# ---- the run directory -------------------------------------------------------------------------


@dataclass(frozen=True)
class RunDirectory:
    """One launched sweep on disk."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Return a run that exists.

        Raises:
            RunError: where the folder is no run.
        """
        if not path.is_dir():
            raise RunError(f"{path}: no such folder")
        if not (path / SWEEP_JSON).is_file() or not (path / PLAN).is_file():
            raise RunError(
                f"{path}: is not a run (it has no {SWEEP_JSON} and {PLAN}); give the folder that "
                "launch printed, the name of a sweep, or the start of a run id"
            )
        run = cls(path)
        written = run.sweep.get("format") if isinstance(run.sweep, dict) else None
        if written != FORMAT:
            raise RunError(
                f"{path}: was written in format {written!r}; this mlpsubmit reads format {FORMAT}; "
                "use the version that launched it"
            )
        return run

    @cached_property
    def sweep(self) -> dict[str, Any]:
        """The content of sweep.json."""
        content: dict[str, Any] = read_json(self.path / SWEEP_JSON)
        return content

    @cached_property
    def plan(self) -> dict[str, Any]:
        """The content of plan.json."""
        content: dict[str, Any] = read_json(self.path / PLAN)
        return content

    @cached_property
    def _intact(self) -> set[Member]:
        """Members that were read whole once: collect goes over them several times."""
        return set()

    @property
    def id(self) -> str:
        """The run's id: its folder's name."""
        return self.path.name

    @property
    def results(self) -> Path:
        """The folder of shards."""
        return self.path / RESULTS

    def checkpoint(self, pack: str) -> Path:
        """Return where the state of a pack is saved."""
        return self.path / CHECKPOINTS / f"{pack}.pt"

    def data_file(self, key: str) -> Path:
        """Return where what a data function computed is kept."""
        return self.path / DATA / f"{key}.pt"

    def heartbeat(self, task: str) -> Path:
        """Return where a task says how it is doing."""
        return self.path / HEARTBEATS / f"{task}.json"

    def heartbeats(self, submission: int | None = None) -> dict[str, dict[str, Any]]:
        """Return the heartbeat of every task that has one, of a submission or of all."""
        folder = self.path / HEARTBEATS
        found = {}
        whose = "[!.]*" if submission is None else f"{submission:03d}-*"
        for file in sorted(folder.glob(f"{whose}.json")):
            with contextlib.suppress(RunError, OSError):  # torn by a power cut, or just replaced
                found[file.stem] = read_json(file)
        return found

    def last_heartbeat(self, task: str) -> dict[str, Any] | None:
        """Return what a task said last, perhaps in an earlier life; None where nothing whole."""
        try:
            content: dict[str, Any] = read_json(self.heartbeat(task))
        except (RunError, OSError):
            return None
        return content

    # ---- submissions

    def submission(self, number: int) -> Path:
        """Return the folder of one submission."""
        return self.path / SUBMISSIONS / f"{number:03d}"

    def submissions(self) -> list[int]:
        """Return the numbers of the submissions whose intent is on disk, in order."""
        folder = self.path / SUBMISSIONS
        return sorted(int(file.parent.name) for file in folder.glob(f"*/{INTENT}"))

    def next_submission(self) -> int:
        """Return the number of the submission that comes next."""
        taken = [int(folder.name) for folder in (self.path / SUBMISSIONS).glob("[0-9]*")]
        return max(taken, default=-1) + 1

    def intent(self, number: int) -> dict[str, Any]:
        """Return what a submission set out to do."""
        content: dict[str, Any] = read_json(self.submission(number) / INTENT)
        return content

    def jobs(self, number: int) -> dict[str, Any] | None:
        """Return the ids that the executor answered, or None where launch died before."""
        file = self.submission(number) / JOBS
        return read_json(file) if file.exists() else None

    def tasks(self, number: int) -> int:
        """Return how many tasks a submission has."""
        return len(self.intent(number)["slices"])

    def task_jobs(self, number: int) -> dict[str, dict[str, Any]]:
        """Return the job of each task of a submission, as far as the executor answered.

        An entry of jobs.json stands for ``count`` tasks from ``first`` on; one that is an array
        has an index per task behind its id.
        """
        found = {}
        for job in (self.jobs(number) or {"jobs": []})["jobs"]:
            for place in range(job["count"]):
                own = f"{job['id']}_{place}" if job["array"] else job["id"]
                found[task_name(number, job["first"] + place)] = {**job, "id": own}
        return found

    def log(self, number: int, job: str) -> Path:
        """Return where the output of a job is kept, under the name that submitit gives it."""
        return self.submission(number) / f"{job}_0_log.out"

    def end_submission(self, number: int, why: str) -> None:
        """Make sure that no task of a submission trains from now on."""
        publish_json(self.submission(number) / ENDED, {"why": why, "at": time.time()})

    def ended(self, number: int) -> str | None:
        """Return why no task of a submission is to train any more; None where they are."""
        file = self.submission(number) / ENDED
        return str(read_json(file)["why"]) if file.exists() else None

    def superseded(self, number: int) -> str | None:
        """Return why a task of a submission that starts now has nothing to do; None where it has.

        A job that its launch gave up for lost may start after all.
        """
        if not (self.submission(number) / INTENT).exists():
            return "its submission was withdrawn"
        if max(self.submissions()) > number:
            return f"submission {max(self.submissions()):03d} has taken its place"
        return self.ended(number)

    # ---- results

    def shards(self) -> list[Path]:
        """Return the shards from the oldest submission and attempt to the newest."""
        found = []
        for file in self.results.glob("*.tar"):
            match = _SHARD_NAME.fullmatch(file.name)
            if match:
                # Reused results come first, so that whatever this run trained wins over them.
                fresh = file.name != REUSED
                found.append((fresh, match["task"], int(match["attempt"]), file))
        return [file for *_, file in sorted(found)]

    def members(self) -> Iterator[Member]:
        """Yield the whole members of all shards, oldest first."""
        for shard in self.shards():
            yield from members(shard)

    def packs(self) -> Iterator[PackResult]:
        """Yield every finished pack; one whose bytes are damaged is left out: it trains again."""
        return self._whole(self.members())

    def _whole(self, members: Iterable[Member]) -> Iterator[PackResult]:
        for member in members:
            if member.name.endswith(FINISHED_SUFFIX):
                pack = PackResult(member)
                if member not in self._intact and pack.intact():
                    self._intact.add(member)
                if member in self._intact:
                    yield pack

    def finished(self, among: Container[str], task: str | None = None) -> set[str]:
        """Return those of some packs that have a result, having read it and its checksums.

        Args:
            task: look at what the attempts of this task wrote alone.
        """
        own = self.members() if task is None else self._members_of(task)
        wanted = (member for member in own if _pack_name(member) in among)
        return {pack.name for pack in self._whole(wanted)}

    def _members_of(self, task: str) -> Iterator[Member]:
        for shard in sorted(self.results.glob(f"{task}.*.tar")):
            yield from members(shard)

    def reused(self) -> int:
        """Return how many configs taken over from earlier runs are there, read and verified."""
        wanted = (m for m in self.members() if m.name.startswith(REUSED_PREFIX))
        return sum(len(pack["index"]) for pack in self._whole(wanted))

    def outcomes(self) -> tuple[set[str], list[Failure]]:
        """Return the names of finished packs, and the failed ones that have not finished since.

        Only headers are read: enough to show how far a run is.
        """
        finished: set[str] = set()
        failed: dict[str, Failure] = {}
        for member in self.members():
            name = _pack_name(member)
            if member.name.endswith(FAILED_SUFFIX):
                if failure := _failure(name, member):
                    failed[name] = failure
            else:
                finished.add(name)
                failed.pop(name, None)
        return finished, list(failed.values())

    def failures(self) -> list[Failure]:
        """Return the failed packs that have not finished since; the last failure of each."""
        return self.outcomes()[1]


def _pack_name(member: Member) -> str:
    return member.name.removesuffix(FAILED_SUFFIX).removesuffix(FINISHED_SUFFIX)


def _failure(pack: str, member: Member) -> Failure | None:
    """Read a failure; None where its bytes are damaged: the pack then counts as missing."""
    try:
        content = json.loads(member.read())
        indices = np.array(content["indices"], dtype=np.int64)
        return Failure(pack, indices, content["error"], content["traceback"])
    except (ValueError, KeyError, TypeError):
        return None
