"""Locate runs: the folder of all runs, and the run that a selector refers to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mlpsubmit.errors import RunError, did_you_mean
from mlpsubmit.jobs.store.run_directory import SWEEP_JSON, RunDirectory

__all__ = ["RUNS_VARIABLE", "all_runs", "find_run", "readable", "runs_folder", "runs_of"]

RUNS_VARIABLE = "MLPSUBMIT_RUNS"
DEFAULT_RUNS = "mlpruns"


def runs_folder(runs_dir: str | Path | None = None) -> Path:
    """Return the folder of all runs: the argument, else ``$MLPSUBMIT_RUNS``, else ``./mlpruns``."""
    return Path(runs_dir or os.environ.get(RUNS_VARIABLE) or DEFAULT_RUNS).expanduser()


def runs_of(folder: Path) -> list[Path]:
    """Return the folders of a sweep's runs, oldest first."""
    return _oldest_first(folder.glob(f"[!.]*/{SWEEP_JSON}"))


def all_runs(folder: Path) -> list[Path]:
    """Return the folders of the runs of all sweeps, oldest first."""
    return _oldest_first(folder.glob(f"[!.]*/[!.]*/{SWEEP_JSON}"))


def _oldest_first(found: Iterable[Path]) -> list[Path]:
    ordered = sorted(found, key=lambda file: (file.stat().st_mtime, file.parent.name))
    return [file.parent for file in ordered]


def readable(paths: Iterable[Path], *ignored: type[Exception]) -> Iterator[RunDirectory]:
    """Yield the runs that are in this version's format.

    Args:
        ignored: further errors for which a run is skipped.
    """
    for path in paths:
        with contextlib.suppress(RunError, *ignored):
            yield RunDirectory.open(path)


def find_run(selector: str | Path | None, runs_dir: str | Path | None) -> Path:
    """Return the folder of the run that a selector refers to; see :func:`mlpsubmit.open_run`.

    Raises:
        RunError: no run matches, or several do.
    """
    folder = runs_folder(runs_dir)
    if selector is not None:
        for path in (Path(selector), folder / selector):
            if (path / SWEEP_JSON).exists():
                return path
        if os.sep in str(selector) or str(selector) in (os.curdir, os.pardir):
            return Path(selector)  # a path: opening it raises an error with what it lacks
    every = all_runs(folder)
    if not every:
        raise RunError(
            f"{folder}: contains no runs; launch one (mlpsubmit launch spec.py), or give the "
            f"folder of your runs with --runs-dir or ${RUNS_VARIABLE}"
        )
    if selector is None:
        return every[-1]
    named = [path for path in every if path.parent.name == str(selector)]
    return named[-1] if named else _by_id(str(selector), every, folder)


def _by_id(selector: str, every: Sequence[Path], folder: Path) -> Path:
    matching = [
        path
        for path in every
        if path.name.startswith(selector) or path.name.rpartition("-")[2].startswith(selector)
    ]
    if len(matching) == 1:
        return matching[0]
    if matching:
        listed = "".join(f"\n  {path.parent.name}  {path.name}" for path in matching)
        raise RunError(
            f"{selector}: matches {len(matching)} runs; give more characters of the id:{listed}"
        )
    names = sorted({path.parent.name for path in every})
    raise RunError(
        f"{selector}: no run of that name or id in {folder}{did_you_mean(selector, names)}; "
        f"there are runs of {', '.join(names)}"
    )
