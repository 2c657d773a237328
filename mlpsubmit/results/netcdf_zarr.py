"""Datasets of any size as netCDF and zarr, with the traces of one pack in memory.

xarray writes everything but traces and large grabs. Those are then added through h5netcdf and zarr
themselves, config by config, just as xarray would have written them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpsubmit.results.dataset import assemble, load_empty
from mlpsubmit.results.names import sweep_dims
from mlpsubmit.results.results_hash import RESULTS_HASH, ResultsHash
from mlpsubmit.results.schema import Schema, Variable, scan
from mlpsubmit.results.source import Layout, ResultSource

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["open_netcdf", "stream_netcdf", "write_netcdf", "write_zarr"]

CHUNK_BYTES = 8 * 2**20


def write_netcdf(layout: Layout, source: ResultSource, path: Path) -> None:
    """Write the dataset to a netCDF file that does not exist yet."""
    stream_netcdf(scan(layout, source), source, path)


def stream_netcdf(schema: Schema, source: ResultSource, path: Path) -> None:
    """Write the dataset of a scanned source to a netCDF file that does not exist yet."""
    import h5netcdf

    layout = schema.layout
    small, streamed = schema.small_and_streamed()
    results_hash = ResultsHash(layout.size) if streamed else None
    assemble(schema, source, small, results_hash).to_netcdf(path, engine="h5netcdf")
    if results_hash is None:
        return
    with h5netcdf.File(path, "a") as file:

        def create(variable: Variable) -> Any:
            for dim, size in zip(variable.dims, variable.shape, strict=True):
                if dim not in file.dimensions:
                    file.dimensions[dim] = size
            # netCDF has no booleans; xarray reads them by this attribute.
            boolean = variable.dtype.kind == "b"
            array = file.create_variable(
                variable.name,
                (*sweep_dims(layout), *variable.dims),
                np.dtype(np.int8) if boolean else variable.dtype,
                chunks=_chunks(layout, variable),
                fillvalue=_fill(variable),
                # Losses are float32 values stored as float64, and constant after the last
                # threshold: this at least halves the file, for some ms per config.
                compression="gzip",
                compression_opts=1,
                shuffle=True,
            )
            array.attrs.update(variable.attributes | ({"dtype": "bool"} if boolean else {}))
            return array

        _stream(schema, source, streamed, create, results_hash)
        file.attrs[RESULTS_HASH] = results_hash.hexdigest()


def open_netcdf(path: Path, *, cache: bool = True) -> xr.Dataset:
    """Open a file of :func:`write_netcdf`, to be read lazily."""
    import xarray as xr

    return load_empty(xr.open_dataset(path, engine="h5netcdf", cache=cache))


def write_zarr(layout: Layout, source: ResultSource, path: Path) -> None:
    """Write the dataset to a zarr store (format 2, consolidated) that does not exist yet."""
    import zarr

    # Format 2, which zarr 2 and 3 read: format 3 has no settled way to store text.
    modern = int(zarr.__version__.split(".")[0]) >= 3
    pinned: dict[str, Any] = {"zarr_format": 2} if modern else {}
    schema = scan(layout, source)
    small, streamed = schema.small_and_streamed()
    results_hash = ResultsHash(layout.size) if streamed else None
    assemble(schema, source, small, results_hash).to_zarr(path, consolidated=False, **pinned)
    group: Any = zarr.open_group(str(path), mode="a", **pinned)

    def create(variable: Variable) -> Any:
        array = (group.create_array if modern else group.create_dataset)(
            variable.name,
            shape=(*layout.shape, *variable.shape),
            chunks=_chunks(layout, variable),
            dtype=variable.dtype,
            fill_value=_fill(variable),
        )
        dims = [*sweep_dims(layout), *variable.dims]
        array.attrs.update({"_ARRAY_DIMENSIONS": dims} | variable.attributes)
        return array

    if results_hash is not None:
        _stream(schema, source, streamed, create, results_hash)
        group.attrs[RESULTS_HASH] = results_hash.hexdigest()
    zarr.consolidate_metadata(str(path), **pinned)


def _stream(
    schema: Schema,
    source: ResultSource,
    variables: Sequence[Variable],
    create: Callable[[Variable], Any],
    results_hash: ResultsHash,
) -> None:
    """Create the variables, then fill in every config's values; the others keep the fill value."""
    arrays = {variable.name: create(variable) for variable in variables}
    for point, variable, values in schema.rows(source, variables):
        results_hash.add_row(variable, point, values)
        config = np.unravel_index(point, schema.layout.shape)
        where = (*map(int, config), ...)
        arrays[variable.name][where] = values.view(np.int8) if values.dtype == bool else values


def _fill(variable: Variable) -> Any:
    """Return NaN for the types that have it; the others have no missing values (see Variable)."""
    return variable.fill if variable.dtype.kind in "fc" else None


def _chunks(layout: Layout, variable: Variable) -> tuple[int, ...]:
    """Return chunks of one config, or of parts of one that are no larger than CHUNK_BYTES."""
    shape = list(variable.shape)
    for axis, size in enumerate(shape):
        excess = -(-int(np.prod(shape)) * variable.dtype.itemsize // CHUNK_BYTES)
        shape[axis] = max(1, size // max(1, excess))
    return (*(1 for _ in layout.shape), *(max(1, size) for size in shape))
