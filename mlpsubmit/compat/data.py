"""MLPscape's synthetic data: Gaussian inputs, and Hermite polynomials of them as targets.

The recipes of :mod:`mlpsubmit.batchfns` whiten exactly; these whiten by the singular vectors of a
sample, as the scripts do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mlpsubmit.batchfns._hermite import hermite
from mlpsubmit.batchfns.fixed_batch import fixed
from mlpsubmit.batchfns.gaussian import power_law_eigvals
from mlpsubmit.batchfns.hea import LevelCoeffs, hea_monomials, relu_ntk_level_coeffs
from mlpsubmit.batchfns.monomial import Monomial
from mlpsubmit.batchfns.normal import randn
from mlpsubmit.compat.tensors import ensure_torch
from mlpsubmit.protocol import BatchFn

__all__ = [
    "Monomial",
    "generate_hea_monomials",
    "get_new_polynomial_data",
    "get_relu_level_coeff_fn",
    "get_synthetic_X",
    "polynomial_batch_fn",
]

OneMonomial = Mapping[int, int]


def get_synthetic_X(
    d: int = 500,
    N: int = 15_000,
    offset: float = 3,
    alpha: float = 1.5,
    data_eigvals: ArrayLike | Tensor | None = None,
    gen: torch.Generator | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    r"""Return Gaussian inputs x_i = sqrt(gamma_i) z_i, and their variances.

    .. math:: \gamma_i \propto (\mathrm{offset} + i)^{-\alpha}, \quad \sum_i \gamma_i = 1.

    Args:
        d: input dimension.
        N: rows.
        offset: see the formula, as for alpha.
        data_eigvals: (d,), gamma itself, instead of the formula.
        gen: the generator of the draws; by default that of torch for the device.
        kwargs: ignored, so that ``**args.datasethps`` can be passed.

    Returns:
        X (N, d) and gamma (d,), float32, on the device of the generator, or without one on that of
        :func:`ensure_torch`.

    Example:
        >>> X, data_eigvals = get_synthetic_X(d=4, N=10, gen=torch.Generator().manual_seed(0))
        >>> X.shape, round(float(data_eigvals.sum()), 4)
        (torch.Size([10, 4]), 1.0)
    """
    device = None if gen is None else gen.device
    given = power_law_eigvals(d, alpha, offset, True) if data_eigvals is None else data_eigvals
    gammas = ensure_torch(given, device=device)
    Z = torch.randn(N, d, device=gammas.device) if gen is None else randn(N, d, generator=gen)
    return Z * gammas.sqrt(), gammas


def get_new_polynomial_data(
    lambdas: Tensor,
    Vt: Tensor,
    monomials: OneMonomial | Sequence[OneMonomial],
    dim: int,
    N: int,
    data_eigvals: Tensor,
    N_original: int,
    new_X_fn: Callable[..., tuple[Tensor, Any]] = get_synthetic_X,
    coeffs: Any = 1,
    gen: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Return new inputs, and a polynomial of their whitened principal components.

    With U S V^T the singular value decomposition of N_original inputs,

    .. math:: z = \sqrt{N_\mathrm{original}}\, V^T x / S, \qquad
        y = \frac{1}{M} \sum_{k=1}^{M} c_k \prod_{(i, e) \in m_k} h_e(z_i),

    where h_e is :func:`mlpsubmit.batchfns.hermite`, normalised.

    Args:
        lambdas: (d,), S.
        Vt: (d, d), V^T.
        monomials: one m, or a list of M.
        dim: d.
        N: rows.
        data_eigvals: (d,) variances of the inputs.
        N_original: number of inputs that S and V come from.
        new_X_fn: function that draws the inputs, (d, N, data_eigvals, gen) -> (X, ...).
        coeffs: c, one number or M numbers.
        gen: the generator of the draws.

    Returns:
        X (N, d) and y (N,), float32.

    Example:
        >>> gen, eigvals = torch.Generator().manual_seed(0), torch.ones(2)
        >>> X, y = get_new_polynomial_data(eigvals, torch.eye(2), {1: 1}, 2, 3, eigvals, 1, gen=gen)
        >>> torch.equal(y, X[:, 1])
        True
    """
    X, _ = new_X_fn(d=dim, N=N, data_eigvals=data_eigvals, gen=gen)
    Z = X @ (Vt.T / lambdas) * N_original**0.5
    several = [monomials] if isinstance(monomials, Mapping) else list(monomials)
    products = [_product(Z, monomial) for monomial in several]
    weights = torch.as_tensor(coeffs, dtype=Z.dtype, device=Z.device)
    return X, (torch.stack(products, dim=1) * weights).mean(dim=1)


def _product(Z: Tensor, monomial: OneMonomial) -> Tensor:
    """Return the product (n,) of normalised Hermite polynomials of columns of Z (n, d)."""
    # Indices may be strings: the keys of JSON are.
    factors = [hermite(Z[:, int(i)], int(exponent)) for i, exponent in monomial.items()]
    return functools.reduce(torch.mul, factors, Z.new_ones(len(Z)))


def polynomial_batch_fn(
    lambdas: ArrayLike | Tensor,
    Vt: ArrayLike | Tensor,
    monomials: OneMonomial | Sequence[OneMonomial],
    bsz: int,
    data_eigvals: ArrayLike | Tensor,
    N: int = 10,
    X: Tensor | None = None,
    y: Tensor | None = None,
    data_creation_fn: Callable[..., tuple[Tensor, Tensor]] = get_new_polynomial_data,
    gen: torch.Generator | None = None,
) -> BatchFn:
    """Batch function with new inputs and targets of :func:`get_new_polynomial_data` at every step.

    Args:
        lambdas: as in that function, like Vt, monomials and data_eigvals.
        bsz: rows per batch.
        N: number of inputs that lambdas and Vt come from.
        X: the inputs of every step, if y is given too (offline training).
        y: see X.
        data_creation_fn: function that draws a batch, with the arguments of that function.
        gen: the generator of the draws.

    Returns:
        ``batch_fn(step) -> (X (bsz, d), y (bsz,))``, float32.

    Example:
        >>> gen, eigvals = torch.Generator().manual_seed(0), torch.ones(2)
        >>> batch_fn = polynomial_batch_fn(eigvals, torch.eye(2), {1: 1}, 3, eigvals, gen=gen)
        >>> [tensor.shape for tensor in batch_fn(0)]
        [torch.Size([3, 2]), torch.Size([3])]
    """
    device = None if gen is None else gen.device
    if X is not None and y is not None:
        return fixed(ensure_torch(X, device=device), ensure_torch(y, device=device))
    S, rotation, gammas = (ensure_torch(t, device=device) for t in (lambdas, Vt, data_eigvals))

    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            fresh = data_creation_fn(
                lambdas=S,
                Vt=rotation,
                monomials=monomials,
                dim=len(gammas),
                N=bsz,
                data_eigvals=gammas,
                N_original=N,
                gen=gen,
            )
        new_X, new_y = (ensure_torch(part, device=device) for part in fresh)
        return new_X, new_y

    return batch_fn


def generate_hea_monomials(
    data_eigvals: Any,
    num_monomials: int,
    eval_level_coeff: LevelCoeffs,
    kmax: int = 10,
    **kwargs: Any,
) -> tuple[NDArray[np.float64], list[Monomial]]:
    """Return the constant mode and the other modes of largest kernel eigenvalue.

    They are those of :func:`mlpsubmit.batchfns.hea_monomials`, which does not put the constant
    first.

    Args:
        data_eigvals: (d,) variances of the inputs.
        num_monomials: number of modes; fewer are returned if there are fewer up to kmax.
        eval_level_coeff: degree -> level coefficient, as :func:`get_relu_level_coeff_fn` makes it.
        kmax: the highest degree.
        kwargs: ignored, so that ``**args.datasethps`` can be passed.

    Returns:
        The eigenvalues (n,), in descending order after the first, and their monomials.

    Example:
        >>> generate_hea_monomials([0.7, 0.3], 2, lambda degree: 1.0)[1]
        [1, $x_{0}$]
    """
    n = min(abs(int(num_monomials)), math.comb(len(data_eigvals) + kmax, kmax))
    eigvals, monomials = hea_monomials(data_eigvals, n, eval_level_coeff, kmax)
    place = monomials.index(Monomial()) if Monomial() in monomials else n - 1
    others = monomials[:place] + monomials[place + 1 :]
    constant = float(eval_level_coeff(0))
    return np.concatenate([[constant], np.delete(eigvals, place)]), [Monomial(), *others]


def get_relu_level_coeff_fn(data_eigvals: ArrayLike | Tensor, **kwargs: Any) -> LevelCoeffs:
    r"""Return the level coefficients, by degree, of the kernel of a shallow ReLU network.

    See :func:`mlpsubmit.batchfns.relu_ntk_level_coeffs`.

    Args:
        data_eigvals: (d,) variances of the inputs.
        kwargs: ``weight_variance`` and ``bias_variance`` (or ``w_var`` and ``b_var``); without both
            of a pair they are :math:`w = \sqrt{2 \pi / (1 + 2 \pi k)}` and :math:`b = k w`, with
            k the ``kernel_width`` (by default 1).

    Example:
        >>> get_relu_level_coeff_fn([0.5, 0.5], weight_variance=1.0, bias_variance=0.0)(1)
        0.5
    """
    for weight, bias in (("weight_variance", "bias_variance"), ("w_var", "b_var")):
        if weight in kwargs and bias in kwargs:
            return relu_ntk_level_coeffs(data_eigvals, kwargs[weight], kwargs[bias])
    width = kwargs.get("kernel_width", 1.0)
    variance = float(np.sqrt(2 * np.pi / (1 + 2 * np.pi * width)))
    return relu_ntk_level_coeffs(data_eigvals, variance, width * variance)
