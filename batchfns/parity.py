"""Sparse parities of uniformly random signs."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mlpsubmit.batchfns.fixed_batch import fixed
from mlpsubmit.batchfns.validation import check_arguments, check_exactly_one
from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import BatchFn

__all__ = ["sparse_parity"]


def sparse_parity(
    d: int,
    bsz: int,
    gen: torch.Generator,
    k: int | None = None,
    support: Sequence[int] | None = None,
    X: Tensor | None = None,
    y: Tensor | None = None,
) -> BatchFn:
    r"""Batch function of uniformly random signs and the parity of a few of them.

    .. math::
        x \sim \mathrm{Unif}(\{-1, +1\}^d), \qquad y = \prod_{i \in S} x_i,

    so that E[y] = 0, E[y^2] = 1, and y is uncorrelated with the parity of every other set (Barak
    et al., arXiv 2207.08799). The inputs depend on the generator alone: configs that differ in
    their supports see the same X.

    Args:
        d: input dimension.
        bsz: batch size n.
        gen: the generator of all draws, on the device where X and y are needed.
        k: size of the support S, then the first k coordinates. Give either k or support.
        support: the coordinates in S, counted from 0.
        X: if X and y are given, every step returns them (offline training).
        y: see X.

    Returns:
        ``batch_fn(step) -> (X (n, d), y (n,))``, float32, entries -1 and +1.

    Raises:
        SpecError: if d or k is not an integer >= 1, if both or neither of k and support are
            given, and if the support has repeated coordinates or coordinates >= d.

    Example:
        >>> sweep = Sweep(axes={"k": [2, 3, 4]}, batchfn=sparse_parity, d=50)
        >>> X, y = sparse_parity(d=50, support=[3, 7], bsz=8, gen=torch.Generator())(0)
        >>> torch.equal(y, X[:, 3] * X[:, 7])
        True
    """
    if X is not None and y is not None:
        return fixed(X, y)
    coordinates = torch.tensor(_coordinates(d, k, support), device=gen.device)

    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        bits = torch.randint(2, (bsz, d), generator=gen, device=gen.device)
        bits = bits.to(torch.get_default_dtype())
        signs = 2 * bits - 1
        return signs, signs.index_select(1, coordinates).prod(dim=1)

    return batch_fn


def _coordinates(d: Any, k: Any, support: Any) -> list[int]:
    """Return the support as a list of coordinates."""
    given = {"d": d} if k is None else {"d": d, "k": k}
    check_arguments("sparse_parity", given)
    example = "k=3 for the first three coordinates, or support=[0, 4, 7]"
    check_exactly_one("sparse_parity", {"k": k, "support": support}, example)
    if support is not None:
        return _checked_support(support, d)
    if k > d:
        raise SpecError(f"sparse_parity: got k={k}, but the inputs have d={d} coordinates")
    return list(range(k))


def _checked_support(support: Any, d: int) -> list[int]:
    try:
        coordinates = [operator.index(i) for i in support]
    except TypeError:
        coordinates = []
    errors = [] if coordinates else ["it should be a list of one coordinate or more"]
    if beyond := sorted({i for i in coordinates if not 0 <= i < d}):
        shown = ", ".join(map(str, beyond))
        errors.append(f"there is no coordinate {shown} in d={d}; valid are 0 to {d - 1}")
    if twice := sorted({i for i in coordinates if coordinates.count(i) > 1}):
        errors.append(f"coordinate {', '.join(map(str, twice))} appears more than once")
    if errors:
        raise SpecError(f"sparse_parity: got support={support!r}; {'; '.join(errors)}")
    return coordinates
