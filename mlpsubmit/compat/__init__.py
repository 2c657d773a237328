"""The names of MLPscape's and modelscape's scripts, on top of sweeps and runs.

A script written for these runs here with other imports, and little else to change;
docs/mlpscape.md is the guide.
The names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlpsubmit.batchfns import Monomial as Monomial
    from mlpsubmit.compat.arguments import base_args as base_args
    from mlpsubmit.compat.arguments import parse_args as parse_args
    from mlpsubmit.compat.data import generate_hea_monomials as generate_hea_monomials
    from mlpsubmit.compat.data import get_new_polynomial_data as get_new_polynomial_data
    from mlpsubmit.compat.data import get_relu_level_coeff_fn as get_relu_level_coeff_fn
    from mlpsubmit.compat.data import get_synthetic_X as get_synthetic_X
    from mlpsubmit.compat.data import polynomial_batch_fn as polynomial_batch_fn
    from mlpsubmit.compat.files import FileManager as FileManager
    from mlpsubmit.compat.files import load_json as load_json
    from mlpsubmit.compat.grabs import build_other_grabs as build_other_grabs
    from mlpsubmit.compat.iterating import run_job_iterator as run_job_iterator
    from mlpsubmit.compat.tensors import ensure_numpy as ensure_numpy
    from mlpsubmit.compat.tensors import ensure_torch as ensure_torch
    from mlpsubmit.results.expt_trace import ExptTrace as ExptTrace
    from mlpsubmit.training import MLP as MLP

_HOMES = {
    "ExptTrace": "results.expt_trace",
    "FileManager": "compat.files",
    "MLP": "training",
    "Monomial": "batchfns",
    "base_args": "compat.arguments",
    "build_other_grabs": "compat.grabs",
    "ensure_numpy": "compat.tensors",
    "ensure_torch": "compat.tensors",
    "generate_hea_monomials": "compat.data",
    "get_new_polynomial_data": "compat.data",
    "get_relu_level_coeff_fn": "compat.data",
    "get_synthetic_X": "compat.data",
    "load_json": "compat.files",
    "parse_args": "compat.arguments",
    "polynomial_batch_fn": "compat.data",
    "run_job_iterator": "compat.iterating",
}

__all__ = [
    "MLP",
    "ExptTrace",
    "FileManager",
    "Monomial",
    "base_args",
    "build_other_grabs",
    "ensure_numpy",
    "ensure_torch",
    "generate_hea_monomials",
    "get_new_polynomial_data",
    "get_relu_level_coeff_fn",
    "get_synthetic_X",
    "load_json",
    "parse_args",
    "polynomial_batch_fn",
    "run_job_iterator",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"mlpsubmit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
