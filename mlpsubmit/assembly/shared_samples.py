"""Whether the test set of an offline training has samples of the training set."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlpsubmit.arguments import declared, function_name

__all__ = ["warn_of_shared_samples"]

#: The bytes of inputs up to which they are compared: some tenths of a second.
_MOST_BYTES = 1 << 28

#: The share of the test set from which on samples that both sets have are no accident. Two sets
#: that are drawn from few possible inputs share some, and then have some repeatedly themselves.
_ACCIDENT, _FEWEST = 0.05, 4

#: A factor by which the hash of an input counts in that of its sample.
_APART = np.uint64(3)


def warn_of_shared_samples(
    batchfn: Callable[..., Any], train: tuple[Tensor, Tensor], test: Any
) -> None:
    """Warn of a batch function whose test set has samples of its training set.

    All of them; or some, by a function that draws, where no input is repeated within either set:
    they look like parts of one set, which were chosen apart. A test set of all rows is meant, and
    so are equal inputs that all have other targets, as for clean labels of noisy ones.

    Args:
        train: inputs (n, ...) and targets (n, ...) of the training set.
        test: what the function has returned as the test set.
    """
    if not _is_pair(test) or not all(len(X) == len(y) for X, y in (train, test)):
        return  # the train loop refuses it
    (X, y), (X_test, y_test) = train, test
    if X.shape[1:] != X_test.shape[1:] or max(X.nbytes, X_test.nbytes) > _MOST_BYTES:
        return
    inputs, inputs_test = _row_hashes(X), _row_hashes(X_test.to(X.dtype))
    samples, samples_test = (
        own * _APART + _row_hashes(targets.cpu().double())  # else y = X would cancel it
        for own, targets in ((inputs, y), (inputs_test, y_test))
    )
    distinct = len(set(inputs.tolist())) == len(X) and len(set(inputs_test.tolist())) == len(X_test)
    shared, known = int(np.isin(inputs_test, inputs).sum()), np.isin(inputs, inputs_test).all()
    fewest, draws = max(_FEWEST, _ACCIDENT * len(X_test)), "gen" in declared(batchfn)
    text = ""
    if np.array_equal(samples, samples_test):
        text = (
            "its test set is its training set, and so the test loss no other; declare split, and "
            "return other samples where it is 'test', or set N_TEST=0 to train without a test set"
        )
    elif np.isin(samples_test, samples).all():
        text = (
            "every sample of its test set is in its training set, too; return other samples where "
            "split is 'test', or set N_TEST=0 to train without a test set"
        )
    elif distinct and not known and draws and fewest < shared < len(X_test):
        text = (
            f"{shared:,} of the {len(X_test):,} inputs of its test set are in its training set, "
            "too; a split that is drawn from gen is another one for 'test' than for 'train', as "
            "each has a stream of its own: split in data= (held_out does), or by a generator that "
            "the function seeds"
        )
    if text:
        warnings.warn(f"batchfn {function_name(batchfn)}: {text}", stacklevel=2)


def _is_pair(test: Any) -> bool:
    pair = isinstance(test, (tuple, list)) and len(test) == 2
    return pair and all(
        isinstance(own, Tensor)
        and own.layout is torch.strided
        and own.numel() > 0
        and own.ndim > 0
        and not own.is_complex()
        for own in test
    )


def _row_hashes(rows: Tensor) -> NDArray[np.uint64]:
    """Return a hash (n,) of each row of a tensor (n, ...): equal for equal numbers.

    A sum of its words, each times a random odd number, modulo 2^64: in any order the same.
    """
    flat = (rows.detach() + 0).reshape(len(rows), -1)  # -0 is 0
    words = flat.contiguous().view(torch.uint8).cpu().numpy()
    words = np.pad(words, ((0, 0), (0, -words.shape[1] % 4))).view(np.uint32)
    factors = (
        np.random.default_rng(0).integers(1 << 63, size=words.shape[1], dtype=np.uint64) * 2 + 1
    )
    hashes = np.zeros(len(words), np.uint64)
    for column, factor in zip(words.T, factors, strict=True):
        hashes += column.astype(np.uint64) * factor
    return hashes
