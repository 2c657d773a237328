"""Gaussian inputs whose covariance spectrum is a power law."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpsubmit.errors import SpecError

__all__ = ["power_law"]


def power_law(
    d: int | None = None,
    alpha: float | None = None,
    offset: float | None = None,
    normalized: bool | None = None,
) -> Callable[..., dict[str, Tensor]]:
    r"""Return the data recipe of a power-law spectrum, for ``Sweep(data=...)``.

    The eigenvalues of the inputs' covariance are, as in MLPscape's ``get_powerlaw``,

    .. math:: \lambda_i = c\,(\mathrm{offset} + i)^{-\alpha}, \quad i = 0, \dots, d - 1,

    so that offset=1 is the plain power law 1, 2^-alpha, 3^-alpha, ... Nothing is computed here:
    the recipe runs on a worker, and yields one data entry, ``data_eigvals`` (d,), float32, which
    :func:`~mlpsubmit.batchfns.polynomial` draws its inputs from.

    Args:
        d: input dimension. Left out, it has to come from an axis or from ``datasethps``.
        alpha: decay, >= 0; 0 is isotropic. It may be left out as d may.
        offset: > 0, by default 6; larger values flatten the head of the spectrum.
        normalized: choose c so that the eigenvalues sum to 1, the default; otherwise c = 1.

    Raises:
        SpecError: listing every bad value, here or, for values of an axis, on the worker.

    Example:
        >>> power_law(d=200, alpha=2.0, offset=6)()["data_eigvals"].shape
        torch.Size([200])
    """
    # Only what is given is bound: the rest may be an axis, or keep its default.
    given: dict[str, Any] = {"d": d, "alpha": alpha, "offset": offset, "normalized": normalized}
    bound = {name: value for name, value in given.items() if value is not None}
    _check(bound)
    return functools.partial(_power_law_spectrum, **bound)


def _power_law_spectrum(
    d: int, alpha: float, offset: float = 6.0, normalized: bool = True
) -> dict[str, Tensor]:
    _check({"d": d, "alpha": alpha, "offset": offset, "normalized": normalized})
    eigvals = (float(offset) + np.arange(int(d))) ** -float(alpha)
    if normalized:
        eigvals /= eigvals.sum()
    return {"data_eigvals": torch.from_numpy(eigvals.astype(np.float32))}


def _check(arguments: dict[str, Any]) -> None:
    mistakes = []
    for name, value in arguments.items():
        valid, holds = _VALID[name]
        if not holds(value):
            mistakes.append(f"power_law: got {name}={value!r}; valid is {valid}")
    if mistakes:
        raise SpecError(mistakes)


def _is_count(value: Any) -> bool:
    integral = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return integral and int(value) >= 1


def _is_real(value: Any) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


_VALID: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "d": ("an integer >= 1, such as 200", _is_count),
    "alpha": ("a finite number >= 0, such as 2.0", lambda alpha: _is_real(alpha) and alpha >= 0),
    "offset": (
        "a finite number > 0, where 1 gives the plain power law",
        lambda offset: _is_real(offset) and offset > 0,
    ),
    "normalized": ("True or False", lambda flag: isinstance(flag, (bool, np.bool_))),
}
