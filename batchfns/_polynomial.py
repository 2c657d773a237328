"""Targets that are products of Hermite polynomials of Gaussian inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mlpsubmit.batchfns._hermite import hermite_features, hermite_product
from mlpsubmit.batchfns.fixed_batch import fixed
from mlpsubmit.batchfns.gaussian import gaussian_batches, standard_deviations
from mlpsubmit.batchfns.monomial import Monomial, Monomials, checked_monomials
from mlpsubmit.protocol import BatchFn

__all__ = ["polynomial"]


def polynomial(
    monomials: Monomials,
    data_eigvals: Tensor,
    bsz: int,
    gen: torch.Generator,
    X: Tensor | None = None,
    y: Tensor | None = None,
) -> BatchFn:
    r"""Batch function of fresh Gaussian inputs and a Hermite polynomial target.

    With z ~ N(0, 1)^d, eigenvalues :math:`\lambda` and monomials m_1, ..., m_M:

    .. math::
        x_i = \sqrt{\lambda_i}\, z_i, \qquad
        y = \frac{1}{M} \sum_{k=1}^{M} \prod_{(i, e) \in m_k} h_e(z_i),

    where h_e is :func:`~mlpsubmit.batchfns.hermite`. Each product has mean square 1, and different
    ones are uncorrelated, so E[y^2] = 1/M for M different monomials. These are the targets of
    MLPscape's ``get_new_polynomial_data``, with exact instead of empirical whitening. For
    E[y^2] = 1 at any M, use :func:`~mlpsubmit.batchfns.multi_index` with ``direction_seed=None``,
    which divides the sum by :math:`\sqrt{M}`. The inputs depend on the generator alone: configs
    that differ in their monomials see the same X.

    Args:
        monomials: one Monomial (or dict index -> exponent), or a list of them.
        data_eigvals: (d,) variances of the coordinates, as ``power_law`` returns them.
        bsz: batch size n.
        gen: the generator of all draws, on the device where X and y are needed.
        X: if X and y are given, every step returns them (offline training).
        y: see X.

    Returns:
        ``batch_fn(step) -> (X (n, d), y (n,))``, float32.

    Raises:
        SpecError: listing every invalid monomial and every index >= d; and if the eigenvalues
            are not variances.

    Example:
        >>> batch_fn = polynomial({0: 1}, torch.ones(5), bsz=3, gen=torch.Generator())
        >>> [tensor.shape for tensor in batch_fn(0)]
        [torch.Size([3, 5]), torch.Size([3])]
    """
    if X is not None and y is not None:
        return fixed(X, y)
    scale = standard_deviations("polynomial", None, data_eigvals, gen.device)
    targets = checked_monomials("polynomial", monomials, len(scale))
    # One monomial, the usual target, takes a few elementwise kernels on single columns. Several
    # share one table of features: otherwise their kernel launches would dominate the step.
    target: Callable[[Tensor], Tensor] = partial(hermite_product, exponents=targets[0])
    if len(targets) > 1:
        target = _mean_of_products(targets, gen.device)
    return gaussian_batches(scale, bsz, gen, lambda Z, X: target(Z))


def _mean_of_products(
    monomials: Sequence[Monomial], device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return the function Z (n, d) -> (n,) that is the mean of several monomials.

    Each coordinate in use is expanded once into all its degrees. A monomial is then a product of
    columns of that table, padded with degree 0 to the number of factors of the longest one.
    """
    coordinates = sorted({index for monomial in monomials for index in monomial}) or [0]
    degrees = max(monomial.max_degree() for monomial in monomials) + 1
    column = {coordinate: i * degrees for i, coordinate in enumerate(coordinates)}
    length = max(1, *map(len, monomials))
    plan = [
        [column[i] + exponent for i, exponent in monomial.items()] + [0] * (length - len(monomial))
        for monomial in monomials
    ]
    columns = torch.tensor(coordinates, device=device)
    factors = torch.tensor(plan, device=device).T.contiguous()

    def target(Z: Tensor) -> Tensor:
        table = hermite_features(Z.index_select(1, columns), degrees - 1).flatten(1)
        products = table.index_select(1, factors[0])
        for factor in factors[1:]:
            products *= table.index_select(1, factor)
        return products.mean(dim=1)

    return target
