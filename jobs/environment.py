"""What may change the last digits of a result and is part of no key: versions, device, threads."""

from __future__ import annotations

import functools
import platform
import re
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from mlpsubmit.jobs.gpus import device_name
from mlpsubmit.native.cpu import cpu_name
from mlpsubmit.native.library import library

__all__ = ["environment"]


def environment(device: torch.device) -> dict[str, str | int]:
    """Return the versions, the device and the threads of this process, by name."""
    return {
        **_versions(),
        "cuda": _cuda() if device.type == "cuda" else "",
        "device": device_name(device),
        "cpu": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "c_functions": _c_functions() if device.type == "cpu" else "",
        "threads": torch.get_num_threads(),
    }


@functools.cache
def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in ("mlpsubmit", "torch", "numpy")},
        "blas": f"torch: {_torch_blas()}, numpy: {_numpy_blas()}",
    }


def _torch_blas() -> str:
    config: Any = torch.__config__
    found = re.search(r"\bBLAS_INFO=(\w+)", config.show())
    return found[1] if found else "unknown"


def _numpy_blas() -> str:
    config: Any = np.show_config(mode="dicts")
    blas = (config or {}).get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name', 'unknown')} {blas.get('version', '')}".rstrip()


def _c_functions() -> str:
    """Return whether functions in C compute MLPs and Gaussian draws, or PyTorch and numpy do."""
    return "not compiled" if library(torch.float32) is None else "compiled"


def _cuda() -> str:
    cudnn: Any = torch.backends.cudnn
    return f"{torch.version.cuda}, cuDNN {cudnn.version()}"
