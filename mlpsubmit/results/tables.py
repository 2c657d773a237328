"""Results as a long table, CSV or parquet: a row per config, or with traces per config and step."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpsubmit.results.dataset import assemble
from mlpsubmit.results.long_table import LongTable
from mlpsubmit.results.netcdf_zarr import stream_netcdf
from mlpsubmit.results.schema import scan
from mlpsubmit.results.source import Layout, ResultSource

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["write_csv", "write_parquet"]


def write_csv(layout: Layout, source: ResultSource, path: Path) -> None:
    """Write the long table as CSV. What is missing is empty; arrays become columns ``name[i,j]``.

    Raises:
        UserError: a grab has too many entries for columns.
    """
    with (
        _dataset(layout, source, path) as dataset,
        path.open("w", newline="", encoding="utf-8") as f,
    ):
        writer = csv.writer(f, lineterminator="\n")
        for number, table in enumerate(LongTable(dataset).pieces()):
            flat = {k: v for name, column in table.items() for k, v in column.flat(name).items()}
            if number == 0:
                writer.writerow(flat)
            writer.writerows(zip(*(column.fields() for column in flat.values()), strict=True))


def write_parquet(layout: Layout, source: ResultSource, path: Path) -> None:
    """Write the long table as parquet. What is missing is null; arrays become (nested) lists."""
    import pyarrow as pa
    import pyarrow.parquet

    with _dataset(layout, source, path) as dataset:
        attributes = {name: _builtin(value) for name, value in dataset.attrs.items()}
        writer = None
        try:
            for columns in LongTable(dataset).pieces():
                table = pa.table({name: column.arrow() for name, column in columns.items()})
                table = table.replace_schema_metadata({"mlpsubmit": json.dumps(attributes)})
                writer = writer or pa.parquet.ParquetWriter(path, table.schema)
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()


@contextmanager
def _dataset(layout: Layout, source: ResultSource, path: Path) -> Iterator[xr.Dataset]:
    """Give the dataset with its traces on disk: rows go by config, but packs come in any order."""
    import xarray as xr

    schema = scan(layout, source)
    if len(schema.columns()) == len(schema.variables):
        yield assemble(schema, source, schema.variables)
        return
    scratch = path.with_name(f"{path.name}.nc")
    try:
        stream_netcdf(schema, source, scratch)
        with xr.open_dataset(scratch, engine="h5netcdf", cache=False) as dataset:
            yield dataset
    finally:
        scratch.unlink(missing_ok=True)


def _builtin(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
