"""The processes that were killed while they trained a pack: one small file per such pack."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import asdict

from mlpsubmit import files
from mlpsubmit.errors import RunError
from mlpsubmit.jobs.heartbeat import same_boot
from mlpsubmit.jobs.plan import PackRange
from mlpsubmit.jobs.process_end import ProcessEnd
from mlpsubmit.jobs.store import records
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.task_status import TaskStatus

__all__ = ["MOST_KILLS", "add_end", "add_unrecorded_ends", "pack_ends", "suspects_last"]

#: Processes in a row that may be killed in a pack, without progress, before it is divided.
MOST_KILLS = 2


def pack_ends(run: RunDirectory, pack: str) -> list[ProcessEnd]:
    """Return the ends of the processes that were killed while they trained a pack, oldest first."""
    try:
        ends = records.read(run.pack_ends(pack), records.Ends, files.SMALL_JSON)["ends"]
    except FileNotFoundError:
        return []
    except RunError as error:
        warnings.warn(f"{error}; the killed processes of the pack count anew", stacklevel=2)
        return []
    return [ProcessEnd(**end) for end in ends]


def add_end(run: RunDirectory, pack: str, end: ProcessEnd) -> None:
    """Record the end of a process, once however often this is called."""
    ends = pack_ends(run, pack)
    if end.attempt not in [one.attempt for one in ends]:
        content = {"ends": [asdict(one) for one in (*ends, end)]}
        files.publish_json(run.pack_ends(pack), content)


def suspects_last(run: RunDirectory, packs: Iterable[PackRange]) -> list[PackRange]:
    """Return packs in order, but last those that have killed processes, fewest first."""
    kills = {pack: len(pack_ends(run, pack)) for pack in run.packs_with_ends()}
    return sorted(packs, key=lambda pack: kills.get(pack.name, 0))


def add_unrecorded_ends(run: RunDirectory, tasks: Iterable[TaskStatus]) -> None:
    """Record the ends that no parent process could record, before a run is resumed.

    A task that SLURM killed for its memory was killed with its parent; the debug executor has none.
    For whatever else ends both, such as a power cut, the pack in training is not responsible.
    """
    for task in tasks:
        beat = task.heartbeat
        if task.state != "crashed" or beat.get("state") != "training" or "pack" not in beat:
            continue
        attempt = f"{task.name}.{beat['attempt']}"
        if task.memory_kill:
            add_end(run, beat["pack"], ProcessEnd(attempt, memory=True))
        elif not beat["supervised"] and same_boot(beat):
            add_end(run, beat["pack"], ProcessEnd(attempt))
