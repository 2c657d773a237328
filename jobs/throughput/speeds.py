"""Measured speeds of workloads on a device, and predictions for other workloads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.jobs.store.records import Beat
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.throughput.workload import Workload
from mlpsubmit.results.names import device_kind

__all__ = ["Prediction", "Speed", "Speeds", "earlier_speeds"]

#: How many heartbeats of earlier runs are read at most, from the newest on.
MOST_HEARTBEATS = 400

#: Seconds of training below which a measurement is ignored as too noisy.
SHORTEST_SECONDS = 0.05


@dataclass(frozen=True)
class Speed:
    """A measurement of one workload by a task.

    Attributes:
        packs: the number of packs that it finished.
        model_steps: gradient steps, summed over the models of stacks of full size; without their
            first block of steps, if there were others.
        training: seconds that these steps took.
        setup: all other seconds: data, building models, compiling, writing results.
    """

    workload: Workload
    packs: int
    model_steps: int
    training: float
    setup: float

    @property
    def step_seconds(self) -> float:
        """Seconds per model-step."""
        return max(self.training, 1e-9) / self.model_steps

    def __add__(self, other: Speed) -> Speed:
        """Return the sum of two measurements of the same workload."""
        return replace(
            self,
            packs=self.packs + other.packs,
            model_steps=self.model_steps + other.model_steps,
            training=self.training + other.training,
            setup=self.setup + other.setup,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the speed as it is stored in a heartbeat."""
        # Without asdict, which copies: a task of many workloads does this after every pack.
        return {**vars(self), "workload": vars(self.workload)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Speed:
        """Return the speed from :meth:`to_json`."""
        return cls(**{**content, "workload": Workload(**content["workload"])})


@dataclass(frozen=True)
class Prediction:
    """The predicted speed of a workload.

    Attributes:
        step: seconds per model-step.
        setup: seconds per pack besides its steps.
        exact: whether this very workload was measured.
    """

    step: float
    setup: float
    exact: bool


class Speeds:
    """Measured speeds on one device, and predictions from them.

    Args:
        measured: the newest first; of several of one workload the newest counts.
        startup: seconds from the start of a task's process to its first pack.
        source: the origin of the measurements, for people.
    """

    def __init__(self, measured: Iterable[Speed], startup: float, source: str) -> None:
        self.startup = startup
        self.source = source
        self._measured: dict[Workload, Speed] = {}
        for speed in measured:
            if speed.model_steps > 0:
                self._measured.setdefault(speed.workload, speed)

    def predict(self, workload: Workload) -> Prediction | None:
        """Return the speed of a workload; None if no comparable one was measured.

        A measurement of the same workload is used unchanged. Otherwise time per model-step is
        fitted to the workloads that differ from it in the fewest settings (:func:`_scaled`);
        workloads of another model or precision are not comparable.
        """
        if (same := self._measured.get(workload)) is not None:
            return Prediction(same.step_seconds, same.setup / same.packs, exact=True)
        own = _settings(workload)
        groups: dict[tuple[object, ...], list[Speed]] = {}
        for speed in self._measured.values():
            groups.setdefault(_settings(speed.workload), []).append(speed)
        comparable = [settings for settings in groups if settings[:2] == own[:2]]
        if not comparable:
            return None
        closest = min(comparable, key=lambda s: sum(a != b for a, b in zip(s, own, strict=True)))
        return _scaled(groups[closest], workload)


def _settings(workload: Workload) -> tuple[object, ...]:
    """Return all that workloads of different sizes have in common."""
    w = workload
    return w.model, w.precision, w.optimizer, w.online, w.batchfn, w.grabs


def _scaled(speeds: Sequence[Speed], workload: Workload) -> Prediction:
    """Return the speed of a workload from measurements of others that differ in size alone.

    Between the smallest and the largest measured work, seconds per model-step = a + b * work.
    Beyond them they are proportional to the work: from small workloads alone the slope b is not
    known well enough for large ones.
    """
    work = np.array([speed.workload.work for speed in speeds])
    nearest = speeds[int(np.abs(np.log(work / workload.work)).argmin())]
    setup = nearest.setup / nearest.packs * workload.configs / nearest.workload.configs
    a, b = _fit(work, np.array([speed.step_seconds for speed in speeds]))
    inside = min(max(workload.work, float(work.min())), float(work.max()))
    return Prediction((a + b * inside) * workload.work / inside, setup, exact=False)


def _fit(work: NDArray[np.float64], seconds: NDArray[np.float64]) -> tuple[float, float]:
    """Return a and b >= 0 for which a + b * work has the least squares of relative errors."""
    terms = np.stack([1 / seconds, work / seconds], axis=1)
    ones = np.ones(len(seconds))
    a, b = np.linalg.lstsq(terms, ones, rcond=None)[0].tolist()
    if a < 0:
        return 0.0, float(ones @ terms[:, 1] / (terms[:, 1] @ terms[:, 1]))
    if b < 0:
        return float(ones @ terms[:, 0] / (terms[:, 0] @ terms[:, 0])), 0.0
    return a, b


def earlier_speeds(
    runs: Iterable[RunDirectory],
    same_hardware: Callable[[Mapping[str, Any], Mapping[str, Any]], bool],
    source: str,
) -> dict[str, Speeds]:
    """Return the speeds that tasks of earlier runs have measured, by the device of each task.

    Those of several types of GPU, or models of CPU, are of as many devices.

    Args:
        runs: the newest first.
        same_hardware: returns whether a task trained on a device in question, given the intent of
            its submission and its heartbeat.
        source: the origin of the measurements, for people.
    """
    by_device: dict[str, list[Beat]] = {}
    for beat in itertools.islice(_beats(runs, same_hardware), MOST_HEARTBEATS):
        made_with = {"device": beat.get("device", ""), "cpu": beat.get("cpu_name", "")}
        by_device.setdefault(device_kind(made_with), []).append(beat)
    return {device: _speeds(beats, source) for device, beats in by_device.items()}


def _speeds(beats: Sequence[Beat], source: str) -> Speeds:
    found = [Speed.from_json(entry) for beat in beats for entry in beat.get("speeds", [])]
    startups = [own for beat in beats if (own := beat.get("startup")) is not None]
    measured = [speed for speed in found if speed.training >= SHORTEST_SECONDS]
    return Speeds(measured, startups[0] if startups else 0.0, source)


def _beats(
    runs: Iterable[RunDirectory],
    same_hardware: Callable[[Mapping[str, Any], Mapping[str, Any]], bool],
) -> Iterator[Beat]:
    """Yield the heartbeats of the same hardware, of the newest runs and submissions first."""
    for run in runs:
        for number in reversed(run.submissions()):
            if (intent := run.readable_intent(number)) is None:
                continue
            beats = run.heartbeats(number).values()
            yield from (beat for beat in beats if same_hardware(intent, beat))
