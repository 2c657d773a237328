"""The run that a file of results or a figure is of, as the file itself records it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["MARK", "run_column", "run_of"]

#: What formats without attributes of their own contain, and how it is found in their bytes.
MARK = "mlpsubmit run {}."
_MARKED = re.compile(rb"mlpsubmit run ([\w+-]+)\.")

#: The same in a report, which is HTML, and the bytes in which it is.
_REPORT = re.compile(rb'<meta name="description" content="mlpsubmit run ([\w+-]+)\.">')
_HEAD_BYTES = 4096


def run_column(taken: list[str]) -> str:
    """Return the name of the last column of a CSV, which has the run: ``run`` if that is free."""
    name = "run"
    while name in taken:
        name += "_id"
    return name


def run_of(path: Path) -> str | None:
    """Return the id of the run that a file or a zarr store is of; None if it has none."""
    try:
        if not (path.is_file() or path.is_dir()):  # reading a FIFO would wait for a writer
            return None
        run = _READERS[path.suffix.lower()](path)
    except Exception:  # not a file of that format, damaged, or not readable
        return None
    return None if run is None else str(run)


def _of_netcdf(path: Path) -> Any:
    import h5py

    with h5py.File(path, locking=False) as file:
        return file.attrs.get("run")


def _of_zarr(path: Path) -> Any:
    return json.loads((path / ".zattrs").read_bytes()).get("run")


def _of_parquet(path: Path) -> Any:
    import pyarrow.parquet

    return json.loads(pyarrow.parquet.read_schema(path).metadata[b"mlpsubmit"]).get("run")


def _of_csv(path: Path) -> str | None:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        *others, last = next(rows)
        return next(rows)[-1] if last == run_column(others) else None


def _of_marked(path: Path) -> str | None:
    found = _MARKED.search(path.read_bytes())
    return None if found is None else found[1].decode()


def _of_report(path: Path) -> str | None:
    # In its head, before any text of the run.
    with path.open("rb") as file:
        found = _REPORT.search(file.read(_HEAD_BYTES))
    return None if found is None else found[1].decode()


def _of_pickle(path: Path) -> str | None:
    # After the pickle itself, which is not loaded: that could run anything.
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200))
        found = _MARKED.search(file.read())
    return None if found is None else found[1].decode()


_READERS: dict[str, Callable[[Path], Any]] = {
    ".nc": _of_netcdf,
    ".zarr": _of_zarr,
    ".parquet": _of_parquet,
    ".csv": _of_csv,
    ".pkl": _of_pickle,
    ".png": _of_marked,
    ".pdf": _of_marked,
    ".svg": _of_marked,
    ".html": _of_report,
    ".htm": _of_report,
}
