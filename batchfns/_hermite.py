"""Hermite polynomials, orthonormal under the standard normal distribution."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import reduce
from itertools import count, islice

import torch
from torch import Tensor

from mlpsubmit.batchfns.validation import is_integer

__all__ = ["hermite", "hermite_features", "hermite_product"]


def hermite(x: Tensor, degree: int) -> Tensor:
    r"""Return the normalised probabilists' Hermite polynomial :math:`He_n(x) / \sqrt{n!}`.

    Under z ~ N(0, 1) these are orthonormal: E[h_m(z) h_n(z)] is 1 for m = n, else 0. They come
    from the recurrence of the normalised polynomials (DLMF 18.9.1, rescaled),

    .. math:: \sqrt{n+1}\, h_{n+1} = x h_n - \sqrt{n}\, h_{n-1},

    which never forms n!, and so neither overflows nor suffers the cancellation of expanded
    coefficients.

    Args:
        x: any shape; integers are converted to torch's default dtype.
        degree: n >= 0.

    Returns:
        A new tensor of the shape of x; gradients flow through it.

    Raises:
        ValueError: if the degree is not an integer >= 0.

    Example:
        >>> hermite(torch.tensor([0.0, 1.0]), 2)  # (x^2 - 1) / sqrt(2)
        tensor([-0.7071,  0.0000])
    """
    polynomial = next(islice(_polynomials(x), _checked(degree), None))
    return polynomial.clone() if degree == 1 else polynomial


def hermite_features(x: Tensor, max_degree: int) -> Tensor:
    """Return all of h_0 to h_max_degree at once, stacked along a new last dimension.

    Args:
        x: any shape.
        max_degree: the highest degree, >= 0.

    Returns:
        A tensor of shape ``(*x.shape, max_degree + 1)``.

    Raises:
        ValueError: if the degree is not an integer >= 0.

    Example:
        >>> hermite_features(torch.tensor([2.0]), 1)
        tensor([[1., 2.]])
    """
    polynomials = islice(_polynomials(x), _checked(max_degree) + 1)
    return torch.stack(list(polynomials), dim=-1)


def hermite_product(Z: Tensor, exponents: Mapping[int, int]) -> Tensor:
    """Return the product of h_e(Z_i) over the items (i, e) of a monomial, for each row of Z (n, d).

    Returns:
        (n,); ones for the constant.
    """
    factors = [hermite(Z[:, i], exponent) for i, exponent in exponents.items()]
    return reduce(torch.mul, factors) if factors else Z.new_ones(len(Z))


def _polynomials(x: Tensor) -> Iterator[Tensor]:
    """Yield h_0, h_1, h_2, ... without end; h_1 is x itself, not a copy."""
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    previous, current = torch.ones_like(x), x
    yield previous
    for n in count(1):
        yield current
        # h_{n+1} = x h_n / sqrt(n+1) - sqrt(n / (n+1)) h_{n-1}, in two kernels.
        scaled = previous * -math.sqrt(n / (n + 1))
        following = torch.addcmul(scaled, x, current, value=1 / math.sqrt(n + 1))
        previous, current = current, following


def _checked(degree: int) -> int:
    if not is_integer(degree, 0):
        raise ValueError(f"the degree of a Hermite polynomial is an integer >= 0; got {degree!r}")
    return int(degree)
