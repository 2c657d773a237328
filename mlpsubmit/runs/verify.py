"""Read all of a run, and find what is damaged or does not fit together."""

from __future__ import annotations

import math
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit import files
from mlpsubmit.display.text import counted
from mlpsubmit.errors import RunError, UserError
from mlpsubmit.jobs.plan import Plan
from mlpsubmit.jobs.store import records, run_directory
from mlpsubmit.jobs.store.initial_weights import verify_networks
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.store.shards import (
    FAILED_SUFFIX,
    PARTIAL_SUFFIX,
    Member,
    StoredPack,
    members,
    pack_name,
    read_failures,
)
from mlpsubmit.jobs.store.stored_results import REUSED
from mlpsubmit.jobs.store.verification import DAMAGED_SUFFIX, VERIFIED_SUFFIX

__all__ = ["Subset", "VerifyReport", "verify"]


def _json(model: Any) -> Callable[[Path], object]:
    """Return what reads the JSON files of a model."""
    return partial(records.read, model=model)


#: The files of a run that have checksums, besides shards, and what reads each and raises an error
#: where it is damaged; of several patterns that fit, the first counts.
_PATTERNS: dict[str, Callable[[Path], object]] = {
    run_directory.SWEEP_JSON: _json(records.Manifest),
    run_directory.SWEEP_PICKLE: files.verify,
    run_directory.PLAN: _json(records.PlanRecord),
    run_directory.INGREDIENTS: _json(records.Ingredients),
    run_directory.INITIAL_WEIGHTS: verify_networks,
    run_directory.LAUNCHED: _json(records.Launched),
    run_directory.OTHERS_LAUNCHED.format("[0-9]*"): _json(records.Launched),
    run_directory.DEVICE: _json(records.DeviceRecord),
    f"{run_directory.DATA}/[!.]*.pt": files.verify,
    f"{run_directory.DATA}/[!.]*.json": _json(records.DataRecord),
    f"{run_directory.SUBMISSIONS}/*/{run_directory.INTENT}": _json(records.Intent),
    f"{run_directory.SUBMISSIONS}/*/{run_directory.JOBS}": _json(records.Jobs),
    f"{run_directory.SUBMISSIONS}/*/{run_directory.ENDED}": _json(records.EndedSubmission),
    f"{run_directory.RESULTS}/[!.]*{VERIFIED_SUFFIX}": _json(records.VerificationRecord),
    f"{run_directory.RESULTS}/[!.]*{DAMAGED_SUFFIX}": _json(records.VerificationRecord),
    f"{run_directory.RESULTS}/[!.]*.json": _json(records.Environments),
    f"{run_directory.CHECKPOINTS}/[!.]*.pt": files.verify,
    f"{run_directory.CHECKPOINTS}/[!.]*{run_directory.ENDS_SUFFIX}": _json(records.KilledProcesses),
    f"{run_directory.STATES}/[!.]*.pt": files.verify,
    f"{run_directory.HEARTBEATS}/[!.]*.json": _json(records.Beat),
}

#: Called with what is read next, how much of it is read, and how much there is, in bytes.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Subset:
    """Every n-th part of a run, so that n verifications read all of it.

    Attributes:
        part: which of them, from 1.
        parts: their number.
    """

    part: int = 1
    parts: int = 1

    @classmethod
    def parse(cls, text: str) -> Subset:
        """Return the subset that ``"1/7"`` means: the first of seven.

        Raises:
            UserError: for any other text.
        """
        part, slash, parts = text.partition("/")
        digits = part.isdecimal() and parts.isdecimal() and len(text) < 20
        if not (slash and digits and 1 <= int(part) <= int(parts)):
            raise UserError(
                f"--subset: got {text!r}; should be PART/PARTS, such as 1/7 for the first of seven "
                "parts (2/7 to 7/7 are the others)"
            )
        return cls(int(part), int(parts))

    def has(self, position: int) -> bool:
        """Return whether the file or result at a position belongs to it."""
        return position % self.parts == self.part - 1


@dataclass
class VerifyReport:
    """The outcome of a verification.

    Attributes:
        damage: what is damaged or does not fit together: one line each, with the file.
        notes: what is not as usual, and harmless.
        files: how many files were read, besides shards.
        results: how many packs with results were read.
        bytes: how much was read.
    """

    damage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    results: int = 0
    bytes: int = 0


def verify(
    run: RunDirectory,
    subset: Subset | None = None,
    progress: Progress = lambda name, done, total: None,
) -> VerifyReport:
    """Read every file of a run, or a subset of them, and compare checksums and structure.

    Damaged results are recorded in the run, as by any command that reads them.
    """
    return _Reader(run, subset or Subset(), progress).run()


@dataclass
class _Reader:
    directory: RunDirectory
    subset: Subset
    progress: Progress
    found: VerifyReport = field(default_factory=VerifyReport)
    #: Distinct configs with a result, by index.
    configs: set[int] = field(default_factory=set)

    def run(self) -> VerifyReport:
        """Read the files, then the shards; a damaged one does not keep the others from it."""
        found, shards = _files(self.directory.path), self.directory.results.shards()
        total = sum(map(_size, found)) + sum(map(_size, shards))
        for position, (file, read) in enumerate(found.items()):
            self.progress(self._name(file), self.found.bytes, total)
            if self.subset.has(position):
                self._check_file(file, read)
            self.found.bytes += _size(file)
        plan = Plan.from_json(self.directory.plan)
        position = 0
        for shard in shards:
            position = self._check_shard(plan, shard, position, total)
        self.progress("", total, total)
        self._check_counts(plan)
        return self.found

    def _name(self, file: Path) -> str:
        return str(file.relative_to(self.directory.path))

    def _damaged(self, file: Path, error: RunError | OSError) -> None:
        """Add a file that cannot be read."""
        text = str(error) if isinstance(error, RunError) else f"{file}: {error.strerror}"
        self.found.damage.append(text.replace(str(file), self._name(file), 1))

    # ---- files

    def _check_file(self, file: Path, read: Callable[[Path], object]) -> None:
        try:
            read(file)
            self.found.files += 1
        except FileNotFoundError:  # of a run in progress, or removed by its task meanwhile
            pass
        except PermissionError:
            self.found.notes.append(f"{self._name(file)}: is not for this user to read")
        except (RunError, OSError) as error:
            self._damaged(file, error)

    # ---- shards

    def _check_shard(self, plan: Plan, shard: Path, position: int, total: int) -> int:
        """Read the members of a shard that belong to the subset; return the next position."""
        try:
            position = self._check_members(plan, shard, position, total)
        except FileNotFoundError:  # a task that has finished nothing removes its shard
            pass
        except (RunError, OSError) as error:
            self._damaged(shard, error)
        self.found.bytes += _size(shard)
        return position

    def _check_members(self, plan: Plan, shard: Path, position: int, total: int) -> int:
        intact, damaged, end = set[Member](), set[Member](), 0
        for member in members(shard):
            self.progress(self._name(shard), self.found.bytes + end, total)
            end = member.offset + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if self.subset.has(position):
                why = self._check_member(plan, member)
                (damaged if why else intact).add(member)
                if why:
                    self.found.damage.append(f"{self._name(shard)}: {member.name} {why}")
            position += 1
        self._check_tail(shard, end)
        self.directory.results.note(shard, intact, damaged)
        return position

    def _check_member(self, plan: Plan, member: Member) -> str:
        """Return what is wrong with a member; empty if nothing is."""
        if not self.directory.results.knows(member):
            return "is not a pack of the plan"
        self.found.results += 1
        schema = self.directory.results.schema
        if member.name.endswith(FAILED_SUFFIX):
            whole = read_failures(pack_name(member), member, schema.points) is not None
            return "" if whole else "is damaged"
        pack = StoredPack(member, schema)
        return self._check_configs(plan, pack) if pack.intact() else "is damaged"

    def _check_configs(self, plan: Plan, pack: StoredPack) -> str:
        """Compare the configs of a pack with those of the plan."""
        index = pack["index"]
        expected = self._expected(plan, pack)
        whole = not pack.member.name.endswith(PARTIAL_SUFFIX)
        if not np.isin(index, expected).all() or (whole and len(index) != len(expected)):
            return "has other configs than the plan"
        self.configs.update(index.tolist())
        return ""

    def _expected(self, plan: Plan, pack: StoredPack) -> NDArray[np.int64]:
        """Return the indices that the configs of a pack may have."""
        if pack.member.shard.name == REUSED:
            planned = plan.indices_of(np.arange(plan.packs))
            index = pack["index"]
            return index[
                (index >= 0) & (index < math.prod(plan.order.shape)) & ~np.isin(index, planned)
            ]
        return plan.indices(plan.pack(int(pack.name)))

    def _check_tail(self, shard: Path, end: int) -> None:
        """Check what follows the last whole member of a shard."""
        left = _size(shard) - end
        with files.open_regular(shard) as file:
            file.seek(end)
            header = file.read(tarfile.BLOCKSIZE)
            rest = iter(partial(file.read, 1 << 16), b"")
            if not any(header) and not any(any(chunk) for chunk in rest):
                return
        try:
            tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape")
            torn = True  # its content is shorter than its header says
        except (tarfile.HeaderError, ValueError):
            torn = len(header) < tarfile.BLOCKSIZE
        name = self._name(shard)
        if torn:
            self.found.notes.append(
                f"{name}: ends in a result that was not written to its end ({left:,} bytes), as "
                "where a process is killed; it is ignored"
            )
        else:
            self.found.damage.append(
                f"{name}: is damaged at byte {end:,}: the {left:,} bytes from there on cannot be "
                "read, and their packs count as missing"
            )

    # ---- numbers of configs

    def _check_counts(self, plan: Plan) -> None:
        """Compare the number of configs that are done with that in the results, if all are read.

        Those of sweep.json and plan.json are compared whenever a run is opened.
        """
        outcomes = self.directory.results.outcomes()
        numbers = np.array(sorted(map(int, outcomes.finished)), dtype=np.int64)
        sizes = int(plan.pack_sizes[numbers].sum())
        done = sizes + len(outcomes.partly) + outcomes.reused
        if self.subset.parts == 1 and not self.found.damage and len(self.configs) != done:
            self.found.damage.append(
                f"results: have {counted(len(self.configs), 'config')}, but {done:,} are done"
            )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _files(run: Path) -> dict[Path, Callable[[Path], object]]:
    """Return the files of a run with checksums, besides shards, in order, with what reads them."""
    found: dict[Path, Callable[[Path], object]] = {}
    for pattern, read in _PATTERNS.items():
        for file in run.glob(pattern):
            found.setdefault(file, read)
    return dict(sorted(found.items()))
