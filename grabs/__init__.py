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
    from mlpsubmit.grabs.coefficients import monomial_coefficients
    from mlpsubmit.grabs.gradients import gradient_norm, gradient_norms
    from mlpsubmit.grabs.hessian import hessian_eigenvalues, sharpness
    from mlpsubmit.grabs.hidden import activation_kernel, activations, preactivation_stats
    from mlpsubmit.grabs.losses import held_out_loss
    from mlpsubmit.grabs.matrices import diagonal, entry, trace
    from mlpsubmit.grabs.named import on_test_set
    from mlpsubmit.grabs.ntk import (
        empirical_ntk,
        empirical_ntk_trace,
        ntk_alignment,
        ntk_eigenvalues,
        ntk_eigenvectors,
    )
    from mlpsubmit.grabs.weights import (
        bias,
        distance_from_init,
        gram_diagonal,
        gram_trace,
        readin_gram,
        readin_gram_diagonal,
        readin_gram_trace,
        readin_weight,
        readout_weight,
        singular_values,
        spectral_norms,
        weight,
        weight_gram,
        weight_norms,
    )

__all__ = [
    "activation_kernel",
    "activations",
    "bias",
    "by_name",
    "diagonal",
    "distance_from_init",
    "empirical_ntk",
    "empirical_ntk_trace",
    "entry",
    "gradient_norm",
    "gradient_norms",
    "gram_diagonal",
    "gram_trace",
    "held_out_loss",
    "hessian_eigenvalues",
    "monomial_coefficients",
    "ntk_alignment",
    "ntk_eigenvalues",
    "ntk_eigenvectors",
    "on_test_set",
    "preactivation_stats",
    "readin_gram",
    "readin_gram_diagonal",
    "readin_gram_trace",
    "readin_weight",
    "readout_weight",
    "sharpness",
    "singular_values",
    "spectral_norms",
    "trace",
    "weight",
    "weight_gram",
    "weight_norms",
]

_HOMES = {
    "activation_kernel": "hidden",
    "activations": "hidden",
    "bias": "weights",
    "diagonal": "matrices",
    "distance_from_init": "weights",
    "empirical_ntk": "ntk",
    "empirical_ntk_trace": "ntk",
    "entry": "matrices",
    "gradient_norm": "gradients",
    "gradient_norms": "gradients",
    "gram_diagonal": "weights",
    "gram_trace": "weights",
    "held_out_loss": "losses",
    "hessian_eigenvalues": "hessian",
    "monomial_coefficients": "coefficients",
    "ntk_alignment": "ntk",
    "ntk_eigenvalues": "ntk",
    "ntk_eigenvectors": "ntk",
    "on_test_set": "named",
    "preactivation_stats": "hidden",
    "readin_gram": "weights",
    "readin_gram_diagonal": "weights",
    "readin_gram_trace": "weights",
    "readin_weight": "weights",
    "readout_weight": "weights",
    "sharpness": "hessian",
    "singular_values": "weights",
    "spectral_norms": "weights",
    "trace": "matrices",
    "weight": "weights",
    "weight_gram": "weights",
    "weight_norms": "weights",
}

#: What is public and no grab itself.
_NO_GRABS = frozenset({"by_name", "on_test_set"})


def by_name(name: str) -> Callable[..., Any]:
    """Return the grab of this name.

    Raises:
        SpecError: where there is none, listing those that there are.

    Example:
        >>> by_name("readin_gram_trace") is readin_gram_trace
        True
    """
    valid = sorted(set(__all__) - _NO_GRABS)
    if not isinstance(name, str) or name not in valid:
        raise SpecError(
            f"no grab named {name!r}{did_you_mean(str(name), valid)}; "
            f"valid are {', '.join(valid)}, or any function of your own"
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
