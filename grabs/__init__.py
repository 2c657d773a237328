"""Measurements taken inside the train loop.

A grab is a function of what it declares out of ``model``, ``model0`` (the network at
initialisation), ``X_tr``, ``y_tr``, ``X_te``, ``y_te``, ``opt``, the hyperparameters, the axes and
the data entries. It returns a scalar or an array. The names below are imported when first used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlpsubmit.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from mlpsubmit.grabs.weights import (
        distance_from_init,
        readin_gram,
        readin_gram_diagonal,
        readin_gram_trace,
        readin_weight,
        readout_weight,
        spectral_norms,
        weight_norms,
    )

__all__ = [
    "by_name",
    "distance_from_init",
    "readin_gram",
    "readin_gram_diagonal",
    "readin_gram_trace",
    "readin_weight",
    "readout_weight",
    "spectral_norms",
    "weight_norms",
]

_HOMES = {
    "distance_from_init": "weights",
    "readin_gram": "weights",
    "readin_gram_diagonal": "weights",
    "readin_gram_trace": "weights",
    "readin_weight": "weights",
    "readout_weight": "weights",
    "spectral_norms": "weights",
    "weight_norms": "weights",
}


def by_name(name: str) -> Callable[..., Any]:
    """Return the grab of this name.

    Raises:
        SpecError: where there is none, listing those that there are.

    Example:
        >>> by_name("readin_gram_trace") is readin_gram_trace
        True
    """
    if name not in _HOMES:
        raise SpecError(
            f"no grab named {name!r}{did_you_mean(str(name), _HOMES)}; "
            f"valid are {', '.join(sorted(_HOMES))}, or any function of your own"
        )
    grab: Callable[..., Any] = __getattr__(name)
    return grab


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
