"""``mlpsubmit report``: one HTML file about a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlpsubmit.cli.options import open_selected, runs_dir_option
from mlpsubmit.display.output import echo
from mlpsubmit.display.text import counted

if TYPE_CHECKING:
    from mlpsubmit.report.contents import Contents
    from mlpsubmit.runs.run import Run

__all__ = ["report"]

#: Seconds between two versions of a report of a run in progress, at least, and the share of the
#: time that is spent on writing it, at most.
WATCH_SECONDS = 10.0
WATCH_SHARE = 0.1


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--out", type=click.Path(path_type=Path), help="File to write; default: NAME.html.")
@click.option("--watch", is_flag=True, help="Rewrite it until the run ends; the page reloads.")
@click.option("--force", is_flag=True, help="Replace a file that is not a report of this run.")
@runs_dir_option
def report(
    runs: tuple[str, ...], out: Path | None, watch: bool, force: bool, runs_dir: Path | None
) -> None:
    """Write one HTML file about a RUN, or several, to read and to send.

    It has figures and tables of the results, progress and failures, the cost, and what was asked,
    and works without a network. A run in progress can be reported, too. The exit code is 1 if
    points are missing and the run has ended.
    """
    from mlpsubmit.report.write import check_report, report_path, write_contents

    opened = [open_selected(run, runs_dir) for run in runs or (None,)]
    path = report_path(opened, out)
    check_report(path, opened, force=force)
    if watch:
        contents = _watch(opened, path, force)
    else:
        _, contents = write_contents(opened, path, force, None)
    echo(_line(path, contents))
    statuses = [one.status for one in contents.runs]
    sys.exit(0 if all(status.running or status.complete for status in statuses) else 1)


def _watch(runs: Sequence[Run], path: Path, force: bool) -> Contents:
    """Write a report until its runs have ended, or Ctrl-C; return what it shows at last."""
    from mlpsubmit.jobs.garbage import resume_collection
    from mlpsubmit.report.write import write_contents

    resume_collection()  # this may go on for days
    seconds, contents = WATCH_SECONDS, None
    try:
        while True:
            running = any(run.status().running for run in runs)
            began = time.monotonic()
            reload_seconds = round(seconds) if running else None
            again = "until the run ends (Ctrl-C)"
            try:
                _, contents = write_contents(runs, path, force, reload_seconds)
            except OSError as error:
                if contents is None or not running:
                    raise
                # A disk that is full or away for a while must not end what goes on for days.
                echo(f"not written: {error}; again in {seconds:.0f} s, {again}", err=True)
            else:
                seconds = max(WATCH_SECONDS, (time.monotonic() - began) / WATCH_SHARE)
                if not running:
                    return contents
                echo(f"{_line(path, contents)}; again every {seconds:.0f} s {again}")
            time.sleep(seconds)
    except KeyboardInterrupt:
        echo("writing it a last time, as it is now", err=True)
        return write_contents(runs, path, force, None)[1]


def _line(path: Path, contents: Contents) -> str:
    return f"report: {path} ({contents.finished} of {counted(contents.total, 'config')})"
