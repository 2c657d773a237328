"""The Hermite eigenstructure of kernels: their modes on Gaussian inputs, by falling eigenvalue.

For Gaussian inputs x_i = sqrt(gamma_i) z_i, z ~ N(0, I), the eigenfunctions of a rotation-invariant
kernel are approximately products of normalised Hermite polynomials of z. The mode of a monomial m
has the eigenvalue c(deg m) prod_i gamma_i^m_i, where the level coefficients c depend on the kernel.
Source: Karkada, Turnbull, Liu, Simon, arXiv 2510.14878.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import count, islice
from typing import Any, TypeAlias

import numpy as np
from numpy.polynomial import polynomial
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mlpsubmit.batchfns.gaussian import checked_variances
from mlpsubmit.batchfns.monomial import Monomial, checked_monomials
from mlpsubmit.batchfns.validation import check_arguments, is_integer
from mlpsubmit.errors import SpecError

__all__ = [
    "exponential_level_coeffs",
    "gaussian_level_coeffs",
    "hea_eigenvalue",
    "hea_monomials",
    "relu_ntk_level_coeffs",
]

#: ``c(degree) -> float``, as the factories below return it.
LevelCoeffs: TypeAlias = Callable[[int], float]


def hea_monomials(
    data_eigvals: ArrayLike | Tensor, n: int, level_coeffs: LevelCoeffs, kmax: int = 10
) -> tuple[NDArray[np.float64], list[Monomial]]:
    r"""Return the n modes of largest kernel eigenvalue, largest first.

    The mode of a monomial m, the product of normalised Hermite polynomials
    :math:`\prod_i h_{m_i}(z_i)`, has the eigenvalue (Karkada et al., arXiv 2510.14878)

    .. math:: \lambda_m = c(|m|) \prod_i \gamma_i^{m_i}, \quad |m| = \sum_i m_i.

    The constant, with eigenvalue c(0), is a mode like any other. Equal eigenvalues are ordered by
    degree, then as monomials are, with the coordinates numbered by falling variance.

    Args:
        data_eigvals: (d,) variances of the coordinates, in any order.
        n: number of modes.
        level_coeffs: c, a function degree -> number >= 0, for example from
            ``relu_ntk_level_coeffs``.
        kmax: the highest degree considered. It affects the result if c grows faster than a
            power, as it does for the ReLU kernel.

    Returns:
        The eigenvalues (n,), float64, falling, and their monomials.

    Raises:
        SpecError: for a bad argument, a level coefficient that is negative or not finite, and for
            more modes than there are monomials of degree up to kmax.

    Example:
        >>> hea_monomials([0.7, 0.3], n=3, level_coeffs=exponential_level_coeffs(kernel_width=1.0))
        (array([1.  , 0.7 , 0.49]), [1, $x_{0}$, $x_{0}^2$])
    """
    check_arguments("hea_monomials", {"n": n, "kmax": kmax})
    n, kmax = int(n), int(kmax)  # numpy's integers may overflow
    gammas = checked_variances("hea_monomials", data_eigvals)
    check_enough_monomials("hea_monomials", "n", n, len(gammas), kmax)
    order = np.argsort(-gammas, kind="stable")
    coeffs = [_coefficient("hea_monomials", level_coeffs, degree) for degree in range(kmax + 1)]
    modes = list(islice(_falling(gammas[order].tolist(), coeffs), n))
    indices = order.tolist()
    monomials = [Monomial(Counter(indices[place] for place in places)) for _, places in modes]
    return np.array([eigval for eigval, _ in modes]), monomials


def hea_eigenvalue(
    monomial: Mapping[int, int], data_eigvals: ArrayLike | Tensor, level_coeffs: LevelCoeffs
) -> float:
    r"""Return the kernel eigenvalue of one mode, :math:`c(|m|) \prod_i \gamma_i^{m_i}`.

    It equals the one from ``hea_monomials`` exactly (Karkada et al., arXiv 2510.14878).

    Args:
        monomial: a Monomial, or a dict index -> exponent.
        data_eigvals: (d,) variances of the coordinates.
        level_coeffs: c, a function degree -> number >= 0.

    Raises:
        SpecError: for a bad argument, or an index >= d.

    Example:
        >>> hea_eigenvalue({0: 2}, data_eigvals=[0.5, 0.5], level_coeffs=lambda degree: 1.0)
        0.25
    """
    gammas = checked_variances("hea_eigenvalue", data_eigvals)
    [mode] = checked_monomials("hea_eigenvalue", [monomial], len(gammas))
    factors = [float(gammas[index]) for index, exponent in mode.items() for _ in range(exponent)]
    coeff = _coefficient("hea_eigenvalue", level_coeffs, mode.degree())
    return _product(coeff, sorted(factors, reverse=True))


def relu_ntk_level_coeffs(
    data_eigvals: ArrayLike | Tensor, weight_variance: float = 1.0, bias_variance: float = 1.0
) -> LevelCoeffs:
    r"""Return the level coefficients of the neural tangent kernel of a shallow ReLU network.

    With weights of variance w, hidden biases of variance b, one hidden layer and no output bias,
    the kernel of two inputs of squared norm :math:`S = \sum_i \gamma_i` is

    .. math:: K = \frac{w q}{2 \pi} G\!\left(\frac{b + w\, x \cdot x'}{q}\right), \quad q = b + w S,
        \quad G(u) = \sqrt{1 - u^2} + 2 u (\pi - \arccos u),

    and :math:`c(l) = \frac{w q}{2 \pi} (w / q)^l\, G^{(l)}(b / q)` is its l-th derivative in
    :math:`x \cdot x'` at 0 (Karkada et al., arXiv 2510.14878; MLPscape's
    ``get_relu_level_coeff_fn``). Without biases all odd l from 3 on have c(l) = 0.

    Args:
        data_eigvals: (d,) variances of the coordinates.
        weight_variance: w, > 0.
        bias_variance: b, >= 0.

    Returns:
        ``c(l) -> float``, picklable.

    Raises:
        SpecError: listing every bad argument.

    Example:
        >>> c = relu_ntk_level_coeffs([0.5, 0.5], weight_variance=1.0, bias_variance=0.0)
        >>> c(1), c(3)
        (0.5, 0.0)
    """
    variances = {"weight_variance": weight_variance, "bias_variance": bias_variance}
    check_arguments("relu_ntk_level_coeffs", variances)
    total = float(checked_variances("relu_ntk_level_coeffs", data_eigvals).sum())
    if total == 0:
        raise SpecError("relu_ntk_level_coeffs: data_eigvals are all 0; at least one should be > 0")
    return functools.partial(
        _relu_ntk_coefficient,
        squared_norm=total,
        weight_variance=float(weight_variance),
        bias_variance=float(bias_variance),
    )


def gaussian_level_coeffs(data_eigvals: ArrayLike | Tensor, kernel_width: float) -> LevelCoeffs:
    r"""Return the level coefficients of the kernel :math:`\exp(-|x - x'|^2 / (2 s^2))`.

    With s the kernel width, :math:`c(l) = e^{-\sum_i \gamma_i / s^2} s^{-2l}`: the l-th derivative
    in :math:`x \cdot x'` at 0, where :math:`|x|^2 = |x'|^2 = \sum_i \gamma_i`
    (Karkada et al., arXiv 2510.14878). The wider the kernel, the closer the modes are to its
    eigenfunctions.

    Args:
        data_eigvals: (d,) variances of the coordinates.
        kernel_width: s, > 0.

    Returns:
        ``c(l) -> float``, picklable.

    Raises:
        SpecError: for a bad argument, and for a kernel so narrow that c is 0 in floating point.

    Example:
        >>> c = gaussian_level_coeffs([0.5, 0.5], kernel_width=1.0)
        >>> round(c(2), 4)  # 1 / e
        0.3679
    """
    check_arguments("gaussian_level_coeffs", {"kernel_width": kernel_width})
    width = float(kernel_width)
    total = float(checked_variances("gaussian_level_coeffs", data_eigvals).sum())
    scale = math.exp(-(total / width) / width)
    if scale == 0:
        raise SpecError(
            f"gaussian_level_coeffs: got kernel_width={kernel_width!r}, so narrow for data_eigvals "
            f"of sum {total:g} that every coefficient is 0; try one near {math.sqrt(total):g}"
        )
    return functools.partial(_power_coefficient, scale=scale, width=width)


def exponential_level_coeffs(kernel_width: float) -> LevelCoeffs:
    r"""Return the level coefficients of the kernel :math:`\exp(x \cdot x' / s^2)`.

    With s the kernel width, :math:`c(l) = s^{-2l}`: the l-th derivative in :math:`x \cdot x'` at 0
    (Karkada et al., arXiv 2510.14878).

    Args:
        kernel_width: s, > 0.

    Returns:
        ``c(l) -> float``, picklable.

    Raises:
        SpecError: if the width is no finite number > 0.

    Example:
        >>> c = exponential_level_coeffs(kernel_width=2.0)
        >>> c(2)
        0.0625
    """
    check_arguments("exponential_level_coeffs", {"kernel_width": kernel_width})
    return functools.partial(_power_coefficient, scale=1.0, width=float(kernel_width))


def _falling(
    gammas: Sequence[float], coeffs: Sequence[float]
) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Yield each mode once by falling eigenvalue: (eigenvalue, places of its factors, rising).

    A place is an index into gammas, which fall.
    """
    last = len(gammas) - 1
    # Tuples compare in the order of modes: by eigenvalue, then degree, then places.
    queue = [
        (-_product(coeff, [gammas[0]] * degree), degree, (0,) * degree)
        for degree, coeff in enumerate(coeffs)
    ]
    if min(queue)[0] == -math.inf:
        raise SpecError(
            f"hea_monomials: the eigenvalue of a mode of degree {min(queue)[1]} overflows; try "
            "data_eigvals scaled to sum 1"
        )
    heapq.heapify(queue)
    while queue:
        negative, degree, places = heapq.heappop(queue)
        yield -negative, places
        for child in _children(places, last):
            eigval = _product(coeffs[degree], [gammas[place] for place in child])
            heapq.heappush(queue, (-eigval, degree, child))


def _children(places: tuple[int, ...], last: int) -> Iterator[tuple[int, ...]]:
    """Yield the modes that result from raising one place of a mode by one.

    The only parent of a mode has its lowest place above 0 lowered by one, so no mode comes twice.
    A parent's eigenvalue is no smaller than its children's, and it precedes them among ties.
    """
    zeros = places.count(0)
    lowest, above = places[zeros : zeros + 1], places[zeros + 1 :]
    if zeros and last:
        yield (*places[: zeros - 1], 1, *places[zeros:])
    if lowest and lowest[0] < (above[0] if above else last):
        yield (*places[:zeros], lowest[0] + 1, *above)


def _product(coeff: float, factors: Sequence[float]) -> float:
    # From the largest factor to the smallest, so that a rounded product never rises where a factor
    # falls (the queue relies on this), and equal modes get equal numbers.
    return math.prod(factors, start=coeff)


def _relu_ntk_coefficient(
    degree: int, squared_norm: float, weight_variance: float, bias_variance: float
) -> float:
    degree = _degree(degree)
    q = bias_variance + weight_variance * squared_norm
    u = bias_variance / q
    # 1 - u^2 without cancellation if the bias variance is large.
    root = math.sqrt(weight_variance * squared_norm / q * (1 + u))
    angle = math.pi - math.atan2(root, u)
    if degree == 0:
        return weight_variance * q / (2 * math.pi) * (root + 2 * angle * u)
    if degree == 1:
        return weight_variance**2 / (2 * math.pi) * (2 * angle + u / root)
    # G^(l)(u) = P_l(u) root / (1 - u^2)^l; together with (w / q)^l that is a power of S (1 + u).
    polynomial = float(_derivative_polynomial(degree, Fraction(bias_variance) / Fraction(q)))
    power = (squared_norm * (1 + u)) ** -degree
    return weight_variance * q / (2 * math.pi) * root * polynomial * power


def _derivative_polynomial(degree: int, u: Fraction) -> Fraction:
    """Return P_l(u), exactly, where G^(l)(u) = P_l(u) (1 - u^2)^(1/2 - l), for l >= 2.

    Differentiating gives P_{l+1} = (1 - u^2) P_l' + (2l - 1) u P_l, from P_2 = 3 - 2 u^2 on.
    """
    P = np.array([3, 0, -2], dtype=object)  # of rising powers, integers without overflow
    for level in range(2, degree):
        derivative = polynomial.polymul([1, 0, -1], polynomial.polyder(P))
        P = polynomial.polyadd(derivative, polynomial.polymul([0, 2 * level - 1], P))
    value: Fraction = polynomial.polyval(u, P)
    return value


def _power_coefficient(degree: int, scale: float, width: float) -> float:
    return scale * width ** (-2 * _degree(degree))


def _degree(degree: Any) -> int:
    if not is_integer(degree, 0):
        raise SpecError(f"level coefficients: got the degree {degree!r}; valid is an integer >= 0")
    return int(degree)


def check_enough_monomials(function: str, name: str, n: int, d: int, kmax: int) -> None:
    """Raise a SpecError if d coordinates have fewer than n monomials of degree up to kmax.

    Args:
        function: the name of the calling function, for messages.
        name: its argument for n, for messages.
        n: the number of monomials that it needs.
        d: the number of coordinates.
        kmax: the highest degree.
    """
    available = math.comb(d + kmax, kmax)
    if available < n:
        enough = next(k for k in count(kmax) if math.comb(d + k, k) >= n)
        raise SpecError(
            f"{function}: got {name}={n}, but d={d} coordinates have {available} monomials of "
            f"degree <= kmax={kmax}; try {name}={available}, or kmax={enough}"
        )


def _coefficient(function: str, level_coeffs: LevelCoeffs, degree: int) -> float:
    try:
        coeff = float(level_coeffs(degree))
    except OverflowError:
        coeff = math.inf
    if not (math.isfinite(coeff) and coeff >= 0):
        hint = "; try a smaller kmax, or larger data_eigvals" if coeff == math.inf else ""
        raise SpecError(
            f"{function}: the level coefficient of degree {degree} is {coeff}; valid is a finite "
            f"number >= 0{hint}"
        )
    return coeff
