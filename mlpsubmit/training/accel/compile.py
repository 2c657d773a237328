"""Losses and gradients of custom models through torch.compile.

The built-in MLP is computed in closed form (:mod:`mlpsubmit.training.accel.mlp`), which a compiler
does not speed up: nine tenths of its time are matrix products. Custom models go through vmap and
autograd, and torch.compile fuses the passes between their matrix products. The gains are measured
in docs/performance.md.
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from mlpsubmit.native.cpu import machine_digest
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.training.oom import ran_out_of_memory

__all__ = ["Compiled", "compile_wanted", "make_importable", "sharing_compiled"]

Returned = TypeVar("Returned")

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"

#: Seconds of training from which on a compilation is repaid: it gains a tenth of them, and takes
#: 5 to 25.
REPAID_AFTER = 300.0

#: Assumed floating-point operations per second and thread.
ASSUMED_RATE = 1e11


def compile_wanted(
    common: Hyperparameters, model: nn.Module, device: torch.device, weights: int
) -> bool:
    """Return whether to compile: COMPILE, or where it is "auto" whether that pays.

    It is decided from the operations of the training, never from a clock, so that a restarted
    training decides alike.

    Args:
        model: one of the models.
        weights: trained weights of the whole stack.
    """
    if common.compile != "auto":
        return bool(common.compile)
    # Convolutions became slower in the measurements, and no GPU has been measured.
    if device.type != "cpu" or any(isinstance(m, nn.Conv2d) for m in model.modules()):
        return False
    # Per weight and sample 2 operations forward, 4 backward, and online 2 for f0.
    operations = 8.0 * weights * common.n_samples * common.max_iter
    return operations > REPAID_AFTER * ASSUMED_RATE * torch.get_num_threads()


class Compiled(Generic[Returned]):
    """A function of tensors, compiled at its first call; if that fails, the function as it is.

    Args:
        function: a pure function.
        model: the module that it calls.

    Attributes:
        works: whether it is compiled, or still to be.
    """

    def __init__(self, function: Callable[..., Returned], model: nn.Module) -> None:
        torch.compiler.reset()  # recompilations for other stacks count against a limit
        if torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(True)  # again: this also sets the compiler's flag
        for module in model.modules():
            make_importable(type(module).forward)
        self._plain, self.works = function, True
        self._call: Callable[..., Returned] = torch.compile(function, dynamic=False)

    def __call__(self, *arguments: Any) -> Returned:
        """Call the function."""
        try:
            return self._call(*arguments)
        except Exception as error:
            # While a CUDA graph is being captured, an error may be due to the capture.
            capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
            if not self.works or capturing or ran_out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or [""])[0]
            warnings.warn(
                f"COMPILE: the model could not be compiled ({type(error).__name__}: {reason}); "
                "it trains without; set COMPILE=False to do so from the start",
                stacklevel=2,
            )
            self._call, self.works = self._plain, False
        return self._call(*arguments)


def make_importable(function: Any) -> None:
    """Register the module in which a function was defined, if it cannot be imported.

    Functions of a spec reach a worker by value, without their module; but the compiler looks up
    their globals by the module's name.
    """
    own: dict[str, Any] = getattr(function, "__globals__", {})
    name = own.get("__name__", "")
    if name and name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(own)
        for value in own.values():
            make_importable(value)


@contextlib.contextmanager
def sharing_compiled(folder: Path) -> Iterator[None]:
    """Use a folder, which tasks share, as the compiler's cache within the context.

    It has a subfolder per model of CPU: code for one may not run on another. Variables that the
    user has set stay as they are.
    """
    machine = machine_digest(torch.__version__)
    # A task has its share of the cores; by default the compiler would start a process on each.
    settings = {_CACHE_VARIABLE: str(folder / machine), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    before = {name: os.environ.get(name) for name in settings}
    if Path(before[_CACHE_VARIABLE] or "").name.startswith("torchinductor_"):
        before[_CACHE_VARIABLE] = None  # the default, which torch itself has put there
    os.environ.update({name: value for name, value in settings.items() if before[name] is None})
    try:
        yield
    finally:
        for name in settings:
            if before[name] is None:
                os.environ.pop(name, None)
