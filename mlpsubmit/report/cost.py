"""What runs have cost: hours of training, and of tasks, times the cores or GPUs of a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlpsubmit.display.text import counted, duration
from mlpsubmit.errors import RunError
from mlpsubmit.jobs.store.environments import stored_environments
from mlpsubmit.jobs.store.stored_results import REUSED
from mlpsubmit.jobs.task_status import mean_utilization
from mlpsubmit.report.contents import Contents, ReportedRun
from mlpsubmit.report.markup import definitions, section, table

__all__ = ["Cost", "amount", "cost", "costs", "task_table"]

#: The most tasks that a table lists.
TASK_ROWS = 50


@dataclass
class Cost:
    """Hours, each by its unit: ``core-hours`` or ``GPU-hours``.

    Attributes:
        training: of the configs with a result that these runs trained.
        reused: of those whose results come from earlier runs.
        tasks: of all tasks, from the start of the last attempt of each to its last heartbeat.
        attempts: how many tasks that is.
    """

    training: dict[str, float] = field(default_factory=dict)
    reused: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, float] = field(default_factory=dict)
    attempts: int = 0


def cost(runs: Sequence[ReportedRun]) -> Cost:
    """Return what runs have cost so far."""
    found = Cost()
    for one in runs:
        _add_training(one, found)
        for beat in one.run.directory.heartbeats().values():
            held = max(float(beat["updated"]) - float(beat["started"]), 0.0)
            _add(found.tasks, _unit(beat), held)
            found.attempts += 1
    return found


def _add_training(one: ReportedRun, found: Cost) -> None:
    """Add the seconds of each pack, by what its shard was made with."""
    units: dict[Any, tuple[str, int]] = {}
    for pack in one.source.packs():
        shard = pack.member.shard
        if shard not in units:
            try:
                made_with = stored_environments(shard)
            except (RunError, OSError):  # damaged or lost: one core
                made_with = []
            units[shard] = _unit(made_with[0] if made_with else {})
        hours = found.reused if shard.name == REUSED else found.training
        _add(hours, units[shard], float(pack["seconds"].sum()))


def _add(hours: dict[str, float], unit: tuple[str, int], seconds: float) -> None:
    name, count = unit
    hours[name] = hours.get(name, 0.0) + count * seconds / 3600


def _unit(made_with: Mapping[str, Any]) -> tuple[str, int]:
    """Return the unit of what a task holds, and how many: one GPU, or the cores of its threads.

    Args:
        made_with: its heartbeat, or the environment of its results.
    """
    if made_with.get("device", "cpu") != "cpu":
        return "GPU-hours", 1
    return "core-hours", int(made_with.get("threads", 1))


def costs(contents: Contents, cost: Cost) -> str:
    """Return throughput, utilization and cost, with what each of them counts."""
    pairs = [
        (
            "training",
            f"{_hours(cost.training) or 'none yet'}: the training time of all configs with a "
            "result, times the cores (threads) of their task, or its GPU",
        )
    ]
    if any(cost.reused.values()):
        text = "of earlier runs, whose results are reused; not in the line above"
        pairs.append(("reused", f"{_hours(cost.reused)} {text}"))
    if cost.attempts:
        text = (
            f"{counted(cost.attempts, 'task')}, each from the start of its last attempt to its "
            "last heartbeat, times the same; with setup and with what has no result"
        )
        pairs.append(("tasks", f"{_hours(cost.tasks)}: {text}"))
    several = len(contents.runs) > 1  # whose tasks have the same names
    rows = [(one.run.id,) * several + row for one in contents.runs for row in _tasks(one)]
    header = ("run",) * several + _HEADER
    tasks = task_table(header, rows, numbers=range(several + 3, several + 7))
    note = (
        "A model-step is one gradient step of one network. Matmul utilization: FLOPs of the method "
        "over those of the measured matmul rate."
    )
    return section("cost", "Throughput and cost", definitions(pairs), tasks, note=note)


_HEADER = ("task", "host", "device", "time", "model-steps", "per second", "matmul utilization")


def _tasks(one: ReportedRun) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, beat in one.run.directory.heartbeats().items():
        seconds = max(float(beat["updated"]) - float(beat["started"]), 0.0)  # clocks are set
        steps, share = int(beat.get("model_steps") or 0), mean_utilization([beat])
        device = str(beat.get("device", "–"))
        if device == "cpu":
            device = (
                f"{beat.get('cpu_name', 'cpu')}, {counted(int(beat.get('threads', 1)), 'thread')}"
            )
        rows.append(
            (
                *(name, str(beat.get("host", "–")), device, duration(seconds), f"{steps:,}"),
                f"{steps / seconds:,.0f}" if seconds else "–",
                "–" if share is None else f"{100 * share:.2g}%",
            )
        )
    return rows


def _hours(hours: Mapping[str, float]) -> str:
    return " + ".join(f"{amount(n)} {unit}" for unit, n in hours.items())


def amount(hours: float) -> str:
    """Return a number of hours as text."""
    if 0 < hours < 0.001:
        return "<0.001"
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"


def task_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Iterable[int] = ()
) -> str:
    """Return a table of tasks, of which there may be thousands."""
    if not rows:
        return ""
    shown_rows = table(header, rows[:TASK_ROWS], numbers=numbers, caption="Tasks", wraps=True)
    if len(rows) <= TASK_ROWS:
        return shown_rows
    return f'{shown_rows}<p class="note">The first {TASK_ROWS} of {len(rows):,} tasks.</p>'
