import itertools
import math

import numpy as np
import pytest
import torch
from numpy.polynomial import hermite_e

from mlpsubmit.batchfns import Monomial, multi_index, polynomial, power_law
from mlpsubmit.errors import SpecError

D = 8
EIGVALS = torch.tensor([4.0, 1.0, 0.25, 0.5, 2.0, 1.0, 3.0, 0.1])
STAIRCASE = [Monomial({0: 1}), Monomial({0: 1, 1: 1}), Monomial({0: 1, 1: 1, 2: 1})]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(link, n=64, seed=0, **arguments):
    arguments = arguments if "data_eigvals" in arguments else {"d": D, **arguments}
    return multi_index(link, bsz=n, gen=generator(seed), **arguments)(0)


def projected(k, **arguments):
    """The link's argument u (n, k) itself, as seen from outside, with its X."""
    return batch(lambda U: U, k=k, **arguments)


def he(u, degree):
    return hermite_e.hermeval(u, [0] * degree + [1]) / math.sqrt(math.factorial(degree))


@pytest.mark.parametrize(
    "arguments",
    [
        {"k": 3},
        {"k": D, "direction_seed": 5},
        {"k": 2, "direction_seed": None},
        {"k": 1, "data_eigvals": EIGVALS},
    ],
)
def test_directions_are_orthonormal_in_whitened_coordinates(arguments):
    X, U = projected(n=100, **arguments)
    Z = X / EIGVALS.sqrt() if "data_eigvals" in arguments else X
    solved = torch.linalg.lstsq(Z.double(), U.double()).solution.T
    k = arguments["k"]
    assert solved.shape == (k, D)
    torch.testing.assert_close(
        solved @ solved.T, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-5
    )
    if arguments.get("direction_seed", 0) is None:
        assert torch.equal(U, Z[:, :2])


def test_directions_follow_from_their_seed_and_are_nested():
    X, U = projected(4, direction_seed=1)
    for k in (1, 2):
        torch.testing.assert_close(projected(k, direction_seed=1)[1], U[:, :k])
    assert torch.equal(projected(4, direction_seed=1, seed=0)[1], U)
    assert not torch.allclose(projected(4, direction_seed=2)[1], U)
    assert torch.equal(projected(4, direction_seed=2)[0], X)


def test_directions_are_uniform():
    """For a uniformly random unit vector u, E[u_i] = 0 and E[u_i^4] = 3 / (d (d + 2))."""
    d, n = 3, 3000
    firsts = np.array(
        [
            batch(lambda U: U, n=d, d=d, k=2, direction_seed=seed, seed=1)[1].numpy()
            for seed in range(n)
        ]
    )
    X = batch(lambda U: U, n=d, d=d, k=2, seed=1)[0].double().numpy()
    U = np.linalg.solve(X, firsts.astype(float))  # (n, d, k)
    for power, expected in ((1, 0), (2, 1 / d), (4, 3 / (d * (d + 2)))):
        moments = U**power
        error = 5 * moments.std(0) / math.sqrt(n)
        assert (np.abs(moments.mean(0) - expected) < error).all()


@pytest.mark.parametrize(
    ("link", "k", "by_hand"),
    [
        (1, None, lambda u: u[:, 0]),
        (3, None, lambda u: he(u[:, 0], 3)),
        (np.int64(2), 2, lambda u: (he(u[:, 0], 2) + he(u[:, 1], 2)) / math.sqrt(2)),
        (Monomial({0: 1, 2: 3}), None, lambda u: u[:, 0] * he(u[:, 2], 3)),
        ({1: 2}, 4, lambda u: he(u[:, 1], 2)),
        (
            STAIRCASE,
            None,
            lambda u: (u[:, 0] + u[:, 0] * u[:, 1] + u[:, 0] * u[:, 1] * u[:, 2]) / math.sqrt(3),
        ),
        ([{}, {0: 1}], None, lambda u: (1 + u[:, 0]) / math.sqrt(2)),
        (lambda U: torch.sign(U[:, 0] * U[:, 1]), 2, lambda u: np.sign(u[:, 0] * u[:, 1])),
    ],
)
def test_targets_are_the_link_of_the_projections(link, k, by_hand):
    X, y = batch(link, k=k, data_eigvals=EIGVALS)
    _, U = projected(D, data_eigvals=EIGVALS)
    assert X.dtype == y.dtype == torch.float32
    assert y.shape == (64,)
    np.testing.assert_allclose(y.numpy(), by_hand(U.double().numpy()), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("direction_seed", [3, None])
def test_integers_may_be_those_of_numpy(direction_seed):
    found = batch(
        np.int64(2),
        d=np.int64(D),
        k=np.int64(2),
        direction_seed=direction_seed and np.int64(direction_seed),
    )
    expected = batch(2, k=2, direction_seed=direction_seed)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("link", [2, 4, Monomial({0: 2, 1: 1}), STAIRCASE])
@pytest.mark.parametrize("k", [None, 3])
def test_targets_are_standardised(link, k):
    n = 200_000
    _, y = batch(link, n, k=k, data_eigvals=EIGVALS)
    y = y.double()
    for moment, expected in ((y, 0), (y**2, 1)):
        assert abs(float(moment.mean()) - expected) < 5 * float(moment.std()) / math.sqrt(n)


@pytest.mark.parametrize("exponent", [2, 3, 4])
def test_the_information_exponent_is_the_degree(exponent):
    """No correlation with any Hermite polynomial of lower degree, of either direction."""
    n = 100_000
    _, y = batch(exponent, n, seed=3)
    _, U = projected(2, n=n, seed=3)
    for i, degree in itertools.product(range(2), range(exponent + 1)):
        product = y.numpy() * he(U[:, i].double().numpy(), degree)
        expected = float(i == 0 and degree == exponent)
        assert abs(product.mean() - expected) < 5 * product.std() / math.sqrt(n)


def test_the_first_coordinates_give_the_targets_of_polynomial():
    entries = power_law(d=D, alpha=1.0)()
    expected = polynomial(STAIRCASE[2], **entries, bsz=64, gen=generator())(0)
    found = batch(STAIRCASE[2], direction_seed=None, **entries)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(found[0], expected[0])


def test_given_directions():
    U = torch.linalg.qr(torch.randn(D, 2, generator=generator(9), dtype=torch.float64)).Q.T
    for directions in (U, U.numpy(), U.tolist()):
        X, y = batch(Monomial({0: 1, 1: 1}), directions=directions)
        expected = (X.double() @ U[0]) * (X.double() @ U[1])
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_link_may_have_several_outputs_and_never_gradients():
    weight = torch.ones(1, requires_grad=True)
    X, y = batch(lambda U: torch.stack([U[:, 0] * weight, U[:, 1]], dim=1), k=2)
    assert y.shape == (64, 2)
    assert not y.requires_grad
    assert not X.requires_grad


def test_given_X_and_y_come_back_at_every_step():
    X, y = batch(1)
    batch_fn = multi_index(1, bsz=64, gen=generator(), X=X, y=y)
    for step in range(2):
        assert batch_fn(step)[0] is X
        assert batch_fn(step)[1] is y


@pytest.mark.parametrize(
    ("link", "arguments", "message"),
    [
        (1, {"k": 0}, r"multi_index: got k=0; valid is an integer >= 1"),
        (1, {"k": 9}, r"got k=9 directions, but the inputs have d=8"),
        (1, {"direction_seed": -1}, r"got direction_seed=-1; valid is an integer from 0"),
        (
            {2: 1},
            {"k": 2},
            r"multi_index: the monomial \$x_\{2\}\$ has the index 2, but k=2; .* larger k",
        ),
        (0, {}, r"got link=0 \(a monomial is a mapping .*valid are a Monomial or a li"),
        ("he3", {}, r"got link='he3' .* a degree >= 1, and a function u \(n, k\) -> \(n,\)"),
        ([], {}, r"got link=\[\] \(an empty list\)"),
        ([{0: 1}, {0: 1}], {}, r"\(a monomial appears more than once\)"),
        ({0: -1}, {}, r"got link=\{0: -1\} \(the exponents of a monomial are .* got -1"),
        (torch.sum, {}, r"the link gave the shape \(\) for u of shape \(3, 1\); valid is a tensor"),
        (lambda U: 1.0, {"k": 2}, r"the link gave float for u of shape \(3, 2\)"),
        (
            1,
            {"directions": torch.ones(D)},
            r"the shape \(8,\); .* \(k, 8\); try directions\[None\]",
        ),
        (1, {"directions": torch.eye(2)}, r"directions has the shape \(2, 2\); valid is \(k, d\)"),
        (1, {"directions": torch.eye(2, D), "k": 3}, r"the shape \(2, 8\); .* here \(3, 8\)"),
        (
            1,
            {"directions": 2 * torch.eye(1, D)},
            r"U U\^T differs from the identity by up to 3; try",
        ),
        (1, {"directions": math.nan * torch.eye(1, D)}, r"not orthonormal"),
        (
            1,
            {"directions": "random"},
            r"got directions='random' .* valid is an array \(k, 8\), or di",
        ),
        (1, {"d": None}, r"multi_index: the dimension of the inputs is not given"),
    ],
)
def test_bad_arguments(link, arguments, message):
    with pytest.raises(SpecError, match=message):
        batch(link, **arguments)


def test_all_bad_values_are_listed_together():
    with pytest.raises(SpecError, match=r"2 errors"):
        batch(1, k=0, direction_seed=-1)


@pytest.mark.gpu
def test_on_a_gpu_the_directions_are_the_same_and_steps_never_wait():
    gen = torch.Generator("cuda").manual_seed(0)
    batch_fn = multi_index(lambda U: U, bsz=64, gen=gen, k=3, d=D)
    X, U = (part.cpu() for part in batch_fn(0))
    cpu = torch.linalg.lstsq(*projected(3)).solution
    torch.testing.assert_close(U, X @ cpu, rtol=1e-4, atol=1e-4)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch_fn(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
