"""Where and how tasks run: in the folder and with the settings of the launch, wherever they are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlpsubmit.display.output import echo
from mlpsubmit.jobs.store.initial_weights import read_network
from mlpsubmit.jobs.store.run_directory import INITIAL_WEIGHTS, RunDirectory
from mlpsubmit.jobs.trust import checked_sweep
from mlpsubmit.spec.load import noting_imports, unpickle_surroundings, unpickle_sweep

if TYPE_CHECKING:
    from mlpsubmit.spec.sweep import Sweep

__all__ = ["as_launched", "launched_in", "launched_sweep", "missing_folder", "path_now"]


def launched_in(folder: str, run: Path) -> dict[str, str]:
    """Return the entry of sweep.json for the working directory of a launch, and the run's own."""
    return {"folder": folder, "run": os.path.abspath(run)}


def path_now(run: RunDirectory, path: str) -> str:
    """Return a path of the launch, or where it is if it was moved together with the run."""
    before, now = run.sweep["launched_in"]["run"], str(run.path.absolute())
    common = os.path.commonpath([path, before])
    tail = os.path.relpath(before, common)
    if os.path.isdir(path) or not now.endswith(os.sep + tail):
        return path
    return os.path.normpath(os.path.join(now.removesuffix(tail), os.path.relpath(path, common)))


def missing_folder(run: RunDirectory) -> str | None:
    """Return a warning if the working directory of the launch is not on this machine."""
    folder = run.sweep["launched_in"]["folder"]
    if os.path.isdir(path_now(run, folder)):
        return None
    return (
        f"run {run.id}: the folder {folder}, in which it was launched, is not here; functions that "
        "open files by a relative path will not find them"
    )


@contextlib.contextmanager
def as_launched(run: RunDirectory, sweep_hash: str) -> Iterator[Sweep]:
    """Yield the sweep of a run, with the folder and the settings of its launch in this process.

    Environment variables are set before this imports torch. Afterwards everything is restored.

    Args:
        sweep_hash: of its sweep, as it was submitted.

    Raises:
        RunError: if it has another hash now.
    """
    if warning := missing_folder(run):
        echo(warning)
    launched_as = run.sweep["launched_in"]["run"]
    with launched_sweep(run.path, partial(path_now, run), sweep_hash, launched_as) as sweep:
        yield sweep


@contextlib.contextmanager
def launched_sweep(
    path: Path,
    here: Callable[[str], str] = str,
    sweep_hash: str | None = None,
    launched_as: str = "",
) -> Iterator[Sweep]:
    """Yield the sweep whose pickle is in a folder, with the settings of its launch.

    Args:
        here: returns where a folder of the launch is now.
        sweep_hash: as it was submitted; without it, nobody else may have written the pickle.
        launched_as: the path of its run at the launch.

    Raises:
        DamageError: the pickle is not as it was written; nothing of it is executed.
        RunError: it has another hash, or others could have written it.
    """
    content = checked_sweep(path, sweep_hash, launched_as)
    # Without its folder not in the current one, which may have files of the same names.
    with unpickle_surroundings(content).moved(here).applied(otherwise=path):
        sweep = unpickle_sweep(content)
        assert sweep.process is not None
        with sweep.process.applied(), noting_imports():
            yield sweep.reading_initial(partial(read_network, path / INITIAL_WEIGHTS))
