import inspect
import math
import pickle

import numpy as np
import pytest
import torch
from numpy.polynomial import hermite_e

from mlpsubmit.arguments import call
from mlpsubmit.batchfns import (
    hea_monomials,
    power_law,
    relu_ntk_level_coeffs,
    sample,
    synthetic,
)
from mlpsubmit.errors import SpecError


def entries(seed=0, n_train=50, n_test=20, **arguments):
    generator = torch.Generator().manual_seed(seed)
    recipe = synthetic(**{"d": 6, "cutoff_mode": 30, **arguments})
    return recipe(n_train=n_train, n_test=n_test, gen=generator)


def modes(found, split="train", kmax=10, **variances):
    """The matrix of Hermite products of each row and mode, by numpy in double precision."""
    eigvals = found["data_eigvals"].double().numpy()
    Z = found[f"X_{split}"].double().numpy() / np.sqrt(eigvals)
    level_coeffs = relu_ntk_level_coeffs(eigvals, **variances)
    _, monomials = hea_monomials(eigvals, len(found["coefficients"]), level_coeffs, kmax)
    H = np.ones((len(Z), len(monomials)))
    table = hermite_e.hermevander(Z, kmax) / np.sqrt([math.factorial(k) for k in range(kmax + 1)])
    for k, monomial in enumerate(monomials):
        for index, exponent in monomial.items():
            H[:, k] *= table[:, index, exponent]
    return H


def test_entries_and_their_shapes():
    found = entries()
    shapes = {name: tuple(entry.shape) for name, entry in found.items()}
    assert shapes == {
        "X_train": (50, 6),
        "y_train": (50,),
        "X_test": (20, 6),
        "y_test": (20,),
        "data_eigvals": (6,),
        "hea_eigvals": (30,),
        "coefficients": (30,),
    }
    assert {entry.dtype for entry in found.values()} == {torch.float32}


@pytest.mark.parametrize("normalized", [True, False])
def test_spectra_and_coefficients_follow_their_power_laws(normalized):
    arguments = {"alpha": 1.5, "offset": 2.0, "normalized": normalized}
    found = entries(beta=0.8, yoffset=2.5, weight_variance=2.0, bias_variance=0.5, **arguments)
    data_eigvals = power_law(d=6, **arguments)()["data_eigvals"]
    assert torch.equal(found["data_eigvals"], data_eigvals)
    eigvals, _ = hea_monomials(data_eigvals, 30, relu_ntk_level_coeffs(data_eigvals, 2.0, 0.5))
    np.testing.assert_allclose(found["hea_eigvals"].numpy(), eigvals, rtol=1e-6)
    powers = np.array([(2.5 + k) ** -0.4 for k in range(30)])
    expected = powers / math.sqrt(math.fsum(powers**2)) if normalized else powers
    np.testing.assert_allclose(found["coefficients"].numpy(), expected, rtol=1e-6)


def test_defaults_are_those_of_mlpscape():
    parameters = inspect.signature(synthetic()).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    assert defaults == {
        "d": 200,
        "alpha": 2.0,
        "offset": 6,
        "cutoff_mode": 40_000,
        "beta": 1.2,
        "yoffset": 1.2,
        "noise_size": 1,
        "normalized": True,
        "weight_variance": 1,
        "bias_variance": 1,
        "kmax": 10,
    }
    assert set(parameters) - set(defaults) == {"n_train", "n_test", "gen"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"cutoff_mode": 5000, "n_train": 1500},  # more of both than are multiplied out at a time
        {"cutoff_mode": 20, "kmax": 2, "bias_variance": 0.0, "d": 5},
        {"cutoff_mode": 1},
        {"cutoff_mode": 4, "d": 1, "weight_variance": 3.0, "normalized": False},
    ],
)
def test_targets_are_sums_of_hermite_products(arguments):
    found = entries(noise_size=0, **arguments)
    chosen = {name: arguments[name] for name in arguments if "variance" in name or name == "kmax"}
    for split in ("train", "test"):
        H = modes(found, split, **chosen)
        y = H @ found["coefficients"].double().numpy()
        # Relative to the terms that are summed: Hermite polynomials of high degree cancel.
        atol = 1e-5 * np.linalg.norm(H, axis=1).max()
        np.testing.assert_allclose(found[f"y_{split}"].numpy(), y, rtol=1e-4, atol=atol)


def test_each_coefficient_is_that_of_its_mode():
    """The modes by hand: eigenvalue 0.942, 0.759, 0.306, 0.184 for the degrees, by the formula of
    ``relu_ntk_level_coeffs``, times a product of gammas 0.8606, 0.1076, 0.0319: 1, 1/8 and 1/27,
    scaled to sum 1."""
    found = entries(d=3, alpha=3, offset=1, kmax=3, cutoff_mode=10, noise_size=0, n_train=300)
    gammas = np.array([1, 1 / 8, 1 / 27]) / (1 + 1 / 8 + 1 / 27)
    x0, x1, x2 = (found["X_train"].double().numpy() / np.sqrt(gammas)).T
    squared, cubed = (x0**2 - 1) / math.sqrt(2), (x0**3 - 3 * x0) / math.sqrt(6)
    eigvals_and_modes = [
        (0.9423, np.ones(300)),
        (0.6528, x0),
        (0.2268, squared),
        (0.1171, cubed),
        (0.0816, x1),
        (0.0284, x0 * x1),
        (0.0242, x2),
        (0.0146, squared * x1),
        (0.0084, x0 * x2),
        (0.0043, squared * x2),
    ]
    eigvals, modes = zip(*eigvals_and_modes, strict=True)
    np.testing.assert_allclose(found["hea_eigvals"].numpy(), eigvals, atol=5e-5)
    v = np.array([(1.2 + k) ** -0.6 for k in range(10)])
    y = v / math.sqrt(math.fsum(v**2)) @ np.stack(modes)
    np.testing.assert_allclose(found["y_train"].numpy(), y, rtol=1e-5, atol=1e-5)


def test_the_mean_target_of_the_defaults_is_the_first_coefficient():
    found = synthetic(noise_size=0, cutoff_mode=2000)(20_000, 1, torch.Generator().manual_seed(0))
    y, v0 = found["y_train"].double(), float(found["coefficients"][0])
    assert abs(float(y.mean()) - v0) < 5 * float(y.std()) / math.sqrt(20_000)
    norm = math.sqrt(math.fsum((1.2 + k) ** -1.2 for k in range(40_000)))
    assert 1.2**-0.6 / norm == pytest.approx(0.41, abs=0.005)


@pytest.mark.parametrize("noise_size", [0.0, 0.5])
def test_inputs_and_targets_have_the_moments_they_should(noise_size):
    found = entries(d=20, kmax=2, noise_size=noise_size, n_train=20_000, n_test=20_000)
    for split in ("train", "test"):
        X, y = found[f"X_{split}"].double(), found[f"y_{split}"].double()
        torch.testing.assert_close(X.mean(0), torch.zeros(20).double(), rtol=0, atol=0.01)
        covariance = torch.diag(found["data_eigvals"]).double()
        torch.testing.assert_close(X.T @ X / len(X), covariance, rtol=0, atol=0.005)
        assert float(y.square().mean()) == pytest.approx(1 + noise_size**2, rel=0.04)


def test_regression_on_the_modes_finds_the_coefficients_and_the_noise():
    found = entries(noise_size=0.3, cutoff_mode=10, n_train=5000)
    v, residual, *_ = np.linalg.lstsq(modes(found), found["y_train"].double().numpy(), rcond=None)
    np.testing.assert_allclose(v, found["coefficients"].numpy(), atol=5 * 0.3 / math.sqrt(5000))
    assert math.sqrt(residual[0] / 5000) == pytest.approx(0.3, rel=0.05)


def test_noise_is_all_that_its_size_changes():
    clean, noisy, noisier = (entries(noise_size=size) for size in (0, 1.0, 2.0))
    for name in set(clean) - {"y_train", "y_test"}:
        assert torch.equal(clean[name], noisier[name])
    for name in ("y_train", "y_test"):
        noise = noisy[name] - clean[name]
        assert 0.5 < noise.std() < 1.5
        torch.testing.assert_close(noisier[name] - clean[name], 2 * noise)


def test_the_generator_decides_and_sets_do_not_depend_on_each_others_size():
    found, again, other = entries(), entries(), entries(seed=1)
    assert all(torch.equal(found[name], again[name]) for name in found)
    longer = entries(n_train=77)
    for name in ("X_test", "y_test"):
        assert torch.equal(longer[name], found[name])
        assert not torch.equal(other[name], found[name])
    assert not torch.equal(found["X_train"][:20], found["X_test"])
    cut = entries(cutoff_mode=3, beta=0.1)
    assert torch.equal(cut["X_train"], found["X_train"])


def test_arguments_show_in_the_signature_and_can_be_overridden():
    recipe = pickle.loads(pickle.dumps(synthetic(d=3, cutoff_mode=5)))
    assert inspect.signature(recipe).parameters["d"].default == 3
    found = recipe(n_train=4, n_test=np.int64(2), gen=torch.Generator(), d=np.int64(7), alpha=1)
    assert found["X_test"].shape == (2, 7)


def test_numbers_may_be_those_of_numpy():
    chosen = {"d": 5, "cutoff_mode": 20, "kmax": 127, "noise_size": 0.5, "beta": 1.0, "n_test": 3}
    kinds = {int: np.int8, float: np.float64}
    found = entries(**{name: kinds[type(value)](value) for name, value in chosen.items()})
    for name, entry in entries(**chosen).items():
        assert torch.equal(found[name], entry)
        assert found[name].dtype == torch.float32


def test_entries_feed_sample():
    offered = {**entries(), "bsz": 8, "gen": torch.Generator(), "online": False, "split": "train"}
    X, y = call(sample, offered)(0)
    assert X.shape == (8, 6)
    assert y.shape == (8,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d": 0}, r"synthetic: got d=0; valid is an integer >= 1"),
        ({"alpha": -1}, r"got alpha=-1; valid is a finite number >= 0"),
        ({"offset": 0}, r"got offset=0; valid is a finite number > 0"),
        (
            {"cutoff_mode": 1e4},
            r"got cutoff_mode=10000\.0; valid is an integer >= 1, such as 40000",
        ),
        ({"beta": math.nan}, r"got beta=nan; valid is a finite number >= 0"),
        ({"yoffset": 0}, r"got yoffset=0; valid is a finite number > 0"),
        ({"noise_size": -0.1}, r"got noise_size=-0\.1; valid is a finite number >= 0"),
        ({"normalized": "no"}, r"got normalized='no'; valid is True or False"),
        ({"weight_variance": 0}, r"got weight_variance=0; valid is a finite number > 0"),
        ({"bias_variance": -1}, r"got bias_variance=-1; valid is a finite number >= 0"),
        ({"kmax": -1}, r"got kmax=-1; valid is an integer >= 0, such as 10"),
        ({"d": 0, "yoffset": "1"}, r"2 errors"),
        (
            {"d": 2, "cutoff_mode": 7, "kmax": 2},
            r"synthetic: got cutoff_mode=7, but d=2 coordinates have 6 monomials of degree <= "
            r"kmax=2; try cutoff_mode=6, or kmax=3",
        ),
    ],
)
def test_bad_values_are_refused_here_and_on_the_worker(arguments, message):
    with pytest.raises(SpecError, match=message):
        synthetic(**arguments)
    with pytest.raises(SpecError, match=message):
        synthetic()(n_train=3, n_test=3, gen=torch.Generator(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_train": 0}, r"synthetic: got n_train=0; valid is an integer >= 1"),
        ({"n_test": 1.5}, r"synthetic: got n_test=1\.5; valid is an integer >= 0"),
        ({"d": 2}, r"cutoff_mode=100, but d=2 coordinates have 66 monomials.*try .* kmax=13"),
        (
            {"d": 1, "cutoff_mode": 11, "bias_variance": 0},
            r"cutoff_mode=11, but the kernel has only 7 modes of degree <= kmax=10 with an "
            r"eigenvalue above 0 .*; try cutoff_mode=7, or a larger kmax",
        ),
    ],
)
def test_bad_values_on_the_worker(arguments, message):
    with pytest.raises(SpecError, match=message):
        entries(**{"cutoff_mode": 100, **arguments})
