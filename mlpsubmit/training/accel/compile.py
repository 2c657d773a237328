"""COMPILE: losses and gradients through torch.compile, for networks of the user's own.

The built-in MLP has formulas of its own (:mod:`mlpsubmit.training.accel.mlp`), of which a compiler
makes nothing faster: nine tenths of its time are matrix products. Other networks go through vmap
and autograd, and torch.compile fuses the passes between their products. What that gains, and how
it was measured, stands in docs/performance.md.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from mlpsubmit.spec.fingerprint import digest
from mlpsubmit.training.accel.cpu import cpu_info, cpu_name
from mlpsubmit.training.oom import ran_out_of_memory

__all__ = ["Compiled", "let_be_imported", "pays", "sharing_compiled"]

Returned = TypeVar("Returned")

_FOLDER = "TORCHINDUCTOR_CACHE_DIR"

#: Seconds of training that pay for a compilation: a tenth of them is gained, 5 to 25 are spent.
REPAID_AFTER = 300.0

#: Floating-point operations per second and thread that this is reckoned with.
USUAL_RATE = 1e11


def pays(model: nn.Module, device: torch.device, operations: float) -> bool:
    """Tell whether a compilation is worth its time, from what is known before: never from a clock.

    Args:
        operations: in matrix products, that the whole training takes at most.
    """
    # Convolutions became slower in the measurements, and no GPU has been measured.
    if device.type != "cpu" or any(isinstance(m, nn.Conv2d) for m in model.modules()):
        return False
    return operations > REPAID_AFTER * USUAL_RATE * torch.get_num_threads()


class Compiled(Generic[Returned]):
    """A function of tensors, compiled for the shapes it meets; the function itself if that fails.

    Args:
        function: what to compile. Not to be changed by, and not to change, anything outside.
        model: whose code it calls.

    Attributes:
        works: whether it is compiled, or still to be.
    """

    def __init__(self, function: Callable[..., Returned], model: nn.Module) -> None:
        torch.compiler.reset()  # what was compiled for other packs counts against a limit
        if torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(True)  # once more: it tells the compiler, too
        for module in model.modules():
            let_be_imported(type(module).forward)
        self._plain, self.works = function, True
        self._call: Callable[..., Returned] = torch.compile(function, dynamic=False)

    def __call__(self, *arguments: Any) -> Returned:
        """Call the function."""
        try:
            return self._call(*arguments)
        except Exception as error:
            plain, capturing = self._call is self._plain, _is_capturing()
            if plain or capturing or ran_out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or [""])[0]
            warnings.warn(
                f"COMPILE: the network could not be compiled ({type(error).__name__}: {reason}); "
                "it trains without; set COMPILE=False to do so from the start",
                stacklevel=2,
            )
            self._call, self.works = self._plain, False
        return self._call(*arguments)


def let_be_imported(function: Any) -> None:
    """Make the module that a function was written in one that can be imported, if it is none.

    In a worker the functions of a spec have travelled by value, and no such module is there; but
    the compiler looks up there what a function calls.
    """
    own: dict[str, Any] = getattr(function, "__globals__", {})
    name = own.get("__name__", "")
    if name and name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(own)
        for value in own.values():
            let_be_imported(value)


def _is_capturing() -> bool:
    """Tell whether a CUDA graph is being captured: what fails then says nothing of the function."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


@contextlib.contextmanager
def sharing_compiled(folder: Path) -> Iterator[None]:
    """Let torch keep what it compiles in a folder that other tasks use as well, for the duration.

    Machines of different processors have folders of their own in it: code for one may not run on
    another. What the user's environment says is left alone.
    """
    own = digest(platform.machine(), _cpu(), torch.__version__).hex()[:16]
    # A task has its share of the cores; by default the compiler would start a process on each.
    settings = {_FOLDER: str(folder / own), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    before = {name: os.environ.get(name) for name in settings}
    if Path(before[_FOLDER] or "").name.startswith("torchinductor_"):
        before[_FOLDER] = None  # where torch has put its own default for want of another
    os.environ.update({name: value for name, value in settings.items() if before[name] is None})
    try:
        yield
    finally:
        for name in settings:
            if before[name] is None:
                os.environ.pop(name, None)


def _cpu() -> str:
    """Return the CPU's model and its instructions, as far as known."""
    info = cpu_info()
    return " ".join([cpu_name(), info.get("flags", ""), info.get("Features", "")])
