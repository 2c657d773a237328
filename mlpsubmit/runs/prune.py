"""What of a folder of runs is superseded, and how it is removed.

Superseded is a run of which a later run of the same name has an intact result for every config (by
the keys, as where results are reused, and of the same data), and in runs that are not in progress:
saved states of packs that are finished, code compiled for a complete run, and what killed processes
left behind. Nothing of a run is removed that is in progress or may be, that has jobs in the queue
of a cluster (such as one that will find nothing left to resume), that belongs to another user or
has files of one, whose networks another run begins from (INIT_WEIGHTS), or that keeps states
(KEEP_STATE).

A run disappears whole: it is renamed to a hidden name first, which no command sees, and which the
next launch of the sweep or the next prune removes if this process is killed.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlpsubmit import files
from mlpsubmit.display.progress import doing
from mlpsubmit.display.text import counted
from mlpsubmit.errors import RunError
from mlpsubmit.jobs.slurm.task_states import Scheduler, in_queue
from mlpsubmit.jobs.status import Status, read_status
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.owners import owner, this_user
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.runs.locate import all_runs, runs_of
from mlpsubmit.runs.run_keys import RunKeys
from mlpsubmit.runs.submit import submission_lock

__all__ = ["Candidate", "PruneReport", "Removal", "find", "remove"]


#: Keys as pairs of numbers, of which the first are compared first.
_KEY = np.dtype([("a", "<u8"), ("b", "<u8")])
Keys = NDArray[Any]

#: The age from which on a temporary file is one of a process that has ended.
_OLD_SECONDS = 3600.0


@dataclass(frozen=True)
class Candidate:
    """What can be removed.

    Attributes:
        kind: ``run``, ``checkpoints``, ``compiled`` or ``temporary``.
        sweep: the folder of the sweep's runs.
        run: the id of the run that it is, or is of; empty for leftovers beside runs.
        paths: what is removed.
        size: the bytes that become free; files that other runs have, too, do not.
        why: why nothing is lost.
    """

    kind: str
    sweep: Path
    run: str
    paths: tuple[Path, ...]
    size: int
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return it as ``prune --json`` prints it."""
        return {
            "kind": self.kind,
            "name": self.sweep.name,
            "run": self.run or None,
            "paths": [path.absolute() for path in self.paths],
            "size_bytes": self.size,
            "why": self.why,
        }


@dataclass
class PruneReport:
    """What can be removed, and what is kept although a later run has its results, by run.

    Attributes:
        unreadable: how many runs are in another version's format, or damaged, and left alone.
    """

    candidates: list[Candidate] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    unreadable: int = 0

    @property
    def size(self) -> int:
        """The bytes that become free."""
        return sum(candidate.size for candidate in self.candidates)


@doing("reading the runs, and the results that others rely on")
def find(paths: Iterable[Path]) -> PruneReport:
    """Return what can be removed of some runs; the results that others rely on are read.

    Args:
        paths: the folders of the runs.
    """
    found = PruneReport()
    asked: dict[Path, set[str]] = {}
    scheduler = Scheduler(interval=math.inf)  # the runs share each query
    for path in paths:
        asked.setdefault(path.absolute().parent, set()).add(path.name)
    for sweep, names in sorted(asked.items()):
        _Sweep(sweep, names, scheduler, found).find()
    return found


@dataclass
class _Sweep:
    """The search among the runs of one sweep.

    Attributes:
        names: of the runs that are asked for; the others are read to compare with.
    """

    path: Path
    names: set[str]
    scheduler: Scheduler
    found: PruneReport

    def find(self) -> None:
        """Add what can be removed."""
        runs = _readable_runs(self.path)
        self.found.unreadable += len(self.names.difference(run.id for run in runs))
        needed, contents = _networks_of(self.path.parent), _Contents()
        for number, run in enumerate(runs):
            if run.id not in self.names:
                continue
            try:
                later = contents.superseding(run, runs[number + 1 :])
                self._find_of(run, later, needed)
            except (RunError, OSError) as error:  # it is being removed, or its disk is away
                self.found.kept[run.id] = f"cannot be read: {error}"
        hidden = _old(files.leftovers(self.path))
        if hidden and not self.names.isdisjoint(run.id for run in runs):
            self._add("temporary", "", hidden, "a killed launch or prune has left it")

    def _find_of(
        self, run: RunDirectory, later: RunDirectory | None, needed: dict[str, str]
    ) -> None:
        """Add what can be removed of a run, all of whose results a later run may have."""
        status = read_status(run, self.scheduler)
        if later is None:
            self._leftovers(run, status)
        elif why := _reason_to_keep(run, status, needed, self.scheduler):
            self.found.kept[run.id] = why
            self._leftovers(run, status)
        else:
            results = counted(int(run.sweep["configs"]), "result")
            why = f"run {later.id.rpartition('-')[2]} has its {results}"
            self._add("run", run.id, [run.path], why)

    def _leftovers(self, run: RunDirectory, status: Status) -> None:
        """Add what is of no use in a run that stays."""
        if owner(run.path) is not None or _open(run, status, self.scheduler):
            return
        finished = run.results.outcomes().finished
        saved = [file for name in sorted(finished) for file in _states(run, name) if file.exists()]
        self._add("checkpoints", run.id, saved, "their packs are finished")
        if status.complete:
            folder = run.path / run_directory.COMPILED
            with contextlib.suppress(OSError):
                why = "the run is complete, and torch compiles it again if need be"
                self._add("compiled", run.id, sorted(folder.iterdir()), why)
        why = "processes were killed while they wrote it"
        self._add("temporary", run.id, _old(run.leftovers()), why)

    def _add(self, kind: str, run: str, paths: Sequence[Path], why: str) -> None:
        if paths:
            size = sum(map(_freed, paths))
            own = Candidate(kind, self.path, run, tuple(paths), size, why)
            self.found.candidates.append(own)


def _old(paths: Iterable[Path]) -> list[Path]:
    """Return those that nobody has written to for an hour: the others may be in use."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > _OLD_SECONDS:
                found.append(path)
    return found


def _readable_runs(sweep: Path) -> list[RunDirectory]:
    """Return the runs of a sweep, the oldest first."""
    return [run for run in map(RunDirectory, runs_of(sweep)) if _readable(run)]


def _readable(run: RunDirectory) -> bool:
    """Return whether a run is in this version's format and whole; others are left alone."""
    try:
        run.check()
    except (RunError, OSError):
        return False
    return True


def _networks_of(folder: Path) -> dict[str, str]:
    """Return the ids of the runs whose networks others begin from, and one of these each."""
    needed: dict[str, str] = {}
    for run in filter(_readable, map(RunDirectory, all_runs(folder))):
        needed |= {Path(path).name: run.id for path in run.sweep["reads"]}  # it may have moved
    return needed


def _open(run: RunDirectory, status: Status, scheduler: Scheduler) -> str:
    """Return that a run is in progress, or may be, or has jobs in the queue; empty if it has not.

    Nothing is removed that a job finds there when it starts.
    """
    if status.state == "unknown":
        return "may be in progress"
    return "is in progress" if status.busy or status.running else in_queue(run, scheduler)


def _reason_to_keep(
    run: RunDirectory, status: Status, needed: dict[str, str], scheduler: Scheduler
) -> str:
    """Return why a run is kept although a later one has its results; empty if it need not be."""
    if why := _open(run, status, scheduler):
        return why
    if (other := owner(run.path)) is not None:
        return f"belongs to {other}"
    if others := sorted({*run.users()} - {this_user()}):
        return f"has files of {' and '.join(others)}, who resumed it and alone can remove them"
    if (reader := needed.get(run.id)) is not None:
        return f"run {reader} begins from its networks (INIT_WEIGHTS)"
    if any((run.path / run_directory.STATES).glob("[!.]*")):
        return "keeps states that a longer training can go on from (KEEP_STATE)"
    return ""


@dataclass
class _Contents:
    """What is read of the runs of a sweep to compare them, each once."""

    _keys: dict[Path, Keys] = field(default_factory=dict)
    _data: dict[Path, dict[str, str]] = field(default_factory=dict)
    _stored: dict[Path, Keys] = field(default_factory=dict)

    def superseding(self, run: RunDirectory, later: Sequence[RunDirectory]) -> RunDirectory | None:
        """Return the latest run of the same user that has all results of another; None without."""
        for other in reversed(later):
            if other.path.stat().st_uid != run.path.stat().st_uid:
                continue  # another user may remove it
            try:
                if self._covers(other, run):
                    return other
            except (RunError, OSError):  # what keys are made of is lost: nothing is known
                continue
        return None

    def _covers(self, other: RunDirectory, run: RunDirectory) -> bool:
        wanted = self._keys_of(run)
        if not np.isin(wanted["a"], self._keys_of(other)["a"]).all():
            return False
        own, data = self._data_of(run), self._data_of(other)
        if any(data.get(key) != hash_ for key, hash_ in own.items()):
            return False
        return set(wanted.tolist()) <= set(self._stored_in(other).tolist())

    def _keys_of(self, run: RunDirectory) -> Keys:
        """Return the keys of all configs of a run."""
        if run.path not in self._keys:
            self._keys[run.path] = RunKeys(run).all_keys().view(_KEY)
        return self._keys[run.path]

    def _data_of(self, run: RunDirectory) -> dict[str, str]:
        """Return the hashes of the data of a run, by key."""
        if run.path not in self._data:
            records = run.data_records()
            self._data[run.path] = {key: record["hash"] for key, record in records.items()}
        return self._data[run.path]

    def _stored_in(self, run: RunDirectory) -> Keys:
        """Return the keys of all intact results of a run, which are read."""
        if run.path not in self._stored:
            texts = (pack["key"].tobytes().decode() for pack in run.results.packs())
            self._stored[run.path] = np.frombuffer(b"".join(map(bytes.fromhex, texts)), _KEY)
        return self._stored[run.path]


def _states(run: RunDirectory, pack: str) -> Iterator[Path]:
    yield run.checkpoint(pack)
    yield run.pack_ends(pack)


def _freed(path: Path) -> int:
    """Return the bytes that removing a path frees: files with other links are kept by these."""
    total, paths = 0, [path]
    while paths:
        with contextlib.suppress(OSError):
            one = paths.pop()
            status = one.lstat()
            if one.is_dir() and not one.is_symlink():
                paths += one.iterdir()
            elif status.st_nlink == 1:
                total += status.st_size
    return total


# ---- removal -------------------------------------------------------------------------------------


class Removal(NamedTuple):
    """What has become of a candidate.

    Attributes:
        error: why it could not be removed; empty if it was.
        left: why some of it still takes space under a hidden name; empty if nothing does.
    """

    candidate: Candidate
    error: str = ""
    left: str = ""


def remove(candidates: Sequence[Candidate]) -> Iterator[Removal]:
    """Remove candidates; yield what has become of each.

    While something is removed, nothing can be launched or resumed there. Somebody may have answered
    long after the candidates were found, so all that a run may be kept for is looked at again: what
    has begun since, runs that begin from its networks, and whether a later run has its results.
    """
    contents = _Contents()
    for candidate in candidates:
        try:
            yield Removal(candidate, left=_remove(candidate, contents))
        except (RunError, OSError) as error:
            yield Removal(candidate, str(error))


def _remove(candidate: Candidate, contents: _Contents) -> str:
    """Remove a candidate; return why some of it is left, under a hidden name.

    Raises:
        RunError, OSError: it is not removed.
    """
    lock = candidate.sweep / run_directory.LOCK
    with contextlib.ExitStack() as held:
        # A launch of the sweep would reuse the results, and creates folders with hidden names.
        held.enter_context(submission_lock(lock, f"the sweep {candidate.sweep.name}"))
        if candidate.run:
            path = candidate.sweep / candidate.run
            if not path.exists():
                return ""  # another prune was faster
            held.enter_context(submission_lock(path / run_directory.PLAN, f"run {candidate.run}"))
            _check_again(RunDirectory.open(path), candidate, contents)
        temporary = candidate.kind == "temporary"
        left = [_remove_path(own, hidden=temporary) for own in candidate.paths]
        return next(filter(None, left), "")


def _check_again(run: RunDirectory, candidate: Candidate, contents: _Contents) -> None:
    """Check that what was found of a run still holds.

    Raises:
        RunError: it does not.
    """
    scheduler = Scheduler(interval=math.inf)  # one query, after the locks were taken
    status = read_status(run, scheduler)
    if candidate.kind != "run":
        if why := _open(run, status, scheduler):
            raise RunError(f"run {run.id}: {why} by now")
        return
    needed = _networks_of(candidate.sweep.parent)
    if why := _reason_to_keep(run, status, needed, scheduler):
        raise RunError(f"run {run.id}: {why} by now")
    runs = _readable_runs(candidate.sweep)
    number = [one.id for one in runs].index(run.id)
    if contents.superseding(runs[number], runs[number + 1 :]) is None:
        raise RunError(f"run {run.id}: no later run has all its results any more")


def _remove_path(path: Path, *, hidden: bool) -> str:
    """Remove a file, or a folder: under a hidden name, unless it has one already.

    Returns:
        Why some of a folder is left; empty if nothing is.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            return files.remove_hidden(path) if hidden else files.remove_folder(path)
        path.unlink()
    return ""
