"""What a report shows of the results of runs: the table of configs, and the curves."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlpsubmit.display.notation import plain
from mlpsubmit.jobs.status import Status
from mlpsubmit.jobs.store.stored_results import StoredResults
from mlpsubmit.report.columns import SHORT, Column, axis_columns, result_columns, run_column
from mlpsubmit.report.curves import Curves, most_curves, points_per_curve
from mlpsubmit.report.picture import Picture, picture, with_losses
from mlpsubmit.results.dataset import assemble
from mlpsubmit.results.entries import MOST_ENTRIES, entry_name, made_steps
from mlpsubmit.results.join import Part, joined
from mlpsubmit.results.join_source import JoinedSource
from mlpsubmit.results.results_hash import ResultsHash
from mlpsubmit.results.schema import Schema, Variable, scan
from mlpsubmit.results.source import Layout, ResultSource
from mlpsubmit.runs.run import Run

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Contents", "ReportedRun", "read"]

Floats = npt.NDArray[np.float64]

#: The most configs on a page.
MOST_CONFIGS = 20_000

_COUNTED = ("done", "diverged", "failed", "missing")

#: The curves that are kept where there is no room for all, and shown first.
_LOSSES = ("train_loss", "test_loss")


class ReportedRun:
    """One of the runs of a report.

    Attributes:
        status: its progress, read before its results.
        layout: of its dataset.
        source: its results: those that were there when this was made.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.status: Status = run.status()
        self.layout: Layout = run.layout()
        self.source: StoredResults = run.directory.results.unread()


class Results:
    """The results of one run, or of several joined ones, read in pieces.

    Args:
        layout: of the dataset.
        source: its packs.

    Attributes:
        points: (n,) the indices of the configs in the product of the axes; of very many, of some.
    """

    def __init__(self, layout: Layout, source: ResultSource) -> None:
        self.layout, self.source = layout, source
        self.schema: Schema = scan(layout, source)
        every = np.flatnonzero(layout.included_points())
        self.points = every[:: max(1, -(-len(every) // MOST_CONFIGS))]
        self._rows = np.full(layout.size, -1)
        self._rows[self.points] = np.arange(len(self.points))

    @cached_property
    def dataset(self) -> xr.Dataset:
        """The variables without traces and large arrays, and all coordinates."""
        small, _ = self.schema.small_and_streamed()
        return assemble(self.schema, self.source, small, ResultsHash(self.layout.size))

    def picture(self) -> Picture:
        """Return the figure that needs no script."""
        return picture(with_losses(self.dataset, self.schema, self.source))

    @property
    def finished(self) -> int:
        """How many configs have a result."""
        return int((self.schema.owner[self.points] >= 0).sum())

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
        for point, variable, clock, values in self.schema.traces(self.source, variables):
            if self._rows[point] < 0:
                continue
            steps = made_steps(clock, taken[point])
            for name, position in wanted[variable.name]:
                at: tuple[Any, ...] = (..., *position)
                own = values[: len(steps)][at].astype(np.float64)
                yield int(self._rows[point]), name, steps, own


@dataclass
class Contents:
    """What a report shows of the results of runs.

    Attributes:
        runs: these.
        columns: of the table of configs; several runs are joined as ``collect`` joins them.
        curves: of each variable with traces.
        size: how many configs are on the page.
        counts: how many there are, by status.
        every: of how many configs with curves one has them on the page.
        arrays: variables that are not on the page: large arrays.
        dropped: traces of which there is no room for curves.
        picture: the figure for readers without scripts.
        remarks: of several runs, what they differ in that no column shows.
    """

    runs: Sequence[ReportedRun]
    columns: list[Column]
    curves: list[Curves]
    size: int
    counts: Mapping[str, int]
    every: int
    arrays: list[str]
    dropped: list[str]
    picture: Picture
    remarks: list[str] = field(default_factory=list)

    @property
    def finished(self) -> int:
        """How many configs have a result."""
        return self.counts["done"] + self.counts["diverged"]

    @property
    def total(self) -> int:
        """How many configs there are."""
        return sum(self.counts.values())

    def column(self, name: str) -> Column:
        """Return the column of a name."""
        return next(column for column in self.columns if column.name == name)

    def count(self, status: str) -> int:
        """Return how many configs have a status."""
        return self.counts[status]

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
        UserError: a grab is not numeric, or its number of dimensions differs between packs; or the
            runs cannot be joined into one dataset.
    """
    reported = [ReportedRun(run) for run in runs]
    layout, source, remarks = _joined(reported)
    results = Results(layout, source)
    names, every, dropped = _chosen(results)
    most = points_per_curve(len(names) * -(-results.finished // every))
    curves = {name: Curves(name, SHORT.get(name) or plain(name), most) for name in names}
    finals = _add_curves(results, curves, every)
    dataset, points = results.dataset, results.points
    columns = axis_columns(dataset, layout, points)
    if isinstance(source, JoinedSource):
        columns.append(run_column(source.runs_of(points)))
    columns += result_columns(dataset, layout, points, finals)
    kept = [one for one in curves.values() if one.configs]
    without = _without_columns(results, columns)
    counts = {status: int(dataset.attrs[f"n_{status}"]) for status in _COUNTED}
    return Contents(
        *(reported, columns, kept, len(points), counts, every, without, dropped),
        picture=results.picture(),
        remarks=remarks,
    )


def _joined(runs: Sequence[ReportedRun]) -> tuple[Layout, ResultSource, list[str]]:
    """Return the layout and the results of one run, or of several, and what joining warns of."""
    if len(runs) == 1:
        return runs[0].layout, runs[0].source, []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layout, source = joined([Part(one.run.id, one.layout, one.source) for one in runs])
    for warning in caught:
        warnings.warn(warning.message, warning.category, stacklevel=3)
    return layout, source, [str(warning.message) for warning in caught]


def _without_columns(results: Results, columns: Sequence[Column]) -> list[str]:
    """Return the variables that are in no column: large arrays."""
    present = {column.name.partition(" [")[0] for column in columns}
    names = [variable.name for variable in results.schema.variables]
    return [n for n in names if n not in present and not n.startswith(("timekeys", "crossed"))]


def _names(results: Results) -> list[str]:
    """Return the names of all traces."""
    return [name for variable in results.traces for name, _ in results.entries(variable)]


def _chosen(results: Results) -> tuple[list[str], int, list[str]]:
    """Return which traces are shown, of every how-many-th config, and which are not shown."""
    names, configs = _names(results), max(results.finished, 1)
    room = max(most_curves() // configs, 1)
    return names[:room], max(1, -(-configs // most_curves())), names[room:]


def _add_curves(results: Results, curves: Mapping[str, Curves], every: int) -> dict[str, Floats]:
    """Add all curves, and return the final values of all traces, by their names."""
    names = _names(results)
    finals: dict[str, Floats] = {name: np.full(len(results.points), np.nan) for name in names}
    for row, name, steps, values in results.rows(set(names)):
        finals[name][row] = values[-1] if len(values) else np.nan
        if name in curves and row % every == 0:
            curves[name].add(row, steps, values)
    return finals
