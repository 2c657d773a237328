"""Coefficients of learned functions on monomials, against closed forms and their own statistics."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit import grabs
from mlpsubmit.batchfns import Monomial, polynomial
from mlpsubmit.errors import SpecError

EIGVALS = torch.tensor([4.0, 1.0, 0.25])
METHODS = ["least_squares", "mean"]


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, X):
        return self.function(X)


def inputs(n, seed=0):
    Z = torch.randn(n, len(EIGVALS), generator=torch.Generator().manual_seed(seed))
    return Z * EIGVALS.sqrt()


def coefficients(function, monomials, n=500, seed=0, **further):
    model = Function(function)
    further = {"centered": False, "data_eigvals": EIGVALS, "model0": model} | further
    return grabs.monomial_coefficients(model, inputs(n, seed), None, monomials=monomials, **further)


def test_of_a_linear_network_they_are_its_weights_in_units_of_the_inputs():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    asked = [Monomial({0: 1}), {1: 1}, {2: 1}, Monomial(), {0: 2}, {0: 1, 2: 1}]
    got = coefficients(model, asked)
    assert not got.requires_grad
    weights = (model.weight * EIGVALS.sqrt()).T
    expected = torch.cat([weights, model.bias[None], torch.zeros(2, 2)])
    torch.testing.assert_close(got, expected.detach(), rtol=0, atol=2e-6)


def test_of_powers_they_are_those_of_the_expansion():
    # x_0^2 x_1 = 4 z_0^2 z_1 = 4 (sqrt(2) h_2 + 1) h_1
    got = coefficients(lambda X: X[:, 0] ** 2 * X[:, 1], [{0: 2, 1: 1}, {1: 1}, {1: 3}])
    expected = torch.tensor([4 * math.sqrt(2), 4.0, 0.0])
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


MONOMIALS = [Monomial({0: 1}), Monomial({1: 2}), Monomial({0: 1, 2: 3}), Monomial({2: 4})]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_network_that_has_learned_the_target_has_an_equal_share_on_each(count):
    asked = MONOMIALS[:count]
    gen = torch.Generator().manual_seed(3)
    X, y = polynomial(asked, EIGVALS, bsz=20_000, gen=gen)(0)
    got = {
        method: grabs.monomial_coefficients(
            Function(lambda inputs: y[:, None]), X, X, None, EIGVALS, asked, None, False, method
        )
        for method in METHODS
    }
    shares = torch.full((count,), 1 / count)
    torch.testing.assert_close(got["least_squares"], shares, rtol=0, atol=1e-5)
    z = (X / EIGVALS.sqrt()).double()
    for k, monomial in enumerate(asked):
        h = np.prod([hermite_e(z[:, i], e) for i, e in monomial.items()], axis=0)
        sigma = np.std(y.double().numpy() * h) / math.sqrt(len(X))
        assert abs(got["mean"][k] - 1 / count) < 5 * sigma


def hermite_e(z, degree):
    """He_n / sqrt(n!), from numpy's own polynomials."""
    series = np.eye(degree + 1)[degree]
    return np.polynomial.hermite_e.hermeval(z.numpy(), series) / math.sqrt(math.factorial(degree))


@pytest.mark.parametrize("method", METHODS)
def test_of_a_relu_they_scatter_around_the_closed_form_as_documented(method):
    # E[relu(z) h_1] = 1/2 and E[relu(z) h_2] = 1 / (2 sqrt(pi)).
    def relu(X):
        return (X[:, 1]).relu()

    asked, exact = [{1: 1}, {1: 2}], np.array([0.5, 0.5 / math.sqrt(math.pi)])
    n, repeats = 400, 300
    got = np.stack([coefficients(relu, asked, n, seed, method=method) for seed in range(repeats)])
    z = np.random.default_rng(0).standard_normal(10**6)
    h = np.stack([np.ones_like(z), z, (z**2 - 1) / math.sqrt(2)])
    f = z.clip(0)
    rest = f - np.array([1 / math.sqrt(2 * math.pi), *exact]) @ h if method != "mean" else f
    variance = ((rest * h[1:]) ** 2).mean(1) - (exact**2 if method == "mean" else 0)
    sigma = np.sqrt(variance / n)
    assert (np.abs(got.mean(0) - exact) < 5 * sigma / math.sqrt(repeats) + 1 / n).all()
    np.testing.assert_allclose(got.std(0), sigma, rtol=0.2)


def test_the_learned_function_is_what_is_trained():
    torch.manual_seed(0)
    model, model0 = nn.Linear(3, 1), nn.Linear(3, 1)
    X = inputs(50)

    def weight(**further):
        asked = [{0: 1}, {1: 1}, {2: 1}]
        return grabs.monomial_coefficients(model, X, None, model0, EIGVALS, asked, **further)[0]

    difference = (model.weight - model0.weight)[0, 0] * 2
    torch.testing.assert_close(weight(), difference.detach())
    torch.testing.assert_close(weight(centered=False), model.weight[0, 0].detach() * 2)


def test_the_test_set_goes_before_the_batch_and_the_basis_before_the_target():
    model = Function(lambda X: X[:, 0].abs())
    few, many = inputs(20, seed=1), inputs(60, seed=2)

    def measure(X_tr, X_te, **further):
        return grabs.monomial_coefficients(
            model, X_tr, X_te, model, EIGVALS, {0: 2}, centered=False, **further
        )

    assert torch.equal(measure(few, many), measure(many, None))
    assert not torch.equal(measure(few, many), measure(few, None))
    both = measure(few, None, basis=[{0: 4}, {0: 2}])
    swapped = measure(few, None, basis=({0: 2}, {0: 4}))
    torch.testing.assert_close(both, swapped.flip(0))


def test_without_eigenvalues_the_inputs_have_variances_of_one():
    asked = [{0: 1}, {1: 2}, {0: 1, 2: 1}]
    X = inputs(500) / EIGVALS.sqrt()
    model = Function(lambda X: X[:, 0] + X[:, 1] ** 2 / math.sqrt(2) - 3 * X[:, 0] * X[:, 2])
    for method in METHODS:
        arguments = {"monomials": asked, "centered": False, "method": method}
        got = grabs.monomial_coefficients(model, X, None, model, **arguments)
        ones = grabs.monomial_coefficients(model, X, None, model, torch.ones(3), **arguments)
        assert torch.equal(got, ones)
        expected = torch.tensor([1.0, 1.0, -3.0])
        error = 1e-5 if method == "least_squares" else 1.0
        torch.testing.assert_close(got, expected, rtol=0, atol=error)


def test_of_signs_they_are_fourier_coefficients():
    # Over the whole cube the expectation is exact, by either method.
    X = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)))
    asked = [{0: 1}, {0: 1, 2: 1}, {0: 1, 1: 1, 2: 1}]
    f = torch.randn(8, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([(f * X[:, list(m)].prod(dim=1)).mean() for m in asked])
    model = Function(lambda X: f)
    for method in METHODS:
        got = grabs.monomial_coefficients(
            model, X, None, model, monomials=asked, centered=False, method=method
        )
        torch.testing.assert_close(got, expected)


def test_shapes():
    several = nn.Linear(3, 2)
    assert coefficients(several, {0: 1}).shape == (1, 2)
    assert coefficients(several, [{0: 1}]).shape == (1, 2)
    for one in (lambda X: X[:, 0], lambda X: X[:, :1]):
        assert coefficients(one, {0: 1}).shape == (1,)
        assert coefficients(one, [Monomial({0: 1})]).shape == (1,)
        twice = coefficients(one, [{0: 1}, {1: 1}, {0: 1}])
        torch.testing.assert_close(twice, torch.tensor([2.0, 0.0, 2.0]), rtol=0, atol=1e-5)


def test_eigenvalues_may_be_of_numpy_and_a_zero_gives_nan():
    for eigvals in (EIGVALS.double().numpy(), EIGVALS.tolist()):
        got = coefficients(lambda X: X[:, 2], {2: 1}, data_eigvals=eigvals)
        torch.testing.assert_close(got, torch.tensor([0.5]))
    flat = torch.tensor([4.0, 1.0, 0.0])
    X = inputs(50) * (flat > 0)
    model = Function(lambda X: X[:, 0])
    for method in METHODS:
        got = grabs.monomial_coefficients(
            model, X, None, model, flat, [{2: 1}, {0: 1}], centered=False, method=method
        )
        assert got[0].isnan()
    assert grabs.monomial_coefficients(model, X, None, model, flat, {0: 1}, centered=False) > 1.9


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            {"monomials": [{3: 1}, {0: -1}], "method": "means", "data_eigvals": EIGVALS[:2]},
            [
                "4 errors",
                "monomial_coefficients: got data_eigvals of shape (2,); valid is (3,), one var",
                "the monomial $x_{3}$ has the index 3, but d=3; valid are 0 to 2",
                "monomial_coefficients: bad monomial {0: -1}: the exponents of a monomial",
                "got method='means' (did you mean 'mean'?); valid are 'least_squares', 'mean'",
            ],
        ),
        ({"monomials": None}, ["got neither monomials nor basis; try basis=[Monomial({0: 1})]"]),
        ({"monomials": []}, ["got no monomials"]),
        ({"monomials": {0: 1}, "basis": [0]}, ["monomial_coefficients: bad monomial 0: a mono"]),
        ({"monomials": {0: 1}, "data_eigvals": 1.0}, ["got data_eigvals of shape (); valid is (3"]),
        (
            {"monomials": [{0: 1}, {1: 1}], "n": 2},
            ["2 samples do not determine 3 coefficients, a constant among them; try more, fewer"],
        ),
    ],
)
def test_errors(arguments, messages):
    with pytest.raises(SpecError) as caught:
        coefficients(nn.Linear(3, 1), **arguments)
    for message in messages:
        assert message in str(caught.value)


def test_inputs_that_are_no_vectors():
    message = re.escape(
        "monomial_coefficients: got inputs of shape (2, 1, 3, 3); valid are vectors (n, d), as "
        "an MLP gets them from batchfn=polynomial"
    )
    model, images = nn.Conv2d(1, 1, 3), torch.ones(2, 1, 3, 3)
    with pytest.raises(SpecError, match=message):
        grabs.monomial_coefficients(model, images, None, model, EIGVALS, {0: 1})


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_none_waits_for_the_gpu(method):
    model, X, eigvals = nn.Linear(3, 1).cuda(), inputs(50).cuda(), EIGVALS.cuda()

    def measure():
        return grabs.monomial_coefficients(
            model, X, None, model, eigvals, MONOMIALS, centered=False, method=method
        )

    measure()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = measure()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.is_cuda
