"""Everything that a crash may leave of launch, train, resume, grow and collect; in a process."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from pathlib import Path

import torch
from disk import Crash, Disk
from study import RUNS, study, trained_configs

from mlpsubmit import launch
from mlpsubmit.jobs import task

__all__ = ["GROWN", "OUT"]

#: The file of results, in the watched folder.
OUT = "study.nc"

#: The noises of the study after it has grown.
GROWN = (0.0, 0.5, 1.0)


def record(folder: Path, specs: Path) -> list[Crash]:
    """Run the commands in a folder; return what every crash leaves, and the step it interrupts."""
    torch.set_num_threads(1)
    task.HEARTBEAT_SECONDS = 1e6  # the thread of heartbeats writes nothing in between
    runs, found, at = folder / RUNS, list[Crash](), "launch"
    disk = Disk(folder)
    keys: list[str] = []
    with trained_configs(keys.extend):

        def before(number: int, operation: str, inode: int | None = None) -> None:
            found.extend(disk.crashes(number, operation, inode, (at, tuple(keys))))
            if at == "launch" and keys and "checkpoints" in operation:
                os.kill(os.getpid(), signal.SIGTERM)  # saves the second pack, and stops

        disk.before = before
        disk.watch()
        run = launch(study(specs), executor="debug", runs_dir=runs)
        assert not run.status().complete
        at = "resume"
        run.resume("debug")
        assert run.status().complete
        at = "collect"
        run.collect(folder / OUT).close()
        at = "grow"
        grown = launch(study(specs, GROWN), executor="debug", runs_dir=runs)
        assert grown.status().complete
        assert grown.status().reused == 4
        at = "collect again"
        grown.collect(folder / OUT, force=True).close()
        before(disk.operations, "the end")
    return found


def distinct(crashes: list[Crash], *, temporary: bool) -> list[Crash]:
    """Return one of the crashes that leave the same: the last, as most is known to be done."""
    trees: dict[object, Crash] = {}
    for crash in crashes:
        trees[crash.tree.named(temporary=temporary), crash.note[0]] = crash
    return list(trees.values())


if __name__ == "__main__":
    found = record(Path(sys.argv[1]), Path(sys.argv[2]))
    kept = {name: distinct(found, temporary=name == "all") for name in ("all", "complete")}
    Path(sys.argv[3]).write_bytes(pickle.dumps(kept))
