"""What the train loop and the functions of a spec agree on, as DESIGN and docs/spec.md describe it.

A batch function is a factory ``(..., bsz, gen, X=None, y=None) -> batch_fn``, a grab a measurement
``(model, X_tr, ..., **kwargs) -> scalar or array``. Both get the arguments that they declare, by
name: axes, hyperparameters, data entries, and what the loop supplies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

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
    "MISSING",
    "STATUSES",
    "SUPPLIED",
    "BatchFn",
    "Grab",
    "Layer",
    "is_layer",
]

#: From a step to inputs X (n, ...) and targets y (n,) or (n, d_out): what a batch function returns.
BatchFn: TypeAlias = "Callable[[int], tuple[Tensor, Tensor]]"

#: A measurement: from what it declares to a number, an array, a tensor, or a list of these.
Grab: TypeAlias = Callable[..., Any]

#: A layer whose weights parametrizations scale and grabs measure.
Layer: TypeAlias = "nn.Linear | nn.Conv2d"


def is_layer(module: object) -> TypeGuard[Layer]:
    """Return whether a module is a :data:`Layer`: nn.Linear or nn.Conv2d, or a subclass."""
    from torch import nn  # importing this module does not import torch

    return isinstance(module, (nn.Linear, nn.Conv2d))


#: Names that batch functions and data functions may declare and the loop supplies.
FOR_BATCHES = frozenset({"gen", "bsz", "X", "y", "split", "device"})
#: What the loop itself hands to every grab, and all names that it supplies to grabs.
GRAB_ARGUMENTS = ("model", "X_tr", "y_tr", "X_te", "y_te", "opt", "model0")
FOR_GRABS = frozenset({*GRAB_ARGUMENTS, "gen", "bsz", "device"})
#: The same for every function of a spec: MODEL gets sizes, PARAMETRIZATION and LOSS theirs.
SUPPLIED = FOR_BATCHES | FOR_GRABS | {"d_in", "d_out", "output", "step"}

#: The status of a config: the code in shards and datasets, and the word for it. A config is done
#: once it has crossed its last threshold or made MAX_ITER steps; it has diverged if its train loss
#: was no longer finite, which is a result and not a failure; ``where`` excludes points.
STATUSES = ("missing", "done", "diverged", "failed", "excluded")
MISSING, DONE, DIVERGED, FAILED, EXCLUDED = range(len(STATUSES))
