"""Finding runs: where they are kept, and which one a selector means."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlpsubmit.errors import RunError, did_you_mean
from mlpsubmit.jobs.store import run_directory

__all__ = ["RUNS_VARIABLE", "find_run", "runs_folder", "runs_of"]

RUNS_VARIABLE = "MLPSUBMIT_RUNS"
DEFAULT_RUNS = "mlpruns"


def runs_folder(runs_dir: str | Path | None = None) -> Path:
    """Return where runs are kept: the argument, else ``$MLPSUBMIT_RUNS``, else ``./mlpruns``."""
    return Path(runs_dir or os.environ.get(RUNS_VARIABLE) or DEFAULT_RUNS).expanduser()


def runs_of(folder: Path) -> list[Path]:
    """Return the runs in the folder of a sweep, oldest first."""
    found = folder.glob(f"[!.]*/{run_directory.SWEEP_JSON}")
    return sorted((file.parent for file in found), key=lambda path: (_created(path), path.name))


def _created(path: Path) -> float:
    return (path / run_directory.SWEEP_JSON).stat().st_mtime


def find_run(selector: str | Path | None, runs_dir: str | Path | None) -> Path:
    """Return the folder of the run that a selector means, as :func:`mlpsubmit.open_run` does.

    Raises:
        RunError: where it fits no run, or several.
    """
    folder = runs_folder(runs_dir)
    if selector is not None:
        for path in (Path(selector), folder / selector):
            if (path / run_directory.SWEEP_JSON).exists():
                return path
        if os.sep in str(selector) or str(selector) in (os.curdir, os.pardir):
            return Path(selector)  # a path, of which opening says what it lacks
    every = [path for sweep in _folders(folder) for path in runs_of(sweep)]
    if not every:
        raise RunError(
            f"{folder}: holds no run; launch one (mlpsubmit launch spec.py), or say where runs "
            f"are with --runs-dir or ${RUNS_VARIABLE}"
        )
    if selector is None:
        return max(every, key=_created)
    named = [path for path in every if path.parent.name == str(selector)]
    return named[-1] if named else _by_id(str(selector), every, folder)


def _folders(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("[!.]*")) if path.is_dir())


def _by_id(selector: str, every: Sequence[Path], folder: Path) -> Path:
    fitting = [
        path
        for path in every
        if path.name.startswith(selector) or path.name.rpartition("-")[2].startswith(selector)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        listed = "".join(f"\n  {path.parent.name}  {path.name}" for path in fitting)
        raise RunError(f"{selector}: fits {len(fitting)} runs; give more of the id:{listed}")
    names = sorted({path.parent.name for path in every})
    raise RunError(
        f"{selector}: no run of that name or id in {folder}{did_you_mean(selector, names)}; "
        f"there are runs of {', '.join(names)}"
    )
