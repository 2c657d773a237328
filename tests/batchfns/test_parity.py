import itertools
import math

import numpy as np
import pytest
import torch

from mlpsubmit.batchfns import sparse_parity
from mlpsubmit.errors import SpecError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=64, seed=0, step=0, d=6, **arguments):
    return sparse_parity(d=d, bsz=n, gen=generator(seed), **arguments)(step)


@pytest.mark.parametrize(
    ("arguments", "support"),
    [
        ({"k": 1}, [0]),
        ({"k": 3}, [0, 1, 2]),
        ({"k": np.int64(6)}, list(range(6))),
        ({"support": [4, 1]}, [1, 4]),
        ({"support": torch.tensor([5])}, [5]),
        ({"support": np.array([0, 3]), "d": np.int64(6)}, [0, 3]),
    ],
)
def test_targets_are_the_parity_of_the_bits(arguments, support):
    X, y = batch(**arguments)
    assert X.dtype == y.dtype == torch.float32
    assert y.shape == (64,)
    for row, value in zip(X.tolist(), y.tolist(), strict=True):
        assert set(row) <= {-1.0, 1.0}
        minus = sum(row[i] == -1 for i in support)
        assert value == (-1 if minus % 2 else 1)


def test_inputs_are_uniform_over_the_cube():
    n, d = 40_000, 4
    X, _ = batch(n, d=d, k=1)
    corners = ((X + 1) / 2 @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long()
    counts = torch.bincount(corners, minlength=2**d).double()
    # Pearson's chi squared with 15 degrees of freedom: five standard deviations.
    chi_squared = float(((counts - n / 2**d) ** 2).sum() / (n / 2**d))
    assert abs(chi_squared - 15) < 5 * math.sqrt(2 * 15)


def test_parities_of_different_supports_are_uncorrelated():
    n = 40_000
    supports = [s for k in range(1, 4) for s in itertools.combinations(range(4), k)]
    Y = torch.stack([batch(n, seed=2, d=4, support=list(support))[1] for support in supports])
    correlations = Y @ Y.T / n - torch.eye(len(supports))
    assert float(correlations.abs().max()) < 5 / math.sqrt(n)
    assert float(Y.mean(1).abs().max()) < 5 / math.sqrt(n)


def test_inputs_follow_from_the_generator_alone_and_are_fresh_at_every_step():
    batch_fns = [
        sparse_parity(d=6, bsz=5, gen=generator(3), **arguments)
        for arguments in ({"k": 1}, {"k": 6}, {"support": [2, 4]}, {"k": 1})
    ]
    steps = [[batch_fn(step) for batch_fn in batch_fns] for step in range(2)]
    for batches in steps:
        assert all(torch.equal(batches[0][0], X) for X, _ in batches)
        assert torch.equal(batches[0][1], batches[3][1])
    assert not torch.equal(steps[0][0][0], steps[1][0][0])
    assert not torch.equal(batch(5, seed=4, k=1)[0], steps[0][0][0])


def test_given_X_and_y_come_back_at_every_step():
    X, y = batch(4, k=2)
    batch_fn = sparse_parity(d=6, k=2, bsz=4, gen=generator(), X=X, y=y)
    for step in range(2):
        assert batch_fn(step)[0] is X
        assert batch_fn(step)[1] is y


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d": 0, "k": 1}, r"sparse_parity: got d=0; valid is an integer >= 1, such as 200"),
        ({"d": 2.0, "k": 1}, r"got d=2\.0; valid is an integer >= 1"),
        ({"k": 0}, r"sparse_parity: got k=0; valid is an integer >= 1"),
        ({"k": 7}, r"got k=7, but the inputs have d=6 coordinates"),
        ({}, r"got neither of k and support; give exactly one: k=3 for the first three coord"),
        ({"k": 2, "support": [0, 1]}, r"got both of k and support; give exactly one"),
        ({"support": []}, r"got support=\[\]; it should be a list of one coordinate or more"),
        ({"support": 3}, r"got support=3; it should be a list of one coordinate or more"),
        ({"support": [0.5]}, r"got support=\[0\.5\]; it should be a list"),
        ({"support": [6, 0]}, r"there is no coordinate 6 in d=6; valid are 0 to 5"),
        ({"support": [-1]}, r"there is no coordinate -1 in d=6"),
        ({"support": [2, 9, 2]}, r"no coordinate 9 in .*; coordinate 2 appears more than once"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(SpecError, match=message):
        batch(**arguments)


def test_all_bad_values_are_listed_together():
    with pytest.raises(SpecError, match=r"2 errors"):
        batch(d=-1, k=0)


@pytest.mark.gpu
def test_on_a_gpu_steps_never_wait():
    batch_fn = sparse_parity(d=6, k=3, bsz=64, gen=torch.Generator("cuda").manual_seed(0))
    X, y = batch_fn(0)
    assert X.is_cuda
    assert torch.equal(y, X[:, 0] * X[:, 1] * X[:, 2])
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch_fn(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
