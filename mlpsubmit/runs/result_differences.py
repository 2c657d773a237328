"""How the results of two runs differ, in the configs that both have: by the bits, and by how much.

A config of one run is that of the other with the same values on the axes of both; a setting that is
an axis in one and fixed in the other counts with its value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.display.progress import doing
from mlpsubmit.jobs.store.pack_schema import SHARED, WEIGHTS
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.protocol import STATUSES
from mlpsubmit.results.grab_arrays import grab_of
from mlpsubmit.results.names import TOGETHER, TRAINED_BY, TRAINED_ON, array_names
from mlpsubmit.results.source import FinishedPack
from mlpsubmit.runs.run_keys import RunKeys, comparable

__all__ = ["ResultDifferences", "VariableDifference", "result_differences"]

#: Arrays that are no results, or differ from run to run: of configs, and of all of a pack.
_LEFT_OUT = frozenset({"index", "key", "seconds", TOGETHER, TRAINED_ON, TRAINED_BY, *SHARED})

Array = NDArray[Any]
Indices = NDArray[np.int64]


@dataclass
class VariableDifference:
    """How one variable differs.

    Attributes:
        compared: configs that have it in both runs.
        equal: those of which all bits are equal.
        other_shape: those of which it has another shape, and no steps in common.
        one_sided: values that are finite in one run and not in the other; never crossed counts as
            not finite.
        largest: the largest difference of finite values.
        before, after: the two values there.
        config: the indices of their config in the two runs; None if no values differ.
    """

    name: str
    compared: int = 0
    equal: int = 0
    other_shape: int = 0
    one_sided: int = 0
    largest: float = 0.0
    before: complex = math.nan
    after: complex = math.nan
    config: tuple[int, int] | None = None

    @property
    def words(self) -> tuple[str, str] | None:
        """The two values there, of a status, which are words; None of numbers."""
        if self.name != "status" or self.config is None:
            return None
        before, after = (STATUSES[int(value.real)] for value in (self.before, self.after))
        return before, after


@dataclass(frozen=True)
class ResultDifferences:
    """How the results of two runs differ.

    Attributes:
        shared: configs that are in both runs.
        compared: those that have a result in both.
        equal: those of which all bits of all variables are equal.
        variables: those that differ in any config or exist in one run only, by name.
        alone: variables that only one of the runs has, with its position, 0 or 1.
    """

    shared: int
    compared: int
    equal: int
    variables: Sequence[VariableDifference]
    alone: Mapping[str, int] = field(default_factory=dict)


@doing("comparing the results")
def result_differences(before: RunKeys, after: RunKeys) -> ResultDifferences:
    """Read and compare the results of two runs; what is damaged is recorded, and left out."""
    pairs = _shared(before, after)
    results = _Located(before.run), _Located(after.run)
    own = np.array(
        [(a, b) for a, b in pairs if results[0].has(a) and results[1].has(b)], dtype=np.int64
    ).reshape(-1, 2)
    found: dict[str, VariableDifference] = {}
    alone: dict[str, int] = {}
    all_equal = np.ones(len(own), dtype=bool)
    for packs, rows, at in _by_packs(results, own):
        names = [{*pack.arrays()} - _LEFT_OUT for pack in packs]
        shown = array_names(sorted(names[0] | names[1]))
        for name in sorted(names[0] ^ names[1]):
            alone[shown[name]] = int(name in names[1])
            all_equal[at] = False
        for name in sorted(names[0] & names[1]):
            difference = found.setdefault(name, VariableDifference(shown[name]))
            arrays = [pack[name][row] for pack, row in zip(packs, rows, strict=True)]
            if name.startswith("timekeys"):
                arrays = [np.where(array == -1, np.nan, array) for array in arrays]  # never crossed
            clocks = [_clock(pack, name, array) for pack, array in zip(packs, arrays, strict=True)]
            all_equal[at] &= _compare(difference, arrays, clocks, own[at])
    differing = [one for one in found.values() if one.equal < one.compared]
    return ResultDifferences(len(pairs), len(own), int(all_equal.sum()), differing, alone)


# ---- which configs -------------------------------------------------------------------------------


def _shared(before: RunKeys, after: RunKeys) -> list[tuple[int, int]]:
    """Return the indices of the configs that are in both runs."""
    names = dict.fromkeys(
        n for keys in (before, after) for axis in keys.axes for n in axis["names"]
    )
    ours, theirs = ({name: keys.labelled(name) for name in names} for keys in (before, after))
    first = _points(before, {name: comparable(ours[name], theirs[name]) for name in names})
    second = _points(after, {name: comparable(theirs[name], ours[name]) for name in names})
    places = {point: index for index, point in second.items()}
    return [(index, places[point]) for index, point in first.items() if point in places]


def _points(keys: RunKeys, compared: Mapping[str, Sequence[str]]) -> dict[int, tuple[str, ...]]:
    """Return what is compared of some settings of every config, by its index."""
    columns = np.unravel_index(keys.indices, keys.shape) if keys.shape else ()
    pairs = zip(keys.axes, columns, strict=True)
    at = {name: column for axis, column in pairs for name in axis["names"]}
    fixed = np.zeros(len(keys.indices), dtype=np.int64)
    lists = [[own[n] for n in at.get(name, fixed).tolist()] for name, own in compared.items()]
    points = zip(*lists, strict=True) if lists else [()] * len(keys.indices)
    return dict(zip(keys.indices.tolist(), points, strict=True))


# ---- where their results are ---------------------------------------------------------------------


class _Located:
    """The latest result of every config of a run: its pack, and its row there."""

    def __init__(self, run: RunDirectory) -> None:
        self.packs: list[FinishedPack] = []
        self._found: dict[int, tuple[int, int]] = {}
        for number, pack in enumerate(run.results.packs()):
            self.packs.append(pack)
            for row, index in enumerate(pack["index"].tolist()):
                self._found[index] = number, row

    def has(self, index: int) -> bool:
        """Return whether a config has a result."""
        return index in self._found

    def place(self, index: int) -> tuple[int, int]:
        """Return the number of the pack of a config, and its row."""
        return self._found[index]


def _by_packs(
    results: tuple[_Located, _Located], configs: Indices
) -> Iterator[tuple[list[FinishedPack], list[Indices], Indices]]:
    """Yield the packs of both runs that have configs in common, their rows, and which these are."""
    groups: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for position, (a, b) in enumerate(configs.tolist()):
        (pack_a, row_a), (pack_b, row_b) = results[0].place(a), results[1].place(b)
        groups.setdefault((pack_a, pack_b), []).append((row_a, row_b, position))
    for numbers, entries in groups.items():
        *rows, at = np.array(entries, dtype=np.int64).T
        packs = [own.packs[number] for own, number in zip(results, numbers, strict=True)]
        yield packs, rows, at


# ---- the comparison ------------------------------------------------------------------------------


def _clock(pack: FinishedPack, name: str, array: Array) -> Array | None:
    """Return the steps along which an array was recorded; None if it has one value per config."""
    kind = "weights_step" if name.startswith(WEIGHTS) else "step"
    kind = "grab_step" if grab_of(name) is not None else kind
    if name.removeprefix("metric.").startswith("test_") and "eval_step" in pack.arrays():
        kind = "eval_step"
    if kind not in pack.arrays():
        return None
    steps = pack[kind]
    return steps if array.shape[1:2] == steps.shape else None


def _compare(
    difference: VariableDifference,
    arrays: Sequence[Array],
    clocks: Sequence[Array | None],
    configs: Indices,
) -> NDArray[np.bool_]:
    """Add how some configs differ in one variable; return which are equal bit for bit, (K,)."""
    difference.compared += len(configs)
    a, b = arrays
    first, second = (np.zeros(0) if clock is None else clock for clock in clocks)
    same_clock = np.array_equal(first, second)
    if a.dtype != b.dtype:  # integers are floats in packs of which a config has none
        a, b = (x.astype(np.result_type(a, b)) for x in (a, b))
    if a.shape == b.shape and same_clock:
        bits = [np.ascontiguousarray(x).reshape(len(x), -1).view(np.uint8) for x in (a, b)]
        equal = np.asarray((bits[0] == bits[1]).all(axis=1)) if bits[0].size else _all(a)
    else:
        equal = ~_all(a)
    difference.equal += int(equal.sum())
    a, b = _in_common(a, b, clocks) if not same_clock else (a, b)
    if a.shape != b.shape:
        difference.other_shape += len(configs)
    elif not equal.all() and a.size and a.dtype.kind in "biufc" and b.dtype.kind in "biufc":
        _measure(difference, a, b, configs)
    return equal


def _all(array: Array) -> NDArray[np.bool_]:
    return np.ones(len(array), dtype=bool)


def _in_common(a: Array, b: Array, clocks: Sequence[Array | None]) -> tuple[Array, Array]:
    """Return two traces at the steps that both have."""
    first, second = clocks
    if first is None or second is None:
        return a, b
    _, at, there = np.intersect1d(first, second, assume_unique=True, return_indices=True)
    return a[:, at], b[:, there]


def _measure(difference: VariableDifference, a: Array, b: Array, configs: Indices) -> None:
    """Note the largest difference of two arrays of one shape, and where it is."""
    kind = np.complex128 if "c" in a.dtype.kind + b.dtype.kind else np.float64
    a, b = a.astype(kind), b.astype(kind)
    finite = np.isfinite(a) & np.isfinite(b)
    difference.one_sided += int((np.isfinite(a) != np.isfinite(b)).sum())
    with np.errstate(invalid="ignore"):
        by = np.where(finite, np.abs(a - b), 0.0)
    place = np.unravel_index(int(by.argmax()), by.shape)
    if by[place] > difference.largest:
        difference.largest = float(by[place])
        difference.before, difference.after = (x[place].item() for x in (a, b))
        difference.config = (int(configs[place[0], 0]), int(configs[place[0], 1]))
