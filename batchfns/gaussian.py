"""Gaussian inputs whose covariance spectrum is a power law."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpsubmit.batchfns.recipe import bound_recipe, recipe
from mlpsubmit.batchfns.validation import FLAG, Valid, check_arguments, is_integer, is_real
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
    :func:`~mlpsubmit.batchfns._polynomial` draws its inputs from.

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
    return bound_recipe(_power_law_entries, locals())


def _check(arguments: Mapping[str, Any]) -> None:
    check_arguments("power_law", arguments, SPECTRUM)


@recipe("power_law", _check, cheap=True)
def _power_law_entries(
    d: int, alpha: float, offset: float = 6.0, normalized: bool = True
) -> dict[str, Tensor]:
    _check(locals())
    return {"data_eigvals": power_law_eigvals(d, alpha, offset, normalized)}


def power_law_eigvals(d: int, alpha: float, offset: float, normalized: bool) -> Tensor:
    """Return the eigenvalues of :func:`power_law`: (d,), float32."""
    eigvals = (float(offset) + np.arange(int(d))) ** -float(alpha)
    if normalized:
        eigvals /= eigvals.sum()
    return torch.from_numpy(eigvals.astype(np.float32))


def standard_deviations(
    function: str, d: int | None, data_eigvals: Any, device: torch.device
) -> Tensor:
    """Return the standard deviations (d,) of Gaussian inputs: ones, or the roots of data_eigvals.

    Raises:
        SpecError: where neither d nor data_eigvals is given, where they differ in d, and where the
            eigenvalues are no variances.
    """
    if d is not None:
        check_arguments(function, {"d": d}, SPECTRUM)
    if data_eigvals is None:
        if d is None:
            raise SpecError(
                f"{function}: the dimension of the inputs is not given; give d=200, or a spectrum "
                "with data=power_law(d=200, alpha=2.0)"
            )
        return torch.ones(int(d), device=device)
    variances = torch.as_tensor(data_eigvals, dtype=torch.float32, device=device)
    if variances.ndim != 1 or len(variances) == 0:
        raise SpecError(
            f"{function}: data_eigvals has the shape {tuple(variances.shape)}; valid is (d,), "
            "one variance per coordinate; try data=power_law(d=200, alpha=2.0)"
        )
    if d is not None and d != len(variances):
        raise SpecError(
            f"{function}: got d={d}, but data_eigvals has {len(variances)} entries; leave d out"
        )
    # The one read-back from the device, when the batch function is made: no step has any.
    if not bool(((variances >= 0) & variances.isfinite()).all()):
        raise SpecError(f"{function}: data_eigvals has entries that are negative or not finite")
    return variances.sqrt()


SPECTRUM: Valid = {
    "d": ("an integer >= 1, such as 200", lambda d: is_integer(d, 1)),
    "alpha": ("a finite number >= 0, such as 2.0", lambda alpha: is_real(alpha) and alpha >= 0),
    "offset": (
        "a finite number > 0, where 1 gives the plain power law",
        lambda offset: is_real(offset) and offset > 0,
    ),
    "normalized": FLAG,
}
