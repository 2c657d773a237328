"""Modular addition: the table of (a + b) mod p, split into training and test pairs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpsubmit.batchfns.recipe import bound_recipe, recipe
from mlpsubmit.batchfns.validation import check_arguments
from mlpsubmit.errors import SpecError

__all__ = ["modular_addition"]


def modular_addition(
    p: int | None = None,
    train_fraction: float | None = None,
    pair_seed: int | None = None,
    labels: bool | None = None,
    normalized: bool | None = None,
) -> Callable[..., dict[str, Tensor]]:
    r"""Return the data recipe of addition modulo p, for ``Sweep(data=..., batchfn=sample)``.

    All p^2 pairs (a, b) are shuffled with the seed ``pair_seed``. The first
    n = round(train_fraction p^2) pairs are the training rows, the others the test rows: the same
    in every trial, and the training rows of a smaller fraction are among those of a larger one
    (Power et al., arXiv 2201.02177; Nanda et al., arXiv 2301.05217; Gromov, arXiv 2301.02679).

    Offline, ``N_SAMPLES=round(train_fraction * p**2)`` trains on all of these rows, and a smaller
    one on a random subset per trial; ``N_TRAIN`` has no effect. The test set is all test rows, up
    to ``N_TEST``. For ``LOSS="cross_entropy"`` use ``labels=True`` and ``D_OUT=p``.

    The inputs are the concatenated one-hot vectors of a and b, and the targets are the one-hot
    vector of c = (a + b) mod p. Over all pairs every coordinate has mean 1/p and variance
    (p - 1)/p^2, so normalized to mean 0 and variance 1 the entries are

    .. math:: \sqrt{p - 1}\ \text{for a 1}, \qquad -1 / \sqrt{p - 1}\ \text{for a 0}.

    Nothing is computed here: the recipe runs on a worker and returns the data entries ``X_train``
    (n, 2p), ``y_train``, ``X_test`` and ``y_test``: 12 p^3 bytes in all.

    Args:
        p: the modulus, >= 2. If omitted, it must come from an axis or from ``datasethps``.
        train_fraction: fraction of the pairs to train on, between 0 and 1, by default 0.5.
        pair_seed: seed of the order of the pairs, by default 0.
        labels: whether targets are the numbers c, (n,) int64. By default they are one-hot, (n, p)
            float32.
        normalized: whether to normalize inputs and one-hot targets (the default), so that a network
            with output 0 has a mean squared loss of 1. Otherwise entries are 0 and 1, and one-hot
            targets can be used with LOSS="cross_entropy" too.

    Raises:
        SpecError: listing every bad value, here or, for values of an axis, on the worker.

    Example:
        >>> sweep = Sweep(data=modular_addition(p=97), batchfn=sample, ONLINE=False, N_SAMPLES=4704)
        >>> entries = modular_addition(p=5, train_fraction=0.6)()
        >>> {name: tuple(rows.shape) for name, rows in entries.items()}
        {'X_train': (15, 10), 'y_train': (15, 5), 'X_test': (10, 10), 'y_test': (10, 5)}
    """
    return bound_recipe(_modular_addition_entries, locals())


def _check(arguments: Mapping[str, Any]) -> None:
    check_arguments("modular_addition", arguments)
    if {"p", "train_fraction"} <= arguments.keys():
        p, fraction = int(arguments["p"]), arguments["train_fraction"]
        n = _training_pairs(p, fraction)
        if not 0 < n < p * p:
            raise SpecError(
                f"modular_addition: train_fraction={fraction!r} of the {p * p} pairs of p={p} "
                f"leaves {n} for training and {p * p - n} for the test; there should be some of "
                "both"
            )


def _training_pairs(p: int, train_fraction: float) -> int:
    return round(float(train_fraction) * p**2)


@recipe("modular_addition", _check, cheap=True)
def _modular_addition_entries(
    p: int,
    train_fraction: float = 0.5,
    pair_seed: int = 0,
    labels: bool = False,
    normalized: bool = True,
) -> dict[str, Tensor]:
    _check(locals())
    p = int(p)
    n = _training_pairs(p, train_fraction)
    # The stream of RandomState is frozen: the pairs are the same with every version of numpy.
    pairs = np.random.RandomState(pair_seed).permutation(p * p).astype(np.int64)
    a, b = pairs // p, pairs % p
    c = (a + b) % p
    one_hot = functools.partial(_one_hot, p=p, normalized=normalized)
    X = torch.cat([one_hot(a), one_hot(b)], dim=1)
    y = torch.from_numpy(c) if labels else one_hot(c)
    return {"X_train": X[:n], "y_train": y[:n], "X_test": X[n:], "y_test": y[n:]}


def _one_hot(numbers: Any, p: int, normalized: bool) -> Tensor:
    rows = torch.eye(p)[torch.from_numpy(numbers)]
    return (p * rows - 1) / (p - 1) ** 0.5 if normalized else rows
