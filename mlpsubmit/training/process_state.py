"""The state of the process that functions of a user, or a training, may change."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.utils.deterministic

__all__ = ["preserved_state"]

#: Settings of torch: how each is read, and how it is set.
_SETTINGS: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_rng_state, torch.set_rng_state),
    (random.getstate, random.setstate),
    (lambda: np.random.get_state(legacy=False), np.random.set_state),
    (np.geterr, lambda errors: np.seterr(**errors)),
    (os.getcwd, os.chdir),
]

#: Attributes of modules of torch that are settings.
_ATTRIBUTES: list[tuple[Any, str]] = [
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "deterministic"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.utils.deterministic, "fill_uninitialized_memory"),
]


@contextlib.contextmanager
def preserved_state() -> Iterator[None]:
    """Restore generators, threads, settings of torch, environment and working directory at the end.

    Those of CUDA too, if it is in use.
    """
    with contextlib.ExitStack() as stack:
        for read, restore in _SETTINGS:
            stack.callback(restore, read())
        for module, name in _ATTRIBUTES:
            stack.callback(setattr, module, name, getattr(module, name))
        cuda: Any = torch.cuda  # which has functions without types
        if cuda.is_initialized():
            stack.callback(cuda.set_rng_state_all, cuda.get_rng_state_all())
        stack.callback(_restore_environment, dict(os.environ))
        yield


def _restore_environment(before: dict[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    changed = {name: value for name, value in before.items() if os.environ.get(name) != value}
    os.environ.update(changed)
