"""Measurements of a matrix W, for named grabs of a weight or Gram matrix."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mlpsubmit.batchfns.monomial import Monomials, checked_monomials
from mlpsubmit.batchfns.validation import is_integer
from mlpsubmit.errors import SpecError
from mlpsubmit.grabs.labelled import labelled
from mlpsubmit.results.labels import ON_AXIS, Coordinates

__all__ = ["diagonal", "entry", "indices_of", "monomial_indices", "nan_unless_finite", "trace"]


@labelled(long_name="trace")
def trace(W: Tensor) -> Tensor:
    """Return the trace of a square matrix W, a scalar.

    Raises:
        SpecError: if W is not square.

    Example:
        >>> trace(torch.eye(3))
        tensor(3.)
    """
    return _square("trace", W).diagonal().sum()


def monomial_indices(dim: str) -> Coordinates:
    """Return how the coordinates of a diagonal follow from the argument ``monomials``."""

    def coordinates(arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        monomials = arguments.get("monomials")
        if monomials is None or monomials is ON_AXIS:
            return {}
        with contextlib.suppress(SpecError):  # which is raised when it is measured
            return {dim: tuple(indices_of("diagonal", monomials, sys.maxsize))}
        return {}

    return coordinates


@labelled("_index", long_name="diagonal of the matrix", coords=monomial_indices("_index"))
def diagonal(W: Tensor, monomials: Monomials | None = None) -> Tensor:
    """Return the diagonal of a square matrix W (m, m), or its entries at the indices of monomials.

    Args:
        W: the matrix, as OTHER_MODEL_GRAM passes it.
        monomials: one monomial (a mapping index -> exponent), or a list of them, to select the
            entries of the indices that appear in them, ascending, each once.

    Returns:
        (m,), or (number of indices,).

    Raises:
        SpecError: if W is not square, for an invalid monomial, and for an index >= m.

    Example:
        >>> diagonal(torch.diag(torch.tensor([1.0, 2.0, 3.0])), monomials={0: 1, 2: 2})
        tensor([1., 3.])
    """
    entries = _square("diagonal", W).diagonal()
    if monomials is None:
        return entries.clone()
    indices = indices_of("diagonal", monomials, len(W))
    # One by one: an index tensor would have to be copied to the device.
    return torch.stack([entries[i] for i in indices]) if indices else entries.new_zeros(0)


@labelled(long_name="entry of the matrix")
def entry(W: Tensor, i: int, j: int | None = None) -> Tensor:
    """Return one entry of a matrix W (m, n), a scalar: W_ij, or W_ii if j is omitted.

    Raises:
        SpecError: if i or j, counted from 0, is not a row or column of W.

    Example:
        >>> entry(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), i=1)
        tensor(4.)
    """
    j = i if j is None else j
    errors = [
        f"entry: got {name}={index!r}, but W has the shape {tuple(W.shape)}; valid are 0 to "
        f"{size - 1}"
        for name, index, size in (("i", i, W.shape[0]), ("j", j, W.shape[1]))
        if not (is_integer(index, 0) and index < size)
    ]
    if errors:
        raise SpecError(errors)
    return W[int(i), int(j)].clone()


def indices_of(grab: str, monomials: Any, d: int) -> list[int]:
    """Return the indices that appear in one or several monomials, ascending, each once.

    Args:
        grab: the name of the grab, for messages.
        monomials: a mapping index -> exponent, or a sequence of these.
        d: the number of valid indices.

    Raises:
        SpecError: listing every invalid monomial and every index >= d.
    """
    checked = checked_monomials(grab, monomials, d)
    return sorted({index for monomial in checked for index in monomial})


def nan_unless_finite(decompose: Callable[[Tensor], Tensor], W: Tensor) -> Tensor:
    """Return the result of a decomposition of W, or nan in its shape if W is not finite.

    Decompositions raise on matrices that are not finite, but a diverged config is a result.
    """
    finite = W.isfinite().all()
    return torch.where(finite, decompose(torch.where(finite, W, 0.0)), torch.nan)


def _square(grab: str, W: Tensor) -> Tensor:
    if W.ndim != 2 or W.shape[0] != W.shape[1]:
        raise SpecError(
            f"{grab}: got W of shape {tuple(W.shape)}; valid is a square matrix; try the Gram "
            "matrix, OTHER_MODEL_GRAM={alias: True}"
        )
    return W
