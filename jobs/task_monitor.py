"""The monitor of the train loop in a task: saves the state, and reports to the heartbeat."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlpsubmit.display.output import echo
from mlpsubmit.jobs.checkpoint import Checkpoint
from mlpsubmit.jobs.heartbeat import HEARTBEAT_SECONDS, PackHeartbeat
from mlpsubmit.jobs.loss_curve import LossCurve
from mlpsubmit.jobs.pack_results import Arrays
from mlpsubmit.jobs.signals import StopFlag
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.throughput.meter import PackMeter
from mlpsubmit.training.kept_states import is_uncrossed
from mlpsubmit.training.monitor import STATE_FORMAT, Interrupted, Monitor, Progress

__all__ = ["TaskMonitor"]

#: The share of the time that saves may take: slow saves are made less often.
SAVING_SHARE = 0.01

#: Saves are at most this many times as far apart as was asked for, however slow they are.
RAREST_SAVES = 10


@dataclass
class _Counts:
    """The progress of the stack in training.

    Attributes:
        first_step: the step at which this attempt continued the stack.
        step: the step of the last read-back.
        earlier_made: model-steps of earlier attempts; None until the first read-back.
        made: model-steps of this attempt at the last read-back.
        active: configs still in training at the last read-back.
        queued: steps that have been queued on the device.
        reported: when the heartbeat was last updated.
    """

    first_step: int = 0
    step: int = 0
    earlier_made: int | None = 0
    made: int = 0
    active: int = 0
    queued: int = 0
    reported: float = 0.0


class TaskMonitor(Monitor):
    """Saves the state of one pack in training, and reports its progress to the task's heartbeat.

    Args:
        checkpoint: of the pack.
        stop: set when the task is to save and stop.
        heartbeat: of the task, for this pack.
        meter: counts the model-steps of the pack.
        interval: seconds between two saves; more if saves are slow.
        pass_on: lets other packs queue their steps, while the device works on those of this one.
        shares_device: whether there may be other packs.
        verbose: print losses as they fall.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        stop: StopFlag,
        heartbeat: PackHeartbeat,
        meter: PackMeter,
        interval: float,
        *,
        pass_on: Callable[[], None] = lambda: None,
        shares_device: bool = False,
        verbose: bool = False,
    ) -> None:
        self.shares_device = shares_device
        self.checkpoint = checkpoint
        self.stop = stop
        self.heartbeat = heartbeat
        self._meter = meter
        self._interval = interval
        self._pass_on, self._verbose = pass_on, verbose
        self._configs = 0
        self._step_ideal: float | None = None
        #: When the stack was begun, the last save ended, and the loop last asked for one.
        self._begun = self._saved = self._asked = time.monotonic()
        #: How long the last save took, with the copy from the device.
        self._saving = 0.0
        self._counts, self._curve = _Counts(), LossCurve()
        self._keeps = True
        #: Configs of the stack that have stopped, by the last read-back.
        self.stopped: frozenset[int] = frozenset()
        self._report_place()
        #: The trained fraction of the pack when this attempt began.
        self._first_share = self.heartbeat.share
        self.heartbeat.update(first_share=self._first_share)

    # ---- between two stacks

    def begin_stack(self, configs: int, step_ideal: float | None = None) -> None:
        """Prepare for a stack.

        Args:
            configs: the number of its configs.
            step_ideal: the ideal seconds of one model-step of it; None if unknown.
        """
        self._configs, self._step_ideal = configs, step_ideal

    def finish_stack(self, arrays: Arrays) -> None:
        """Keep the result of a stack; the next one starts at step 0."""
        self.checkpoint.finished.append(arrays)
        self.restart()

    def restart(self) -> None:
        """Let the stack to train next start at step 0."""
        self._meter.stop()
        self.checkpoint.begin_stack()
        self.stopped = frozenset()
        self._begun = time.monotonic()
        self._report_place()
        if self.checkpoint.settled < self.checkpoint.configs:
            self.heartbeat.update(doing="preparing the next configs")

    def _report_place(self) -> None:
        """Report how much of the pack is trained, between two stacks of it."""
        saved = self.checkpoint.state is not None
        self.heartbeat.update(
            settled=self.checkpoint.settled,
            stack=len(self.checkpoint.rows or ()) if saved else 0,
            step=self.checkpoint.progress[1],
        )

    @property
    def seconds(self) -> float:
        """The time spent on the stack in training, in all attempts."""
        return self.checkpoint.seconds + time.monotonic() - self._begun

    # ---- called by the train loop

    def restore(self) -> dict[str, Any] | None:
        """Return the state to continue from; None to start at step 0."""
        state = self.checkpoint.state
        start = 0 if state is None else int(state["start"])
        self._counts = _Counts(
            first_step=start,
            step=start,
            queued=start,
            earlier_made=None if start else 0,
            active=_active(state, self._configs),
            reported=time.monotonic(),
        )
        self.stopped = _stopped(state)
        self._curve = LossCurve.restored(self.checkpoint.curve, start) if start else LossCurve()
        self.heartbeat.update(
            settled=self.checkpoint.settled,
            stack=self._configs,
            first_step=start,
            step=start,
            doing="making the first steps",
        )
        self._first_share = min(self._first_share, self.heartbeat.share)  # if it begins anew
        self.heartbeat.update(first_share=self._first_share)
        if earlier := self._curve.to_json():
            self.heartbeat.update(losses=earlier, loss=earlier[-1][1])
        self._meter.start(self._step_ideal)
        return state

    def before_wait(self) -> None:
        """Let other packs queue their steps."""
        self._pass_on()

    def due(self, step: int) -> bool:
        """Return whether it is time to save, or to stop."""
        now = self._asked = time.monotonic()
        self._counts.queued = step + 1
        if now - self._counts.reported >= HEARTBEAT_SECONDS:  # wide MLPs: minutes to a read-back
            self._report(now)
        wait = min(self._saving / SAVING_SHARE, RAREST_SAVES * self._interval)
        return self.stop.is_set() or now - self._saved >= max(self._interval, wait)

    def save(self, state: dict[str, Any] | None) -> None:
        """Replace the checkpoint; a disk that is full does not end the training.

        Args:
            state: of the stack in training; None to start at step 0.

        Raises:
            Interrupted: if the task is to stop; before the state is saved, if another one trains
                its packs now.
        """
        if self.heartbeat.is_overtaken():
            raise Interrupted
        if state is None:  # else due() was called just now, and the state copied since
            self._asked = time.monotonic()
        self.checkpoint.curve = None if state is None else self._curve.to_state()
        try:
            self.checkpoint.save(state, self.seconds)
        except (OSError, RuntimeError) as error:
            echo(f"checkpoint {self.checkpoint.file.name} not written: {error}")
        else:
            if state is not None and state["start"] > self._counts.first_step:
                self.heartbeat.update(progressed=True, step=state["start"])
        self._saved = time.monotonic()
        self._saving = self._saved - self._asked
        if self.stop.is_set():
            raise Interrupted

    def keep(self, state: dict[str, Any]) -> None:
        """Keep a state of the pack for a longer training, if it trains as one stack."""
        checkpoint, file = self.checkpoint, self._kept(is_uncrossed(state))
        if checkpoint.parts.divided or checkpoint.rows != list(range(checkpoint.configs)):
            if self._keeps:
                echo(f"{file.stem}: KEEP_STATE keeps none, as the pack trains in several stacks")
            self._keeps = False
            return
        checkpoint.curve = self._curve.to_state()
        try:
            checkpoint.keep(file, state, self.seconds)
        except (OSError, RuntimeError) as error:
            echo(f"state {file.name} not written: {error}")

    def _kept(self, uncrossed: bool) -> Path:
        run = RunDirectory(self.checkpoint.file.parent.parent)
        return run.kept_state(self.checkpoint.file.stem, uncrossed=uncrossed)

    def progress(self, progress: Progress) -> None:
        """Report a read-back to the heartbeat and the meter."""
        counts, self.stopped = self._counts, progress.stopped
        finite = progress.losses[np.isfinite(progress.losses)]
        loss = float(np.median(finite)) if len(finite) else None
        if counts.earlier_made is None:  # as if no config had stopped since this attempt began
            own = (progress.step - counts.first_step) * progress.active
            counts.earlier_made = progress.made - own
        self._meter.record(
            (progress.step - counts.step) * progress.rows,
            full_size=progress.rows == self._configs,
        )
        counts.step, counts.made = progress.step, progress.made - counts.earlier_made
        counts.active, counts.queued = progress.active, progress.step
        self._curve.add(progress.step, loss)
        self.heartbeat.update(
            first_step=counts.first_step,
            max_iter=progress.max_iter,
            active=progress.active,
            loss=loss,
            losses=self._curve.to_json(),
        )
        self._report(time.monotonic())
        if self._verbose:
            shown = "not finite" if loss is None else f"{loss:.4g}"
            echo(f"step {progress.step}: {progress.active} train, loss {shown}")

    def _report(self, now: float) -> None:
        counts = self._counts
        counts.reported = now
        self._meter.update(counts.made + (counts.queued - counts.step) * counts.active)
        if counts.queued > counts.first_step:
            self.heartbeat.update(doing="")
        self.heartbeat.update(step=counts.queued, **self._meter.fields())


def _stopped(state: dict[str, Any] | None) -> frozenset[int]:
    """Return the configs that have stopped in a saved state."""
    if state is None or state.get("format") != STATE_FORMAT:
        return frozenset()
    status = state["parts"]["history"]["status"]
    return frozenset(status.nonzero().flatten().tolist())


def _active(state: dict[str, Any] | None, configs: int) -> int:
    """Return how many of its configs a stack still trains that continues from a state."""
    if state is None or state.get("format") != STATE_FORMAT:  # the training will refuse it
        return configs
    return len(state["parts"]["stack"]["configs"])
