"""Exports in processes that end before one of their operations on the disk."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlpsubmit.export.write import export_run
from mlpsubmit.runs.run import open_run

__all__ = ["killed_at"]

#: A server that has imported what an export needs, and runs no threads: its forks start at once.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["pytest", "mlpsubmit.export.event_files", __name__])


def killed_at(operation: int, run: Path, out: Path) -> bool:
    """Export a run to TensorBoard in a process that ends before its disk operation of a number.

    Returns:
        Whether there was such an operation.
    """
    process = _PROCESSES.Process(target=_export, args=(operation, run, out))
    process.start()
    process.join(60)
    assert process.exitcode in (0, 9)
    return process.exitcode == 9


def _export(operation: int, run: Path, out: Path) -> None:
    left = iter(range(operation))
    for name in ("replace", "mkdir", "fsync", "open", "unlink"):
        setattr(os, name, _ending(getattr(os, name), left))
    export_run(open_run(run), "tensorboard", out=out)


def _ending(function: Callable[..., Any], left: Iterator[int]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        if next(left, None) is None:
            os._exit(9)
        return function(*arguments, **options)

    return run
