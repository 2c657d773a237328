"""Test sets that have samples of the training set."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from mlpsubmit.assembly.shared_samples import warn_of_shared_samples

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(100, 5, generator=GENERATOR)
Y = X[:, 0]
FIRST, OTHER = (torch.randperm(100, generator=GENERATOR) for _ in range(2))
SIGNS = torch.randint(0, 2, (100, 6), generator=GENERATOR) * 2.0 - 1
NOISY = torch.where(torch.rand(100, generator=GENERATOR) < 0.2, -Y, Y)

Pair = tuple[Tensor, Tensor]


def bfn(gen: torch.Generator) -> None:
    raise NotImplementedError


def rows(numbers: Tensor) -> Pair:
    return X[numbers], Y[numbers]


@pytest.mark.parametrize(
    ("train", "test", "text"),
    [
        ((X, Y), (X, Y), "its test set is its training set, and so the test loss no other"),
        ((X, Y), (X.double(), Y[:, None]), "its test set is its training set"),
        ((X, Y), rows(OTHER), "every sample of its test set is in its training set, too"),
        ((X, Y), rows(FIRST[:7]), "every sample of its test set"),
        ((X[:, :1] * 0, Y), (-X[:, :1] * 0, Y), "its test set is its training set"),
        (rows(FIRST[:40]), rows(OTHER[40:]), "of the 60 inputs of its test set are in its train"),
        (rows(FIRST[:40]), rows(OTHER[40:]), "a split that is drawn from gen is another one"),
    ],
)
def test_shared_samples_are_told(train: Pair, test: Pair, text: str) -> None:
    with pytest.warns(UserWarning, match=f"^batchfn bfn: .*{re.escape(text)}"):
        warn_of_shared_samples(bfn, train, test)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (rows(FIRST[:40]), rows(FIRST[40:])),
        ((X, NOISY), (X, Y)),  # clean labels
        ((X, Y), (X, -Y)),
        (rows(FIRST[:40]), (X, Y)),
        ((SIGNS[:60], SIGNS[:60, 0]), (SIGNS[60:], SIGNS[60:, 0])),  # of 64 possible ones
        ((X, Y), (X[:, :4], Y)),
        ((X, Y), (X, Y[:3])),
        ((X, Y), None),
        ((X, Y), (np.ones(3), Y)),
        ((X, Y), (torch.ones(()), Y)),
        ((X, Y), (X[:0], Y[:0])),
        ((X, Y), (X.to_sparse(), Y)),
        ((X.double(), X.double()), (X.double() + 1, X.double() + 1)),  # an autoencoder's
        (rows(FIRST[:40]), rows(torch.cat([FIRST[:3], FIRST[60:70]]))),  # too few to tell
    ],
)
def test_others_are_not(train: Pair, test: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_shared_samples(bfn, train, test)


def test_what_draws_nothing_splits_nothing() -> None:
    def grid(bsz: int) -> None:
        raise NotImplementedError

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_shared_samples(grid, rows(FIRST[:40]), rows(OTHER[40:]))
