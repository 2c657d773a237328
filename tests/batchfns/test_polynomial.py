import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from numpy.polynomial import hermite_e

from mlpsubmit.batchfns import Monomial, multi_index, polynomial, power_law
from mlpsubmit.errors import SpecError

EIGVALS = torch.tensor([4.0, 1.0, 0.25, 0.5, 2.0])
TARGETS = [
    {0: 1},
    {3: 3},
    {0: 1, 1: 1},
    {1: 2, 2: 1, 4: 3},
    {},
    [{0: 1}],
    [{0: 1}, {1: 2}],
    [{}, {2: 1, 4: 2}, {0: 1, 1: 1, 2: 1}],
    [{}, {}],
    (Monomial({4: 4}), Monomial({4: 1})),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def by_hand(X, eigvals, monomials):
    """The definition, in double precision, one monomial and one factor at a time."""
    Z = X.double().numpy() / np.sqrt(eigvals.double().numpy())
    total = np.zeros(len(Z))
    several = monomials if isinstance(monomials, (list, tuple)) else [monomials]
    for monomial in several:
        product = np.ones(len(Z))
        for index, exponent in monomial.items():
            he = hermite_e.hermeval(Z[:, index], [0] * exponent + [1])
            product *= he / math.sqrt(math.factorial(exponent))
        total += product
    return total / len(several)


@pytest.mark.parametrize("monomials", TARGETS, ids=str)
def test_targets_are_the_definition(monomials):
    X, y = polynomial(monomials, EIGVALS, bsz=200, gen=generator())(0)
    assert X.shape == (200, 5)
    assert y.shape == (200,)
    assert X.dtype == y.dtype == torch.float32
    np.testing.assert_allclose(y.numpy(), by_hand(X, EIGVALS, monomials), rtol=2e-4, atol=2e-4)


def test_inputs_have_the_given_covariance():
    X, _ = polynomial({0: 1}, EIGVALS, bsz=100_000, gen=generator(1))(0)
    covariance = (X.T @ X / len(X)).numpy()
    # The standard error of an entry is at most sqrt(2 l_i l_j / n): five of them.
    scale = np.sqrt(np.outer(EIGVALS, EIGVALS))
    assert (np.abs(covariance - np.diag(EIGVALS)) < 5 * math.sqrt(2 / 100_000) * scale).all()


def test_targets_are_orthonormal_functions():
    monomials = [{0: 1}, {0: 2}, {0: 1, 1: 1}, {2: 3}]
    n = 200_000
    ys = [polynomial(m, EIGVALS, bsz=n, gen=generator(2))(0)[1].double() for m in monomials]
    for (i, a), (j, b) in itertools.product(enumerate(ys), repeat=2):
        product = a * b
        error = float(product.std()) / math.sqrt(n)
        assert abs(float(product.mean()) - (i == j)) < 5 * error


def test_the_mean_square_is_one_over_the_number_of_monomials():
    n = 200_000
    monomials = [{0: 1}, {1: 2}, {0: 1, 2: 1}, {}]
    y = polynomial(monomials, EIGVALS, bsz=n, gen=generator(4))(0)[1].double()
    error = float(y.square().std()) / math.sqrt(n)
    assert abs(float(y.square().mean()) - 1 / 4) < 5 * error
    same = multi_index(
        monomials, bsz=n, gen=generator(4), direction_seed=None, data_eigvals=EIGVALS
    )
    torch.testing.assert_close(same(0)[1].double(), 2 * y, rtol=1e-5, atol=1e-5)


def test_inputs_do_not_depend_on_the_monomials():
    batches = [polynomial(m, EIGVALS, bsz=8, gen=generator(3)) for m in TARGETS]
    for step in range(2):
        first, *others = (batch_fn(step)[0] for batch_fn in batches)
        assert all(torch.equal(first, X) for X in others)


def test_every_step_is_fresh_and_the_seed_repeats_them():
    one, same, other = (
        polynomial({0: 1}, EIGVALS, bsz=4, gen=generator(seed)) for seed in (5, 5, 6)
    )
    steps = [one(step) for step in range(2)]
    assert not torch.equal(steps[0][0], steps[1][0])
    assert all(torch.equal(same(step)[1], steps[step][1]) for step in range(2))
    assert not torch.equal(other(0)[0], steps[0][0])


def test_given_X_and_y_come_back_at_every_step():
    X, y = polynomial({0: 1}, EIGVALS, bsz=4, gen=generator())(0)
    batch_fn = polynomial({0: 1}, EIGVALS, bsz=4, gen=generator(), X=X, y=y)
    for step in range(2):
        again = batch_fn(step)
        assert again[0] is X
        assert again[1] is y


def test_takes_the_entries_of_power_law_and_arrays_of_numpy():
    entries = power_law(d=7, alpha=1.5)()
    X, _ = polynomial(Monomial({6: 1}), **entries, bsz=3, gen=generator())(0)
    X2, _ = polynomial({6: 1}, entries["data_eigvals"].double().numpy(), 3, generator())(0)
    assert torch.equal(X, X2)


def test_declares_the_protocol():
    names = ["monomials", "data_eigvals", "bsz", "gen", "X", "y"]
    assert list(inspect.signature(polynomial).parameters) == names


def test_targets_neither_share_memory_nor_need_gradients():
    X, y = polynomial({0: 1}, torch.ones(5).requires_grad_(), bsz=4, gen=generator())(0)
    kept = X.clone()
    y.add_(1)
    assert torch.equal(X, kept)
    assert not X.requires_grad
    assert y.is_contiguous()


@pytest.mark.parametrize(
    ("monomials", "message"),
    [
        (
            {5: 1},
            r"polynomial: the monomial \$x_\{5\}\$ has the index 5, but d=5; valid are 0 to 4",
        ),
        ("x_0", r"polynomial: bad monomial 'x_0': a monomial is a mapping"),
        ([], r"polynomial: got no monomials; try Monomial\(\{0: 1\}\)"),
    ],
)
def test_bad_monomials(monomials, message):
    with pytest.raises(SpecError, match=message):
        polynomial(monomials, EIGVALS, bsz=4, gen=generator())


@pytest.mark.parametrize(
    ("eigvals", "message"),
    [
        (torch.eye(3), r"data_eigvals has the shape \(3, 3\); valid is \(d,\)"),
        (torch.empty(0), r"data_eigvals has the shape \(0,\)"),
        (torch.tensor([1.0, -1.0]), r"negative or not finite"),
        (torch.tensor([1.0, math.nan]), r"negative or not finite"),
    ],
)
def test_bad_eigenvalues(eigvals, message):
    with pytest.raises(SpecError, match=message):
        polynomial({0: 1}, eigvals, bsz=4, gen=generator())


@pytest.mark.gpu
@pytest.mark.parametrize("monomials", [{0: 1, 1: 2}, [{0: 1}, {1: 2}]], ids=str)
def test_steps_never_wait_for_the_gpu(monomials):
    gen = torch.Generator("cuda").manual_seed(0)
    batch_fn = polynomial(monomials, EIGVALS.cuda(), bsz=64, gen=gen)
    batch_fn(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        X, y = batch_fn(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = by_hand(X.cpu(), EIGVALS, monomials)
    np.testing.assert_allclose(y.cpu().numpy(), expected, rtol=2e-4, atol=2e-4)
