"""Write the report of runs to a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlpsubmit.errors import UserError
from mlpsubmit.files import publish, without_leftovers
from mlpsubmit.report.contents import Contents, read
from mlpsubmit.report.page import page
from mlpsubmit.results.export import check_target, with_ending
from mlpsubmit.results.join import joined_id
from mlpsubmit.runs.run import Run, as_run

__all__ = ["check_report", "report_path", "write_report"]


def report_path(runs: Sequence[Run], out: str | Path | None = None) -> Path:
    """Return the path of a report: by default the name of the run, or of the runs, with .html."""
    if out is None:
        return Path("+".join(dict.fromkeys(run.name for run in runs)) + ".html")
    return with_ending(Path(out), ".html")


def check_report(path: Path, runs: Sequence[Run], *, force: bool = False) -> None:
    """Check that a report can be written to a path.

    Raises:
        UserError: another ending; no such folder, or one that cannot be written to; or the file
            there is no report of these runs, and is not to be replaced.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(
            f"cannot write {path.name}: unknown ending {path.suffix!r}; a report is an .html file"
        )
    check_target(path, None if force else joined_id([run.id for run in runs]))


def write_report(
    *runs: Run | str | Path | None,
    out: str | Path | None = None,
    force: bool = False,
    reload_seconds: int | None = None,
    runs_dir: str | Path | None = None,
) -> Path:
    """Write one self-contained HTML file about a run, or several, and return its path.

    It has progress and failures, figures and tables of the results, the cost, and what was asked.
    It needs no network. A run in progress can be reported, too.

    Args:
        runs: as :func:`mlpsubmit.launch` and :func:`mlpsubmit.open_run` return them, or what the
            latter takes; none for the latest run.
        out: an .html file; by default the name of the run, in the working directory. It appears
            complete or not at all, and replaces an earlier report of the run.
        force: replace any existing file.
        reload_seconds: how often the page reloads itself, if it is going to be written again.
        runs_dir: the folder of all runs; else ``$MLPSUBMIT_RUNS``, else ``./mlpruns``.

    Raises:
        RunError: no run matches, or several do.
        UserError: another ending; a folder that cannot be written to; another file is there; or a
            grab is not numeric.
    """
    opened = [as_run(one, runs_dir) for one in runs or (None,)]
    return write_contents(opened, report_path(opened, out), force, reload_seconds)[0]


def write_contents(
    runs: Sequence[Run], path: Path, force: bool, reload_seconds: int | None
) -> tuple[Path, Contents]:
    """Write a report, and return its path and what it shows."""
    check_report(path, runs, force=force)
    contents = read(runs)
    content = page(contents, reload_seconds).encode()
    with without_leftovers(path):
        check_report(path, runs, force=force)  # others may have written meanwhile
        publish(path, content)
    return path, contents
