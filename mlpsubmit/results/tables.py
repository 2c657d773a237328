"""Results as a long table, CSV or parquet: a row per config, or with traces per config and step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mlpsubmit.errors import UserError
from mlpsubmit.results.axes import finished, has_threshold, threshold_suffixes
from mlpsubmit.results.dataset import assemble
from mlpsubmit.results.names import CLOCKS, threshold_label
from mlpsubmit.results.netcdf_zarr import open_netcdf, stream_netcdf
from mlpsubmit.results.origin import run_column
from mlpsubmit.results.schema import COUNTS, scan
from mlpsubmit.results.source import Array, Layout, ResultSource

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["write_csv", "write_parquet"]

#: The table is written in chunks of configs, of about this size or of a single config.
CHUNK_BYTES = 4 * 2**20
CSV_COLUMNS_PER_GRAB = 1000

_Part: TypeAlias = Callable[[Array], Array]

#: The first variables of every table.
FIRST = ("status", "error", "steps", "seconds", "train_loss", "test_loss", "timekeys", "crossed")
#: Variables with a column per threshold: the start of its name, and its type.
PER_THRESHOLD = {"timekeys": ("timekey", "Int64"), "crossed": ("crossed", "boolean")}


def write_csv(layout: Layout, source: ResultSource, path: Path) -> None:
    """Write the long table as CSV. What is missing is empty; arrays become columns ``name[i,j]``.

    The last column has the run.

    Raises:
        UserError: a grab has too many entries for columns.
    """
    import pandas as pd

    with (
        _dataset(layout, source, path) as dataset,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        table = _LongTable(dataset)
        header = [label for name in table.order for label in _labels(name, table.shapes.get(name))]
        run = layout.attributes.get("run")
        if run is not None:
            header.append(run_column(header))
        for number, chunk in enumerate(table.chunks()):
            rows = pd.concat(chunk.values(), axis=1).apply(_exact_text)
            if run is not None:
                rows.insert(rows.shape[1], header[-1], run)
            first = header if number == 0 else False
            rows.to_csv(file, header=first, index=False, lineterminator="\n")


def write_parquet(layout: Layout, source: ResultSource, path: Path) -> None:
    """Write the long table as parquet. What is missing is null; arrays become (nested) lists.

    Every chunk of configs is a row group.
    """
    import pyarrow as pa
    import pyarrow.parquet

    with _dataset(layout, source, path) as dataset:
        metadata = {"mlpsubmit": json.dumps(dataset.attrs, default=np.generic.item)}
        table, writer = _LongTable(dataset), None
        try:
            for chunk in table.chunks():
                columns = {
                    name: _arrow_array(block, table.shapes.get(name, ()))
                    for name, block in chunk.items()
                }
                group = pa.table(columns, metadata=metadata)
                writer = writer or pa.parquet.ParquetWriter(path, group.schema)
                writer.write_table(group)
        finally:
            if writer is not None:
                writer.close()


@contextmanager
def _dataset(layout: Layout, source: ResultSource, path: Path) -> Iterator[xr.Dataset]:
    """Yield the dataset, its traces on disk: rows are in config order, but packs in any order."""
    schema = scan(layout, source)
    small, streamed = schema.small_and_streamed()
    if not streamed:
        yield assemble(schema, source, small)
        return
    scratch = path.with_name(f"{path.name}.nc")
    try:
        stream_netcdf(schema, source, scratch)
        with open_netcdf(scratch, cache=False) as dataset:
            yield dataset
    finally:
        scratch.unlink(missing_ok=True)


class _LongTable:
    """The rows of a dataset's long table, in product order.

    Args:
        dataset: in memory, or opened lazily.

    Attributes:
        order: the names of the columns.
        shapes: of what is read chunk by chunk, by name; () for numbers.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        import pandas as pd

        status = dataset["status"]
        self._dims, self._sizes = status.dims, status.shape
        self._index = np.flatnonzero(status.values.ravel() != "excluded")
        # (rows, thresholds): where a threshold has been crossed or not; else its columns are empty.
        self._known: dict[str, Array] = {}
        for suffix in threshold_suffixes(dataset):
            has = has_threshold(dataset, suffix).transpose(*self._dims, f"threshold{suffix}").values
            known = has & finished(status.values)[..., None]
            self._known[suffix] = known.reshape(status.size, has.shape[-1])[self._index]
        scalars: dict[tuple[str, int], Any] = {}  # the columns of arrays are numbered
        for name, coordinate in dataset.coords.items():
            if set(coordinate.dims) <= set(self._dims):  # not along steps, thresholds, grabs
                grid = coordinate.variable.set_dims(dict(zip(self._dims, self._sizes, strict=True)))
                scalars[str(name), 0] = self._flat(grid.transpose(*self._dims).values)
        self.order = [*(name for name, _ in scalars), "step"]
        self.shapes: dict[str, tuple[int, ...]] = {}
        # What is read chunk by chunk: each variable, and which part of its (complex) values.
        self._arrays: dict[str, tuple[xr.Variable, _Part]] = {}
        self._traces: dict[str, tuple[xr.Variable, _Part]] = {}
        for name in sorted(map(str, dataset.data_vars), key=_position):
            self._add(name, dataset[name], scalars)
        self._scalars = pd.DataFrame(scalars, self._index)
        clocks = {self._clock(variable) for variable, _ in self._traces.values()}
        self._steps = {clock: dataset[clock].values for clock in clocks}
        if not clocks:
            self.order.remove("step")

    def _add(self, name: str, array: xr.DataArray, scalars: dict[tuple[str, int], Any]) -> None:
        """Add the columns of a variable, to the scalars or to what is read chunk by chunk."""
        import pandas as pd

        shape = array.shape[len(self._dims) :]
        kind, _, of = name.partition("_")
        if kind in PER_THRESHOLD and (suffix := of and f"_{of}") in self._known:
            start, dtype = PER_THRESHOLD[kind]
            for i, threshold in enumerate(array[f"threshold{suffix}"].values):
                label = f"{start}{suffix}_{threshold_label(float(threshold))}"
                column = pd.Series(self._flat(array.values[..., i]), dtype=dtype)
                scalars[label, 0] = column.where(self._known[suffix][:, i]).array
                self.order.append(label)
            return
        for label, part in _parts(name, array.dtype).items():
            self.order.append(label)
            if not shape:
                values = self._flat(part(array.values))
                scalars[label, 0] = pd.array(values, "Int64") if name in COUNTS else values
            elif self._clock(array.variable) in CLOCKS:
                self._traces[label], self.shapes[label] = (array.variable, part), shape[1:]
            else:
                self._arrays[label], self.shapes[label] = (array.variable, part), shape

    def _flat(self, values: Array) -> Array:
        return values.ravel()[self._index]

    def _clock(self, variable: xr.Variable) -> str:
        return str(variable.dims[len(self._dims)])

    def chunks(self) -> Iterator[dict[str, pd.DataFrame]]:
        """Yield the table in chunks of configs; at least one, even if it has no rows.

        A chunk has the columns by name, in order; an array has one per entry.
        """
        entries = sum(math.prod(shape) for shape in self.shapes.values())
        steps = sum(len(steps) for steps in self._steps.values()) or 1
        config_bytes = 8 * (entries + len(self._scalars.columns)) * steps
        count = max(1, CHUNK_BYTES // config_bytes)
        for start in range(0, max(len(self._index), 1), count):
            yield self._chunk(self._index[start : start + count])

    def _chunk(self, index: Array) -> dict[str, pd.DataFrame]:
        """Return the rows of the configs with these indices."""
        import pandas as pd

        frame = self._scalars.loc[index]
        if self._traces:
            # A config of which nothing was recorded has one row all the same, without a step.
            frame = frame.join(self._recorded(index)).astype({("step", ""): "Int64"})
        names = frame.columns.get_level_values(0)
        chunk = {}
        for name in self.order:
            if name in self._arrays:
                variable, part = self._arrays[name]
                values = part(self._read(variable, index))
                chunk[name] = _block(values, pd.Index(index)).loc[frame.index]
            else:
                chunk[name] = frame.loc[:, names == name]
        return chunk

    def _recorded(self, index: Array) -> pd.DataFrame:
        """Return the traces of some configs, a row per config and step at which it has any."""
        import pandas as pd

        traces = {}
        for name, (variable, part) in self._traces.items():
            rows = pd.MultiIndex.from_product(
                [index, self._steps[self._clock(variable)]], names=["index", "step"]
            )
            values = part(self._read(variable, index)).reshape(len(rows), *self.shapes[name])
            traces[name] = _block(values, rows)
        return pd.concat(traces, axis=1).sort_index().dropna(how="all").reset_index("step")

    def _read(self, variable: xr.Variable, index: Array) -> Array:
        """Return the values of some configs, shape (configs, ...)."""
        shape = (len(index), *variable.shape[len(self._dims) :])
        values = np.empty(shape, variable.dtype)
        for row, config in enumerate(index):
            values[row] = variable[np.unravel_index(config, self._sizes)].values
        return values


def _position(name: str) -> int:
    """Return the position of a variable among the columns; others follow in their own order."""
    return FIRST.index(name) if name in FIRST else len(FIRST)


def _parts(name: str, dtype: np.dtype[Any]) -> dict[str, _Part]:
    """Return the columns of a variable: two of a complex one, as neither format has those."""
    if dtype.kind == "c":
        return {f"{name}.real": np.real, f"{name}.imag": np.imag}
    return {name: np.asarray}


def _block(values: Array, index: pd.Index) -> pd.DataFrame:
    """Return values of shape (rows, ...) as a column per entry."""
    import pandas as pd

    block = pd.DataFrame(values.reshape(len(values), math.prod(values.shape[1:])), index)
    # Integers and booleans stay what they are where some are missing.
    return block.convert_dtypes() if values.dtype.kind in "biu" else block


def _labels(name: str, shape: tuple[int, ...] | None) -> list[str]:
    """Return the names of a variable's columns in a CSV."""
    if not shape:
        return [name]
    if math.prod(shape) > CSV_COLUMNS_PER_GRAB:
        raise UserError(
            f"grab {name!r} has {math.prod(shape):,} entries per row, too many for columns of a "
            f".csv (at most {CSV_COLUMNS_PER_GRAB:,}); write .nc, .zarr or .parquet instead"
        )
    return [f"{name}[{','.join(map(str, entry))}]" for entry in np.ndindex(*shape)]


def _exact_text(column: pd.Series) -> pd.Series:
    """Return a column whose values read back exactly from a CSV."""
    from pandas.api.types import is_string_dtype

    if column.dtype == np.float32:  # shorter decimals are exact as floats only, not as doubles
        return column.astype(np.float64)
    if is_string_dtype(column.dtype):
        # The csv module quotes "\n" but not "\r", which many readers take for a new line.
        return column.str.replace("\r", "\\r", regex=False)
    return column


def _arrow_array(block: pd.DataFrame, shape: tuple[int, ...]) -> Any:
    """Return a variable's columns as one Arrow array, of lists for every axis of its shape."""
    import pyarrow as pa
    from pandas.api.types import is_string_dtype

    if not shape:
        values = block.iloc[:, 0]
        text = pa.string() if is_string_dtype(values.dtype) else None
        return pa.array(values, text, from_pandas=True)
    dtype = next(iter(block.dtypes), np.dtype(np.float64))
    values = block.to_numpy(getattr(dtype, "numpy_dtype", dtype), na_value=0)
    array = pa.array(values.ravel(), mask=block.isna().to_numpy(np.bool_).ravel())
    for axis in reversed(range(len(shape))):
        lists = len(block) * math.prod(shape[:axis])
        offsets = np.arange(lists + 1, dtype=np.int32) * shape[axis]
        array = pa.ListArray.from_arrays(offsets, array)
    return array
