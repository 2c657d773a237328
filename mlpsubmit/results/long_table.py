"""A dataset as a long table: a row per config, or with traces a row per config and step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mlpsubmit.results.columns import Column, Table, without_complex
from mlpsubmit.results.names import CLOCKS, threshold_label
from mlpsubmit.results.source import Array

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["LongTable"]

BATCH_BYTES = 4 * 2**20
COUNTS = ("steps", "trained_together")


class LongTable:
    """The rows of a dataset's long table, in product order.

    Args:
        dataset: in memory, or opened lazily.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self.sweep = dataset["status"].dims
        self.shape = dataset["status"].shape
        self.points = np.flatnonzero(dataset["status"].values.ravel() != "excluded")
        # Per config: what is held for all configs, and the arrays that are read when needed.
        self.coordinates: Table = {}
        self.held: Table = {}
        self.arrays: dict[str, xr.Variable] = {}
        self.traces: dict[str, xr.Variable] = {}
        for name, coordinate in dataset.coords.items():
            if name not in (*CLOCKS, "threshold"):
                grid = coordinate.variable.set_dims(dict(zip(self.sweep, self.shape, strict=True)))
                self.coordinates[str(name)] = Column.of(grid.transpose(*self.sweep).values.ravel())
        self.order = [*self.coordinates, "step"]
        for name in _variable_order(dataset):
            self._add(name, dataset[name])
        clocks = {str(variable.dims[len(self.sweep)]) for variable in self.traces.values()}
        self.clocks = {clock: dataset[clock].values for clock in clocks}
        # A table without traces has a single nameless tick.
        self.ticks = np.unique(np.concatenate([[0]] if not clocks else [*self.clocks.values()]))

    def _add(self, name: str, array: xr.DataArray) -> None:
        trailing = array.dims[len(self.sweep) :]
        values = array.variable
        columns = [name]
        if trailing and trailing[0] in CLOCKS:
            self.traces[name] = values
        elif name == "timekeys":
            timekeys = Column.of_counts(values.values.reshape(math.prod(self.shape), -1))
            labels = [threshold_label(float(value)) for value in array["threshold"].values]
            columns = [f"timekey_{label}" for label in labels]
            self.held.update({name: timekeys[:, i] for i, name in enumerate(columns)})
        elif trailing:
            self.arrays[name] = values
        else:
            flat = values.values.ravel()
            self.held[name] = (Column.of_counts if name in COUNTS else Column.of)(flat)
        self.order += columns

    def pieces(self) -> Iterator[Table]:
        """Yield the table in pieces of about BATCH_BYTES; at least one, be it empty."""
        axes = len(self.sweep)
        shapes = [(v.shape[axes:], v.dtype) for v in self.arrays.values()]
        shapes += [(v.shape[axes + 1 :], v.dtype) for v in self.traces.values()]
        row = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)
        row += 8 * (len(self.coordinates) + len(self.held))
        rows = max(1, BATCH_BYTES // row)
        count = max(1, rows // len(self.ticks))
        for start in range(0, max(len(self.points), 1), count):
            yield from self._pieces(self.points[start : start + count], rows)

    def _pieces(self, points: Array, rows: int) -> Iterator[Table]:
        """Yield the rows of some points; of a single one if its ticks take several pieces."""
        seen = np.zeros(len(points), dtype=np.bool_)
        for start in range(0, len(self.ticks), rows):
            ticks = self.ticks[start : start + rows]
            traces = {name: self._trace(name, points, ticks) for name in self.traces}
            recorded = np.zeros((len(points), len(ticks)), dtype=np.bool_)
            for values in traces.values():
                entries = tuple(range(2, values.missing.ndim))
                recorded |= ~values.missing.all(axis=entries)
            seen |= recorded.any(axis=1)
            # A config without any value has one row all the same, without a step.
            lone = np.zeros_like(recorded)
            if start + rows >= len(self.ticks):
                lone[~seen, -1] = True
            yield self._table(points, ticks, traces, recorded, lone)

    def _table(
        self, points: Array, ticks: Array, traces: Table, recorded: Array, lone: Array
    ) -> Table:
        configs, times = np.nonzero(recorded | lone)
        of_row = points[configs]
        table: Table = {name: column[of_row] for name, column in self.coordinates.items()}
        if self.traces:
            table["step"] = Column(ticks[times], lone[configs, times])
        table.update({name: column[of_row] for name, column in self.held.items()})
        for name, variable in self.arrays.items():
            table[name] = self._read(variable, points, slice(None))[configs]
        table.update({name: values[configs, times] for name, values in traces.items()})
        return without_complex({name: table[name] for name in self.order if name in table})

    def _trace(self, name: str, points: Array, ticks: Array) -> Column:
        """Return some points' trace at some ticks, shape (points, ticks, ...)."""
        variable = self.traces[name]
        clock = self.clocks[str(variable.dims[len(self.sweep)])]
        inside = slice(*np.searchsorted(clock, [ticks[0], ticks[-1] + 1]))
        values = self._read(variable, points, inside)
        shape = (len(points), len(ticks), *values.values.shape[2:])
        trace = Column(np.zeros(shape, values.values.dtype), np.ones(shape, np.bool_))
        slots = np.searchsorted(ticks, clock[inside])
        trace.values[:, slots], trace.missing[:, slots] = values.values, values.missing
        return trace

    def _read(self, variable: xr.Variable, points: Array, inside: slice) -> Column:
        """Return part of the first own dimension of a variable at some points."""
        trailing = list(variable.shape[len(self.sweep) :])
        trailing[0] = len(range(*inside.indices(trailing[0])))
        values = np.empty((len(points), *trailing), dtype=variable.dtype)
        for row, point in enumerate(points):
            where = (*np.unravel_index(point, self.shape), inside)
            values[row] = variable[where].values
        return Column.of(values)


def _variable_order(dataset: xr.Dataset) -> list[str]:
    """Return the variables' names, what every run has first."""
    names = [str(name) for name in dataset.data_vars]
    first = ["status", "error", "steps", "seconds", "train_loss", "test_loss", "timekeys"]
    return [n for n in first if n in names] + [n for n in names if n not in first]
