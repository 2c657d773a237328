"""The training itself: one loop for a stack of models; it knows no jobs and no files of a run.

The public names are imported on first use, so that importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlpsubmit.training.batches import BatchError as BatchError
    from mlpsubmit.training.batches import BatchFn as BatchFn
    from mlpsubmit.training.grabbing import GrabError as GrabError
    from mlpsubmit.training.loop import train as train
    from mlpsubmit.training.models import MLP as MLP
    from mlpsubmit.training.monitor import Interrupted as Interrupted
    from mlpsubmit.training.monitor import Monitor as Monitor
    from mlpsubmit.training.monitor import Progress as Progress
    from mlpsubmit.training.monitor import SilentMonitor as SilentMonitor
    from mlpsubmit.training.monitor import StateError as StateError
    from mlpsubmit.training.parametrizations import parametrize as parametrize
    from mlpsubmit.training.schedule import schedule_steps as schedule_steps
    from mlpsubmit.training.seeds import Streams as Streams
    from mlpsubmit.training.seeds import streams as streams
    from mlpsubmit.training.seeds import weights_rng as weights_rng
    from mlpsubmit.training.trained import DIVERGED as DIVERGED
    from mlpsubmit.training.trained import DONE as DONE
    from mlpsubmit.training.trained import Trained as Trained

_HOME = {
    "BatchError": "batches",
    "BatchFn": "batches",
    "DIVERGED": "trained",
    "DONE": "trained",
    "GrabError": "grabbing",
    "Interrupted": "monitor",
    "MLP": "models",
    "Monitor": "monitor",
    "Progress": "monitor",
    "SilentMonitor": "monitor",
    "StateError": "monitor",
    "Streams": "seeds",
    "Trained": "trained",
    "parametrize": "parametrizations",
    "schedule_steps": "schedule",
    "streams": "seeds",
    "train": "loop",
    "weights_rng": "seeds",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
