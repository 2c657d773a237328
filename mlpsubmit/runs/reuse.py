"""Reuse of results: a new run copies what earlier runs of its sweep have for its configs."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.errors import RunError
from mlpsubmit.jobs.shared_data import data_keys
from mlpsubmit.jobs.store import shards
from mlpsubmit.jobs.store.environments import publish_environments
from mlpsubmit.jobs.store.npz import npz_bytes
from mlpsubmit.jobs.store.pack_schema import SHARED
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.store.shards import Member, StoredPack
from mlpsubmit.jobs.store.stored_results import REUSED, reused_name
from mlpsubmit.jobs.trust import untrusted
from mlpsubmit.runs.provenance import changed_inputs, reject
from mlpsubmit.runs.run_keys import DEFAULT_HASH, RunKeys
from mlpsubmit.spec.sweep import Sweep

__all__ = ["Reused", "code_that_differs"]

#: A pack, on what it was trained, the rows of it that are reused, and the indices of their configs.
_Match: TypeAlias = tuple[Member, str | None, NDArray[np.int64], NDArray[np.int64]]


class Reused:
    """Results of earlier runs for configs of a sweep, matched by key.

    :meth:`add` only records where they are; :meth:`write` copies them, one pack at a time.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        #: Mask of the points of the product that need no training, (size,).
        self._known = np.zeros(sweep.product.size, dtype=bool)
        #: Packs, the rows of each that are reused, and the indices of their configs.
        self._found: list[_Match] = []
        #: The runs that they come from, with the keys of the data of their results.
        self._sources: list[tuple[RunDirectory, set[str]]] = []
        #: By key, the hash of the data that all reused results were made with.
        self._data: dict[str, str] = {}

    @property
    def indices(self) -> NDArray[np.int64]:
        """The indices of the configs that need no training."""
        return np.flatnonzero(self._known)

    @property
    def count(self) -> int:
        """The number of reused configs."""
        return len(self.indices)

    @property
    def missing_keys(self) -> NDArray[np.uint64]:
        """The keys of the configs that are to be trained, (n, 2)."""
        keys, indices = self._sorted_keys
        missing: NDArray[np.uint64] = keys[~self._known[indices]]
        return missing

    @cached_property
    def _sorted_keys(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """The sorted keys of all configs of the sweep, (n, 2), and the configs' indices, (n,)."""
        included = self.sweep.included
        size = self.sweep.product.size
        indices = np.arange(size) if included is None else np.flatnonzero(included)
        keys = self.sweep.keys(indices)
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        return keys[order], indices[order]

    def environments(self) -> list[dict[str, int | str]]:
        """Return what the results were made with, each once."""
        every = [own for source, _ in self._sources for own in source.results.environments()]
        return [own for number, own in enumerate(every) if own not in every[:number]]

    def add(self, directories: Iterable[RunDirectory]) -> None:
        """Add the results of runs; of several results of one config, the first is reused.

        Results that were made with other data than those of an earlier added run are left out.

        Raises:
            UserError: all results that could be reused were made from files that have changed.
        """
        changed: list[tuple[RunDirectory, str]] = []
        for directory in directories:
            found = list(self._unknown(directory))
            if not found:
                continue
            keys = data_keys(self.sweep, np.concatenate([indices for *_, indices in found]))
            records = {key: directory.data_record(key) for key in keys}
            hashes = {key: record["hash"] for key, record in records.items() if record}
            change = changed_inputs(directory, filter(None, records.values()))
            if len(hashes) < len(records):
                change = f"run {directory.id}: its record of its data is lost"
            elif any(self._data.get(key, own) != own for key, own in hashes.items()):
                change = change or f"run {directory.id}: has other data than newer results"
            if change:
                changed.append((directory, change))
                continue
            for *_, indices in found:
                self._known[indices] = True
            self._found += found
            self._data |= hashes
            self._sources.append((directory, set(hashes)))
        reject(changed, others=bool(self._data))

    def _unknown(self, directory: RunDirectory) -> Iterator[_Match]:
        """Yield the packs of a run with results for configs that have none so far."""
        known = self._known.copy()
        for pack in directory.results.packs():
            rows, indices = self._matches(pack["key"])
            fresh = ~known[indices]
            if fresh.any():
                known[indices] = True
                yield pack.member, pack.device, rows[fresh], indices[fresh]

    def _matches(self, hex_keys: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of a pack whose keys the sweep has, and the configs' indices there."""
        keys, indices = self._sorted_keys
        wanted = np.frombuffer(bytes.fromhex(hex_keys.tobytes().decode()), dtype="<u8")
        wanted = wanted.reshape(-1, 2)
        positions = np.minimum(np.searchsorted(keys[:, 0], wanted[:, 0]), len(keys) - 1)
        rows = np.flatnonzero((keys[positions] == wanted).all(axis=1))
        return rows, indices[positions[rows]]

    def write(self, run: RunDirectory) -> None:
        """Write the results as a shard of the new run, and the data that they were made with."""
        if not self._found:
            return
        results = run.results.folder
        for source, keys in self._sources:
            for key in keys:
                _copy_data(source.data_file(key), run.data_file(key))
        publish_environments(results / REUSED, self.environments())
        with shards.Shard(results / REUSED) as shard:
            for number, (member, device, rows, indices) in enumerate(self._found):
                pack = StoredPack(member, device=device)
                arrays = {
                    name: pack[name] if name in SHARED else pack[name][rows]
                    for name in pack.arrays()
                }
                content = npz_bytes({**arrays, "index": indices})
                shard.append(reused_name(number, len(rows)), content, sync=False)


def _copy_data(source: Path, copy: Path) -> None:
    """Take over a record of data, and the data: so nothing depends on computing it again."""
    shutil.copyfile(source.with_suffix(".json"), copy.with_suffix(".json"))
    with contextlib.suppress(OSError):  # lost, or another file system: then it is computed again
        if untrusted(source.parent) is None and untrusted(source) is None:  # workers unpickle it
            os.link(source, copy)


def code_that_differs(run: RunDirectory, sweep: Sweep) -> list[str]:
    """Return which functions and settings of the process a run has others of than a sweep.

    Those that are in the keys of all configs: no result is reused then. Empty if it has no results.
    """
    try:
        before, after = RunKeys(run).settings, sweep.ingredients["settings"]
    except RunError:  # lost or damaged
        return []
    if not run.results.outcomes().finished:
        return []
    unset = {"hash": DEFAULT_HASH}
    return [
        name
        for name in dict.fromkeys([*before, *after])
        if before.get(name, unset)["hash"] != after.get(name, unset)["hash"]
        and (
            name.startswith("process[")
            or "parts" in {**before.get(name, {}), **after.get(name, {})}
        )
    ]
