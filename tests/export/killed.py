"""Exports in processes that end before one of their operations on the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["killing"]


@contextmanager
def killing(run: Path) -> Iterator[Callable[[int, Path], bool]]:
    """Yield a function that exports a run to TensorBoard, and ends before an operation of a number.

    It takes the number and the folder, and returns whether there was such an operation. The exports
    are forks of one process, which has imported what they need and has no threads.
    """
    command, root = [sys.executable, "-m", __name__, str(run.resolve())], Path(__file__).parents[2]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=root, **pipes) as one:
        assert one.stdin is not None
        assert one.stdout is not None
        orders, answers = one.stdin, one.stdout

        def killed_at(operation: int, folder: Path) -> bool:
            print(json.dumps([operation, str(folder.absolute())]), file=orders, flush=True)
            code = int(answers.readline())
            assert code in (0, 9)
            return code == 9

        yield killed_at
        orders.close()


def main() -> None:
    """Obey the lines of the input, a fork for each."""
    from mlpsubmit.export import event_files, write
    from mlpsubmit.runs.run import open_run

    assert event_files  # else every fork would import it
    for line in sys.stdin:
        operation, folder = json.loads(line)
        process = os.fork()
        if not process:
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
            left = iter(range(operation))
            for name in ("replace", "mkdir", "fsync", "open", "unlink"):
                setattr(os, name, _ending(getattr(os, name), left))
            write.export_run(open_run(Path(sys.argv[1])), "tensorboard", out=Path(folder))
            os._exit(0)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _ending(function: Callable[..., Any], left: Iterator[int]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        if next(left, None) is None:
            os._exit(9)
        return function(*arguments, **options)

    return run


if __name__ == "__main__":
    main()
