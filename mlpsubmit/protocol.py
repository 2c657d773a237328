"""The interface between the train loop and the functions of a spec; docs/spec.md describes it.

A batch function is a factory ``(..., bsz, gen, X=None, y=None) -> batch_fn``; a grab is a
measurement ``(model, X_tr, ..., **kwargs) -> scalar or array``. Both get the arguments that they
declare, by name: axes, hyperparameters, data entries, and those that the loop supplies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeGuard, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "DIVERGED",
    "DONE",
    "EXCLUDED",
    "FAILED",
    "FOR_BATCHES",
    "FOR_GRABS",
    "GRAB_ARGUMENTS",
    "LOSS_PARAMS",
    "MISSING",
    "STATUSES",
    "SUPPLIED",
    "BatchFn",
    "Grab",
    "Layer",
    "LooksAhead",
    "is_layer",
]

#: The result of a batch function: from a step to inputs X (n, ...), targets y (n,) or (n, d_out).
BatchFn: TypeAlias = "Callable[[int], tuple[Tensor, Tensor]]"


@runtime_checkable
class LooksAhead(Protocol):
    """A batch function that uses its step, in a form that a recorded step on a GPU can replay.

    What a block of steps needs is uploaded before it; its steps read that on the device and count
    there, so that they run no Python code. Then ``next()`` is ``batch_fn(step)`` of each.
    """

    @property
    def buffers(self) -> list[Tensor]:
        """What a step changes in place."""

    def load(self, step: int, block: int) -> None:
        """Upload what the steps need from one on to the end of its block, in place.

        Args:
            step: the next one to be made.
            block: steps of a block; they begin at its multiples.
        """

    def next(self) -> tuple[Tensor, Tensor]:
        """Return the batch of the next step, and go on; without waiting for the device."""


#: A measurement: from its declared arguments to a number, an array, a tensor, or a list of these.
Grab: TypeAlias = Callable[..., Any]

#: A layer whose weights parametrizations scale and grabs measure.
Layer: TypeAlias = "nn.Linear | nn.Conv2d"


def is_layer(module: object) -> TypeGuard[Layer]:
    """Return whether a module is a :data:`Layer`: nn.Linear or nn.Conv2d, or a subclass."""
    from torch import nn  # importing this module does not import torch

    return isinstance(module, (nn.Linear, nn.Conv2d))


#: Names that batch functions and data functions may declare and the loop supplies.
FOR_BATCHES = frozenset({"gen", "bsz", "X", "y", "split", "device"})
#: Arguments that the loop passes to every grab, and all names that it supplies to grabs.
GRAB_ARGUMENTS = ("model", "X_tr", "y_tr", "X_te", "y_te", "opt", "model0")
FOR_GRABS = frozenset({*GRAB_ARGUMENTS, "gen", "bsz", "device"})
#: The argument of a LOSS for penalties: it is given the parameters of its config by name.
LOSS_PARAMS = "params"
#: All names that it supplies to any function: MODEL gets d_in and d_out, LOSS gets output.
SUPPLIED = FOR_BATCHES | FOR_GRABS | {"d_in", "d_out", "output", "step"}

#: The names of a config's status, by its code in shards and datasets. A config is done once it has
#: crossed the last threshold of STOP_ON or made MAX_ITER steps; it has diverged if its train loss
#: is no longer finite, which is a result and not a failure; ``where`` excludes points.
STATUSES = ("missing", "done", "diverged", "failed", "excluded")
MISSING, DONE, DIVERGED, FAILED, EXCLUDED = range(len(STATUSES))
