"""Gaussian inputs: batches of them, and a power law as the spectrum of their covariance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlpsubmit.batchfns.normal import randn
from mlpsubmit.batchfns.recipe import bound_recipe, recipe
from mlpsubmit.batchfns.validation import check_arguments
from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import BatchFn

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
    the recipe runs on a worker and returns one data entry, ``data_eigvals`` (d,), float32, the
    variances of the inputs of :func:`~mlpsubmit.batchfns.polynomial`.

    Args:
        d: input dimension. If omitted, it must come from an axis or from ``datasethps``.
        alpha: decay exponent, >= 0; 0 is isotropic. It may be omitted like d.
        offset: > 0, by default 6; larger values flatten the head of the spectrum.
        normalized: whether the eigenvalues are scaled to sum 1 (the default); otherwise c = 1.

    Raises:
        SpecError: listing every bad value, here or, for values of an axis, on the worker.

    Example:
        >>> power_law(d=200, alpha=2.0, offset=6)()["data_eigvals"].shape
        torch.Size([200])
    """
    return bound_recipe(_power_law_entries, locals())


@recipe("power_law", cheap=True)
def _power_law_entries(
    d: int, alpha: float, offset: float = 6.0, normalized: bool = True
) -> dict[str, Tensor]:
    check_arguments("power_law", locals())
    return {"data_eigvals": power_law_eigvals(d, alpha, offset, normalized)}


def power_law_eigvals(d: int, alpha: float, offset: float, normalized: bool) -> Tensor:
    """Return the eigenvalues of :func:`power_law`: (d,), of torch's default dtype."""
    eigvals = (float(offset) + np.arange(int(d))) ** -float(alpha)
    if normalized:
        eigvals /= eigvals.sum()
    return torch.from_numpy(eigvals).to(torch.get_default_dtype())


def standard_deviations(
    function: str, d: int | None, data_eigvals: Any, device: torch.device
) -> Tensor:
    """Return the standard deviations (d,) of Gaussian inputs: ones, or the roots of data_eigvals.

    Raises:
        SpecError: if neither d nor data_eigvals is given, if they disagree on d, and if
            the eigenvalues are not variances.
    """
    if d is not None:
        check_arguments(function, {"d": d})
    if data_eigvals is None:
        if d is None:
            raise SpecError(
                f"{function}: the dimension of the inputs is not given; give d=200, or a spectrum "
                "with data=power_law(d=200, alpha=2.0)"
            )
        return torch.ones(int(d), device=device)
    # A read-back from the device, but only here, where the batch function is made.
    double = torch.get_default_dtype() == torch.float64
    eigvals = checked_variances(function, data_eigvals, np.float64 if double else np.float32)
    if d is not None and d != len(eigvals):
        raise SpecError(
            f"{function}: got d={d}, but data_eigvals has {len(eigvals)} entries; leave d out"
        )
    return torch.from_numpy(eigvals).to(device).sqrt()


def gaussian_batches(
    scale: Tensor, bsz: int, gen: torch.Generator, target: Callable[[Tensor, Tensor], Tensor]
) -> BatchFn:
    """Return the batch function of Gaussian inputs X and targets y, fresh at every step.

    Args:
        scale: (d,) standard deviations of the inputs.
        bsz: batch size n.
        gen: the generator of all draws.
        target: function of Z ~ N(0, 1), (n, d), and X = Z * scale that returns y.
    """

    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            Z = randn(bsz, len(scale), generator=gen)
            X = Z * scale
            return X, target(Z, X)

    return batch_fn


def check_outputs(function: str, outputs: Any, n: int, inputs: str) -> None:
    """Raise a SpecError unless a function returned a tensor (n,) or (n, d_out) for n inputs.

    Args:
        function: the name of the function, for the message.
        outputs: the value that it returned.
        n: the number of inputs.
        inputs: a description of the inputs, for the message.
    """
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else None
    if shape is None or len(shape) not in (1, 2) or shape[0] != n:
        got = type(outputs).__name__ if shape is None else f"the shape {shape}"
        raise SpecError(
            f"{function} gave {got} for {inputs}; valid is a tensor ({n},) or ({n}, d_out)"
        )


def checked_variances(function: str, data_eigvals: Any, dtype: type = np.float64) -> NDArray[Any]:
    """Return variances as an array (d,).

    Raises:
        SpecError: for anything but a vector of one or more finite numbers >= 0.
    """
    if isinstance(data_eigvals, Tensor):
        data_eigvals = data_eigvals.detach().cpu().double()  # numpy has no bfloat16
    try:
        with np.errstate(over="ignore"):  # values that overflow are reported as infinite
            eigvals: NDArray[Any] = np.asarray(data_eigvals).astype(dtype)
    except (TypeError, ValueError):
        raise SpecError(
            f"{function}: data_eigvals are not numbers; valid is (d,), each >= 0"
        ) from None
    if eigvals.ndim != 1 or len(eigvals) == 0:
        raise SpecError(
            f"{function}: data_eigvals has the shape {eigvals.shape}; valid is (d,), one variance "
            "per coordinate; try data=power_law(d=200, alpha=2.0)"
        )
    wrong = np.flatnonzero(~(np.isfinite(eigvals) & (eigvals >= 0)))
    if len(wrong):
        raise SpecError(
            f"{function}: data_eigvals has {len(wrong)} entries that are negative or not finite, "
            f"the first is {eigvals[wrong[0]]} at [{wrong[0]}]"
        )
    return eigvals
