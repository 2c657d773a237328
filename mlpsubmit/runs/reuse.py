"""Reuse of results: a new run copies what earlier runs of its sweep have for its configs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

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


class Reused:
    """Results of earlier runs for configs of a sweep, matched by key.

    :meth:`add` only records where they are; :meth:`write` copies them, one pack at a time.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        #: Mask of the points of the product that need no training, (size,).
        self._known = np.zeros(sweep.product.size, dtype=bool)
        #: Packs, the rows of each that are reused, and the indices of their configs.
        self._found: list[tuple[Member, NDArray[np.int64], NDArray[np.int64]]] = []

    @property
    def indices(self) -> NDArray[np.int64]:
        """The indices of the configs that need no training."""
        return np.flatnonzero(self._known)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of reused configs, and of packs that they come from, for sweep.json."""
        return {"configs": len(self.indices), "members": len(self._found)}

    @cached_property
    def _sorted_keys(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """The sorted keys of all configs of the sweep, (n, 2), and the configs' indices, (n,)."""
        included = self.sweep.included
        size = self.sweep.product.size
        indices = np.arange(size) if included is None else np.flatnonzero(included)
        keys = self.sweep.keys(indices)
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        return keys[order], indices[order]

    def add(self, directories: Iterable[RunDirectory]) -> None:
        """Add the results of runs; of several results of one config, the first is reused."""
        for directory in directories:
            for pack in directory.results.packs():
                rows, indices = self._matches(pack["key"])
                fresh = ~self._known[indices]
                if fresh.any():
                    self._known[indices] = True
                    self._found.append((pack.member, rows[fresh], indices[fresh]))

    def _matches(self, hex_keys: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of a pack whose keys the sweep has, and the configs' indices there."""
        keys, indices = self._sorted_keys
        wanted = np.frombuffer(bytes.fromhex(hex_keys.tobytes().decode()), dtype="<u8")
        wanted = wanted.reshape(-1, 2)
        positions = np.minimum(np.searchsorted(keys[:, 0], wanted[:, 0]), len(keys) - 1)
        rows = np.flatnonzero((keys[positions] == wanted).all(axis=1))
        return rows, indices[positions[rows]]

    def write(self, results: Path) -> None:
        """Write the results as a shard of the new run."""
        if not self._found:
            return
        with shards.Shard(results / REUSED) as shard:
            for number, (member, rows, indices) in enumerate(self._found):
                pack = StoredPack(member)
                arrays = {
                    name: pack[name] if name in _SHARED else pack[name][rows]
                    for name in pack.arrays()
                }
                name = f"{REUSED_PREFIX}{number:07d}{shards.FINISHED_SUFFIX}"
                shard.append(name, npz_bytes({**arrays, "index": indices}), sync=False)
