"""The saved state of a pack in training, and how far it is."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlpsubmit import files
from mlpsubmit.jobs.heartbeat import HEARTBEAT_SECONDS, Heartbeat
from mlpsubmit.jobs.throughput.meter import ThroughputMeter
from mlpsubmit.training.monitor import STATE_FORMAT, Interrupted, Progress

__all__ = ["Checkpoint"]

#: The share of the time that saves may take: what takes long to save is saved less often.
SAVING_SHARE = 0.01

#: Saves are at most this many times as far apart as was asked for, however slow they are.
RAREST_SAVES = 10

Arrays = dict[str, NDArray[Any]]


class Checkpoint:
    """Saves the state of a pack, and says in the heartbeat how far it is.

    The file holds the results of the pack's finished stacks, the state of the one that trains, the
    seconds that earlier lives have spent on that one, and how the pack has been halved.

    Args:
        configs: how many configs the pack has.
        stop: set where the task is to save and stop.
        interval: seconds between two saves; more where saves are slow.
        verbose: print losses as they fall.
        meter: counts what is made, over all packs of a task.

    Attributes:
        parts: the places in the pack of configs that are not yet trained, in one list those that
            are assembled together: all, as long as the pack has not run out of memory.
        alike: how many of the first parts are pieces of what was one: need as much memory.
        together: the places of those that are assembled or in training now.
        halved: whether the pack has ever run out of memory.
        step_ideal: for ``meter``, of the stack that is to train.
    """

    def __init__(
        self,
        file: Path,
        configs: int,
        device: torch.device,
        stop: threading.Event,
        heartbeat: Heartbeat,
        interval: float,
        verbose: bool,
        meter: ThroughputMeter | None = None,
    ) -> None:
        self.file = file
        self.configs = configs
        self.device = device
        self.stop = stop
        self.heartbeat = heartbeat
        self.interval = interval
        self.verbose = verbose
        self.meter = meter or ThroughputMeter()
        self.step_ideal: float | None = None
        self.together: list[int] = []
        self._begin()
        self._load()
        self.started = self.saved = self.asked = time.monotonic()
        self.saving = 0.0
        self._rewind(0 if self.state is None else int(self.state["start"]))

    def _begin(self) -> None:
        """Let nothing of the pack be trained."""
        self.parts, self.alike = [list(range(self.configs))], 1
        self.halved = False
        self.finished: list[Arrays] = []
        self.state: dict[str, Any] | None = None
        self.earlier_seconds = 0.0

    def _load(self) -> None:
        if not self.file.exists():
            return
        try:
            content = torch.load(self.file, weights_only=True)
            if content["device"] != self.device.type:
                raise ValueError(f"it was saved on {content['device']}, not on {self.device.type}")
        except Exception as error:
            print(f"checkpoint {self.file.name} is unusable, starting anew: {error}", flush=True)
            return
        self.finished = [
            {name: tensor.numpy() for name, tensor in arrays.items()}
            for arrays in content["finished"]
        ]
        self.state, self.earlier_seconds = content["state"], content["seconds"]
        if content.get("halved"):  # a file of an earlier version does not say
            self.parts, self.alike, self.halved = content["parts"], content["alike"], True

    @property
    def seconds(self) -> float:
        """The time spent on the stack that trains, in all lives of the pack."""
        return self.earlier_seconds + time.monotonic() - self.started

    def finish(self, arrays: Arrays) -> None:
        """Take the result of one stack; the next one starts from the beginning."""
        self.finished.append(arrays)
        self._restart()

    def _restart(self) -> None:
        self.meter.stop()
        self.state, self.earlier_seconds, self.started = None, 0.0, time.monotonic()
        self._rewind(0)

    def _rewind(self, step: int) -> None:
        """Note the step that the stack goes on from: what this life trains itself starts there."""
        self.first_step = self.step = step
        #: Model-steps at the last read-back: by this life, and by the ones before, once known.
        self.made, self.earlier_made = 0, 0 if step == 0 else None
        #: Configs in training, and steps since the last read-back.
        self.active, self.ahead, self.told = 0, 0, time.monotonic()

    @property
    def done(self) -> set[int]:
        """The places of the configs that have a result."""
        return {place for arrays in self.finished for place in arrays["position"].tolist()}

    def leave_part(self) -> None:
        """Go on to the next part, for this one is trained."""
        self.parts.pop(0)
        self.alike = max(1, self.alike - 1)

    def halve(self) -> int:
        """Let what ran out of memory, and what is like it, begin anew with half as many together.

        Returns:
            How many configs a part has at most. Nothing is saved yet.
        """
        done, size = self.done, (len(self.together) + 1) // 2
        first, *others = ([p for p in part if p not in done] for part in self.parts[: self.alike])
        left = [*first, *(place for part in others for place in part)]
        # Where it was one of several stacks, the others may well fit as they are.
        pieces = left if len(self.together) == len(first) else self.together
        cut = [pieces[start : start + size] for start in range(0, len(pieces), size)]
        rest = [place for place in left if place not in pieces]
        self.parts[: self.alike] = [*cut, rest] if rest else cut
        self.alike, self.halved = len(cut), True
        self._restart()
        return size

    def rejoin(self) -> None:
        """Save that all that is left trains together: a device with more memory may take it on."""
        done = self.done
        self.parts = [sorted(p for part in self.parts for p in part if p not in done)]
        self.alike = 1
        self._restart()
        self.save(None)

    def discard(self) -> None:
        """Forget a state that cannot be continued from."""
        self.file.unlink(missing_ok=True)
        self._begin()
        self._restart()

    # ---- what the train loop calls

    def restore(self) -> dict[str, Any] | None:
        """Return the state to continue from."""
        self.active = _rows(self.state, len(self.together))
        self.heartbeat.update(first_step=self.first_step, step=self.step)
        self.meter.start(self.step_ideal)
        return self.state

    def due(self) -> bool:
        """Tell whether it is time to save, or to stop."""
        now = self.asked = time.monotonic()
        self.ahead += 1
        if now - self.told >= HEARTBEAT_SECONDS:  # wide networks take minutes to a read-back
            self._tell(now)
        wait = min(self.saving / SAVING_SHARE, RAREST_SAVES * self.interval)
        return self.stop.is_set() or now - self.saved >= max(self.interval, wait)

    def save(self, state: dict[str, Any] | None) -> None:
        """Replace the file; a disk that is full must not end the training.

        Args:
            state: of the stack that trains; None where the next one is to begin.

        Raises:
            Interrupted: where the task is to stop.
        """
        if state is None:  # else it was asked for just now, and copied since
            self.asked = time.monotonic()
        finished = [
            {name: torch.from_numpy(array) for name, array in arrays.items()}
            for arrays in self.finished
        ]
        content = {
            "device": self.device.type,
            "finished": finished,
            "state": state,
            "seconds": self.seconds,
            "parts": self.parts,
            "alike": self.alike,
            "halved": self.halved,
        }
        try:
            files.publish(self.file, lambda stream: torch.save(content, stream))
        except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
            print(f"checkpoint {self.file.name} not written: {error}", flush=True)
        else:
            if state is not None and state["start"] > self.first_step:
                self.heartbeat.update(progressed=True, step=state["start"])
        self.saved = time.monotonic()
        self.saving = self.saved - self.asked  # with the copy from the device
        if self.stop.is_set():
            raise Interrupted

    def progress(self, progress: Progress) -> None:
        """Say in the heartbeat how far the stack is."""
        finite = progress.losses[np.isfinite(progress.losses)]
        loss = float(np.median(finite)) if len(finite) else None
        if self.earlier_made is None:  # as if no config had stopped since this life began
            own = (progress.step - self.first_step) * progress.active
            self.earlier_made = progress.made - own
        self.meter.record(
            (progress.step - self.step) * progress.rows,
            full_size=progress.rows == len(self.together),
        )
        self.step, self.made = progress.step, progress.made - self.earlier_made
        self.active, self.ahead = progress.active, 0
        self.heartbeat.update(
            first_step=self.first_step,
            max_iter=progress.max_iter,
            active=progress.active,
            loss=loss,
        )
        self._tell(time.monotonic())
        self.ahead = -1  # the loop asks once more after this very step
        if self.verbose:
            shown = "not finite" if loss is None else f"{loss:.4g}"
            print(f"step {progress.step}: {progress.active} train, loss {shown}", flush=True)

    def _tell(self, now: float) -> None:
        self.told = now
        self.meter.update(self.made + self.ahead * self.active)
        self.heartbeat.update(step=self.step + self.ahead, **self.meter.fields())


def _rows(state: dict[str, Any] | None, configs: int) -> int:
    """Return how many of its configs a stack still has that goes on from a state."""
    if state is None or state.get("format") != STATE_FORMAT:  # the training will refuse it
        return configs
    return len(state["parts"]["stack"]["configs"])
