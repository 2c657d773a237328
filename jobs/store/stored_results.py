"""The results of a run: the content of all its shards."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.errors import RunError
from mlpsubmit.jobs.store.environments import environment_file, stored_environments
from mlpsubmit.jobs.store.pack_schema import PackSchema
from mlpsubmit.jobs.store.shards import (
    FAILED_SUFFIX,
    FINISHED_SUFFIX,
    PARTIAL_SUFFIX,
    Member,
    StoredPack,
    members,
    pack_name,
    read_failures,
)
from mlpsubmit.results.source import Failure
from mlpsubmit.spec.product import MOST_POINTS

__all__ = ["REUSED", "REUSED_PREFIX", "Outcomes", "StoredResults"]

#: The shard of results that come from earlier runs, and what its members' names begin with.
REUSED = "reused.0.tar"
REUSED_PREFIX = "reused-"


_SHARD_NAME = re.compile(r"(?P<task>reused|[0-9]{3,9}-[0-9]{4,9})\.(?P<attempt>[0-9]{1,9})\.tar")


class Outcomes(NamedTuple):
    """What has become of the packs of a run.

    Attributes:
        finished: the names of those of which every config has a result.
        failures: the last failures of configs of others.
        partly: (n,) indices of the configs with a result in packs in which others have failed.
    """

    finished: set[str]
    failures: list[Failure]
    partly: NDArray[np.int64]


@dataclass(frozen=True)
class StoredResults:
    """The finished and failed packs in a folder of shards.

    A :class:`mlpsubmit.results.source.ResultSource`: later packs override earlier ones.
    """

    folder: Path
    schema: PackSchema | None = None
    #: The files that could not be read when they were read last, and why.
    unreadable: dict[Path, str] = field(default_factory=dict, repr=False, compare=False)
    #: Members that were verified once: collect iterates over them several times.
    _intact: set[Member] = field(default_factory=set, repr=False, compare=False)

    def shards(self, task: str = "*") -> list[Path]:
        """Return the shards of a task, or of all, from the oldest submission and attempt on."""
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
            with self._noting(shard):
                whole = members(shard)
                if (schema := self.schema) is None:
                    yield from whole
                else:
                    most = itertools.islice(whole, schema.most_members)
                    yield from (member for member in most if schema.has(member.name))

    def packs(self) -> Iterator[StoredPack]:
        """Yield every pack with results except damaged ones, which train again."""
        return self._whole(self.members())

    def _whole(self, members: Iterable[Member]) -> Iterator[StoredPack]:
        for member in members:
            if member.name.endswith(FINISHED_SUFFIX):
                pack = StoredPack(member, self.schema)
                if member not in self._intact and pack.intact():
                    self._intact.add(member)
                if member in self._intact:
                    yield pack

    def finished(self, among: Container[str], task: str = "*") -> set[str]:
        """Return the names in ``among`` of packs with a result, verified by its checksums.

        Args:
            task: read only what the attempts of this task wrote.
        """
        wanted = (
            member
            for member in self.members(task)
            if pack_name(member) in among and not member.name.endswith(PARTIAL_SUFFIX)
        )
        return {pack.name for pack in self._whole(wanted)}

    def failed(self, task: str = "*") -> set[str]:
        """Return the names of packs of which configs have failed, in a task or in any."""
        members = self.members(task)
        return {pack_name(one) for one in members if one.name.endswith(FAILED_SUFFIX)}

    def reused(self) -> int:
        """Return how many configs have results from earlier runs, read and verified."""
        wanted = (m for m in self.members() if m.name.startswith(REUSED_PREFIX))
        return sum(len(pack["index"]) for pack in self._whole(wanted))

    def outcomes(self) -> Outcomes:
        """Return what has become of the packs.

        Only headers, and failures, are read: enough for the progress of a run.
        """
        points = MOST_POINTS if self.schema is None else self.schema.points
        finished: set[str] = set()
        failed: dict[str, tuple[NDArray[np.int64], list[Failure]]] = {}
        for member in self.members():
            name = pack_name(member)
            if member.name.endswith(FAILED_SUFFIX):
                failed[name] = read_failures(name, member, points)
            elif not member.name.endswith(PARTIAL_SUFFIX):
                finished.add(name)
                failed.pop(name, None)
        failures = [failure for _, own in failed.values() for failure in own]
        partly = [indices for indices, _ in failed.values()]
        return Outcomes(finished, failures, np.concatenate([np.zeros(0, np.int64), *partly]))

    def failures(self) -> list[Failure]:
        """Return the last failures of every pack that has not finished since."""
        return self.outcomes().failures
