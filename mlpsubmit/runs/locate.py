"""Locate runs: the folder of all runs, the order of launches, the run that a selector refers to.

The latest run is the one that was last launched or resumed. A record in each run numbers these (a
resume by a job of --retries is none). The numbers increase within a folder of runs, whatever its
clocks do, and travel with a run that is copied or moved. They are times in nanoseconds where clocks
are right, so that a run which was moved here from another folder has its place in time.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlpsubmit.errors import DamageError, RunError, did_you_mean
from mlpsubmit.jobs.store.run_directory import SWEEP_JSON, RunDirectory
from mlpsubmit.results.origin import run_of

__all__ = [
    "RUNS_VARIABLE",
    "Selected",
    "all_runs",
    "find_run",
    "newest_runs",
    "next_launch",
    "readable",
    "run_folders",
    "runs_folder",
    "runs_of",
    "selected_runs",
    "with_results",
]

RUNS_VARIABLE = "MLPSUBMIT_RUNS"
DEFAULT_RUNS = "mlpruns"

#: The most runs of which tasks are read, for what they tell of devices.
_NEWEST = 50

#: A folder that is the rest of a run.
_RUN_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")


def runs_folder(runs_dir: str | Path | None = None) -> Path:
    """Return the folder of all runs: the argument, else ``$MLPSUBMIT_RUNS``, else ``./mlpruns``."""
    return Path(runs_dir or os.environ.get(RUNS_VARIABLE) or DEFAULT_RUNS).expanduser()


def runs_of(folder: Path) -> list[Path]:
    """Return the folders of a sweep's runs, the one last launched or resumed at the end."""
    return _latest_last(_runs_in(folder))


def all_runs(folder: Path) -> list[Path]:
    """Return the folders of the runs of all sweeps, the one last launched or resumed at the end."""
    return _latest_last(run for name in _readable_folders(folder) for run in _runs_in(name))


def _runs_in(folder: Path) -> Iterator[Path]:
    for path in _readable_folders(folder):
        with contextlib.suppress(PermissionError):
            if (path / SWEEP_JSON).exists():
                yield path


def _readable_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder; none in one that is gone, closed to this user, or a file.

    Raises:
        OSError: the disk fails: runs that are not seen would be trained again.
    """
    try:
        with os.scandir(folder) as entries:
            return [Path(one.path) for one in entries if one.name[0] != "." and one.is_dir()]
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return []


def _latest_last(runs: Iterable[Path]) -> list[Path]:
    return sorted(runs, key=lambda run: (RunDirectory(run).launched, run.name))


def next_launch(run: Path) -> int:
    """Return the number of a launch or resume of a run: after those of all runs in its folder."""
    latest = all_runs(Path(os.path.abspath(run)).parent.parent)[-1:]
    return max(time.time_ns(), *(RunDirectory(path).launched + 1 for path in latest), 0)


def readable(paths: Iterable[Path], *ignored: type[Exception]) -> Iterator[RunDirectory]:
    """Yield the runs that are in this version's format.

    Args:
        ignored: further errors for which a run is skipped.
    """
    for path in paths:
        with contextlib.suppress(RunError, *ignored):
            yield RunDirectory.open(path)


def newest_runs(runs_dir: str | Path | None) -> Iterator[RunDirectory]:
    """Yield the newest runs of any sweep, the newest first, whose tasks tell of their devices."""
    return readable(all_runs(runs_folder(runs_dir))[: -_NEWEST - 1 : -1], OSError)


def with_results(paths: Iterable[Path]) -> Iterator[RunDirectory]:
    """Yield the runs whose results can be read: also those whose manifest or plan is damaged."""
    for path in paths:
        try:
            run = RunDirectory.open(path)
        except DamageError:
            run = RunDirectory(path)
            if not run.has_this_format():
                continue
        except RunError:
            continue
        yield run


@dataclass(frozen=True)
class Selected:
    """The run that a selector refers to.

    Attributes:
        path: its folder.
        name: the name of a sweep, if the selector was one.
        folder: the folder of runs, if the selector was one.
        among: the folders of all runs of which this is the latest, itself included; none if the
            selector was a path or an id.
    """

    path: Path
    name: str = ""
    among: Sequence[Path] = ()
    folder: Path | None = None

    def __str__(self) -> str:
        """Return which run it is, and of how many; empty if that was in the selector."""
        if not self.among:
            return ""
        of_name = f" of {self.name}" if self.name else ""
        of_name = of_name if self.folder is None else f" in {self.folder}"
        if len(self.among) == 1:
            return f"run {self.path.name} is the only one{of_name}"
        others = [path.name for path in reversed(self.among) if path != self.path]
        listed = ", ".join(others[:3]) + ", ..." * (len(others) > 3)
        return (
            f"run {self.path.name} is the last launched or resumed of {len(self.among)} "
            f"runs{of_name} (others: {listed})"
        )


def find_run(selector: str | Path | None, runs_dir: str | Path | None) -> Selected:
    """Return the run that a selector refers to; see :func:`mlpsubmit.open_run`.

    Raises:
        RunError: no run matches, or several do.
    """
    folder = runs_folder(runs_dir)
    if selector is not None:
        for path in (Path(selector), folder / selector):
            if _is_run(path):
                return Selected(path)
        if runs := _in_folder(Path(selector)):
            return Selected(runs[-1], among=runs, folder=Path(selector))
        is_file = Path(selector).is_file() or Path(selector).suffix == ".zarr"
        if is_file and all(path.parent.name != str(selector) for path in all_runs(folder)):
            raise RunError(_file_instead(Path(selector)))
        if os.sep in str(selector) or str(selector) in (os.curdir, os.pardir):
            return Selected(Path(selector))  # a path: opening it raises an error with what it lacks
    every = all_runs(folder)
    if not every:
        raise RunError(
            f"{folder}: contains no runs; launch one (mlpsubmit launch spec.py), or give the "
            f"folder of your runs with --runs-dir or ${RUNS_VARIABLE}"
        )
    if selector is None:
        return Selected(every[-1], among=every)
    name = str(selector)
    named = [path for path in every if path.parent.name == name]
    return Selected(named[-1], name, named) if named else Selected(_by_id(name, every, folder))


def _file_instead(file: Path) -> str:
    """Return the error of a file that is given as a run."""
    if (run := run_of(file)) is not None:
        give = f"it was made of run {run.replace('+', ' and ')}; give that"
    elif file.suffix in (".py", ".ipynb"):
        give = "give the name of its sweep, for the latest run of it"
    else:
        give = "give the name of a sweep, a run id, or the folder of a run"
    return f"{file}: is no run, but a file; {give}"


def _is_run(path: Path) -> bool:
    """Return whether a folder is a run.

    Raises:
        RunError: others may not look into it.
    """
    try:
        return (path / SWEEP_JSON).exists()
    except PermissionError as error:
        raise RunError(
            f"{error.filename}: {error.strerror}; ask the user to whom it belongs, who shares a "
            "run with a Unix group by launching its spec with --group"
        ) from None


def _in_folder(path: Path) -> list[Path]:
    """Return the runs in a folder of runs, or of those of one sweep, the latest at the end."""
    return (runs_of(path) or all_runs(path)) if path.is_dir() else []


def run_folders(folder: Path) -> list[Path]:
    """Return the folders of the runs in a folder of all runs, or of one sweep's.

    Also those that are no whole runs any more: what is left of a run under its name.
    """
    found = []
    for entry in _folders(folder):
        if _looks_like_run(entry):
            found.append(Path(entry.path))
            continue
        found += [Path(own.path) for own in _folders(Path(entry.path)) if _looks_like_run(own)]
    return found


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return [entry for entry in entries if entry.name[0] != "." and entry.is_dir()]
    return []


def _looks_like_run(entry: os.DirEntry[str]) -> bool:
    """Return whether a folder has the name of a run, or is one with another name: a copy."""
    return bool(_RUN_ID.fullmatch(entry.name)) or os.path.exists(
        os.path.join(entry.path, SWEEP_JSON)
    )


def selected_runs(which: str | None, runs_dir: str | Path | None) -> tuple[Path, list[Path]]:
    """Return a folder of runs, and the folders of the runs in it that are asked for.

    Args:
        which: the name of a sweep, another folder of runs, or one run; None for all runs.

    Raises:
        RunError: there is no such sweep, folder or run.
    """
    folder = runs_folder(runs_dir)
    if which is None:
        return folder, run_folders(folder)
    for path in (folder / which, Path(which)):
        if path.is_dir() and (paths := run_folders(path)):
            return path, paths
    found = find_run(which, runs_dir).path
    if not found.is_dir():
        raise RunError(f"{which}: no such folder")
    return found.parent, [found]


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
            f"{selector}: matches {len(matching)} runs; give more characters of the id, or a path:"
            f"{listed}"
        )
    names = sorted({path.parent.name for path in every})
    raise RunError(
        f"{selector}: no run of that name or id in {folder}{did_you_mean(selector, names)}; "
        f"there are runs of {', '.join(names)}"
    )
