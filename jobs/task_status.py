"""One worker of a submission, as status shows it: in most runs, a task is one worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpsubmit.display.text import counted, duration, throughput, utc
from mlpsubmit.errors import RunError
from mlpsubmit.files import open_regular
from mlpsubmit.results.names import device_kind

__all__ = ["STARTING", "TaskStatus", "mean_utilization"]

#: What a process does before its first heartbeat: most of that time goes into imports.
STARTING = "starting: importing torch"

#: The end of a log that is shown, in bytes and in lines.
_TAIL_BYTES = 8192
_TAIL_LINES = 8

#: Fields of a heartbeat whose names have no unit, as JSON has them; and those that are times.
_IN_JSON = {
    "interval": "interval_seconds",
    "startup": "startup_seconds",
    "speed": "model_steps_per_second",
    "cost_done": "flops_done",
    "training": "training_seconds",
    "setup": "setup_seconds",
}
_TIMES = frozenset({"started", "updated", "pack_started"})


@dataclass(frozen=True)
class TaskStatus:
    """One worker of the latest submission.

    Attributes:
        state: ``waiting`` (its process has not reported yet, or is to start again),
            ``running``, ``done``, ``interrupted`` (it saved its pack on a signal, or was
            cancelled), ``crashed``, or ``unknown`` if the scheduler does not answer.
        heartbeat: the last one; empty if the task never reported.
        log: its log file.
        why: why it waits, crashed, or is unknown; else empty.
        memory_kill: whether SLURM killed it for its memory.
        lasting: whether an ``unknown`` state stays unknown however often it is read: the record of
            its process is damaged, or this machine cannot query the scheduler of its job.
        job: the id of its job, if it is one of several workers in that.
        array_task: which task it is part of, if it is one of several workers in that.
        remaining_seconds: until its last pack ends, at its speed so far; None if it is not running,
            or has none yet.
    """

    name: str
    state: str
    heartbeat: Mapping[str, Any]
    log: Path | None
    why: str = ""
    memory_kill: bool = False
    lasting: bool = False
    job: str | None = None
    array_task: int | None = None
    remaining_seconds: float | None = None

    @property
    def label(self) -> str:
        """Its name; for one of several workers, with the task that it is part of."""
        if self.array_task is None:
            return self.name
        return f"{self.name} of task {self.array_task}"

    @property
    def live(self) -> bool:
        """Whether it trains or is about to."""
        return self.state in ("waiting", "running")

    @property
    def training(self) -> bool:
        """Whether it has made steps of the pack that it is in, and makes more."""
        beat = self.heartbeat
        makes_steps = bool(beat.get("step") and beat.get("max_iter")) and not beat.get("doing")
        return self.state == "running" and not self.why and makes_steps

    @property
    def awaited(self) -> str:
        """What it does, or waits for, before its next step; empty if it trains or has ended."""
        if self.state == "waiting":
            return self.why
        if self.state != "running" or self.training:
            return ""
        started = "starting" if self.heartbeat else STARTING
        return self.why or str(self.heartbeat.get("doing") or started)

    @property
    def device(self) -> str:
        """The GPU or the CPU of its last attempt, by name; empty if it never reported."""
        beat = self.heartbeat
        return device_kind({"device": beat.get("device", ""), "cpu": beat.get("cpu_name", "")})

    @property
    def losses(self) -> tuple[tuple[int, float | None], ...]:
        """Steps and losses of the pack that it is in, or was last: the median of its configs.

        None is a loss that is not finite.
        """
        beat = self.heartbeat
        points = [(int(step), loss) for step, loss in beat.get("losses", ()) if step is not None]
        if points and points[-1][0] < (now := beat.get("step", 0)):
            points.append((now, beat.get("loss")))
        return tuple(points)

    @property
    def packs(self) -> str:
        """How many packs it has done, of how many, and what became of others."""
        beat = self.heartbeat
        text = f"{beat.get('packs_done', 0)}/{beat.get('packs', 0)} packs"
        if beat.get("packs_failed"):
            text += f", {beat['packs_failed']} failed"
        if beat.get("halved"):
            text += f", {beat['halved']} halved (out of memory)"
        return text

    @property
    def stack(self) -> str:
        """Which configs of its pack a step is of: ``with 1 of 4 configs after 2 others``.

        Empty if all of them train together.
        """
        beat = self.heartbeat
        configs, stack, settled = (beat.get(name, 0) for name in ("configs", "stack", "settled"))
        if not 0 < stack < configs:
            return ""
        after = f" after {counted(settled, 'other')}" if settled else ""
        return f"with {stack} of {configs} configs{after}"

    @property
    def saved(self) -> str:
        """What of its pack is saved: ``at step 5 of 9``; empty if nothing is."""
        beat = self.heartbeat
        if not beat.get("max_iter"):
            return ""
        if beat.get("step"):
            return f"at step {beat['step']} of {beat['max_iter']} {self.stack}".rstrip()
        settled = beat.get("settled", 0)
        return f"after {settled} of {beat['configs']} configs" if settled else ""

    @property
    def mean_speed(self) -> float:
        """Model-steps per second over the whole attempt; 0 if it made none."""
        beat = self.heartbeat
        if not beat.get("model_steps"):
            return 0.0
        return int(beat["model_steps"]) / max(_seconds(beat), 1e-9)

    @property
    def summary(self) -> str:
        """One line: the progress of the task, or why it does not train."""
        beat = self.heartbeat
        if self.state == "crashed":
            return self.why + (f"; its log: {self.log}" if self.log else "")
        if self.why or not beat:
            return self.why or self.awaited
        text = self.packs
        if self.awaited:
            return f"{text}, {self.awaited}"
        if self.training:
            loss = f", loss {beat['loss']:.3g}" if beat.get("loss") is not None else ""
            text += f", step {beat['step']}/{beat['max_iter']} {self.stack}".rstrip() + loss
        if self.training and beat.get("speed"):
            text += f", {throughput(beat['speed'], beat.get('matmul_utilization'))}"
        if self.training and self.remaining_seconds is not None:
            text += f", about {duration(self.remaining_seconds)} left"
        if self.state == "done" and self.mean_speed:
            text += f", mean {throughput(self.mean_speed, mean_utilization([beat]))}"
        if self.state == "interrupted" and self.saved:
            text += f", saved {self.saved}"
        return text

    def to_json(self) -> dict[str, Any]:
        """Return the task and its last heartbeat as ``status --json`` prints them."""
        beat = {_IN_JSON.get(name, name): value for name, value in self.heartbeat.items()}
        times = {f"{name}_at": utc(self.heartbeat[name]) for name in _TIMES & beat.keys()}
        speeds = [
            {_IN_JSON.get(name, name): value for name, value in speed.items()}
            for speed in self.heartbeat.get("speeds", ())
        ]
        rest = {name: value for name, value in beat.items() if name not in _TIMES}
        return {
            **rest,
            **times,
            **({"speeds": speeds} if "speeds" in beat else {}),
            **({"losses": self.losses} if "losses" in beat else {}),
            "task": self.name,
            "array_task": self.array_task,
            "job": self.job,
            "state": self.state,
            "why": self.why or None,
            "awaited": self.awaited or None,
            "remaining_seconds": self.remaining_seconds,
            "log": self.log and str(self.log.absolute()),
        }

    def last_lines(self) -> list[str]:
        """Return the last lines of its log; empty if it has none."""
        if self.log is None:
            return []
        try:
            with open_regular(self.log) as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except (OSError, RunError):
            return []
        return [line for line in text.splitlines() if line.strip()][-_TAIL_LINES:]


def mean_utilization(beats: Iterable[Mapping[str, Any]]) -> float | None:
    """Return the mean matmul utilization of tasks over their attempts, 0 to 1.

    Returns:
        None if there are no tasks, or it was not measured in one of them.
    """
    ideal, seconds = 0.0, 0.0
    for beat in beats:
        if beat.get("ideal_seconds") is None:
            return None
        ideal, seconds = ideal + float(beat["ideal_seconds"]), seconds + _seconds(beat)
    return ideal / seconds if seconds > 0 else None


def _seconds(beat: Mapping[str, Any]) -> float:
    return float(beat["updated"]) - float(beat["started"])
