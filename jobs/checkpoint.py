"""The saved state of a pack in training, and how far it is."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlpsubmit.jobs import store
from mlpsubmit.jobs.heartbeat import Heartbeat
from mlpsubmit.training.monitor import Interrupted, Progress

__all__ = ["Checkpoint"]

Arrays = dict[str, NDArray[Any]]


class Checkpoint:
    """Saves the state of a pack, and says in the heartbeat how far it is.

    The file holds the results of the pack's finished stacks, the state of the one that trains, and
    the seconds that earlier lives have spent on that one.

    Args:
        stop: set where the task is to save and stop.
        interval: seconds between two saves.
        verbose: print losses as they fall.
    """

    def __init__(
        self,
        file: Path,
        device: torch.device,
        stop: threading.Event,
        heartbeat: Heartbeat,
        interval: float,
        verbose: bool,
    ) -> None:
        self.file = file
        self.device = device
        self.stop = stop
        self.heartbeat = heartbeat
        self.interval = interval
        self.verbose = verbose
        self.finished: list[Arrays] = []
        self.state: dict[str, Any] | None = None
        self.earlier_seconds = 0.0
        self._load()
        self.started = self.saved = self.seen = time.monotonic()
        self.step, self.active = 0, 0

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

    @property
    def seconds(self) -> float:
        """The time spent on the stack that trains, in all lives of the pack."""
        return self.earlier_seconds + time.monotonic() - self.started

    def finish(self, arrays: Arrays) -> None:
        """Take the result of one stack; the next one starts from the beginning."""
        self.finished.append(arrays)
        self.state, self.earlier_seconds, self.started = None, 0.0, time.monotonic()

    def discard(self) -> None:
        """Forget a state that cannot be continued from."""
        self.file.unlink(missing_ok=True)

    # ---- what the train loop calls

    def restore(self) -> dict[str, Any] | None:
        """Return the state to continue from."""
        return self.state

    def due(self) -> bool:
        """Tell whether it is time to save, or to stop."""
        return self.stop.is_set() or time.monotonic() - self.saved >= self.interval

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file; a disk that is full must not end the training.

        Raises:
            Interrupted: where the task is to stop.
        """
        finished = [
            {name: torch.from_numpy(array) for name, array in arrays.items()}
            for arrays in self.finished
        ]
        content = {
            "device": self.device.type,
            "finished": finished,
            "state": state,
            "seconds": self.seconds,
        }
        try:
            store.publish(self.file, lambda stream: torch.save(content, stream))
        except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
            print(f"checkpoint {self.file.name} not written: {error}", flush=True)
        self.saved = time.monotonic()
        if self.stop.is_set():
            raise Interrupted

    def progress(self, progress: Progress) -> None:
        """Say in the heartbeat how far the stack is."""
        now = time.monotonic()
        finite = progress.losses[np.isfinite(progress.losses)]
        loss = float(np.median(finite)) if len(finite) else None
        made = max(0, progress.step - self.step) * max(self.active, progress.active)
        self.heartbeat.update(
            step=progress.step,
            max_iter=progress.max_iter,
            active=progress.active,
            loss=loss,
            speed=made / max(now - self.seen, 1e-9),
        )
        self.step, self.active, self.seen = progress.step, progress.active, now
        if self.verbose:
            shown = "not finite" if loss is None else f"{loss:.4g}"
            print(f"step {progress.step}: {progress.active} train, loss {shown}", flush=True)
