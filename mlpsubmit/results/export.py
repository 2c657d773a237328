"""Write the results of a run to a file, in the format that its ending selects."""

from __future__ import annotations

import importlib
import os
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlpsubmit.errors import UserError
from mlpsubmit.files import published, without_leftovers
from mlpsubmit.results.origin import run_of

if TYPE_CHECKING:
    import xarray as xr

    from mlpsubmit.results.source import Layout, ResultSource

__all__ = ["FORMATS", "check_target", "collected", "with_ending", "write"]


# Entries of which the root of a zarr store has at least one, in either version of its format.
ZARR_ROOT = {".zgroup", ".zmetadata", "zarr.json"}


@dataclass(frozen=True)
class Format:
    """A file format.

    Args:
        writer: the module and the function ``(layout, source, path)`` that writes it, to a path
            that does not exist yet. It is imported when it is used, because this table is also in
            the help of the command line.
        needs: a module outside the dependencies that it imports, if any.
        extra: the extra of mlpsubmit that installs this module.
        directory: whether the "file" is a directory.
    """

    writer: str
    needs: str = ""
    extra: str = ""
    directory: bool = False


#: The formats, by ending.
FORMATS = {
    # The dataset of `to_dataset`: xarray.open_dataset(path, engine="h5netcdf").
    ".nc": Format("mlpsubmit.results.netcdf_zarr:write_netcdf"),
    # The same: xarray.open_zarr(path).
    ".zarr": Format("mlpsubmit.results.netcdf_zarr:write_zarr", "zarr", "zarr", directory=True),
    # A long table: a row per config, or with traces per config and step.
    ".parquet": Format("mlpsubmit.results.tables:write_parquet", "pyarrow", "parquet"),
    # The same; small arrays are spread over columns name[i,j].
    ".csv": Format("mlpsubmit.results.tables:write_csv"),
    # MLPscape's result dictionary; finished configs only.
    ".pkl": Format("mlpsubmit.results.mlpscape:write_pickle"),
}


def write(layout: Layout, source: ResultSource, path: str | Path, *, force: bool = False) -> Path:
    """Write all results to a file, in the format of :data:`FORMATS` that its ending selects.

    Without an ending, ``.nc`` is added. The file appears complete or not at all. It replaces an
    existing one of the same run (the layout's attribute ``run``, if it has one). Except for
    ``.pkl``, at most one pack's arrays, and the scalars of all configs, are in memory at a time.

    Args:
        force: replace any existing file.

    Returns:
        The path written.

    Raises:
        UserError: the ending is unknown, what the format needs is not installed, the folder cannot
            be written to, another file is there, or the results do not fit the format.
    """
    path = with_ending(Path(path), ".nc")
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise UserError(
            f"cannot write {path.name}: unknown ending {path.suffix!r}; valid are "
            f"{', '.join(FORMATS)}"
        )
    if form.needs:
        try:
            importlib.import_module(form.needs)
        except ImportError as error:
            raise UserError(
                f"writing {path.suffix} needs {form.needs}; "
                f"try: pip install 'mlpsubmit[{form.extra}]'"
            ) from error
    run = None if force else layout.attributes.get("run")
    check_target(path, run, directory=form.directory)
    with without_leftovers(path), published(path) as temporary:
        pkgutil.resolve_name(form.writer)(layout, source, temporary)
        check_target(path, run, directory=form.directory)  # others may have written meanwhile
    return path


def collected(
    layout: Layout, source: ResultSource, out: str | Path | None, *, force: bool = False
) -> xr.Dataset:
    """Return all results, and write them to a file if one is given: with ``.nc`` it is read lazily.

    Raises:
        UserError: as :func:`write`.
    """
    from mlpsubmit.results.dataset import to_dataset
    from mlpsubmit.results.netcdf_zarr import open_netcdf

    if out is not None:
        written = write(layout, source, out, force=force)
        if written.suffix == ".nc":
            return open_netcdf(written)
    return to_dataset(layout, source)


def with_ending(path: Path, ending: str) -> Path:
    """Return the path of a file to write, with an ending if it has none.

    Raises:
        UserError: it is that of a folder.
    """
    if path.suffix:
        return path
    if path.name in ("", "..") or path.is_dir():
        example = path / f"results{ending}"
        raise UserError(f"cannot write {path}: it is a folder; give a file, such as {example}")
    return path.with_name(f"{path.name}{ending}")


def check_target(path: Path, run: object = None, *, directory: bool = False) -> None:
    """Check that a file, or a zarr store if ``directory``, can be written to a path.

    Args:
        run: the run that it will be of; None if it may replace any.

    Raises:
        UserError: the folder does not exist or is not writable; the path is a directory that is not
            ours to replace; or a file or store there is not of this run.
    """
    if not path.parent.is_dir():
        what = "is a file" if path.parent.exists() else "does not exist"
        raise UserError(f"cannot write {path}: the folder {path.parent} {what}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: the folder {path.parent} is not writable")
    if not directory and path.is_dir():
        raise UserError(f"cannot write {path}: a directory has this name")
    if directory and path.exists():
        entries = {entry.name for entry in path.iterdir()} if path.is_dir() else {"a file"}
        if entries and not entries & ZARR_ROOT:
            raise UserError(f"cannot write {path}: it exists and is not a zarr store")
        if not entries:
            return
    if run is not None and (path.exists() or path.is_symlink()) and (other := run_of(path)) != run:
        whose = f"has results of run {other}, not of run {run}" if other else f"is not of run {run}"
        raise UserError(
            f"cannot write {path}: it exists and {whose}; choose another name, or replace it with "
            "--force (in Python, force=True)"
        )
