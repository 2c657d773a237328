"""The results of a run: the content of all its shards, and which of it counts.

One definition, which status, collect, resume, reuse, wait and verify share. A config has a result
if a member of a shard holds it that

- has the name of a pack of the plan, or is one of the reused results;
- is whole: nothing of it is cut off;
- is not known to be damaged: its checksums, and whether its arrays can be those of the run, are
  checked when its content is read, and whoever finds damage records it (see
  :mod:`mlpsubmit.jobs.store.verification`);
- and, if it holds a part of a pack, is followed by the failures of the others.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Container, Iterator, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.errors import RunError
from mlpsubmit.jobs.store.environments import environment_file, stored_environments
from mlpsubmit.jobs.store.pack_schema import PackSchema, reused_configs
from mlpsubmit.jobs.store.shards import (
    FAILED_SUFFIX,
    FINISHED_SUFFIX,
    PARTIAL_SUFFIX,
    Member,
    PackFailures,
    StoredPack,
    members,
    pack_name,
    read_failures,
)
from mlpsubmit.jobs.store.verification import Stamp, Verification, damaged_members
from mlpsubmit.results.names import device_kind
from mlpsubmit.results.source import Failure

__all__ = ["REUSED", "Outcomes", "StoredResults", "reused_name"]

#: The shard of results that come from earlier runs.
REUSED = "reused.0.tar"

_SHARD_NAME = re.compile(r"(?P<task>reused|[0-9]{3,9}-[0-9]{4,9})\.(?P<attempt>[0-9]{1,9})\.tar")


def reused_name(number: int, configs: int) -> str:
    """Return the name of a member of the shard of reused results; status adds up its configs."""
    return f"reused-{number:07d}.{configs}{FINISHED_SUFFIX}"


class Outcomes(NamedTuple):
    """What has become of the packs of a run.

    Attributes:
        finished: the names of those of which every config has a result.
        failures: the last failures of configs without a result.
        partly: (n,) indices of the configs with a result in packs in which others have failed.
        reused: how many configs have results of earlier runs.
        damaged: members that are damaged, of packs that have not finished since.
    """

    finished: set[str]
    failures: list[Failure]
    partly: NDArray[np.int64]
    reused: int
    damaged: list[Member]


class _Entry(NamedTuple):
    """What a shard holds of a pack: results, or failures and the results of the other configs."""

    name: str
    results: Member | None
    failures: PackFailures | None = None


@dataclass(frozen=True)
class StoredResults:
    """The finished and failed packs in a folder of shards.

    A :class:`mlpsubmit.results.source.ResultSource`: later packs override earlier ones.

    Attributes:
        schema: what the packs of the run have in common.
        unreadable: the files that could not be read when they were read last, and why.
    """

    folder: Path
    schema: PackSchema
    unreadable: dict[Path, str] = field(default_factory=dict, repr=False, compare=False)
    #: Members that this object has verified, with the stamps that their shards had then: collect
    #: iterates over them several times.
    _intact: set[tuple[Stamp, Member]] = field(default_factory=set, repr=False, compare=False)
    #: What was verified and could not be recorded, as in a run of another user, by shard.
    _verified: dict[Path, Verification] = field(default_factory=dict, repr=False, compare=False)
    #: What is recorded, as far as this object has read or written it, by shard.
    _recorded: dict[Path, Verification | None] = field(
        default_factory=dict, repr=False, compare=False
    )
    #: By shard, the kind of device of the attempt that wrote it.
    _devices: dict[Path, str] = field(default_factory=dict, repr=False, compare=False)

    def shards(self, task: str = "*") -> list[Path]:
        """Return the shards of a task, or of all, from the oldest submission and attempt on.

        Raises:
            RunError: the folder of the run is gone, which would look like a run without results.
        """
        if not self.folder.parent.is_dir():
            raise RunError(
                f"{self.folder.parent}: no such folder; the run was moved or removed, or its disk "
                "is not mounted; open it where it is now"
            )
        found = []
        for file in self.folder.glob(f"{task}.*.tar"):
            match = _SHARD_NAME.fullmatch(file.name)
            if match:
                # Reused results come first, so that whatever this run trained overrides them.
                fresh = file.name != REUSED
                found.append((fresh, match["task"], int(match["attempt"]), file))
        return [file for *_, file in sorted(found)]

    def environments(self) -> list[dict[str, int | str]]:
        """Return what the results were made with: one entry per attempt, of earlier runs too."""
        found: list[dict[str, int | str]] = []
        for shard in self.shards():
            with self._noting(environment_file(shard)):
                entries = stored_environments(shard)
                found += [entry for entry in entries if entry not in found]
        return found

    def pack(self, member: Member) -> StoredPack:
        """Return the pack of a member, which says on what it was trained."""
        shard = member.shard
        if shard not in self._devices:
            made_with: list[dict[str, int | str]] = []
            with contextlib.suppress(RunError, OSError):  # lost: it is not known
                made_with = stored_environments(shard)
            # Its own is the last: before it are those of which it took over states.
            self._devices[shard] = device_kind(made_with[-1]) if made_with else ""
        return StoredPack(member, self.schema, self._devices[shard])

    @contextlib.contextmanager
    def _noting(self, file: Path) -> Iterator[Path]:
        """Note in :attr:`unreadable` whether a file can be read in the block."""
        self.unreadable.pop(file, None)
        try:
            yield file
        except FileNotFoundError:
            pass
        except RunError as error:
            self.unreadable[file] = str(error)
        except OSError as error:
            self.unreadable[file] = f"{file}: {error.strerror}"

    def members(self, task: str = "*") -> Iterator[Member]:
        """Yield the whole members of the shards of a task, or of all, oldest first.

        Those whose names are not of packs of the run are left out.
        """
        for shard in self.shards(task):
            yield from self._members(shard)

    def _members(self, shard: Path) -> Iterator[Member]:
        with self._noting(shard):
            most = itertools.islice(members(shard), self.schema.most_members)
            yield from (member for member in most if self.knows(member))

    # ---- what counts

    def knows(self, member: Member) -> bool:
        """Return whether a member has the name of a pack of the plan, or of reused results."""
        return self.schema.has(member.name, reused=member.shard.name == REUSED)

    def _entries(self, shard: Path, damaged: Container[Member] = ()) -> Iterator[_Entry]:
        """Yield what counts in a shard; of results only headers are read."""
        partial: Member | None = None
        for member in self._members(shard):
            name = pack_name(member)
            if member.name.endswith(PARTIAL_SUFFIX):
                partial = member  # counts once the failures follow
            elif member.name.endswith(FAILED_SUFFIX):
                failures = read_failures(name, member, self.schema.points)
                own = partial is not None and pack_name(partial) == name
                results = partial if own and partial not in damaged else None
                partial = None
                if failures is not None:
                    yield _Entry(name, results, failures)
            elif member not in damaged:
                yield _Entry(name, member)

    def damaged(self, task: str = "*") -> set[Member]:
        """Return the members that were found to be damaged, of a task or of all."""
        recorded = damaged_members(self.folder, task)
        found = {member for member in recorded if member.shard not in self._verified}
        found = found.union(*(own.damaged for own in self._verified.values()))
        return {member for member in found if self.knows(member)}

    def _undamaged(self, task: str = "*") -> Iterator[_Entry]:
        """Yield what counts in the shards of a task, or of all, as far as is known."""
        damaged = self.damaged(task) or ()  # nothing to hash where nothing is damaged
        for shard in self.shards(task):
            yield from self._entries(shard, damaged)

    def outcomes(self) -> Outcomes:
        """Return what has become of the packs.

        Only headers, failures and records of damage are read: enough for the progress of a run.
        """
        finished: set[str] = set()
        failed: dict[str, list[Failure]] = {}
        partly: dict[str, list[NDArray[np.int64]]] = {}
        for entry in self._undamaged():
            if entry.failures is None:
                finished.add(entry.name)
                continue
            failed[entry.name] = entry.failures.failures
            if entry.results is not None:
                partly.setdefault(entry.name, []).append(entry.failures.finished)
        open_packs = [name for name in failed if name not in finished]
        known = [indices for name in open_packs for indices in partly.get(name, [])]
        done = np.unique(np.concatenate([np.zeros(0, np.int64), *known]))
        failures = [one.without(done) for name in open_packs for one in failed[name]]
        return Outcomes(
            {name for name in finished if name.isdigit()},
            [failure for failure in failures if len(failure.indices)],
            done,
            min(sum(map(reused_configs, finished)), self.schema.reused),
            sorted((m for m in self.damaged() if pack_name(m) not in finished), key=str),
        )

    def failures(self) -> list[Failure]:
        """Return the last failures of configs that have no result."""
        return self.outcomes().failures

    def failed(self, task: str = "*") -> set[str]:
        """Return the names of packs of which configs have failed, in a task or in any."""
        return {entry.name for entry in self._undamaged(task) if entry.failures is not None}

    def stored(self) -> dict[str, StoredPack]:
        """Return the latest result of every pack of which all configs have one, by name."""
        entries = [entry for entry in self._undamaged() if entry.name.isdigit()]
        whole = {e.name: e.results for e in entries if e.failures is None and e.results is not None}
        return {name: self.pack(member) for name, member in whole.items()}

    # ---- what is verified

    def unread(self) -> StoredResults:
        """Return the same results as an object that has not verified any of them."""
        return replace(self, _intact=set(), _recorded={})

    def packs(self, known: Container[Member] = ()) -> Iterator[StoredPack]:
        """Yield every pack with results, its content verified; record what is damaged.

        Args:
            known: members that were yielded before, and are not wanted again.
        """
        for shard in self.shards():
            yield from self._whole(shard, known)

    def _whole(self, shard: Path, known: Container[Member] = ()) -> Iterator[StoredPack]:
        stamp, damaged = Stamp.of(shard), set[Member]()
        for member in (entry.results for entry in self._entries(shard)):
            if member is None or member in known:
                continue
            pack = self.pack(member)
            if (stamp, member) in self._intact or pack.intact():
                self._intact.add((stamp, member))
                yield pack
            else:
                damaged.add(member)
        if shard not in self.unreadable:
            self._note(shard, Verification(stamp, frozenset(damaged)))

    def note(self, shard: Path, intact: Set[Member], damaged: Set[Member]) -> None:
        """Record the outcome of reading some members of a shard."""
        known = Verification.read(shard) or Verification(Stamp.never(), frozenset())
        self._note(shard, replace(known, damaged=known.damaged - intact | damaged))

    def _note(self, shard: Path, found: Verification) -> None:
        if shard not in self._recorded:
            self._recorded[shard] = Verification.read(shard)
        if found == self._recorded[shard]:
            return
        if found.record(shard):
            self._recorded[shard] = found
            self._verified.pop(shard, None)
        else:
            self._verified[shard] = found

    def verify(self, task: str = "*") -> None:
        """Read the shards that were not read since they last changed; record what is damaged."""
        for shard in self.shards(task):
            known = self._verified.get(shard) or Verification.read(shard)
            if known is None or known.stamp != Stamp.of(shard):
                for _ in self._whole(shard):
                    pass

    def finished(self, task: str = "*") -> set[str]:
        """Return the names of the packs with a result, their content verified.

        Args:
            task: read only what the attempts of this task wrote.
        """
        self.verify(task)
        return {entry.name for entry in self._undamaged(task) if entry.failures is None}
