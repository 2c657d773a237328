"""Everything that a crash may leave of launch, train, resume, grow and collect; in a process."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from disk import Crash, Disk
from study import RUNS, study, trained_configs

from mlpsubmit import launch, open_run
from mlpsubmit.jobs import task
from mlpsubmit.runs.run import Run

__all__ = ["FIRST", "GROWN", "OUT", "Noted"]

#: The file of results, in the watched folder.
OUT = "study.nc"

#: The noises of the study, also after it has grown; one of four, and of six, configs fails.
FIRST, GROWN = (0.0, -1.0), (0.0, -1.0, 1.0)


@dataclass(frozen=True)
class Noted:
    """What a process had done before a crash.

    Attributes:
        at: the command in progress.
        finished: the keys of the configs of finished packs, whose results were on the disk.
        partly: the same of packs in which other configs had failed.
    """

    at: str
    finished: frozenset[str]
    partly: frozenset[str]


def record(folder: Path, specs: Path) -> list[Crash]:
    """Run the commands in a folder; return what every crash leaves."""
    torch.set_num_threads(1)
    task.HEARTBEAT_SECONDS = 1e6  # the thread of heartbeats writes nothing in between
    found, at = list[Crash](), "launch"
    disk, finished, partly = Disk(folder), set[str](), set[str]()

    def before(number: int, operation: str, inode: int | None = None) -> None:
        noted = Noted(at, frozenset(finished), frozenset(partly))
        found.extend(disk.crashes(number, operation, inode, noted))
        if at == "launch" and finished and "checkpoints" in operation:
            os.kill(os.getpid(), signal.SIGTERM)  # saves the second pack, and stops

    def start(noises: Sequence[float]) -> Run:
        sweep = study(specs, noises)
        return launch(sweep, executor="debug", runs_dir=folder / RUNS, keep_going=True)

    disk.before = before
    disk.watch()
    with trained_configs(finished.update, partly.update):
        with suppress(KeyboardInterrupt):
            start(FIRST)
        run = open_run(runs_dir=folder / RUNS)
        assert (run.status().done, run.status().failed) == (2, 0)
        at = "resume"
        start(FIRST)
        assert (run.status().done, run.status().failed) == (3, 1)
        at = "resume again"
        start(FIRST)
        at = "collect"
        run.collect(folder / OUT).close()
        at = "grow"
        grown = start(GROWN)
        assert (grown.status().done, grown.status().reused) == (5, 3)
        at = "collect grown"
        grown.collect(folder / OUT, force=True).close()
        before(disk.operations, "the end")
    return found


def distinct(crashes: list[Crash], *, temporary: bool) -> list[Crash]:
    """Return one of the crashes that leave the same: the last, as most is known to be done."""
    trees: dict[object, Crash] = {}
    for crash in crashes:
        trees[crash.tree.named(temporary=temporary), crash.note.at] = crash
    return list(trees.values())


if __name__ == "__main__":
    from recorder import record  # so that its classes are of this module for pickle  # isort: skip

    found = record(Path(sys.argv[1]), Path(sys.argv[2]))
    kept = {name: distinct(found, temporary=name == "all") for name in ("all", "complete")}
    Path(sys.argv[3]).write_bytes(pickle.dumps(kept))
