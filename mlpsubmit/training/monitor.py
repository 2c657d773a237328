"""The interface of a training to its caller: progress reports, and saved states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlpsubmit.errors import UserError

__all__ = [
    "STATE_FORMAT",
    "Interrupted",
    "Monitor",
    "Progress",
    "StateError",
]

#: Format of a saved state, which is part of it; counted up whenever its content changes.
STATE_FORMAT = 10


class Interrupted(Exception):
    """Raised by :meth:`Monitor.save`, after saving, to end the training."""


class StateError(UserError):
    """A saved state that this version, or this training, cannot continue from."""


@dataclass(frozen=True)
class Progress:
    """The progress of K configs at a read-back.

    Attributes:
        step: gradient steps so far.
        made: the sum of the configs' gradient steps; a config makes none after it has stopped.
        max_iter: gradient steps at most.
        active: configs still in training.
        rows: rows of the stack in the last steps, including configs that stopped in them.
        finished: configs that have stopped, done or diverged.
        losses: (K,) float64, the last smoothed train loss of every config; of a diverged config
            the value at which it stopped, which is not finite.
        stopped: the configs that have stopped.
    """

    step: int
    made: int
    max_iter: int
    active: int
    rows: int
    finished: int
    losses: np.ndarray[Any, np.dtype[np.float64]]
    stopped: frozenset[int] = frozenset()


class Monitor:
    """Callbacks of a training: the only way in which it reaches its caller while it runs.

    By default they do nothing.
    """

    #: Whether other trainings use the device at the same time: how fast steps are, not what they
    #: compute, may depend on it.
    shares_device = False

    def restore(self) -> dict[str, Any] | None:
        """Return the state saved earlier, or None to start from the beginning."""
        return None

    def due(self, step: int) -> bool:
        """Return whether to save the state now.

        Called after every step, or on a GPU after several that were replayed at once, so it must
        be cheap.

        Args:
            step: the last step that has been queued on the device.
        """
        return False

    def save(self, state: dict[str, Any]) -> None:
        """Save the state (all tensors on the CPU; ``torch.load(weights_only=True)`` reads it back).

        Raises:
            Interrupted: after saving, to end the training.
        """

    def keep(self, state: dict[str, Any]) -> None:
        """Keep a state from which a longer training continues; as :meth:`save`, with KEEP_STATE."""

    def before_wait(self) -> None:
        """Do other work: all steps of a block are queued, and the training waits for them next."""

    def progress(self, progress: Progress) -> None:
        """Receive the progress. Called at every read-back."""
