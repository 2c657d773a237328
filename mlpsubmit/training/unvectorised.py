"""Why a function cannot be computed for several models at once, in words of the user's code."""

from __future__ import annotations

import re
import traceback

from torch import nn

from mlpsubmit.errors import error_message
from mlpsubmit.spec.libraries import user_frames

__all__ = ["OneAtATime", "unvectorised"]

#: Parts of torch's messages, and what it is that they are about, after "MODEL has ".
_REASONS = {
    "data-dependent control flow": "a branch that depends on the data",
    ".item()": "a number that depends on the data",
    "data pointer of Tensor": "an array or a number that depends on the data",
    "numpy() on": "an array that depends on the data",
    "dynamic shape": "a shape that depends on the data",
    "inplace arithmetic": "a write into a tensor that all models share",
    "accessing `data`": "a use of .data, which hides a tensor from PyTorch",
    "setup_context": "an autograd.Function without setup_context and generate_vmap_rule",
    "generate_vmap_rule": "an autograd.Function without generate_vmap_rule",
    "saved tensor hooks": "checkpointing, or other hooks of saved tensors",
    "escaped from inside a function being vmapped": "a part that is computed in the backward pass "
    "(checkpointing, or a hook)",
    "inplace randomness": "random numbers in a tensor that all models share; torch.randn_like(h) "
    "draws some for each",
    "randomness": "random numbers drawn outside of the first forward pass of a model",
}

#: Torch's messages about one operation, whose name they give.
_OPERATION = re.compile(r"(?:not implemented for|not yet support) aten::(\w+)")


class OneAtATime(Exception):
    """Something in a forward pass that is for one model at a time; the message follows "MODEL"."""


def unvectorised(error: Exception, what: str) -> str:
    """Return why a function failed under ``torch.vmap``: what of it, and where that is.

    Args:
        error: which it raised, in its forward or its backward pass.
        what: MODEL or LOSS.
    """
    if isinstance(error, OneAtATime):
        return f"{what} {error}{_place(error)}"
    text = error_message(error)
    found = (reason for part, reason in _REASONS.items() if part in text)
    if (reason := next(found, None)) is not None:
        why = f"{what} has {reason}"
    elif operation := _OPERATION.search(text):
        name = operation[1].strip("_")
        why = f"{what} has an operation that PyTorch computes for one model at a time: {name}"
    else:
        why = f"{what} cannot be computed for several models at once"
    return why + _place(error)


def _place(error: Exception) -> str:
    """Return where an error was raised, in brackets: in the user's code, or in which module."""
    frames = list(user_frames(error.__traceback__))
    if frames:
        line = f": {frames[-1].line}" if frames[-1].line else ""
        return f" (line {frames[-1].lineno} of {frames[-1].filename.rpartition('/')[2]}{line})"
    owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [type(owner).__name__ for owner in owners if isinstance(owner, nn.Module)]
    return f" (in the module {modules[-1]})" if modules else ""
