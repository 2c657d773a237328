"""How the outside sees a pack in training: its progress, and its state to be saved and restored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from mlpsubmit.errors import UserError

__all__ = [
    "STATE_FORMAT",
    "Interrupted",
    "Monitor",
    "Progress",
    "SilentMonitor",
    "StateError",
    "map_tensors",
]

#: Written into every saved state; counted up whenever the meaning of what it holds changes.
STATE_FORMAT = 3


class Interrupted(Exception):
    """Raised by :meth:`Monitor.save`, after saving, to end the training here."""


class StateError(UserError):
    """A saved state that this version, or this pack, cannot continue from."""


@dataclass(frozen=True)
class Progress:
    """What is known at a read-back.

    Attributes:
        step: gradient steps made so far.
        made: those of all configs together, each as many as it has made until it stopped.
        max_iter: gradient steps at most.
        active: configs still in training.
        rows: configs in the stack that made the last steps, whether they stopped meanwhile or not.
        finished: configs that have stopped, whether done or diverged.
        losses: (K,) float64, the last smoothed train loss of every config; of a diverged config
            the value it stopped at, which is not finite.
    """

    step: int
    made: int
    max_iter: int
    active: int
    rows: int
    finished: int
    losses: np.ndarray[Any, np.dtype[np.float64]]


class Monitor(Protocol):
    """The only way in which a pack in training talks to the outside."""

    def restore(self) -> dict[str, Any] | None:
        """Return the state saved earlier, or None to start from the beginning."""

    def due(self) -> bool:
        """Say whether the state is to be saved now. Asked after every step, so it must be cheap."""

    def save(self, state: dict[str, Any]) -> None:
        """Keep the state (``torch.load(weights_only=True)`` reads it back; all tensors on the CPU).

        Raises:
            Interrupted: after saving, where the training is to end here.
        """

    def progress(self, progress: Progress) -> None:
        """Take note of the progress. Called at every read-back."""


class SilentMonitor:
    """Saves nothing and says nothing."""

    def restore(self) -> dict[str, Any] | None:
        """Return None: there is nothing to continue from."""
        return None

    def due(self) -> bool:
        """Return False: nothing is ever saved."""
        return False

    def save(self, state: dict[str, Any]) -> None:
        """Do nothing."""

    def progress(self, progress: Progress) -> None:
        """Do nothing."""


def map_tensors(state: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return the same nested dicts, lists and tuples with every tensor changed."""
    if isinstance(state, torch.Tensor):
        return change(state)
    if isinstance(state, dict):
        return {key: map_tensors(value, change) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map_tensors(value, change) for value in state)
    return state
