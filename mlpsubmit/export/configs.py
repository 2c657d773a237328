"""What is exported of each config: its settings, its numbers, its curves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mlpsubmit.display.output import inert, inline
from mlpsubmit.errors import RunError
from mlpsubmit.export.names import labels_along, run_label
from mlpsubmit.jobs.store.shards import Member, StoredPack
from mlpsubmit.jobs.store.stored_results import StoredResults
from mlpsubmit.protocol import STATUSES
from mlpsubmit.results.entries import MOST_ENTRIES, entry_name, made_steps
from mlpsubmit.results.names import coordinate_names, threshold_label
from mlpsubmit.results.schema import COUNTS, Schema, Variable, scan
from mlpsubmit.results.settings import setting_values
from mlpsubmit.results.source import Failure, FinishedPack, Scalar
from mlpsubmit.results.values import coordinate_values
from mlpsubmit.runs.run import Run
from mlpsubmit.runs.run_keys import RunKeys

__all__ = ["Configs", "ExportedConfig"]

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: What trackers have beside the settings.
RESERVED = ("status", "mlpsubmit")

#: The steps of a curve and its values, (n,) each.
Curve: TypeAlias = tuple[Floats, Floats]


@dataclass(frozen=True, eq=False)
class ExportedConfig:
    """One config with a result, or one that failed.

    Attributes:
        index: in the product of the axes.
        key: its content hash, in hex.
        label: a short name, unique within the run, without slashes or control characters.
        status: ``done``, ``diverged`` or ``failed``.
        axes: its values on the axes, by name.
        settings: the fixed settings of the run, by name.
        steps: how many steps it made; 0 if it failed.
        seconds: its share of the training time of its pack; 0 if it failed.
        numbers: what has one value at the end, by name.
        curves: by name.
        error: why it failed, in one line.
        traceback: the whole of it.
    """

    index: int
    key: str
    label: str
    status: str
    axes: Mapping[str, Scalar]
    settings: Mapping[str, Scalar]
    steps: int = 0
    seconds: float = 0.0
    numbers: Mapping[str, float | int] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    error: str = ""
    traceback: str = ""

    @property
    def names(self) -> list[str]:
        """The names of all curves and numbers."""
        return [*self.curves, *self.numbers]

    @property
    def failure(self) -> str:
        """Why it failed, as Markdown in which nothing is markup; empty if it did not."""
        parts = [self.error, inert(self.traceback.strip())]
        lines = "\n\n".join(filter(None, parts)).split("\n") if self.error else []
        return "\n".join(f"    {line}" for line in lines)

    @property
    def last_step(self) -> int:
        """The step at which its numbers are."""
        return max(self.steps - 1, 0)

    def by_step(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield each step at which any curve has a value, and these values by name."""
        every = [steps for steps, _ in self.curves.values()]
        positions = dict.fromkeys(self.curves, 0)
        for step in np.unique(np.concatenate([np.zeros(0), *every])).tolist():
            found = {}
            for name, (steps, values) in self.curves.items():
                at = positions[name]
                if at < len(steps) and steps[at] == step:
                    found[name] = float(values[at])
                    positions[name] = at + 1
            yield int(step), found


class Configs:
    """The configs of a run, read pack by pack; nothing in the run is executed.

    Attributes:
        left_out: the names of arrays that are too large to be exported, as far as they were read.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.layout = run, run.layout()
        self.results: StoredResults = run.directory.results.unread()
        self.left_out: set[str] = set()
        self._names = coordinate_names(self.layout)
        self._read: set[Member] = set()

    @cached_property
    def _keys(self) -> dict[int, str]:
        """The keys of all configs by index; empty if the run has lost them."""
        keys = RunKeys(self.run.directory)
        try:
            found = zip(keys.indices.tolist(), keys.all_keys(), strict=True)
        except RunError:
            return {}
        return {index: bytes(key).hex() for index, key in found}

    @cached_property
    def values(self) -> dict[str, Sequence[Scalar]]:
        """The values along each axis, by name, all of one type and finite."""
        return {
            self._names[name]: _finite(coordinate_values(own).tolist())
            for dimension in self.layout.dimensions
            for name, own in dimension.coordinates.items()
        }

    @cached_property
    def settings(self) -> dict[str, Scalar]:
        """The fixed settings, by name."""
        found = setting_values(self.layout.settings, {*self.values, *RESERVED})
        return {inline(name): _finite([value])[0] for name, value in found.items()}

    @cached_property
    def _labels(self) -> list[list[str]]:
        """The label of each position along each dimension."""
        return [
            labels_along({self._names[name]: self.values[self._names[name]] for name in own})
            for own in (dimension.coordinates for dimension in self.layout.dimensions)
        ]

    def _about(self, index: int, key: str) -> dict[str, Any]:
        """Return what is known of a config without its result."""
        shape = self.layout.shape
        place = [int(at) for at in np.unravel_index(index, shape)] if shape else []
        axes = {
            self._names[name]: self.values[self._names[name]][at]
            for dimension, at in zip(self.layout.dimensions, place, strict=True)
            for name in dimension.coordinates
        }
        parts = [own[at] for own, at in zip(self._labels, place, strict=True)]
        return {
            "index": index,
            "key": key,
            "label": run_label(parts or [self.run.name], index),
            "axes": axes,
            "settings": self.settings,
        }

    # ---- the results

    def has_any(self, wanted: Mask) -> bool:
        """Return whether a wanted config has a result, or has failed."""
        having = any(wanted[pack["index"]].any() for pack in self.results.packs())
        return having or any(wanted[one.indices].any() for one in self.results.failures())

    def finished(self, wanted: Mask) -> Iterator[ExportedConfig]:
        """Yield the wanted configs with a result, with one pack in memory.

        What was read before by this object is not read again.

        Args:
            wanted: (size,) of the points of the product of the axes.
        """
        found = [(pack.member, pack["index"]) for pack in self.results.packs(self._read)]
        latest = {int(index): member for member, own in found for index in own}
        for member, own in found:
            rows = [n for n, i in enumerate(own) if wanted[i] and latest[int(i)] == member]
            if rows:
                yield from self._of_pack(StoredPack(member, self.results.schema), rows)
            self._read.add(member)

    def failed(self, wanted: Mask) -> Iterator[ExportedConfig]:
        """Yield the wanted configs that have failed, and have no result."""
        for failure in self.results.failures():
            for index in failure.indices.tolist():
                if wanted[index]:
                    key = self._keys.get(index, f"{self.run.id}-{index}")
                    yield ExportedConfig(
                        **self._about(index, key),
                        status="failed",
                        error=inline(failure.error),
                        traceback=failure.traceback,
                    )

    def _of_pack(self, pack: FinishedPack, rows: Sequence[int]) -> Iterator[ExportedConfig]:
        """Yield configs of a pack.

        Its own schema is used, so that what is exported of a config depends on no other one.
        """
        schema, arrays = scan(self.layout, _OnePack(pack)), set(pack.arrays())
        at = np.array(rows)
        points, keys = pack["index"][at].tolist(), pack["key"][at].tolist()
        status, taken = pack["status"][at].tolist(), pack["steps"][at].tolist()
        seconds = pack["seconds"][at]
        numbers: list[dict[str, float | int]] = [{} for _ in rows]
        curves: list[dict[str, Curve]] = [{} for _ in rows]
        for variable in schema.variables:
            timed = _is_timed(variable)
            if variable.array not in arrays or variable.dtype.kind == "O":
                continue
            if timed and variable.dtype.kind == "b":
                continue  # whether a threshold was crossed is said by its timekey
            entries = list(self._entries(schema, variable))
            values = schema.read(variable, pack, at) if entries else np.zeros(0)
            for (name, position), row in itertools.product(entries, range(len(rows))):
                entry: tuple[Any, ...] = (row, ..., *position)
                own = values[entry]
                if variable.recorded is not None:
                    steps = made_steps(schema.clocks[variable.dims[0]], taken[row])
                    curves[row][name] = steps, own[: len(steps)].astype(np.float64)
                elif not (timed and math.isnan(own)):
                    whole = timed or variable.array in COUNTS
                    numbers[row][name] = int(own) if whole else own.item()
        for row, index in enumerate(points):
            yield ExportedConfig(
                **self._about(index, keys[row].decode()),
                status=STATUSES[status[row]],
                steps=int(taken[row]),
                seconds=float(np.nan_to_num(seconds[row], posinf=0.0)),
                numbers=numbers[row],
                curves=curves[row],
            )

    def _entries(self, schema: Schema, variable: Variable) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and the position of each entry of a variable; none if it has too many."""
        first = 0 if variable.recorded is None else 1
        dims, shape = variable.dims[first:], variable.shape[first:]
        timed = _is_timed(variable)
        if not (timed or math.prod(shape) <= MOST_ENTRIES) or variable.dtype.kind not in "biuf":
            self.left_out.add(variable.name)
            return
        coordinates: dict[str, Sequence[Any]] = dict(schema.coordinates)
        for position in itertools.product(*map(range, shape)):
            if timed:
                yield f"{variable.name} [{self._threshold(variable, position[0])}]", position
            else:
                yield entry_name(variable.name, coordinates, dims, position), position

    def _threshold(self, variable: Variable, place: int) -> str:
        own = next(one for one in self.layout.all_thresholds if one.array == variable.array)
        if own.axis is not None:  # each of its values has others
            return f"number {place}"  # as in the dataset
        return threshold_label(float(own.values[place]))


def _is_timed(variable: Variable) -> bool:
    """Return whether a variable is about the steps at which thresholds are crossed."""
    return variable.array.partition(".")[0] == "timekeys"


def _finite(values: Sequence[Scalar]) -> Sequence[Scalar]:
    """Return values, as texts if some are not finite: the settings of trackers are JSON."""
    numbers = (value for value in values if isinstance(value, float))
    return values if all(map(math.isfinite, numbers)) else [str(value) for value in values]


@dataclass(frozen=True)
class _OnePack:
    """A pack as a :class:`mlpsubmit.results.source.ResultSource`."""

    pack: FinishedPack

    def packs(self) -> Iterator[FinishedPack]:
        yield self.pack

    def failures(self) -> Iterable[Failure]:
        return ()
