"""``mlpsubmit logs``: the output of the tasks."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlpsubmit.cli.options import json_option, open_selected, run_argument, runs_dir_option
from mlpsubmit.display.output import echo, without_styles
from mlpsubmit.display.text import utc
from mlpsubmit.errors import UserError
from mlpsubmit.files import open_regular

if TYPE_CHECKING:
    from mlpsubmit.runs.run import Run

__all__ = ["logs"]

#: Bytes of a log that are in memory at a time.
_BLOCK = 1 << 20


@click.command()
@run_argument
@click.argument("task", required=False)
@click.option("--follow", is_flag=True, help="Keep printing until the run ends.")
@json_option
@runs_dir_option
def logs(
    run: str | None, task: str | None, follow: bool, as_json: bool, runs_dir: Path | None
) -> None:
    """Print the logs of a RUN, or of one TASK.

    TASK is a task's name, or its number in the latest submission. --json lists their files.
    """
    from mlpsubmit.runs.run import poll_seconds

    if follow and as_json:
        raise UserError("--json: lists the files of the logs, once; leave out --follow")
    opened = open_selected(run, runs_dir)
    if as_json:
        _list(opened, task)
        return
    read: dict[str, int] = {}
    with contextlib.suppress(KeyboardInterrupt):  # the way to stop following
        while True:
            # Read before the logs, so that these are complete if the run has ended.
            status = opened.status() if follow else None
            files = opened.logs(task)
            for name, file in files.items():
                read[name] = _print_new(name if len(files) > 1 else "", file, read.get(name, 0))
            if status is None or not status.running:
                break
            if task is not None and files:
                (task,) = files  # its number may mean another task once the run is resumed
            time.sleep(poll_seconds(status))
    if not read:
        of_task = f"task {task} of run {opened.id} has no log yet"
        echo(f"run {opened.id} has no logs yet" if task is None else of_task, err=True)


def _list(run: Run, task: str | None) -> None:
    """Print the files of the logs as JSON, those of the oldest submission first."""
    from mlpsubmit.display.json_output import echo_json

    files = []
    for name, file in run.logs(task).items():
        found = file.stat()
        times = {"size_bytes": found.st_size, "changed_at": utc(found.st_mtime)}
        files.append({"task": name, "file": file.absolute(), **times})
    echo_json("logs/1", {"run": run.id, "logs": files})


def _print_new(label: str, file: Path, offset: int) -> int:
    """Print the whole lines of a log after an offset in bytes, and return the new offset."""
    with open_regular(file) as log:
        log.seek(offset)
        while whole := _whole_lines(log.read(_BLOCK)):
            for line in whole.decode(errors="replace").splitlines():
                text = without_styles(line)
                echo(f"{label}: {text}" if label else text)
            offset += len(whole)
            log.seek(offset)
    return offset


def _whole_lines(block: bytes) -> bytes:
    """Return the whole lines of a block, or all of it if it is full and has no end of a line."""
    end = block.rfind(b"\n") + 1
    return block if not end and len(block) == _BLOCK else block[:end]
