"""MLPscape's synthetic data, against numpy, scipy and the recipes of mlpsubmit.batchfns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.polynomial import hermite_e
from torch import nn

from mlpsubmit.batchfns import hea_monomials, polynomial, randn, relu_ntk_level_coeffs
from mlpsubmit.compat import (
    Monomial,
    ensure_numpy,
    ensure_torch,
    generate_hea_monomials,
    get_new_polynomial_data,
    get_relu_level_coeff_fn,
    get_synthetic_X,
    polynomial_batch_fn,
)
from mlpsubmit.compat.tensors import on_device, training_on


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_synthetic_inputs_are_scaled_gaussians():
    X, eigvals = get_synthetic_X(d=4, N=50_000, offset=2, alpha=1.0, gen=generator(), noise_size=9)
    weights = 1 / np.array([2.0, 3, 4, 5])
    assert eigvals.numpy() == pytest.approx(weights / weights.sum(), rel=1e-6)
    assert X.var(dim=0).numpy() == pytest.approx(eigvals.numpy(), rel=0.03)
    drawn = randn(50_000, 4, generator=generator())
    assert torch.allclose(X, drawn * eigvals.sqrt())
    given, returned = get_synthetic_X(d=2, N=3, data_eigvals=[1.0, 4.0], gen=generator())
    assert returned.tolist() == [1.0, 4.0]
    assert torch.allclose(given, randn(3, 2, generator=generator()) * torch.tensor([1, 2]))


def whitened_polynomial(X, sample, monomials, coeffs):
    """The target in numpy: probabilists' Hermite polynomials of whitened components."""
    _, S, Vt = np.linalg.svd(sample, full_matrices=False)
    Z = X @ Vt.T / S * math.sqrt(len(sample))
    total = 0.0
    for monomial, coeff in zip(monomials, coeffs, strict=True):
        product = np.full(len(X), float(coeff))
        for i, e in monomial.items():
            product *= hermite_e.hermeval(Z[:, int(i)], [0] * e + [1]) / math.sqrt(
                math.factorial(e)
            )
        total = total + product / len(monomials)
    return total


@pytest.mark.parametrize(
    ("monomials", "coeffs"),
    [
        ([Monomial({0: 1})], 1),
        ([{"1": 2, "2": 1}], 1),
        ([Monomial(), Monomial({0: 3}), Monomial({1: 1, 2: 1})], [2.0, -1.0, 0.5]),
    ],
)
def test_polynomial_targets_against_numpy(monomials, coeffs):
    sample, eigvals = get_synthetic_X(d=3, N=40, gen=generator(1))
    _, S, Vt = torch.linalg.svd(sample, full_matrices=False)
    X, y = get_new_polynomial_data(
        S, Vt, monomials, 3, 20, eigvals, 40, coeffs=coeffs, gen=generator(2)
    )
    listed = coeffs if isinstance(coeffs, list) else [coeffs] * len(monomials)
    expected = whitened_polynomial(X.double().numpy(), sample.double().numpy(), monomials, listed)
    assert y.shape == (20,)
    assert y.numpy() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_with_exact_whitening_it_is_the_recipe():
    """With the singular values of the covariance itself, the targets are those of polynomial."""
    eigvals = torch.tensor([0.5, 0.3, 0.2])
    arguments = {"lambdas": eigvals.sqrt(), "Vt": torch.eye(3), "data_eigvals": eigvals, "N": 1}
    ours = polynomial_batch_fn(**arguments, monomials=Monomial({0: 2}), bsz=6, gen=generator())
    theirs = polynomial(Monomial({0: 2}), eigvals, bsz=6, gen=generator())
    for step in range(3):
        for one, other in zip(ours(step), theirs(step), strict=True):
            assert torch.allclose(one, other, atol=1e-6)


def test_the_batch_function_returns_what_is_fixed_and_takes_another_recipe():
    eigvals = np.ones(2)
    arguments = {"lambdas": eigvals, "Vt": np.eye(2), "data_eigvals": eigvals, "bsz": 3}
    X, y = torch.zeros(3, 2), torch.ones(3)
    fixed = polynomial_batch_fn(**arguments, monomials={0: 1}, X=X, y=y, gen=generator())
    assert fixed(5)[0] is X
    assert fixed(5)[1] is y
    received = []

    def recipe(**given):
        received.append(given)
        return np.zeros((given["N"], given["dim"])), np.ones(given["N"])

    batch_fn = polynomial_batch_fn(
        **arguments, monomials={0: 1}, N=7, data_creation_fn=recipe, gen=generator()
    )
    X, y = batch_fn(0)
    assert (X.dtype, y.dtype, X.shape, y.shape) == (torch.float32, torch.float32, (3, 2), (3,))
    assert (received[0]["N"], received[0]["N_original"], received[0]["dim"]) == (3, 7, 2)
    assert received[0]["monomials"] == {0: 1}


def test_hea_monomials_have_the_constant_first():
    eigvals = np.array([0.6, 0.3, 0.1])
    coeffs = [0.2, 1.0, 0.5, 0.1]
    found, monomials = generate_hea_monomials(eigvals, 6, coeffs.__getitem__, kmax=3, d=3, alpha=2)
    assert monomials[0] == Monomial()
    assert found[0] == 0.2
    plain_eigvals, plain = hea_monomials(eigvals, 6, coeffs.__getitem__, kmax=3)
    assert plain[0] != Monomial()  # where it has no place of its own
    others = [m for m in plain if m != Monomial()]
    assert monomials[1:] == others[:5]
    kept = [value for value, m in zip(plain_eigvals, plain, strict=True) if m != Monomial()]
    assert found[1:] == pytest.approx(kept[:5])


def test_there_may_be_fewer_hea_monomials_than_requested():
    found, monomials = generate_hea_monomials(torch.tensor([0.6, 0.4]), 100, lambda k: 1.0, kmax=2)
    assert len(found) == len(monomials) == 6


def test_relu_level_coefficients():
    eigvals = [0.5, 0.5]
    plain = relu_ntk_level_coeffs(eigvals, 2.0, 0.5)
    for names in (("weight_variance", "bias_variance"), ("w_var", "b_var")):
        named = get_relu_level_coeff_fn(eigvals, **dict(zip(names, (2.0, 0.5), strict=True)))
        assert [named(k) for k in range(5)] == [plain(k) for k in range(5)]
    variance = math.sqrt(2 * math.pi / (1 + 2 * math.pi * 3.0))
    by_width = get_relu_level_coeff_fn(eigvals, kernel_width=3.0)
    expected = relu_ntk_level_coeffs(eigvals, variance, 3.0 * variance)
    assert [by_width(k) for k in range(4)] == [expected(k) for k in range(4)]


def test_ensure_torch():
    tensor = torch.zeros(2)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert ensure_torch(tensor, device="cpu") is tensor
    assert ensure_torch(tensor, device="cpu", clone=True) is not tensor
    assert ensure_torch([1, 2], dtype=torch.int64).dtype == torch.int64
    assert ensure_torch(np.ones(2)).device.type == device
    assert ensure_torch(3.0).shape == ()
    with training_on(torch.device("meta")):
        assert ensure_torch(tensor).device.type == "meta"
        assert ensure_torch(tensor, device="cpu").device.type == "cpu"
    assert ensure_torch(tensor).device.type == device


def test_ensure_numpy():
    array = np.ones(2)
    assert ensure_numpy(array) is array
    assert ensure_numpy(array, clone=True) is not array
    assert ensure_numpy([1]).dtype == np.float64
    grad = torch.ones(2, requires_grad=True)
    assert ensure_numpy(grad).dtype == np.float32


def test_moving_to_a_device():
    module = nn.Linear(2, 2)
    value = {"a": [torch.zeros(2), (torch.ones(1), "text")], "m": module, "n": np.ones(1)}
    moved = on_device(value, "meta")
    assert moved["a"][0].device.type == moved["a"][1][0].device.type == "meta"
    assert moved["a"][1][1] == "text"
    assert moved["m"].weight.device.type == "meta"
    assert module.weight.device.type == "cpu"
    assert moved["n"] is value["n"]


@pytest.mark.gpu
def test_ensure_torch_takes_the_index_of_a_gpu():
    assert ensure_torch([1.0], device=0).device == torch.device("cuda", 0)
