"""What a report shows of the results of runs: the table of configs, and the curves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlpsubmit.jobs.status import Status
from mlpsubmit.jobs.store.stored_results import StoredResults
from mlpsubmit.report.columns import (
    MOST_ENTRIES,
    SHORT,
    Column,
    axis_columns,
    entry_name,
    joined,
    of_texts,
    result_columns,
)
from mlpsubmit.report.curves import Curves, most_curves, points_per_curve
from mlpsubmit.report.notation import plain
from mlpsubmit.results.dataset import assemble
from mlpsubmit.results.results_hash import ResultsHash
from mlpsubmit.results.schema import Schema, Variable, scan
from mlpsubmit.results.source import Layout
from mlpsubmit.runs.run import Run

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Contents", "RunResults", "read"]

Floats = npt.NDArray[np.float64]

#: The curves that are kept where there is no room for all, and shown first.
_LOSSES = ("train_loss", "test_loss")


class RunResults:
    """The results of one run: those that were there when this was made.

    Attributes:
        status: the progress of the run, read before its results.
        layout: of its dataset.
        points: (n,) the indices of its configs in the product of its axes.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.status: Status = run.status()
        self.layout: Layout = run.layout()
        self.source: StoredResults = run.directory.results.unread()
        self.schema: Schema = scan(self.layout, self.source)
        self.points = np.flatnonzero(self.layout.included_points())
        self._rows = np.full(self.layout.size, -1)
        self._rows[self.points] = np.arange(len(self.points))

    @cached_property
    def dataset(self) -> xr.Dataset:
        """The variables without traces and large arrays, and all coordinates."""
        small, _ = self.schema.small_and_streamed()
        return assemble(self.schema, self.source, small, ResultsHash(self.layout.size))

    @property
    def finished(self) -> int:
        """How many configs have a result."""
        return int((self.schema.owner >= 0).sum())

    @cached_property
    def traces(self) -> list[Variable]:
        """The variables with traces of few entries, losses first."""
        found = [
            variable
            for variable in self.schema.variables
            if variable.recorded is not None
            and np.prod(variable.shape[1:]) <= MOST_ENTRIES
            and variable.dtype.kind in "biuf"
        ]
        return sorted(found, key=lambda one: (*_LOSSES, one.name).index(one.name))

    def entries(self, variable: Variable) -> list[tuple[str, tuple[int, ...]]]:
        """Return the name and the position of each entry of a variable with traces."""
        dims, shape = variable.dims[1:], variable.shape[1:]
        coordinates = self.dataset.coords
        return [
            (entry_name(variable.name, coordinates, dims, position), position)
            for position in itertools.product(*map(range, shape))
        ]

    def rows(self, names: set[str]) -> Iterator[tuple[int, str, Floats, Floats]]:
        """Yield (row, name, steps, values) of the traces with some names, up to the last step."""
        wanted = {v.name: [e for e in self.entries(v) if e[0] in names] for v in self.traces}
        variables = [variable for variable in self.traces if wanted[variable.name]]
        taken = self.dataset["steps"].values.reshape(-1)
        for point, variable, values in self.schema.rows(self.source, variables):
            clock = self.schema.clocks[variable.dims[0]].astype(np.float64)
            stop = max(float(taken[point]) - 1, 0.0)
            count = int(np.searchsorted(clock, stop, side="right"))
            steps = clock[:count]
            if count < len(clock) and (not count or clock[count - 1] < stop):
                # The value of the last step is at the next one at which traces are recorded.
                steps, count = np.append(steps, stop), count + 1
            for name, position in wanted[variable.name]:
                at: tuple[Any, ...] = (..., *position)
                own = values[:count][at].astype(np.float64)
                yield int(self._rows[point]), name, steps, own


@dataclass
class Contents:
    """What a report shows of the results of runs.

    Attributes:
        runs: these.
        columns: of the table of configs, of all runs.
        curves: of each variable with traces.
        size: how many configs there are.
        every: of how many configs with curves one has them on the page.
        arrays: variables that are not on the page: large arrays.
        dropped: traces of which there is no room for curves.
    """

    runs: Sequence[RunResults]
    columns: list[Column]
    curves: list[Curves]
    size: int
    every: int
    arrays: list[str]
    dropped: list[str]

    @property
    def finished(self) -> int:
        """How many configs have a result."""
        return self.count("done") + self.count("diverged")

    def column(self, name: str) -> Column:
        """Return the column of a name."""
        return next(column for column in self.columns if column.name == name)

    def count(self, status: str) -> int:
        """Return how many configs have a status."""
        return self.column("status").values.count(status)

    def to_json(self) -> dict[str, Any]:
        """Return the data of the page's script."""
        return {
            "size": self.size,
            "columns": [column.to_json() for column in self.columns],
            "curves": [curves.to_json() for curves in self.curves],
        }


def read(runs: Sequence[Run]) -> Contents:
    """Read the results of runs, with one pack in memory at a time.

    Raises:
        UserError: a grab is not numeric, or its number of dimensions differs between packs.
    """
    results = [RunResults(run) for run in runs]
    names, every, dropped = _chosen(results)
    sizes = [len(one.points) for one in results]
    finished = sum(one.finished for one in results)
    most = points_per_curve(len(names) * -(-finished // every))
    curves = {name: Curves(name, SHORT.get(name) or plain(name), most) for name in names}
    tables = []
    for offset, one in zip(np.cumsum([0, *sizes]), results, strict=False):
        finals = _add_curves(one, curves, int(offset), every)
        axes = axis_columns(one.dataset, one.layout, one.points)
        tables.append([*axes, *result_columns(one.dataset, one.layout, one.points, finals)])
    columns = joined(tables, sizes)
    without = _without_columns(results, columns)
    if len(results) > 1:
        ids = [one.run.id for one in results for _ in one.points]
        columns.insert(0, of_texts("run", "run", "axis", ids))
    kept = [one for one in curves.values() if one.configs]
    return Contents(results, columns, kept, sum(sizes), every, without, dropped)


def _without_columns(results: Sequence[RunResults], columns: Sequence[Column]) -> list[str]:
    """Return the variables that are in no column: large arrays."""
    present = {column.name.partition(" [")[0] for column in columns}
    names = dict.fromkeys(variable.name for one in results for variable in one.schema.variables)
    return [n for n in names if n not in present and not n.startswith(("timekeys", "crossed"))]


def _chosen(results: Sequence[RunResults]) -> tuple[list[str], int, list[str]]:
    """Return which traces are shown, of every how-many-th config, and which are not shown."""
    names = list(
        dict.fromkeys(
            name for one in results for variable in one.traces for name, _ in one.entries(variable)
        )
    )
    configs = max(sum(one.finished for one in results), 1)
    room = max(most_curves() // configs, 1)
    return names[:room], max(1, -(-configs // most_curves())), names[room:]


def _add_curves(
    one: RunResults, curves: Mapping[str, Curves], offset: int, every: int
) -> dict[str, Floats]:
    """Add the curves of a run, and return the final values of its traces, by their names."""
    names = {name for variable in one.traces for name, _ in one.entries(variable)}
    finals = {name: np.full(len(one.points), np.nan) for name in names}
    for row, name, steps, values in one.rows(names):
        finals[name][row] = values[-1] if len(values) else np.nan
        if name in curves and row % every == 0:
            curves[name].add(offset + row, steps, values)
    order = [name for variable in one.traces for name, _ in one.entries(variable)]
    return {name: finals[name] for name in order}
