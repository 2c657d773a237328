import itertools
import math
import pickle

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import hermite_e

from mlpsubmit.batchfns import (
    Monomial,
    exponential_level_coeffs,
    gaussian_level_coeffs,
    hea_eigenvalue,
    hea_monomials,
    power_law,
    relu_ntk_level_coeffs,
)
from mlpsubmit.errors import SpecError
from mlpsubmit.spec.fingerprint import digest

unhurried = settings(deadline=None)  # cores may be shared


def every_mode(gammas, coeffs):
    """All (eigenvalue, monomial, ranks) up to the degree of the last coefficient, in order."""
    ranking = sorted(range(len(gammas)), key=lambda i: (-gammas[i], i))
    modes = []
    for degree, coeff in enumerate(coeffs):
        for ranks in itertools.combinations_with_replacement(range(len(gammas)), degree):
            indices = [ranking[rank] for rank in ranks]
            monomial = Monomial({i: indices.count(i) for i in indices})
            modes.append((coeff * math.prod(gammas[i] for i in indices), monomial, ranks))
    return sorted(modes, key=lambda mode: (-mode[0], len(mode[2]), mode[2]))


@st.composite
def problems(draw, numbers):
    gammas = draw(st.lists(numbers, min_size=1, max_size=4))
    coeffs = draw(st.lists(numbers, min_size=1, max_size=5))
    modes = every_mode(gammas, coeffs)
    return gammas, coeffs, modes, draw(st.integers(1, len(modes)))


# Products of these are exact, so that equal eigenvalues are equal whatever the order of factors.
with_ties = st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0, 2.0])


@unhurried
@given(problems(with_ties))
def test_agrees_with_sorting_all_monomials_ties_and_zeros_included(problem):
    gammas, coeffs, modes, n = problem
    eigvals, monomials = hea_monomials(gammas, n, coeffs.__getitem__, kmax=len(coeffs) - 1)
    assert eigvals.dtype == np.float64
    assert eigvals.tolist() == [eigval for eigval, _, _ in modes[:n]]
    assert monomials == [monomial for _, monomial, _ in modes[:n]]


@unhurried
@given(problems(with_ties))
def test_ties_of_a_falling_spectrum_go_in_the_order_of_monomials(problem):
    gammas, coeffs, modes, n = problem
    gammas = sorted(gammas, reverse=True)
    modes = sorted((-eigval, monomial) for eigval, monomial, _ in every_mode(gammas, coeffs))
    _, monomials = hea_monomials(gammas, n, coeffs.__getitem__, kmax=len(coeffs) - 1)
    assert monomials == [monomial for _, monomial in modes[:n]]


@unhurried
@given(problems(st.floats(0, 10)))
def test_any_numbers_give_the_largest_eigenvalues_once_each(problem):
    gammas, coeffs, modes, n = problem
    eigvals, monomials = hea_monomials(gammas, n, coeffs.__getitem__, kmax=len(coeffs) - 1)
    assert len(set(monomials)) == len(monomials) == n
    expected = [eigval for eigval, _, _ in modes[:n]]
    np.testing.assert_allclose(eigvals, expected, rtol=1e-14, atol=1e-300)
    assert (np.diff(eigvals) <= 0).all()
    assert eigvals.tolist() == [hea_eigenvalue(m, gammas, coeffs.__getitem__) for m in monomials]


def test_an_isotropic_spectrum_in_many_dimensions_is_all_ties():
    eigvals, monomials = hea_monomials(np.ones(300), 1000, lambda degree: 1.0)
    assert (eigvals == 1).all()
    assert monomials == sorted(monomials)
    assert monomials[300:303] == [{299: 1}, {0: 2}, {0: 1, 1: 1}]


def test_the_constant_takes_part_in_the_order():
    eigvals, monomials = hea_monomials([0.5], 3, [0.1, 1.0, 1.0].__getitem__, kmax=2)
    assert eigvals.tolist() == [0.5, 0.25, 0.1]
    assert monomials == [{0: 1}, {0: 2}, {}]


def test_takes_tensors_and_numpy_integers():
    gammas = power_law(d=5, alpha=1.0)()["data_eigvals"].requires_grad_()
    level_coeffs = relu_ntk_level_coeffs(gammas)
    eigvals, monomials = hea_monomials(gammas, np.int64(20), level_coeffs, kmax=np.int64(3))
    again, _ = hea_monomials(gammas.tolist(), 20, level_coeffs, kmax=3)
    assert eigvals.tolist() == again.tolist()
    assert hea_eigenvalue({"0": 1}, gammas, level_coeffs) == eigvals[monomials.index({0: 1})]


def spectrum_of(kernel, gammas, nodes=24):
    """Eigenvalues of a kernel under N(0, diag(gammas)), two of them, by Gaussian quadrature."""
    z, weights = hermite_e.hermegauss(nodes)
    X = np.stack(np.meshgrid(z, z), axis=-1).reshape(-1, 2) * np.sqrt(gammas)
    root = np.sqrt(np.outer(weights, weights).ravel() / weights.sum() ** 2)
    return np.linalg.eigvalsh(root[:, None] * kernel(X) * root)[::-1]


def test_a_wide_exponential_kernel_has_these_eigenvalues():
    gammas = np.array([0.4, 0.6])
    eigvals, _ = hea_monomials(gammas, 12, exponential_level_coeffs(kernel_width=8.0))
    true = spectrum_of(lambda X: np.exp(X @ X.T / 64), gammas)
    np.testing.assert_allclose(eigvals, true[:12], rtol=1e-3)


def test_a_wide_gaussian_kernel_has_these_eigenvalues():
    gammas = np.array([0.6, 0.4])
    eigvals, _ = hea_monomials(gammas, 10, gaussian_level_coeffs(gammas, kernel_width=20.0))
    true = spectrum_of(lambda X: np.exp(-((X[:, None] - X) ** 2).sum(axis=-1) / (2 * 400)), gammas)
    np.testing.assert_allclose(eigvals, true[:10], rtol=0.02)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_gaussian_kernel_in_one_dimension_in_closed_form(gamma):
    # Rasmussen & Williams, Gaussian processes for machine learning, equation 4.40.
    width = 30.0
    a, b = 1 / (4 * gamma), 1 / (2 * width**2)
    A = a + b + math.sqrt(a**2 + 2 * a * b)
    true = [math.sqrt(2 * a / A) * (b / A) ** k for k in range(6)]
    eigvals, monomials = hea_monomials([gamma], 6, gaussian_level_coeffs([gamma], width))
    np.testing.assert_allclose(eigvals, true, rtol=15 * gamma / width**2)
    assert monomials == [{}, *({0: k} for k in range(1, 6))]


def test_the_relu_kernel_of_samples_has_these_eigenvalues():
    gammas = power_law(d=200, alpha=1.0, offset=30)()["data_eigvals"].numpy().astype(float)
    Z = np.random.default_rng(0).standard_normal((1500, 200))
    X = Z * np.sqrt(gammas)
    q = np.sqrt(1 + (X**2).sum(axis=1))
    u = np.clip((1 + X @ X.T) / np.outer(q, q), -1, 1)
    K = np.outer(q, q) / (2 * math.pi) * (np.sqrt(1 - u**2) + 2 * u * (math.pi - np.arccos(u)))
    eigvals, monomials = hea_monomials(gammas, 201, relu_ntk_level_coeffs(gammas))
    assert monomials == [{}, *({i: 1} for i in range(200))]
    # Over pairs of different samples <h, K h> has no bias, which eigenvalues of a sample have.
    np.fill_diagonal(K, 0)
    modes = np.column_stack([np.ones(1500), Z])
    projections = ((K @ modes) * modes).sum(axis=0) / (1500 * 1499)
    assert eigvals[0] == pytest.approx(projections[0], rel=0.01)
    assert eigvals[1:].sum() == pytest.approx(projections[1:].sum(), rel=0.03)


RELU = [(1.0, 1.0, 1.0), (1.0, 1.0, 0.0), (3.7, 0.5, 0.2), (1.0, 1.0, 1e4), (1e-3, 2.0, 1.0)]


@pytest.mark.parametrize(("total", "w", "b"), RELU)
def test_relu_coefficients_are_the_derivatives_of_the_kernel(total, w, b):
    c = relu_ntk_level_coeffs([0.25 * total, 0.75 * total], w, b)
    with mpmath.workdps(60):
        S, w, b = (mpmath.mpf(number) for number in (total, w, b))
        q = b + w * S

        def kernel(t):
            u = (b + w * t) / q
            return w * q * (mpmath.sqrt(1 - u**2) + 2 * u * (mpmath.pi - mpmath.acos(u)))

        series = mpmath.taylor(lambda t: kernel(t) / (2 * mpmath.pi), 0, 20)
        expected = [float(term * mpmath.factorial(level)) for level, term in enumerate(series)]
    np.testing.assert_allclose([c(level) for level in range(21)], expected, rtol=1e-13, atol=1e-15)


def test_relu_coefficients_agree_with_autodiff():
    gammas, w, b = [0.5, 0.3], 1.5, 0.25
    q = b + w * sum(gammas)

    def kernel(t):
        u = (b + w * t) / q
        return w * q / (2 * math.pi) * ((1 - u**2).sqrt() + 2 * u * (math.pi - u.arccos()))

    for level in range(6):
        value = kernel(torch.zeros((), dtype=torch.float64)).item()
        assert relu_ntk_level_coeffs(gammas, w, b)(level) == pytest.approx(value, rel=1e-12)
        kernel = torch.func.grad(kernel)


def test_the_relu_kernel_is_that_of_a_wide_network():
    w, b, width = 1.5, 0.4, 400_000
    inputs = torch.tensor([[1.0, 0.5, -0.5], [0.3, -0.7, 0.96**0.5 - 0.02]], dtype=torch.float64)
    inputs *= (2 / inputs.square().sum(dim=1, keepdim=True)).sqrt()
    generator = torch.Generator().manual_seed(0)
    shapes = [(width, 3), (width,), (width,)]
    parameters = tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)

    def network(parameters, x):
        W, bias, v = parameters
        hidden = torch.relu(math.sqrt(w) * (W @ x) + math.sqrt(b) * bias)
        return math.sqrt(w / width) * (v @ hidden)

    gradients = [torch.func.grad(network)(parameters, x) for x in inputs]
    kernel = sum(float((g * h).sum()) for g, h in zip(*gradients, strict=True))
    c = relu_ntk_level_coeffs([1.0, 0.7, 0.3], w, b)
    t = float(inputs[0] @ inputs[1])
    series = sum(c(level) * t**level / math.factorial(level) for level in range(60))
    assert kernel == pytest.approx(series, rel=0.01)


def test_gaussian_and_exponential_coefficients_are_the_derivatives_of_their_kernels():
    gammas, s = [0.5, 0.3, 0.1], 0.7
    gaussian, exponential = gaussian_level_coeffs(gammas, s), exponential_level_coeffs(s)
    with mpmath.workdps(40):
        # |x - x'|^2 = 2 S - 2 t where both squared norms are S.
        S = mpmath.mpf(sum(gammas))
        kernels = {
            gaussian: lambda t: mpmath.exp(-(2 * S - 2 * t) / (2 * mpmath.mpf(s) ** 2)),
            exponential: lambda t: mpmath.exp(t / mpmath.mpf(s) ** 2),
        }
        for c, kernel in kernels.items():
            for level, term in enumerate(mpmath.taylor(kernel, 0, 12)):
                expected = float(term * mpmath.factorial(level))
                assert c(level) == pytest.approx(expected, rel=1e-12)


def test_level_coefficients_travel_and_count_by_content():
    made = [
        relu_ntk_level_coeffs([0.5, 0.5]),
        relu_ntk_level_coeffs([0.5, 0.5], bias_variance=2),
        relu_ntk_level_coeffs([0.5, 0.6]),
        gaussian_level_coeffs([0.5, 0.5], 1.0),
        gaussian_level_coeffs([0.5, 0.5], 2.0),
        exponential_level_coeffs(1.0),
    ]
    assert len({digest(c) for c in made}) == len(made)
    assert digest(made[0]) == digest(relu_ntk_level_coeffs(np.array([0.25, 0.75]), 1, 1))
    for c in made:
        assert pickle.loads(pickle.dumps(c))(3) == c(3)


def test_integers_may_be_the_shortest_of_numpy():
    eigvals, monomials = hea_monomials([0.7, 0.3], np.int8(6), constant, kmax=np.int8(127))
    expected, same = hea_monomials([0.7, 0.3], 6, constant, kmax=127)
    assert (eigvals.tolist(), monomials) == (expected.tolist(), same)


def constant(degree):
    return 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, r"hea_monomials: got n=0; valid is an integer >= 1"),
        ({"n": 2.5}, r"got n=2\.5"),
        ({"n": True}, r"got n=True"),
        ({"kmax": -1}, r"got kmax=-1; valid is an integer >= 0, such as 10"),
        ({"kmax": "3"}, r"got kmax='3'"),
        ({"n": 0, "kmax": None}, r"2 errors"),
        (
            {"n": 11, "kmax": 3},
            r"got n=11, but d=2 coordinates have 10 monomials of degree <= kmax=3; "
            r"try n=10, or kmax=4",
        ),
        ({"data_eigvals": [[1.0]]}, r"data_eigvals has the shape \(1, 1\); valid is \(d,\)"),
        ({"data_eigvals": []}, r"data_eigvals has the shape \(0,\)"),
        ({"data_eigvals": 1.0}, r"data_eigvals has the shape \(\)"),
        ({"data_eigvals": ["a"]}, r"data_eigvals are not numbers"),
        ({"data_eigvals": [1, -2, -3]}, r"2 entries that are .* the first is -2\.0 at \[1\]"),
        ({"data_eigvals": [math.inf]}, r"1 entries that are negative or not finite.* inf at \[0\]"),
        ({"data_eigvals": [1e300]}, r"a mode of degree 2 overflows; try .* scaled to sum 1"),
        ({"level_coeffs": lambda degree: 1 - degree}, r"of degree 2 is -1\.0; valid is a finite"),
        ({"level_coeffs": lambda degree: math.nan}, r"level coefficient of degree 0 is nan"),
        ({"level_coeffs": lambda degree: 1e300**degree}, r"of degree 2 is inf.* a smaller kmax"),
    ],
)
def test_bad_arguments(arguments, message):
    valid = {"data_eigvals": [0.5, 0.5], "n": 3, "level_coeffs": constant}
    with pytest.raises(SpecError, match=message):
        hea_monomials(**{**valid, **arguments})


@pytest.mark.parametrize(
    ("monomial", "message"),
    [
        ({2: 1}, r"hea_eigenvalue: the monomial \$x_\{2\}\$ has the index 2, but d=2; valid are 0"),
        (
            {0: 0},
            r"hea_eigenvalue: bad monomial \{0: 0\}: the exponents of a monomial are integers",
        ),
        ([{0: 1}], r"hea_eigenvalue: bad monomial \[\{0: 1\}\]: a monomial is a mapping"),
    ],
)
def test_bad_monomials(monomial, message):
    with pytest.raises(SpecError, match=message):
        hea_eigenvalue(monomial, [0.5, 0.5], constant)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gaussian_level_coeffs([4.0], 1e-200), r"so narrow for data_eigvals of sum 4"),
        (lambda: relu_ntk_level_coeffs([1.0], 0.0), r"got weight_variance=0\.0; valid .* > 0"),
        (lambda: relu_ntk_level_coeffs([1.0], 1.0, -1), r"got bias_variance=-1; valid .* >= 0"),
        (lambda: relu_ntk_level_coeffs([1.0], "1", math.inf), r"2 errors"),
        (lambda: relu_ntk_level_coeffs([0.0, 0.0]), r"data_eigvals are all 0"),
        (lambda: relu_ntk_level_coeffs([-1.0]), r"relu_ntk_level_coeffs: data_eigvals has 1 entr"),
        (lambda: gaussian_level_coeffs([1.0], 0), r"gaussian_level_coeffs: got kernel_width=0;"),
        (lambda: gaussian_level_coeffs([4.0], 0.01), r"kernel_width=0\.01, so narrow.* near 2"),
        (lambda: exponential_level_coeffs(-1.0), r"got kernel_width=-1\.0; valid is a finite numb"),
        (lambda: exponential_level_coeffs(1.0)(1.5), r"got the degree 1\.5; valid is an integer"),
        (lambda: relu_ntk_level_coeffs([1.0])(-1), r"got the degree -1; valid is an integer >= 0"),
    ],
)
def test_bad_kernels(make, message):
    with pytest.raises(SpecError, match=message):
        make()
