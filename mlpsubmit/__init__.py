"""Sweeps of small neural networks, packed onto GPUs and submitted as SLURM job arrays.

The public names are imported when they are first used, so that the command line starts at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlpsubmit.batchfns import Monomial as Monomial
    from mlpsubmit.errors import RunError as RunError
    from mlpsubmit.errors import SpecError as SpecError
    from mlpsubmit.errors import UserError as UserError
    from mlpsubmit.hyperparameters import Hyperparameters as Hyperparameters
    from mlpsubmit.launching import launch as launch
    from mlpsubmit.run import Run as Run
    from mlpsubmit.run import open_run as open_run
    from mlpsubmit.sweep import Config as Config
    from mlpsubmit.sweep import Sweep as Sweep
    from mlpsubmit.training import MLP as MLP
    from mlpsubmit.training import train as train

_HOMES = {
    "Config": "sweep",
    "Hyperparameters": "hyperparameters",
    "MLP": "training",
    "Monomial": "batchfns",
    "Run": "run",
    "RunError": "errors",
    "SpecError": "errors",
    "Sweep": "sweep",
    "UserError": "errors",
    "launch": "launching",
    "open_run": "run",
    "train": "training",
}

__all__ = [
    "MLP",
    "Config",
    "Hyperparameters",
    "Monomial",
    "Run",
    "RunError",
    "SpecError",
    "Sweep",
    "UserError",
    "launch",
    "open_run",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mlpsubmit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mlpsubmit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
