"""The numbers that docs/mlpscape.md quotes where results differ from MLPscape's."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.polynomial import hermite_e

from mlpsubmit.batchfns import (
    exponential_level_coeffs,
    hea_monomials,
    hermite,
    power_law,
    synthetic,
)
from mlpsubmit.errors import SpecError
from mlpsubmit.grabs import by_name

PAGE = (Path(__file__).parents[2] / "docs" / "mlpscape.md").read_text()


def test_the_hermite_polynomials_are_those_of_numpy() -> None:
    x = torch.linspace(-3, 3, 31, dtype=torch.float64)
    for degree in (14, 15, 20):
        series = np.eye(degree + 1)[degree]
        expected = hermite_e.hermeval(x.numpy(), series) / math.sqrt(math.factorial(degree))
        np.testing.assert_allclose(hermite(x, degree), expected, rtol=1e-9, atol=1e-9)
    he_15 = hermite_e.herme2poly(np.eye(16)[15])
    right = {5: round(he_15[5]), 9: round(he_15[9])}
    wrong = {5: -2_702_700, 9: -76_545}
    he_15[[5, 9]] = wrong[5], wrong[9]
    size = sum(c**2 * math.factorial(k) for k, c in enumerate(hermite_e.poly2herme(he_15)))
    assert round(size / math.factorial(15)) == 30
    for number in (*right.values(), *wrong.values()):
        assert f"{number:,}" in PAGE


def test_modes_are_distinct() -> None:
    eigvals = power_law(d=10, alpha=1.5, offset=3)()["data_eigvals"]
    _, modes = hea_monomials(eigvals, 100, exponential_level_coeffs(2.0))
    assert len(set(modes)) == 100


def test_the_scale_of_unnormalised_targets_does_not_depend_on_their_number() -> None:
    powers = (3 + np.arange(50)) ** -0.6
    assert round((powers**2).sum(), 1) == 1.9
    assert f"{(powers**2).sum() / 2000:.5f}" == "0.00095"
    recipe = synthetic(
        d=20,
        cutoff_mode=50,
        alpha=1.5,
        offset=3,
        beta=1.2,
        yoffset=3,
        noise_size=0.0,
        normalized=False,
    )
    for n in (1000, 8000):
        y = recipe(n_train=n, n_test=1, gen=torch.Generator().manual_seed(0))["y_train"]
        assert 1.5 < y.square().mean() < 2.3
    assert "1.9, at any n" in PAGE
    assert "0.00095 at n = 2000" in PAGE


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("get_W_trace", "trace"), ("get_W_ii", "entry"), ("get_Win", "readin_weight")],
)
def test_names_of_mlpscape_point_to_those_here(theirs: str, ours: str) -> None:
    with pytest.raises(
        SpecError, match=rf"no grab named '{theirs}' \(here it is '{ours}'\); valid"
    ):
        by_name(theirs)
