"""Commands in processes of their own, which pause, end or lose power at a chosen operation."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from disk import Disk

__all__ = ["Command", "Cut", "Ended", "run"]


#: A server that has loaded torch and has not computed yet: its forks start in milliseconds.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["mlpsubmit.jobs.task", "mlpsubmit.results", "h5netcdf"])


@dataclass(frozen=True)
class Command:
    """A command on the study.

    Attributes:
        noises, shift: of the spec, for a launch.
    """

    name: Literal["launch", "resume", "cancel"]
    noises: tuple[float, ...] = ()
    shift: float = 0.0


@dataclass(frozen=True)
class Cut:
    """What happens before an operation of a command on the disk.

    Attributes:
        meanwhile: for ``pause``, the commands that run until the first one goes on.
    """

    kind: Literal["kill", "power cut", "pause"]
    operation: int
    meanwhile: tuple[Command, ...] = ()


@dataclass
class Ended:
    """The end of a command.

    Attributes:
        trained: the keys of the configs whose results it reported to be on the disk.
        error: the name and the text of the error that it ended with.
    """

    trained: list[str] = field(default_factory=list)
    error: tuple[str, str] = ("", "")


def run(folder: Path, command: Command, cut: Cut | None = None) -> list[Ended]:
    """Run a command in a folder, and what runs meanwhile; return how they ended, itself first."""
    own, ended = Ended(), list[Ended]()
    with _started(folder, command, cut) as (process, pipe):
        while True:
            try:
                what, content = pipe.recv()
            except (EOFError, ConnectionResetError):  # reset: it was cancelled before it read
                break
            if what == "trained":
                own.trained += content
            elif what == "error":
                own.error = content
            else:
                assert cut is not None
                for other in cut.meanwhile:
                    ended += run(folder, other)
                if what == "tree":
                    process.kill()
                    process.join()
                    content.write(folder / "disk")
                    break
                with suppress(BrokenPipeError):  # cancelled
                    pipe.send("go on")
        process.join()
    # Cancel ends a process that has not begun to train by its signal.
    assert process.exitcode in (0, -signal.SIGKILL, -signal.SIGTERM), command
    return [own, *ended]


@contextmanager
def _started(folder: Path, command: Command, cut: Cut | None) -> Iterator[tuple[Any, Any]]:
    pipe, theirs = _PROCESSES.Pipe()
    process = _PROCESSES.Process(target=_main, args=(theirs, folder, command, cut))
    process.start()
    theirs.close()
    try:
        yield process, pipe
    finally:
        process.kill()
        process.join()
        pipe.close()


# ---- in the process of the command ---------------------------------------------------------------


def _main(pipe: Connection, folder: Path, command: Command, cut: Cut | None) -> None:
    import torch
    from study import trained_configs

    from mlpsubmit.errors import UserError
    from mlpsubmit.jobs import task, worker_process
    from mlpsubmit.runs import submit

    torch.set_num_threads(1)
    task.HEARTBEAT_SECONDS = 1e6  # the thread of heartbeats writes nothing in between
    submit.LOCK_SECONDS = 0.05
    # By its command line a fork is the server; all that cancel finds here are of the study.
    worker_process._is_of = lambda *_: True
    log = os.open(folder / "log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    disk = Disk(folder / "disk")
    disk.watch()
    if cut is not None:
        disk.before = _cut(disk, cut, pipe)
    with trained_configs(lambda keys: pipe.send(("trained", keys))):
        try:
            _execute(folder, command)
        except KeyboardInterrupt:  # by cancel: it has saved its state
            pass
        except UserError as error:
            pipe.send(("error", (type(error).__name__, str(error))))
        except BaseException:
            pipe.send(("error", ("traceback", traceback.format_exc())))


def _execute(folder: Path, command: Command) -> None:
    from study import RUNS, study

    from mlpsubmit import launch, open_run

    runs = folder / "disk" / RUNS
    if command.name == "launch":
        launch(study(folder, command.noises, command.shift), executor="debug", runs_dir=runs)
    elif command.name == "resume":
        open_run(runs_dir=runs).resume("debug")
    else:
        open_run(runs_dir=runs).cancel()


def _cut(disk: Disk, cut: Cut, pipe: Connection) -> Callable[[int, str, int | None], None]:
    def before(number: int, operation: str, inode: int | None) -> None:
        if number != cut.operation:
            return
        if cut.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if cut.kind == "power cut":
            trees = {crash.kind: crash.tree for crash in disk.crashes(number, operation, inode, ())}
            pipe.send(("tree", trees[cut.kind]))
        else:
            pipe.send(("pause", None))
        pipe.recv()

    return before
