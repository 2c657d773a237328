"""The processes that were killed while they trained a pack: one small file per such pack."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from mlpsubmit import files
from mlpsubmit.errors import RunError
from mlpsubmit.jobs.heartbeat import same_boot
from mlpsubmit.jobs.plan import PackRange, Plan
from mlpsubmit.jobs.process_end import ProcessEnd
from mlpsubmit.jobs.store import records
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.task_status import TaskStatus

__all__ = ["MOST_KILLS", "add_end", "add_unrecorded_ends", "pack_ends", "packs_to_train"]

#: Processes in a row that may be killed in a pack, without progress, before it is divided.
MOST_KILLS = 2


def pack_ends(run: RunDirectory, pack: str) -> list[ProcessEnd]:
    """Return the ends of the processes that were killed while they trained a pack, oldest first."""
    try:
        ends = records.read(run.pack_ends(pack), records.KilledProcesses, files.SMALL_JSON)["ends"]
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


def packs_to_train(
    run: RunDirectory,
    plan: Plan,
    ranges: Iterable[Sequence[int]],
    task: str,
    ended: str | None = None,
) -> list[PackRange]:
    """Return the packs of a slice that no earlier attempt of its task has finished, in order.

    Nor found to fail: such a pack is tried again by a resume, which is another task. Last come
    those that have killed processes, fewest first.

    Args:
        ended: an attempt whose own end does not count, for the order that it had.
    """
    packs = [plan.pack(number) for low, high in ranges for number in range(low, high)]
    done = run.results.finished(task) | run.results.failed(task)
    kills = {
        pack: sum(end.attempt != ended for end in pack_ends(run, pack))
        for pack in run.packs_with_ends()
    }
    left = [pack for pack in packs if pack.name not in done]
    return sorted(left, key=lambda pack: kills.get(pack.name, 0))


def add_unrecorded_ends(run: RunDirectory, plan: Plan, tasks: Iterable[TaskStatus]) -> None:
    """Record the ends that no parent process could record, before a run is resumed.

    A task that SLURM killed for its memory was killed with its parent; the debug executor has none.
    For whatever else ends both, such as a power cut, the pack in training is not responsible.
    """
    for task in tasks:
        beat = task.heartbeat
        if task.state != "crashed" or beat.get("state") != "training" or "pack" not in beat:
            continue
        end = ProcessEnd(f"{task.name}.{beat['attempt']}", memory=task.memory_kill)
        if not task.memory_kill and (beat["supervised"] or not same_boot(beat)):
            continue
        if (pack := _in_training(run, plan, task, end)) is not None:
            add_end(run, pack, end)


def _in_training(run: RunDirectory, plan: Plan, task: TaskStatus, end: ProcessEnd) -> str | None:
    """Return the pack that a task trained when it ended: the first one without a result.

    That of its last heartbeat may be some packs older. It is the best guess if the intent, which
    has the slices, is damaged.
    """
    submission, index = map(int, task.name.split("-"))
    intent = run.readable_intent(submission)
    if intent is None:
        return str(task.heartbeat["pack"])
    packs = packs_to_train(run, plan, intent["slices"][index], task.name, end.attempt)
    return packs[0].name if packs else None
