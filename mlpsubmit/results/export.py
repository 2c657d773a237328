"""Write the results of a run to a file, in the format that its ending selects."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlpsubmit.errors import UserError
from mlpsubmit.files import published
from mlpsubmit.results.mlpscape import write_pickle
from mlpsubmit.results.netcdf_zarr import write_netcdf, write_zarr
from mlpsubmit.results.source import Layout, ResultSource
from mlpsubmit.results.tables import write_csv, write_parquet

__all__ = ["FORMATS", "check_target", "write"]


# Entries of which the root of a zarr store has at least one, in either version of its format.
ZARR_ROOT = {".zgroup", ".zmetadata", "zarr.json"}


@dataclass(frozen=True)
class Format:
    """A file format.

    Args:
        write: the function that writes it, to a path that does not exist yet.
        needs: the modules it imports, and their names for pip.
        directory: whether the "file" is a directory.
    """

    write: Callable[[Layout, ResultSource, Path], None]
    needs: dict[str, str]
    directory: bool = False


NETCDF = {"h5netcdf": "h5netcdf", "h5py": "h5py"}
FORMATS = {
    ".nc": Format(write_netcdf, NETCDF),
    ".zarr": Format(write_zarr, {"zarr": "'mlpsubmit[zarr]'"}, directory=True),
    ".parquet": Format(write_parquet, {"pyarrow": "'mlpsubmit[parquet]'"} | NETCDF),
    ".csv": Format(write_csv, NETCDF),
    ".pkl": Format(write_pickle, {}),
}


def write(layout: Layout, source: ResultSource, path: str | Path) -> Path:
    """Write all results to a file, in the format that its ending selects.

    ============ ================================================================================
    ``.nc``      the dataset of `to_dataset` as netCDF: ``xarray.open_dataset(path,
                 engine="h5netcdf")``. Without an ending, this one is added.
    ``.zarr``    the same as a zarr store: ``xarray.open_zarr(path)``
    ``.parquet`` a long table: a row per config, or with traces per config and step
    ``.csv``     the same, small arrays spread over columns ``name[i,j]``
    ``.pkl``     MLPscape's result dictionary; finished configs only
    ============ ================================================================================

    The file appears complete or not at all, and replaces an existing one. Except for ``.pkl``, at
    most one pack's arrays, and the scalars of all configs, are in memory at a time.

    Returns:
        The path written.

    Raises:
        UserError: the ending is unknown, what the format needs is not installed, the folder cannot
            be written to, or the results do not fit the format.
    """
    path = Path(path)
    path = path if path.suffix else path.with_name(f"{path.name}.nc")
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise UserError(
            f"cannot write {path.name}: unknown ending {path.suffix!r}; valid are "
            f"{', '.join(FORMATS)}"
        )
    for module, package in form.needs.items():
        _require(module, package, path.suffix)
    check_target(path, directory=form.directory)
    with published(path) as temporary:
        form.write(layout, source, temporary)
    return path


def _require(module: str, package: str, suffix: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"writing {suffix} needs {module}; try: pip install {package}") from error


def check_target(path: Path, *, directory: bool = False) -> None:
    """Check that a file, or a zarr store if ``directory``, can be written to a path.

    Raises:
        UserError: the folder does not exist or is not writable, or the path is a directory that is
            not ours to replace.
    """
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: the folder {path.parent} is not writable")
    if not directory and path.is_dir():
        raise UserError(f"cannot write {path}: a directory has this name")
    if directory and path.exists():
        entries = {entry.name for entry in path.iterdir()} if path.is_dir() else {"a file"}
        if entries and not entries & ZARR_ROOT:
            raise UserError(f"cannot write {path}: it exists and is not a zarr store")
