"""Where data come from: target functions, Gaussian inputs, images and arrays.

The names below are imported when they are first used, so that ``Monomial`` costs no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlpsubmit.batchfns.arrays import arrays, sample
    from mlpsubmit.batchfns.dataset import from_dataset
    from mlpsubmit.batchfns.gaussian import power_law
    from mlpsubmit.batchfns.hea import (
        exponential_level_coeffs,
        gaussian_level_coeffs,
        hea_eigenvalue,
        hea_monomials,
        relu_ntk_level_coeffs,
    )
    from mlpsubmit.batchfns.hermite import hermite, hermite_features
    from mlpsubmit.batchfns.images import images
    from mlpsubmit.batchfns.modular import modular_addition
    from mlpsubmit.batchfns.monomial import Monomial
    from mlpsubmit.batchfns.multi_index import multi_index
    from mlpsubmit.batchfns.parity import sparse_parity
    from mlpsubmit.batchfns.polynomial import polynomial
    from mlpsubmit.batchfns.protocol import BatchFn
    from mlpsubmit.batchfns.synthetic import synthetic
    from mlpsubmit.batchfns.teacher import teacher, teacher_weights

__all__ = [
    "BatchFn",
    "Monomial",
    "arrays",
    "exponential_level_coeffs",
    "from_dataset",
    "gaussian_level_coeffs",
    "hea_eigenvalue",
    "hea_monomials",
    "hermite",
    "hermite_features",
    "images",
    "modular_addition",
    "multi_index",
    "polynomial",
    "power_law",
    "relu_ntk_level_coeffs",
    "sample",
    "sparse_parity",
    "synthetic",
    "teacher",
    "teacher_weights",
]

_HOMES = {
    "BatchFn": "protocol",
    "Monomial": "monomial",
    "arrays": "arrays",
    "exponential_level_coeffs": "hea",
    "from_dataset": "dataset",
    "gaussian_level_coeffs": "hea",
    "hea_eigenvalue": "hea",
    "hea_monomials": "hea",
    "hermite": "hermite",
    "hermite_features": "hermite",
    "images": "images",
    "modular_addition": "modular",
    "multi_index": "multi_index",
    "polynomial": "polynomial",
    "power_law": "gaussian",
    "relu_ntk_level_coeffs": "hea",
    "sample": "arrays",
    "sparse_parity": "parity",
    "synthetic": "synthetic",
    "teacher": "teacher",
    "teacher_weights": "teacher",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps a function's name for the function where its module is called the same.

    Python binds every submodule to its package once it is loaded: without this, whoever imports
    ``mlpsubmit.batchfns.polynomial`` (unpickling does) would turn the function of that name,
    ``from mlpsubmit.batchfns import polynomial``, into a module.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _HOMES):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
