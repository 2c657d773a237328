"""What runs have cost: hours of training, and of tasks, times the cores or GPUs of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlpsubmit.errors import RunError
from mlpsubmit.jobs.store.environments import stored_environments
from mlpsubmit.jobs.store.stored_results import REUSED
from mlpsubmit.report.contents import ReportedRun

__all__ = ["Cost", "cost"]


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
