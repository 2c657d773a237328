"""All runs of a folder at a glance, with few operations on the disk for each.

A run that has ended does not change by itself. So what was read of it is remembered, in a file of
this user, together with the times of its folder and of those in it that a launch, a resume, a task
or a cancel changes; while these are the same, nothing else of the run is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlpsubmit.display.progress import doing
from mlpsubmit.display.text import counted, utc
from mlpsubmit.errors import FormatError, RunError
from mlpsubmit.files import publish_json, read_json
from mlpsubmit.jobs.slurm.task_states import Scheduler
from mlpsubmit.jobs.status import read_status
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.owners import user_name
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.native.compiler import cache_folder

__all__ = ["RunRow", "folder_size", "overview"]

#: The folders of a run whose entries change while it is launched, resumed, trained or cancelled.
_CHANGING = (run_directory.SUBMISSIONS, run_directory.RESULTS, run_directory.HEARTBEATS)

#: Counted up whenever the fields of a row, or their meaning, change.
_VERSION = 2

#: For how long accounting may lag behind the queue, in nanoseconds.
_ACCOUNTING_NS = 600_000_000_000

#: Runs that are read at the same time: most of it is waiting for a disk elsewhere.
_AT_ONCE = 8

#: Runs that are read before anybody has waited.
_FEW = 20

#: States of runs that may go on by themselves.
_OPEN = ("running", "unknown")


@dataclass(frozen=True)
class RunRow:
    """One run in an overview.

    Attributes:
        run: its id.
        state: as in status; ``damaged`` if its own files cannot be read, ``other format`` if
            another version has launched it. Then ``error`` says why, and numbers are None.
        overrides: what its launch changed in the spec, as text, by KEY, or KEY+.
        launched: when it was last launched or resumed, in seconds since 1970; None if unknown.
        created: when it was launched first, as UTC text; empty if unknown.
        size: of all its files, in bytes.
        user: who has launched or resumed it last.
    """

    name: str
    run: str
    path: str
    state: str
    configs: int | None = None
    done: int | None = None
    failed: int | None = None
    missing: int | None = None
    reused: int | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    launched: float | None = None
    created: str = ""
    size: int = 0
    error: str = ""
    user: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the row as ``ls --json`` prints it."""
        own = asdict(self)
        launched, size = own.pop("launched"), own.pop("size")
        created = own.pop("created")
        return {
            **own,
            "path": os.path.abspath(self.path),
            "state": self.state.replace(" ", "_"),
            "created_at": created or None,
            "launched_at": None if launched is None else utc(launched),
            "size_bytes": size,
            "error": self.error or None,
            "user": self.user or None,
        }


def overview(folders: Iterable[Path]) -> list[RunRow]:
    """Return a row for each run, the one last launched or resumed first."""
    paths = list(folders)
    if not paths:
        return []
    memory = _Memory.of(paths)
    new = sum(os.path.abspath(path) not in memory.entries for path in paths)
    waiting = doing(f"reading {counted(new, 'run')}") if new > _FEW else contextlib.nullcontext()
    with waiting, ThreadPoolExecutor(_AT_ONCE) as pool:
        rows = list(pool.map(memory.row, paths))
    memory.keep()
    return sorted(rows, key=lambda row: (row.launched or 0, row.run), reverse=True)


@dataclass
class _Memory:
    """What was read of runs that have ended, by their folder.

    Attributes:
        file: where it is kept; one for each folder of runs. None if it cannot be.
    """

    file: Path | None
    entries: dict[str, Any]
    found: dict[str, Any] = field(default_factory=dict)
    #: The runs share each query, also one that fails.
    scheduler: Scheduler = field(default_factory=lambda: Scheduler(interval=math.inf))

    @classmethod
    def of(cls, paths: Sequence[Path]) -> _Memory:
        """Return what is remembered of some runs; nothing if that cannot be read."""
        folder = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
        name = hashlib.blake2b(os.fsencode(folder), digest_size=16).hexdigest()
        content: Any = {}
        file: Path | None = None
        with contextlib.suppress(RunError, OSError):  # others can write to it; there is none yet
            file = cache_folder() / "runs" / f"{name}.json"
            content = read_json(file)
        known = content.get("version") == _VERSION and content.get("format") == run_directory.FORMAT
        return cls(file, content["runs"] if known else {})

    def row(self, path: Path) -> RunRow:
        """Return the row of a run, from memory if it has not changed since."""
        stamp, key = _stamp(path), os.path.abspath(path)
        known = self.entries.get(key)
        if known is not None and known["stamp"] == stamp:
            self.found[key] = known
            return RunRow(**{**known["row"], "path": str(path)})
        row = _read_row(path, self.scheduler)
        if None not in stamp and stamp == _stamp(path) and _has_ended(path, row, stamp):
            self.found[key] = {"stamp": stamp, "row": asdict(row)}
        return row

    def keep(self) -> None:
        """Write what is known now, unless that is what is written already."""
        if self.found == self.entries or self.file is None:
            return
        content = {"version": _VERSION, "format": run_directory.FORMAT, "runs": self.found}
        with contextlib.suppress(RunError, OSError):  # no home that can be written
            self.file.parent.mkdir(parents=True, exist_ok=True)
            publish_json(self.file, content, sync=False)


def _has_ended(path: Path, row: RunRow, stamp: Sequence[int | None]) -> bool:
    """Return whether the state of a run is that of its end, which its folders show from now on.

    Why a job has ended may be known to the cluster's accounting some minutes later.
    """
    age = time.time_ns() - max(moment or 0 for moment in stamp)
    if row.state in (*_OPEN, "done") or age > _ACCOUNTING_NS:
        return row.state not in _OPEN
    run = RunDirectory(path)
    intents = (run.readable_intent(number) for number in run.submissions()[-1:])
    return all(intent is None or intent["executor"] != "slurm" for intent in intents)


def _stamp(path: Path) -> list[int | None]:
    """Return the times of a run's folder and of those in it; None for one that is not there."""
    found: list[int | None] = []
    for folder in (path, *(path / name for name in _CHANGING)):
        try:
            found.append(folder.stat().st_mtime_ns)
        except OSError:
            found.append(None)
    return found


def _read_row(path: Path, scheduler: Scheduler) -> RunRow:
    """Return the row of a run from its files; it says what is wrong with those of no use."""
    run = RunDirectory(path)
    own: dict[str, Any] = {"name": path.parent.name, "run": path.name, "path": str(path)}
    launched = run.launched
    own["launched"] = launched / 1e9 if 0 < launched < 1 << 63 else None
    own["size"] = folder_size(path)
    with contextlib.suppress(OSError):
        own["user"] = next(reversed(run.users()), user_name(path.stat().st_uid))
    try:
        run = RunDirectory.open(path)
        sweep = run.sweep
        own |= {"created": sweep["created"], "overrides": dict(sweep["overrides"])}
        status = read_status(run, scheduler)
    except FormatError as error:
        return RunRow(**own, state="other format", error=error.short)
    except (RunError, OSError) as error:
        return RunRow(**own, state="damaged", error=_short(error, run.path))
    numbers = {n: getattr(status, n) for n in ("configs", "done", "failed", "missing", "reused")}
    return RunRow(**own, state=status.state, **numbers)


def _short(error: Exception, path: Path) -> str:
    """Return what is wrong with a run, without its path and without advice."""
    text = str(error).partition("; ")[0]
    if text == f"{path}: is not a run (it has no sweep.json and plan.json)":
        lost = (run_directory.SWEEP_JSON, run_directory.PLAN)
        return f"{' and '.join(n for n in lost if not (path / n).is_file())} missing"
    return text.replace(f"{path}{os.sep}", "").replace(f"{path}: ", "")


def folder_size(path: Path) -> int:
    """Return the bytes of all files below a folder; what cannot be read has none."""
    total, folders = 0, [str(path)]
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
    return total
