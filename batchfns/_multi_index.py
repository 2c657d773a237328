"""Multi-index models: targets that depend on a few directions of Gaussian inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mlpsubmit.batchfns._hermite import hermite_product
from mlpsubmit.batchfns.fixed_batch import fixed
from mlpsubmit.batchfns.gaussian import check_outputs, gaussian_batches, standard_deviations
from mlpsubmit.batchfns.monomial import Monomial, Monomials, checked_monomials
from mlpsubmit.batchfns.validation import check_arguments, is_integer
from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import BatchFn

__all__ = ["multi_index"]

#: A function u (n, k) -> (n,) or (n, d_out), the degree of a Hermite polynomial, or monomials.
Link: TypeAlias = Callable[[Tensor], Tensor] | int | Monomials


def multi_index(
    link: Link,
    bsz: int,
    gen: torch.Generator,
    k: int | None = None,
    direction_seed: int | None = 0,
    directions: ArrayLike | Tensor | None = None,
    d: int | None = None,
    data_eigvals: Tensor | None = None,
    X: Tensor | None = None,
    y: Tensor | None = None,
) -> BatchFn:
    r"""Batch function of a k-index model: a link function of k directions of Gaussian inputs.

    With z ~ N(0, 1)^d, standard deviations :math:`\sigma` and U (k, d) of orthonormal rows,

    .. math:: x_i = \sigma_i z_i, \qquad u = U z \sim N(0, 1)^k, \qquad y = g(u).

    The link g determines how hard the target is to learn: by its information exponent (k = 1; Ben
    Arous, Gheissari, Jagannath, arXiv 2003.10409; Bietti et al., arXiv 2210.15651) or its leap
    (Abbe, Boix-Adserà, Misiakiewicz, arXiv 2302.11055). It is one of

    - a Monomial m, :math:`g(u) = \prod_{(i, e) \in m} h_e(u_i)`, with h_e the normalised Hermite
      polynomial :func:`~mlpsubmit.batchfns.hermite`: its leap is the degree of m;
    - a list of M different Monomials, their sum divided by :math:`\sqrt{M}`: ``[Monomial({0: 1}),
      Monomial({0: 1, 1: 1})]`` is a staircase of leap 1;
    - an integer e >= 1, the same sum over ``Monomial({i: e})`` for i = 0, ..., k - 1: a
      single-index model of information exponent e if k = 1.

    All of these have E[y^2] = 1, and E[y] = 0 except for the constant; the target of
    :func:`~mlpsubmit.batchfns.polynomial`, by contrast, is the mean of its M monomials, with
    E[y^2] = 1/M. A function is not normalised. The inputs depend on the generator alone: configs
    that differ in links or directions see the same X, that of ``polynomial``.

    Args:
        link: g, see above. A function maps u (n, k) to (n,) or (n, d_out).
        bsz: batch size n.
        gen: the generator of all draws, on the device where X and y are needed.
        k: number of directions. By default the number that ``directions`` has or the monomials
            use, else 1.
        direction_seed: seed of the uniformly random directions, the same in all trials; those of a
            smaller k are the first of a larger one. None: the first k coordinates.
        directions: (k, d), the rows of U, instead of random ones.
        d: input dimension, for standard deviations of 1.
        data_eigvals: (d,) variances of the coordinates, as ``power_law`` returns them.
        X: if X and y are given, every step returns them (offline training).
        y: see X.

    Returns:
        ``batch_fn(step) -> (X (n, d), y (n,))``, float32.

    Raises:
        SpecError: for k > d, an invalid link or one that needs more than k directions, directions
            that are not orthonormal, and if neither d nor data_eigvals is given.

    Example:
        >>> sweep = Sweep(axes={"link": [1, 2, 3]}, batchfn=multi_index, d=100)
        >>> batch_fn = multi_index(Monomial({0: 1, 1: 2}), d=9, bsz=4, gen=torch.Generator())
        >>> [tensor.shape for tensor in batch_fn(0)]
        [torch.Size([4, 9]), torch.Size([4])]
    """
    if X is not None and y is not None:
        return fixed(X, y)
    scale = standard_deviations("multi_index", d, data_eigvals, gen.device)
    given = {"k": k, "direction_seed": direction_seed}
    given = {name: value for name, value in given.items() if value is not None}
    check_arguments("multi_index", given)
    monomials = None if callable(link) or is_integer(link, 1) else _monomials(link)
    if directions is None:
        used = 1 + max((index for monomial in monomials or () for index in monomial), default=0)
        U = _random_directions(used if k is None else int(k), len(scale), direction_seed)
    else:
        U = _given_directions(directions, len(scale), k)
    projection = U.T.to(gen.device)
    target = _target(link, monomials, len(U), gen.device)
    return gaussian_batches(scale, bsz, gen, lambda Z, X: target(Z @ projection))


def _monomials(link: Any) -> list[Monomial]:
    """Return the monomials of a link as a list of different ones."""
    several = isinstance(link, Sequence) and not isinstance(link, str)
    monomials, reason = [], "an empty list"
    try:
        monomials = [Monomial(entry) for entry in (link if several else [link])]
    except ValueError as error:
        reason = str(error)
    if len(set(monomials)) < len(monomials):
        monomials, reason = [], "a monomial appears more than once"
    if not monomials:
        raise SpecError(
            f"multi_index: got link={link!r} ({reason}); valid are a Monomial or a list of "
            "different ones, a degree >= 1, and a function u (n, k) -> (n,)"
        )
    return monomials


def _given_directions(directions: Any, d: int, k: int | None) -> Tensor:
    """Return the user's directions (k, d), of torch's default dtype on the CPU."""
    try:
        U = torch.as_tensor(directions, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpecError(
            f"multi_index: got directions={directions!r} ({error}); valid is an array (k, {d}), "
            "or direction_seed for random ones"
        ) from None
    if U.ndim != 2 or U.shape[1] != d or len(U) == 0 or (k is not None and k != len(U)):
        hint = "; try directions[None]" if U.ndim == 1 else ""
        raise SpecError(
            f"multi_index: directions has the shape {tuple(U.shape)}; valid is (k, d), here "
            f"({'k' if k is None else k}, {d}){hint}"
        )
    deviation = float((U @ U.T - torch.eye(len(U), dtype=U.dtype)).abs().max())
    if not deviation < 1e-4:
        raise SpecError(
            f"multi_index: the rows of directions are not orthonormal: U U^T differs from the "
            f"identity by up to {deviation:.2g}; try directions=torch.linalg.qr(directions.T).Q.T"
        )
    return U.to(torch.get_default_dtype())


def _random_directions(k: int, d: int, direction_seed: int | None) -> Tensor:
    """Return k orthonormal rows (k, d) of uniform distribution, or the first k coordinates."""
    if k > d:
        raise SpecError(f"multi_index: got k={k} directions, but the inputs have d={d}")
    if direction_seed is None:
        return torch.eye(k, d)
    # The stream of RandomState is frozen. Rows are drawn and orthonormalised in order, so the first
    # directions do not depend on how many follow.
    gaussian = np.random.RandomState(direction_seed).standard_normal((k, d))
    Q, R = np.linalg.qr(gaussian.T)
    # QR leaves the signs free; with a positive diagonal of R it is the Gram-Schmidt process.
    return torch.from_numpy((Q * np.sign(np.diag(R))).T).to(torch.get_default_dtype())


def _target(
    link: Any, monomials: list[Monomial] | None, k: int, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return the link as a function u (n, k) -> (n,) or (n, d_out); a user's function is tried."""
    if callable(link):
        outputs = link(torch.zeros(3, k, device=device))
        check_outputs("multi_index: the link", outputs, 3, f"u of shape (3, {k})")
        return link  # type: ignore[no-any-return]
    monomials = monomials or [Monomial({i: link}) for i in range(k)]
    monomials = checked_monomials("multi_index", monomials, k, dimension="k")

    def target(U: Tensor) -> Tensor:
        products = [hermite_product(U, monomial) for monomial in monomials]
        return reduce(torch.add, products) / math.sqrt(len(monomials))

    return target
