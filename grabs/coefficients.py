"""Coefficients of the learned function on Hermite monomials."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mlpsubmit.batchfns._hermite import hermite_product
from mlpsubmit.batchfns.monomial import Monomial, Monomials, checked_monomials
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.grabs.labelled import labelled
from mlpsubmit.results.labels import ON_AXIS

__all__ = ["monomial_coefficients"]


def _monomial_texts(arguments: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the coordinates of the coefficients: the monomials, as in those of an axis."""
    monomials, basis = arguments.get("monomials"), arguments.get("basis")
    given = monomials if basis is None else basis
    if given is None or given is ON_AXIS:
        return {}
    with contextlib.suppress(SpecError):  # which is raised when it is measured
        monomials = checked_monomials("monomial_coefficients", given, sys.maxsize)
        return {"_monomial": tuple(map(str, monomials))}
    return {}


@labelled(
    *("_monomial", "_output"),
    long_name="coefficient on the monomial",
    coords=_monomial_texts,
    optional=1,
)
def monomial_coefficients(
    model: nn.Module,
    X_tr: Tensor,
    X_te: Tensor | None,
    model0: nn.Module,
    data_eigvals: ArrayLike | Tensor | None = None,
    monomials: Monomials | None = None,
    basis: Monomials | None = None,
    centered: bool = True,
    method: str = "least_squares",
) -> Tensor:
    r"""Return the coefficients of the learned function on Hermite monomials.

    For inputs :math:`x_i = \sqrt{\lambda_i} z_i` with z ~ N(0, 1)^d, as drawn by
    :func:`~mlpsubmit.batchfns.polynomial` and :func:`~mlpsubmit.batchfns.multi_index`, the
    coefficient on a monomial m is

    .. math:: c_m = E[f(x)\, h_m(z)], \qquad h_m(z) = \prod_{(i, e) \in m} h_e(z_i),

    with the orthonormal :func:`~mlpsubmit.batchfns.hermite`; f is the trained function, f - f0 if
    CENTERED. A network that has learned a target of M different monomials has the coefficient 1/M
    on each. For random signs, as drawn by :func:`~mlpsubmit.batchfns.sparse_parity`, monomials with
    exponents of 1 give the Fourier coefficients. The expectation is estimated on the test set, or
    if there is none (X_te is None) on the training batch, of n samples:

    - "least_squares" fits f by the monomials and a constant. Its variance is about
      :math:`E[r^2 h_m^2] / n`, with r the residual of the best fit, so the error vanishes as f
      approaches a sum of these monomials;
    - "mean" averages f h_m. Its variance is :math:`(E[f^2 h_m^2] - c_m^2) / n`, which is large at
      high degree because of the heavy tails of h_m, but it is unbiased, and the coefficient of a
      monomial does not depend on the others.

    Args:
        model: an MLP, of inputs (n, d), uncentred.
        X_tr: (n, d) inputs of the training batch, used if there is no test set.
        X_te: (n, d) inputs of the test set, or None.
        model0: the network at initialisation.
        data_eigvals: (d,) variances of the inputs, in a sweep supplied by
            :func:`~mlpsubmit.batchfns.power_law`; None for variances of 1. If the variance of a
            coordinate in a monomial is 0, the result is nan.
        monomials: one Monomial (or dict index -> exponent), or a list of them. In a sweep with an
            axis or argument ``monomials``, those of the target.
        basis: the same, used instead of ``monomials`` if given: for others than the target's.
        centered: the hyperparameter CENTERED: whether f - f0 is trained, else f.
        method: "least_squares" or "mean".

    Returns:
        (M,), M = 1 for one monomial; with several outputs (M, d_out).

    Raises:
        SpecError: listing every error: an invalid monomial, an index >= d, inputs that are not
            vectors, eigenvalues of another shape, an invalid method, and fewer samples than a
            least-squares fit needs.

    Example:
        >>> Sweep(data=power_law(9, 2), batchfn=polynomial, grabs={"c": monomial_coefficients})
        Sweep('sweep', one config)
        >>> f = nn.Identity()  # of x = 2 z, so that f = 2 h_1(z)
        >>> X = torch.tensor([[1.0], [2.0], [4.0]])
        >>> monomial_coefficients(f, X, None, f, torch.tensor([4.0]), {0: 1}, centered=False)
        tensor([2.0000])
    """
    X = X_tr if X_te is None else X_te
    found = _checked(monomials if basis is None else basis, X, data_eigvals, method)
    # Each once, and a constant, which a fit would otherwise attribute to the others.
    columns = list(dict.fromkeys([*found, Monomial()]))
    with torch.no_grad():
        f = model(X) - model0(X) if centered else model(X)
        Z = X if data_eigvals is None else X / torch.as_tensor(data_eigvals).to(X).sqrt()
        H = torch.stack([hermite_product(Z, monomial) for monomial in columns], dim=1)
        c = _METHODS[method](H, f.reshape(len(X), -1))
        c = torch.stack([c[columns.index(monomial)] for monomial in found])
    return c[:, 0] if c.shape[1] == 1 else c


def _least_squares(H: Tensor, f: Tensor) -> Tensor:
    """Return the coefficients (M, d_out) of H (n, M) in the best fit of f (n, d_out)."""
    Q, R = torch.linalg.qr(H)  # not lstsq, which is a GPU-CPU sync point
    coefficients: Tensor = torch.linalg.solve_triangular(R, Q.T @ f, upper=True)
    return coefficients


_METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "least_squares": _least_squares,
    "mean": lambda H, f: H.T @ f / len(H),
}


def _checked(given: Any, X: Tensor, data_eigvals: Any, method: str) -> list[Monomial]:
    """Return the monomials as a list, or raise a SpecError that lists every error."""
    name = "monomial_coefficients"
    if X.ndim != 2:
        raise SpecError(
            f"{name}: got inputs of shape {tuple(X.shape)}; valid are vectors (n, d), as an MLP "
            "gets them from batchfn=polynomial; try another grab for this model"
        )
    n, d = X.shape
    monomials, errors = list[Monomial](), list[str]()
    if given is None:
        errors.append(f"{name}: got neither monomials nor basis; try basis=[Monomial({{0: 1}})]")
    else:
        try:
            monomials = checked_monomials(name, given, d)
        except SpecError as error:
            errors += error.errors
    if data_eigvals is not None and tuple(np.shape(data_eigvals)) != (d,):
        errors.append(
            f"{name}: got data_eigvals of shape {tuple(np.shape(data_eigvals))}; valid is ({d},), "
            "one variance per coordinate of the inputs, or None for variances of 1"
        )
    needed = len({*monomials, Monomial()})
    if method not in _METHODS:
        errors.append(
            f"{name}: got method={method!r}{did_you_mean(str(method), _METHODS)}; valid are "
            f"{', '.join(map(repr, _METHODS))}"
        )
    elif method == "least_squares" and n < needed:
        errors.append(
            f"{name}: {n} samples do not determine {needed} coefficients, a constant among them; "
            "try more, fewer monomials, or method='mean'"
        )
    if errors:
        raise SpecError(errors)
    return monomials
