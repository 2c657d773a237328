"""How far a run and its tasks are, in a few words: for terminals and for notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlpsubmit.jobs.tasks import mean_of_limit

if TYPE_CHECKING:
    from mlpsubmit.jobs.status import Status, TaskStatus

__all__ = ["doing", "duration", "totals"]


def totals(status: Status) -> str:
    """Return one line: configs that are done and failed, the speed, the time that is left."""
    counts = [f"{status.done}/{status.configs} configs"]
    if status.failed:
        counts.append(f"{status.failed} failed")
    if status.reused:
        counts.append(f"{status.reused} reused")
    counts.append(f"{100 * status.fraction:.0f}%")
    if status.speed:
        mean = "" if any(task.state == "running" for task in status.tasks) else "mean "
        counts.append(mean + _speed(status.speed, status.of_limit, " of the limit"))
    if status.remaining_seconds is not None and status.running:
        counts.append(f"about {duration(status.remaining_seconds)} left")
    return "  ".join(counts)


def doing(task: TaskStatus) -> str:
    """Return what a task is at work on, or why it is not."""
    beat = task.heartbeat
    if task.state == "crashed":
        return task.why + (f"; its log: {task.log}" if task.log else "")
    if task.why or not beat:
        return task.why
    packs = f"{beat.get('packs_done', 0)}/{beat.get('packs', 0)} packs"
    if beat.get("packs_failed"):
        packs += f", {beat['packs_failed']} failed"
    if beat.get("halved"):
        packs += f", {beat['halved']} halved (out of memory)"
    if task.state == "running" and beat.get("max_iter"):
        loss = f", loss {beat['loss']:.3g}" if beat.get("loss") is not None else ""
        packs += f", step {beat['step']}/{beat['max_iter']}{loss}"
    if task.state == "running" and beat.get("speed"):
        packs += f", {_speed(beat['speed'], beat.get('of_limit'))}"
    if task.state == "done" and task.mean_speed:
        packs += f", mean {_speed(task.mean_speed, mean_of_limit([beat]))}"
    if task.state == "interrupted" and beat.get("max_iter") and beat.get("step"):
        packs += f", saved at step {beat['step']} of {beat['max_iter']}"
    return packs


def _speed(speed: float, of_limit: float | None, of_what: str = "") -> str:
    """Return a speed, and how well it uses the device where that is known."""
    used = "" if of_limit is None else f" ({100 * of_limit:.0f}%{of_what})"
    return f"{_compact(speed)} model-steps/s{used}"


def _compact(number: float) -> str:
    return f"{number / 1000:.1f}k" if number >= 1000 else f"{number:.0f}"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it: seconds, minutes, hours or days."""
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 48:
        return f"{hours / 24:.0f} d"
    if minutes >= 90:
        return f"{hours:.1f} h"
    return f"{minutes:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
