"""Transforms of images: grayscale, and linear maps fitted to the training images.

All take and return float32; sums and means are in float64, over a few thousand images at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.errors import SpecError

__all__ = ["Rows", "flattened_spectrum", "grayscale_of", "normalized_by_training", "spectrum"]

#: Number of images that are in memory as float64 at a time.
_BLOCK = 4096

Rows: TypeAlias = NDArray[np.float32]


def grayscale_of(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean (n, 1, height, width) over the channels of (n, channels, height, width)."""
    mean: NDArray[np.float64] = images.mean(axis=1, keepdims=True, dtype=np.float64)
    return mean.astype(np.float32)


def normalized_by_training(X_train: Rows, X_test: Rows) -> tuple[Rows, Rows]:
    """Centre inputs (n, d) at the mean training input, and scale their mean squared norm to d.

    Mean and norm are those of the training inputs.

    Raises:
        SpecError: if all training inputs are equal.
    """
    mean = X_train.mean(axis=0, dtype=np.float64)
    # The mean over rows of |x|^2 / d is the mean over all entries.
    scale = np.sqrt(sum(float(((X - mean) ** 2).sum()) for X in _blocks(X_train)) / X_train.size)
    if scale == 0:
        raise _all_the_same(X_train, "normalized", "normalized=False")
    return (
        _by_blocks(X_train, lambda X: (X - mean) / scale),
        _by_blocks(X_test, lambda X: (X - mean) / scale),
    )


def flattened_spectrum(X_train: Rows, X_test: Rows, strength: float) -> tuple[Rows, Rows]:
    r"""Flatten the covariance spectrum of inputs (n, d): a regularized ZCA whitening.

    With U S V^T the singular value decomposition of the centred training inputs, S becomes

    .. math:: c\,S / \sqrt{w S^2 + 1}, \quad w = \mathrm{strength} / \mathrm{mean}(S^2),

    with c such that the total variance is preserved, and the mean over the min(n, d) singular
    values. The map of training and test inputs is x -> mu + c V (w S^2 + 1)^(-1/2) V^T (x - mu).
    Strength 0 changes nothing, and infinite strength whitens. In a direction without variance in
    the training inputs, test inputs are multiplied by c.

    Raises:
        SpecError: if all training inputs are equal.
    """
    mean = X_train.mean(axis=0, dtype=np.float64)
    # The d x d covariance has the eigenvalues S^2 / n and the eigenvectors V. For thousands of
    # images it is far cheaper than a decomposition of X, and needs no n x d array of float64.
    variances, directions = np.linalg.eigh(_second_moment(X_train, mean))
    variances = variances.clip(min=0)
    total = variances.sum()
    if total == 0:
        raise _all_the_same(X_train, "whitened", "zca_strength=0")
    shrink = 1 / np.sqrt(1 + strength * variances * min(X_train.shape) / total)
    keep = np.sqrt(total / (variances @ shrink**2))
    flatten = (directions * (keep * shrink)) @ directions.T
    return (
        _by_blocks(X_train, lambda X: mean + (X - mean) @ flatten),
        _by_blocks(X_test, lambda X: mean + (X - mean) @ flatten),
    )


def spectrum(X: Rows) -> NDArray[np.float32]:
    """Return the eigenvalues (d,) of the second moment X^T X / n of inputs (n, d), descending."""
    eigvals = np.linalg.eigvalsh(_second_moment(X, 0.0))[::-1]
    return eigvals.clip(min=0).astype(np.float32)


def _second_moment(X: Rows, origin: NDArray[np.float64] | float) -> NDArray[np.float64]:
    total = np.zeros((X.shape[1], X.shape[1]))
    for block in _blocks(X):
        shifted = block - origin
        total += shifted.T @ shifted
    return total / len(X)


def _by_blocks(
    X: Rows, mapping: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float32]:
    mapped = np.empty_like(X)
    for number, block in enumerate(_blocks(X)):
        mapped[number * _BLOCK : (number + 1) * _BLOCK] = mapping(block)
    return mapped


def _blocks(X: Rows) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(X), _BLOCK):
        yield X[start : start + _BLOCK].astype(np.float64)


def _all_the_same(X_train: Rows, done: str, instead: str) -> SpecError:
    return SpecError(
        f"images: the {len(X_train)} training images are all the same, so they cannot be {done}; "
        f"try a larger N_TRAIN, or {instead}"
    )
