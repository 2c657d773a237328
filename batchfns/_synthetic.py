"""Targets with power-law coefficients in the modes of a kernel on Gaussian inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpsubmit.batchfns._hermite import hermite_features
from mlpsubmit.batchfns.gaussian import power_law_eigvals
from mlpsubmit.batchfns.hea import check_enough_monomials, hea_monomials, relu_ntk_level_coeffs
from mlpsubmit.batchfns.monomial import Monomial
from mlpsubmit.batchfns.recipe import bound_recipe, recipe
from mlpsubmit.batchfns.validation import check_arguments
from mlpsubmit.errors import SpecError

__all__ = ["synthetic"]


def synthetic(
    d: int | None = None,
    alpha: float | None = None,
    offset: float | None = None,
    cutoff_mode: int | None = None,
    beta: float | None = None,
    yoffset: float | None = None,
    noise_size: float | None = None,
    normalized: bool | None = None,
    weight_variance: float | None = None,
    bias_variance: float | None = None,
    kmax: int | None = None,
) -> Callable[..., dict[str, Tensor]]:
    r"""Return the data recipe of a power-law target, for ``Sweep(data=..., batchfn=sample)``.

    With z ~ N(0, 1)^d and m_0, m_1, ... the modes of the shallow ReLU network's neural tangent
    kernel by falling eigenvalue (``hea_monomials`` of ``relu_ntk_level_coeffs``), k < cutoff_mode:

    .. math::
        x_i = \sqrt{\gamma_i}\, z_i, \quad \gamma_i \propto (\mathrm{offset} + i)^{-\alpha}, \qquad
        y = \sum_k v_k \prod_{(i, e) \in m_k} h_e(z_i) + \varepsilon, \quad
        v_k \propto (\mathrm{yoffset} + k)^{-\beta / 2},

    where h_e is :func:`~mlpsubmit.batchfns.hermite`, and :math:`\varepsilon` is Gaussian noise of
    standard deviation noise_size on both training and test targets, as in MLPscape's
    ``get_synthetic_dataset`` (Karkada et al., arXiv 2510.14878). There z are the principal
    components of the sample; here z is exact, and the rows are independent of each other.

    The constant is a mode like any other, so E[y] is its coefficient. It comes first unless the
    spectrum is steep or the bias variance small: with the defaults E[y] = v_0, about 0.41.

    Nothing is computed here: the recipe runs on a worker, takes ``n_train`` and ``n_test`` from the
    hyperparameters, and returns float32 data entries: ``X_train`` (n_train, d), ``y_train``
    (n_train,), ``X_test``, ``y_test``, ``data_eigvals`` (d,), ``hea_eigvals`` (cutoff_mode,) and
    ``coefficients`` v (cutoff_mode,). The test set does not depend on ``n_train``, and the inputs
    do not depend on the arguments of the targets. An omitted argument comes from an axis or from
    ``datasethps``, else it has MLPscape's default.

    Args:
        d: input dimension, by default 200.
        alpha: decay exponent of the input spectrum, >= 0, by default 2.
        offset: > 0, by default 6; see ``power_law``.
        cutoff_mode: number of modes in the target, by default 40,000.
        beta: decay exponent of the squared coefficients, >= 0, by default 1.2.
        yoffset: > 0, by default 1.2.
        noise_size: standard deviation of the noise, >= 0, by default 1.
        normalized: whether the eigenvalues are scaled to sum 1 and v to norm 1 (the default), so
            that E[y^2] = 1 + noise_size^2. Otherwise both are the plain powers.
        weight_variance: > 0, by default 1; see ``relu_ntk_level_coeffs``.
        bias_variance: >= 0, by default 1.
        kmax: the highest degree of a mode, by default 10.

    Raises:
        SpecError: listing every bad value, here or, for values of an axis, on the worker; and if
            the kernel has fewer than cutoff_mode modes of degree up to kmax.

    Example:
        >>> sweep = Sweep(data=synthetic(noise_size=0.1), batchfn=sample, ONLINE=False)
        >>> recipe = synthetic(d=10, cutoff_mode=50, noise_size=0.1)
        >>> recipe(n_train=100, n_test=20, gen=torch.Generator())["y_train"].shape
        torch.Size([100])
    """
    return bound_recipe(_synthetic_entries, locals())


def _check(arguments: Mapping[str, Any]) -> None:
    check_arguments("synthetic", arguments)
    if {"d", "cutoff_mode", "kmax"} <= arguments.keys():
        n, d, kmax = (int(arguments[name]) for name in ("cutoff_mode", "d", "kmax"))
        check_enough_monomials("synthetic", "cutoff_mode", n, d, kmax)


@recipe("synthetic", _check)
def _synthetic_entries(
    n_train: int,
    n_test: int,
    gen: torch.Generator,
    d: int = 200,
    alpha: float = 2.0,
    offset: float = 6.0,
    cutoff_mode: int = 40_000,
    beta: float = 1.2,
    yoffset: float = 1.2,
    noise_size: float = 1.0,
    normalized: bool = True,
    weight_variance: float = 1.0,
    bias_variance: float = 1.0,
    kmax: int = 10,
) -> dict[str, Tensor]:
    _check(locals())
    data_eigvals = power_law_eigvals(d, alpha, offset, normalized)
    level_coeffs = relu_ntk_level_coeffs(data_eigvals, weight_variance, bias_variance)
    hea_eigvals, monomials = hea_monomials(data_eigvals, cutoff_mode, level_coeffs, kmax)
    if (positive_modes := int(np.count_nonzero(hea_eigvals))) < cutoff_mode:
        raise SpecError(
            f"synthetic: got cutoff_mode={cutoff_mode}, but the kernel has only {positive_modes} "
            f"modes of degree <= kmax={kmax} with an eigenvalue above 0 (at bias_variance=0, odd "
            f"degrees from 3 on have none); try cutoff_mode={positive_modes}, or a larger kmax"
        )
    coefficients = _power_law_coefficients(cutoff_mode, beta, yoffset, normalized)
    entries = {}
    # One stream per set, so that neither depends on the size of the other.
    seeds = torch.randint(2**63 - 1, (2,), generator=gen).tolist()
    for split, rows, seed in zip(("train", "test"), (n_train, n_test), seeds, strict=True):
        if rows == 0:
            continue
        stream = torch.Generator().manual_seed(seed)
        Z = torch.randn(rows, d, generator=stream)
        noise = torch.randn(rows, generator=stream)
        entries[f"y_{split}"] = _hermite_sum(Z, monomials, coefficients) + noise_size * noise
        entries[f"X_{split}"] = Z.mul_(data_eigvals.sqrt())
    entries["data_eigvals"] = data_eigvals
    entries["hea_eigvals"] = torch.from_numpy(hea_eigvals).to(torch.get_default_dtype())
    entries["coefficients"] = coefficients
    return entries


def _power_law_coefficients(modes: int, beta: float, yoffset: float, normalized: bool) -> Tensor:
    coefficients = (float(yoffset) + np.arange(int(modes))) ** (-float(beta) / 2)
    if normalized:
        coefficients /= np.linalg.norm(coefficients)
    return torch.from_numpy(coefficients).to(torch.get_default_dtype())


#: Rows and modes whose products are computed at a time: 4 MB, so that they stay in cache.
_ROWS, _MODES = 1024, 1024


def _hermite_sum(Z: Tensor, monomials: Sequence[Monomial], coefficients: Tensor) -> Tensor:
    """Return sum_k coefficients_k prod_i h_{m_ki}(Z_i), (n,), without a matrix (n, modes)."""
    degrees = 1 + max(monomial.max_degree() for monomial in monomials)
    blocks = _blocks(monomials, degrees)
    sums = []
    for rows in torch.split(Z, _ROWS):
        # Row i * degrees + e is h_e(z_i).
        table = hermite_features(rows.T.contiguous(), degrees - 1).movedim(2, 1).flatten(0, 1)
        total = torch.zeros(len(rows))
        for modes, factors in blocks:
            products = torch.ones(len(modes), len(rows))
            for factor in factors:
                products *= table.index_select(0, factor)
            total += coefficients[modes] @ products
        sums.append(total)
    return torch.cat(sums)


def _blocks(monomials: Sequence[Monomial], degrees: int) -> list[tuple[Tensor, Tensor]]:
    """Group modes by their number of factors.

    Returns:
        For each block the indices of its modes (b,), and for each of them the rows of the table
        i * degrees + e that are its factors (factors, b).
    """
    blocks = []
    by_length = sorted(range(len(monomials)), key=lambda mode: len(monomials[mode]))
    for _, group in groupby(by_length, key=lambda mode: len(monomials[mode])):
        for modes in torch.split(torch.tensor(list(group)), _MODES):
            factors = [
                [index * degrees + exponent for index, exponent in monomials[mode].items()]
                for mode in modes.tolist()
            ]
            blocks.append((modes, torch.tensor(factors, dtype=torch.long).T.contiguous()))
    return blocks
