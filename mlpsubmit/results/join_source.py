"""The packs of runs that are joined, at their places in the union, each config once.

A config that several of the runs have finished must have the same results in all, to the last bit.
It is taken from one pack that has the arrays of all of them: of grabs that only one run has, too.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mlpsubmit.results.grab_arrays import grab_of
from mlpsubmit.results.join_axes import Part
from mlpsubmit.results.names import CLOCKS, TOGETHER, TRAINED_BY, TRAINED_ON, array_names
from mlpsubmit.results.schema import PackId, identified
from mlpsubmit.results.source import Array, Failure, FinishedPack

__all__ = ["Difference", "JoinedSource"]

Index: TypeAlias = npt.NDArray[np.int64]

#: Arrays that tell how results came about.
_NO_RESULTS = {"index", "key", "seconds", TOGETHER, TRAINED_ON, TRAINED_BY}
_WEIGHTS = ("weights.", "weights_")


@dataclass(frozen=True)
class Difference:
    """A config with different results in two of the runs.

    Args:
        parts: the numbers of the runs.
        index: of the config in the union.
        arrays: what differs, as text.
    """

    parts: tuple[int, int]
    index: int
    arrays: str


@dataclass(frozen=True, eq=False)
class _Rows:
    """Some rows of a pack of one of the runs."""

    part: int
    pack: FinishedPack
    rows: Index


class _Moved:
    """Rows of packs of one or several runs with the same configs, at their places in the union.

    Args:
        found: the rows; an array is read from the first pack that has it, of those with the most
            traces, as grabs along steps and final ones do not go together.
        index: (K,) places of the configs.
        widths: the number of timekeys in the union, by the name of the array.
    """

    def __init__(
        self, name: str, found: Sequence[_Rows], index: Index, widths: Mapping[str, int]
    ) -> None:
        self.name = name
        self._found = sorted(found, key=lambda own: -_traces(own.pack))
        self._index, self._widths = index, widths

    def arrays(self) -> Sequence[str]:
        names = dict.fromkeys(name for own in self._found for name in own.pack.arrays())
        return [
            name
            for name in names
            if not name.startswith(_WEIGHTS) and name in self._supplier(name).pack.arrays()
        ]

    def _supplier(self, array: str) -> _Rows:
        """Return the rows that an array is of: steps are those of the arrays along them."""
        array = {"step": "train_loss", "eval_step": "test_loss"}.get(array, array)
        return next((own for own in self._found if array in own.pack.arrays()), self._found[0])

    def __getitem__(self, array: str) -> Array:
        if array == "index":
            return self._index
        own = self._supplier(array)
        values = own.pack[array]
        if array in CLOCKS:
            return values
        return _padded(values[own.rows], self._widths.get(array))


def _traces(pack: FinishedPack) -> int:
    return len({*CLOCKS} & {*pack.arrays()})


class JoinedSource:
    """The results of several runs, as those of one.

    Args:
        parts: the runs.
        places: of each, the place in the union of every point, (layout.size,).
        widths: the number of timekeys in the union, by the name of the array.

    Attributes:
        differences: configs with different results in several of the runs; only those of no other
            can be read.
    """

    def __init__(
        self, parts: Sequence[Part], places: Sequence[Index], widths: Mapping[str, int]
    ) -> None:
        self._parts, self._places, self._widths = parts, places, widths
        self._known: list[set[PackId]] = []
        #: Of each run, which of its points have a result.
        self._finished: list[npt.NDArray[np.bool_]] = []
        self._shared = list(self._find_shared())
        self.differences = [
            found for index, rows in self._shared for found in _differences(index, rows, widths)
        ]

    def packs(self) -> Iterator[FinishedPack]:
        """Yield the packs of the runs, and then those of configs that several have."""
        for number, (part, places) in enumerate(zip(self._parts, self._places, strict=True)):
            for pack_id, pack in identified(part.source):
                if pack_id in self._known[number]:
                    name = f"{number}/{pack.name}"
                    index = pack["index"]
                    rows = [_Rows(number, pack, np.arange(len(index)))]
                    yield _Moved(name, rows, places[index], self._widths)
        for number, (index, rows) in enumerate(self._shared):
            yield _Moved(f"shared/{number}", rows, index, self._widths)

    def runs_of(self, points: Index) -> list[tuple[str, ...]]:
        """Return the ids of the runs that have a result of each point, or, if none has, that train
        it.

        Args:
            points: places in the union, (n,).
        """
        size = 1 + max((int(places.max(initial=-1)) for places in self._places), default=-1)
        has, trains = np.zeros((2, len(self._parts), size), dtype=np.bool_)
        for number, (part, places) in enumerate(zip(self._parts, self._places, strict=True)):
            trains[number, places[part.layout.included_points()]] = True
            has[number, places[self._finished[number]]] = True
        chosen = np.where(has.any(axis=0), has, trains)[:, points]
        ids = [part.run for part in self._parts]
        return [tuple(itertools.compress(ids, column)) for column in chosen.T.tolist()]

    def failures(self) -> Iterable[Failure]:
        """Return the failures of all runs."""
        return [
            replace(failure, indices=places[failure.indices])
            for part, places in zip(self._parts, self._places, strict=True)
            for failure in part.source.failures()
        ]

    def _find_shared(self) -> Iterator[tuple[Index, list[_Rows]]]:
        """Yield the configs that several runs have finished: those that do so in the same packs."""
        owners = []
        for part, places in zip(self._parts, self._places, strict=True):
            packs: list[PackId] = []
            owner = np.full(part.layout.size, -1, dtype=np.int64)
            for pack_id, pack in identified(part.source):
                owner[pack["index"]] = len(packs)
                packs.append(pack_id)
            self._known.append(set(packs))
            self._finished.append(owner >= 0)
            owners.append((packs, owner, places))
        every = np.concatenate([places[owner >= 0] for _, owner, places in owners])
        indices, counts = np.unique(every, return_counts=True)
        shared = indices[counts > 1]
        if not shared.size:
            return
        by_packs: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
        having: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for number, (_, owner, places) in enumerate(owners):
            for own in np.flatnonzero((owner >= 0) & np.isin(places, shared)):
                having[int(places[own])].append((number, int(owner[own])))
        for point, packs_of in having.items():
            by_packs[tuple(packs_of)].append(point)
        handles = self._handles({one for several in by_packs for one in several})
        for several, found in by_packs.items():
            index = np.array(found, dtype=np.int64)
            yield index, [self._rows(one, handles[one], index) for one in several]

    def _handles(self, needed: set[tuple[int, int]]) -> dict[tuple[int, int], FinishedPack]:
        """Return packs by the number of their run and theirs."""
        found: dict[tuple[int, int], FinishedPack] = {}
        for number, part in enumerate(self._parts):
            position = 0
            for pack_id, pack in identified(part.source):
                if pack_id not in self._known[number]:
                    continue
                if (number, position) in needed:
                    found[number, position] = pack
                position += 1
        return found

    def _rows(self, one: tuple[int, int], pack: FinishedPack, index: Index) -> _Rows:
        """Return the rows of a pack that have these places in the union, in their order."""
        number, _ = one
        own = self._places[number][pack["index"]]
        order = np.argsort(own)
        return _Rows(number, pack, order[np.searchsorted(own, index, sorter=order)])


def _differences(
    index: Index, found: Sequence[_Rows], widths: Mapping[str, int]
) -> Iterator[Difference]:
    """Yield the configs of which the results differ between the first run and another one."""
    first = found[0]
    for other in found[1:]:
        texts: dict[int, list[str]] = defaultdict(list)
        both = set(other.pack.arrays())
        for array in first.pack.arrays():
            if array in both and array not in _NO_RESULTS and not array.startswith(_WEIGHTS):
                width = widths.get(array)
                one, two = (_padded(_values(rows, array), width) for rows in (first, other))
                differs = _unequal(one, two, len(index))
                if differs.any() and _is_trace(first.pack, array) and one.shape == two.shape:
                    differs &= ~_equal_final(one, two)
                for row in np.flatnonzero(differs):
                    texts[int(row)].append(_text(array, one, two, int(row)))
        for row, own in texts.items():
            yield Difference((first.part, other.part), int(index[row]), ", ".join(own))


def _values(rows: _Rows, array: str) -> Array:
    values = rows.pack[array]
    return values if array in CLOCKS else values[rows.rows]


def _padded(timekeys: Array, width: int | None) -> Array:
    """Return timekeys (configs, thresholds) of as many thresholds as the union has.

    Args:
        width: their number; None for other arrays, which are as they are.
    """
    if width is None:
        return timekeys
    return np.pad(timekeys, ((0, 0), (0, width - timekeys.shape[1])), constant_values=-1)


def _unequal(one: Array, two: Array, configs: int) -> npt.NDArray[np.bool_]:
    """Return of which configs the bits of an array differ, (configs,)."""
    if abs(one.ndim - two.ndim) == 1:  # of datasets: a final value, and a trace that ends with it
        one, two = (
            _final(own) if own.ndim == max(one.ndim, two.ndim) else own for own in (one, two)
        )
    if one.shape != two.shape:
        different: npt.NDArray[np.bool_] = ~(_all_nan(one, configs) & _all_nan(two, configs))
        return different
    if one.dtype != two.dtype:  # of a dataset, where integers are floats if others are missing
        together = np.result_type(one, two)
        one, two = one.astype(together), two.astype(together)
    if len(one) != configs or one.size == 0:  # steps of traces
        return np.full(configs, one.tobytes() != two.tobytes())
    bits = [
        np.ascontiguousarray(values).reshape(configs, -1).view(np.uint8) for values in (one, two)
    ]
    differs: npt.NDArray[np.bool_] = (bits[0] != bits[1]).any(axis=1)
    return differs


def _is_trace(pack: FinishedPack, array: str) -> bool:
    """Return whether an array (configs, steps, ...) is along steps."""
    if grab_of(array) is not None:
        return "grab_step" in pack.arrays()
    losses = array in ("train_loss", "test_loss") or array.startswith("metric.")
    return losses and pack[array].ndim > 1


def _equal_final(one: Array, two: Array) -> npt.NDArray[np.bool_]:
    """Return which configs have a final value alone, equal in both, (configs,).

    Among traces it is at the last step of their dataset, which others of its configs may set.
    """
    alone = np.array([_recorded(trace).sum(axis=1) == 1 for trace in (one, two)]).all(axis=0)
    equal: npt.NDArray[np.bool_] = alone & ~_unequal(_final(one), _final(two), len(one))
    return equal


def _recorded(trace: Array) -> npt.NDArray[np.bool_]:
    """Return at which steps traces (configs, steps, ...) have a value, (configs, steps)."""
    return ~np.asarray(np.isnan(trace).reshape(*trace.shape[:2], -1).all(axis=2))


def _final(trace: Array) -> Array:
    """Return the last values of traces (configs, steps, ...) that are not missing."""
    last = trace.shape[1] - 1 - np.argmax(_recorded(trace)[:, ::-1], axis=1)
    final: Array = trace[np.arange(len(trace)), last]
    return final


def _all_nan(values: Array, configs: int) -> npt.NDArray[np.bool_]:
    """Return of which configs an array has nothing but NaN, (configs,)."""
    if values.dtype.kind not in "fc" or len(values) != configs:
        return np.zeros(configs, dtype=np.bool_)
    return np.asarray(np.isnan(values).reshape(configs, -1).all(axis=1))


def _text(array: str, one: Array, two: Array, row: int) -> str:
    """Return what differs: the name of a variable, with its values if they are numbers."""
    name = array_names([array])[array]
    if one.ndim == two.ndim == 1 and array not in CLOCKS:
        return f"{name} {one[row].item()!r} and {two[row].item()!r}"
    return name
