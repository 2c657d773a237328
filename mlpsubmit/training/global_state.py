"""The global state that a training, or a function of the user's, changes in its process.

What a spec sets on purpose is :mod:`mlpsubmit.spec.process`, which restores that.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["global_state_kept"]


@contextlib.contextmanager
def global_state_kept() -> Iterator[None]:
    """Restore the global generators, those of CUDA too if it is in use, and torch's threads."""
    cuda: Any = torch.cuda  # which has functions without types
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        stack.callback(np.random.set_state, np.random.get_state(legacy=False))
        stack.callback(random.setstate, random.getstate())
        if cuda.is_initialized():
            stack.callback(cuda.set_rng_state_all, cuda.get_rng_state_all())
        yield
