"""What is known of the members of a shard that were read: kept beside it, in one of two files.

``<shard>.verified.json`` if all were intact, else ``<shard>.damaged.json``. What is written there
holds for the size and the time of modification of the shard at that time; then no content needs to
be read again. Damage holds until the shard is read again, so that a copied shard, or one that has
grown, does not become whole by that.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from mlpsubmit.errors import RunError
from mlpsubmit.files import publish_json
from mlpsubmit.jobs.store import records
from mlpsubmit.jobs.store.records import VerificationRecord
from mlpsubmit.jobs.store.shards import Member

__all__ = ["DAMAGED_SUFFIX", "VERIFIED_SUFFIX", "Stamp", "Verification", "damaged_members"]

VERIFIED_SUFFIX = ".verified.json"
DAMAGED_SUFFIX = ".damaged.json"


@dataclass(frozen=True)
class Stamp:
    """The size of a file, and its time of modification in nanoseconds."""

    size: int
    mtime: int

    @classmethod
    def never(cls) -> Stamp:
        """Return a stamp that no file has."""
        return cls(-1, 0)

    @classmethod
    def of(cls, file: Path) -> Stamp:
        """Return that of a file as it is now; of one that cannot be found, that of an empty one."""
        try:
            found = os.stat(file)
        except OSError:
            return cls(0, 0)
        return cls(found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class Verification:
    """The outcome of reading every member of a shard.

    Attributes:
        stamp: of the shard, before it was read.
        damaged: the members that are damaged.
    """

    stamp: Stamp
    damaged: frozenset[Member]

    @classmethod
    def read(cls, shard: Path) -> Verification | None:
        """Return what is recorded of a shard; None without a readable record."""
        for suffix in (DAMAGED_SUFFIX, VERIFIED_SUFFIX):
            with contextlib.suppress(OSError, RunError):
                content = records.read(shard.with_suffix(suffix), VerificationRecord)
                stamp = Stamp(content["size"], content["mtime"])
                found = (Member(shard, **one) for one in content["damaged"])
                return cls(stamp, frozenset(found))
        return None

    def record(self, shard: Path) -> bool:
        """Write it beside the shard; return whether it is there."""
        in_order = sorted(self.damaged, key=lambda one: one.offset)
        entries = [{"name": m.name, "offset": m.offset, "size": m.size} for m in in_order]
        content = {"size": self.stamp.size, "mtime": self.stamp.mtime, "damaged": entries}
        suffixes = [DAMAGED_SUFFIX, VERIFIED_SUFFIX]
        written, other = suffixes if entries else suffixes[::-1]
        try:
            publish_json(shard.with_suffix(written), content, sync=False)
            shard.with_suffix(other).unlink(missing_ok=True)
        except (OSError, RunError):  # the run of another user, a full disk, or too much damage
            return False
        return True


def damaged_members(folder: Path, task: str = "*") -> frozenset[Member]:
    """Return the members that are recorded as damaged, of the shards of a task or of all."""
    shards = [
        file.with_name(file.name.removesuffix(DAMAGED_SUFFIX) + ".tar")
        for file in folder.glob(f"{task}.*{DAMAGED_SUFFIX}")
    ]
    found = (Verification.read(shard) for shard in shards)
    return frozenset(member for one in found if one is not None for member in one.damaged)
