"""Where and how tasks run: in the folder and with the settings of the launch, wherever they are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.spec.load import unpickle_surroundings, unpickle_sweep

if TYPE_CHECKING:
    from mlpsubmit.spec.sweep import Sweep

__all__ = ["as_launched", "folder_entry", "launched_sweep", "missing_folder"]


def folder_entry(folder: str, run: Path) -> dict[str, str]:
    """Return the entry of sweep.json for the working directory of a launch.

    Args:
        run: the run directory, from which a moved project finds it again.
    """
    return {"absolute": folder, "from_run": os.path.relpath(folder, os.path.abspath(run))}


def _found(run: RunDirectory) -> Path | None:
    """Return the working directory of the launch, or where it is after a move with the run."""
    entry: Mapping[str, str] = run.sweep["folder"]
    moved = os.path.normpath(run.path.absolute() / entry["from_run"])
    return next((Path(path) for path in (entry["absolute"], moved) if os.path.isdir(path)), None)


def missing_folder(run: RunDirectory) -> str | None:
    """Return a warning if the working directory of the launch is not on this machine."""
    if _found(run) is not None:
        return None
    return (
        f"run {run.id}: the folder {run.sweep['folder']['absolute']}, in which it was launched, is "
        "not here; functions that open files by a relative path will not find them"
    )


@contextlib.contextmanager
def as_launched(run: RunDirectory) -> Iterator[Sweep]:
    """Yield the sweep of a run, with the folder and the settings of its launch in this process.

    Environment variables are set before this imports torch. Afterwards everything is restored.
    """
    folder = _found(run)
    if folder is None:
        print(missing_folder(run), flush=True)
    # Not the current folder: it may have a file of the same name.
    with launched_sweep(run.path, folder or run.path.absolute()) as sweep:
        yield sweep


@contextlib.contextmanager
def launched_sweep(path: Path, folder: Path | None = None) -> Iterator[Sweep]:
    """Yield the sweep whose pickle is in a folder, with the settings of its launch.

    Args:
        folder: the working directory; by default that of the launch.
    """
    content = (path / run_directory.SWEEP_PICKLE).read_bytes()
    with unpickle_surroundings(content).applied(folder):
        sweep = unpickle_sweep(content)
        assert sweep.process is not None
        with sweep.process.applied(folder):
            yield sweep
