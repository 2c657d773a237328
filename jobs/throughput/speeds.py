"""Measured speeds of kinds of packs, and what they say of other kinds."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.throughput.workload import Workload
from mlpsubmit.training.accel.cpu import cpu_name

__all__ = ["Device", "Prediction", "Speed", "Speeds", "earlier_speeds"]

#: Heartbeats that are read at most for speeds of earlier runs: those of the newest runs.
READ_AT_MOST = 400

#: Packs that take less than this to train tell little.
SHORTEST_SECONDS = 0.05


@dataclass(frozen=True)
class Speed:
    """What a task has measured with one kind of pack.

    Attributes:
        packs: how many of the kind it has finished.
        model_steps: gradient steps of single networks that stacks of full size have computed;
            without their first ones, where there were others.
        training: seconds that those took in the train loop.
        setup: seconds beside it: data, building networks, compiling, writing results.
    """

    kind: Workload
    packs: int
    model_steps: int
    training: float
    setup: float

    def __add__(self, other: Speed) -> Speed:
        """Return what two measurements of the same kind say together."""
        return replace(
            self,
            packs=self.packs + other.packs,
            model_steps=self.model_steps + other.model_steps,
            training=self.training + other.training,
            setup=self.setup + other.setup,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the speed as a heartbeat holds it."""
        return {**vars(self), "kind": self.kind.to_json()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Speed | None:
        """Return what :meth:`to_json` wrote; None where another version wrote it."""
        if content.keys() != {field.name for field in fields(cls)}:
            return None
        kind = Workload.from_json(content["kind"])
        return None if kind is None else cls(**{**content, "kind": kind})


@dataclass(frozen=True)
class Device:
    """What a task trains on: speeds hold for equal ones.

    Attributes:
        name: of the GPU, or of the processor where it trains on that.
        threads: of the processor that it computes with; of no account on a GPU.
        gpu: whether it trains on a GPU.
    """

    name: str
    threads: int
    gpu: bool

    @classmethod
    def of_this_machine(cls, threads: int) -> Device:
        """Return its first GPU, or its processor where it has none."""
        import torch

        if torch.cuda.is_available():
            return cls(torch.cuda.get_device_name(), threads, gpu=True)
        return cls(cpu_name(), threads, gpu=False)

    def __str__(self) -> str:
        if self.gpu:
            return self.name
        return f"{self.name}, {self.threads} thread{'s' if self.threads > 1 else ''} per task"

    def matches(self, beat: Mapping[str, Any]) -> bool:
        """Return whether the task of a heartbeat trained on such a device."""
        if self.gpu:
            return beat.get("device") == self.name
        return (beat.get("device"), beat.get("cpu_name"), beat.get("threads")) == (
            "cpu",
            self.name,
            self.threads,
        )


@dataclass(frozen=True)
class Prediction:
    """What speeds say of a kind.

    Attributes:
        step: seconds per model-step.
        setup: seconds per pack beside the train loop.
        exact: whether that very kind was measured.
    """

    step: float
    setup: float
    exact: bool


class Speeds:
    """Measured speeds, and how long they let other packs take.

    Args:
        measured: the newest first.
        startup: seconds that a task takes from the start of its process to its first pack.
        source: where they come from, for people.
    """

    def __init__(self, measured: Iterable[Speed], startup: float, source: str) -> None:
        self.startup = startup
        self.source = source
        self._exact: dict[Workload, Speed] = {}
        for speed in measured:
            if speed.model_steps > 0:
                self._exact.setdefault(speed.kind, speed)  # the newest counts
        #: By what they have in common, those of one work each, in the order of their work.
        self._alike: dict[_Common, list[Speed]] = {}
        for speed in sorted(self._exact.values(), key=_work):
            alike = self._alike.setdefault(_common(speed.kind), [])
            if not alike or _work(alike[-1]) < _work(speed):
                alike.append(speed)

    def __bool__(self) -> bool:
        return bool(self._exact)

    def of(self, kind: Workload) -> Prediction | None:
        """Return how long a kind of pack takes; None where nothing comparable was measured.

        The same kind is taken as it was measured last. Else those that differ in the fewest
        respects are taken, and their times per model-step interpolated by the work of one, or
        scaled with it beyond the smallest and the largest.
        """
        if (same := self._exact.get(kind)) is not None:
            return Prediction(_step(same), same.setup / same.packs, exact=True)
        own = _common(kind)
        # Networks and precisions of another kind say nothing.
        comparable = [common for common in self._alike if common[:2] == own[:2]]
        if not comparable:
            return None
        return _scaled(self._alike[min(comparable, key=lambda one: _differences(one, own))], kind)


#: The model, the precision, the optimizer, whether online, the batch function and the grabs.
_Common = tuple[str, str, str, bool, str, str]


def _common(kind: Workload) -> _Common:
    return kind.model, kind.precision, kind.optimizer, kind.online, kind.batchfn, kind.grabs


def _differences(one: _Common, other: _Common) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def _work(speed: Speed) -> float:
    return speed.kind.work


def _step(speed: Speed) -> float:
    return max(speed.training, 1e-9) / speed.model_steps


def _scaled(speeds: Sequence[Speed], kind: Workload) -> Prediction:
    """Return what speeds of other sizes, in the order of their work, say of a kind."""
    place = bisect.bisect(speeds, kind.work, key=_work)
    near = speeds[max(0, place - 1) : place + 1]
    nearest = min(near, key=lambda speed: abs(math.log(_work(speed) / kind.work)))
    setup = nearest.setup / nearest.packs * kind.configs / nearest.kind.configs
    if len(near) == 1:
        return Prediction(_step(near[0]) * kind.work / _work(near[0]), setup, exact=False)
    low, high = near
    share = math.log(kind.work / _work(low)) / math.log(_work(high) / _work(low))
    step = math.exp((1 - share) * math.log(_step(low)) + share * math.log(_step(high)))
    return Prediction(step, setup, exact=False)


def earlier_speeds(
    runs: Iterable[RunDirectory],
    fits: Callable[[Mapping[str, Any], Mapping[str, Any]], bool],
    source: str,
) -> Speeds:
    """Return what tasks of earlier runs have measured.

    Args:
        runs: the newest first.
        fits: whether a task trained on the device in question, by the intent of its submission and
            its heartbeat.
        source: where they come from, for people.
    """
    beats = list(itertools.islice(_beats(runs, fits), READ_AT_MOST))
    found = [Speed.from_json(entry) for beat in beats for entry in beat.get("speeds", [])]
    startups = [float(beat["startup"]) for beat in beats if beat.get("startup") is not None]
    measured = [speed for speed in found if speed and speed.training >= SHORTEST_SECONDS]
    return Speeds(measured, max(startups[:1], default=0.0), source)


def _beats(
    runs: Iterable[RunDirectory], fits: Callable[[Mapping[str, Any], Mapping[str, Any]], bool]
) -> Iterator[dict[str, Any]]:
    """Yield the heartbeats that fit, those of the newest runs and submissions first."""
    for run in runs:
        for number in reversed(run.submissions()):
            intent = run.intent(number)
            beats = run.heartbeats(number).values()
            yield from (beat for beat in beats if fits(intent, beat))
