"""Results of earlier runs, taken over by a new one of the same name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.jobs.store import shards
from mlpsubmit.jobs.store.npz import npz_bytes
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.store.shards import Member, StoredPack
from mlpsubmit.jobs.store.stored_results import REUSED, REUSED_PREFIX
from mlpsubmit.spec.sweep import Sweep

__all__ = ["Reused"]

#: Arrays of a pack that all its configs share.
_SHARED = frozenset({"step", "eval_step", "grab_step"})


@dataclass
class Reused:
    """Results of earlier runs for configs of a sweep whose keys agree.

    What is taken is only remembered; :meth:`write` copies it, one pack at a time.
    """

    sweep: Sweep
    _taken: list[tuple[Member, NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)

    @cached_property
    def _known(self) -> NDArray[np.bool_]:
        """Which points of the product need no training, (size,)."""
        return np.zeros(self.sweep.product.size, dtype=bool)

    @property
    def indices(self) -> NDArray[np.int64]:
        """The flat indices of the configs that need no training."""
        return np.flatnonzero(self._known)

    @property
    def record(self) -> dict[str, int]:
        """What sweep.json says of them."""
        return {"configs": len(self.indices), "members": len(self._taken)}

    @cached_property
    def _sorted_keys(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """The keys of all configs of the sweep, (n, 2), sorted, and their flat indices."""
        included = self.sweep.included
        size = self.sweep.product.size
        indices = np.arange(size) if included is None else np.flatnonzero(included)
        keys = self.sweep.keys(indices)
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        return keys[order], indices[order]

    def take(self, directories: Sequence[RunDirectory]) -> None:
        """Remember the results of runs, the first ones counting, whose configs the sweep has."""
        for directory in directories:
            for pack in directory.results.packs():
                rows, indices = self._matches(pack["key"])
                fresh = ~self._known[indices]
                if fresh.any():
                    self._known[indices] = True
                    self._taken.append((pack.member, rows[fresh], indices[fresh]))

    def _matches(self, hex_keys: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of a pack whose keys the sweep has, and the flat indices there."""
        keys, indices = self._sorted_keys
        wanted = np.frombuffer(bytes.fromhex(hex_keys.tobytes().decode()), dtype="<u8")
        wanted = wanted.reshape(-1, 2)
        places = np.minimum(np.searchsorted(keys[:, 0], wanted[:, 0]), len(keys) - 1)
        rows = np.flatnonzero((keys[places] == wanted).all(axis=1))
        return rows, indices[places[rows]]

    def write(self, results: Path) -> None:
        """Write what was taken over as a shard of the new run."""
        if not self._taken:
            return
        with shards.Shard(results / REUSED) as shard:
            for number, (member, rows, indices) in enumerate(self._taken):
                pack = StoredPack(member)
                arrays = {name: _rows(pack, name, rows) for name in pack.arrays()}
                name = f"{REUSED_PREFIX}{number:07d}{shards.FINISHED_SUFFIX}"
                shard.append(name, npz_bytes({**arrays, "index": indices}), sync=False)


def _rows(pack: StoredPack, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    return pack[name] if name in _SHARED else pack[name][rows]
