import math

import numpy as np
import pytest
import torch
from numpy.polynomial import hermite_e

from mlpsubmit.batchfns import hermite, hermite_features


def reference(x, degree):
    """He_n(x) / sqrt(n!) by numpy's Clenshaw summation."""
    return hermite_e.hermeval(x, [0] * degree + [1]) / math.sqrt(math.factorial(degree))


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 7, 20, 40])
def test_agrees_with_numpy(degree):
    x = np.linspace(-6, 6, 41)
    ours = hermite(torch.from_numpy(x), degree).numpy()
    np.testing.assert_allclose(ours, reference(x, degree), rtol=1e-10, atol=1e-10)


def test_is_orthonormal_under_the_normal_distribution():
    nodes, weights = hermite_e.hermegauss(40)  # exact up to degree 79
    H = hermite_features(torch.from_numpy(nodes), 20).numpy()
    gram = H.T @ (H * (weights / weights.sum())[:, None])
    np.testing.assert_allclose(gram, np.eye(21), atol=1e-11)


def test_keeps_single_precision_at_high_degree():
    x = np.linspace(-4, 4, 33)
    ours = hermite(torch.from_numpy(x).float(), 20)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), reference(x, 20), rtol=2e-4, atol=2e-5)


def test_degree_beyond_what_a_factorial_holds_stays_finite():
    assert torch.isfinite(hermite(torch.tensor([0.5, 3.0]), 500)).all()


def test_features_stack_all_degrees_last():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    features = hermite_features(x, 5)
    assert features.shape == (4, 3, 6)
    for degree in range(6):
        assert torch.equal(features[..., degree], hermite(x, degree))
    assert hermite_features(x, 0).shape == (4, 3, 1)


def test_result_does_not_share_memory_with_the_input():
    x = torch.zeros(3)
    for degree in range(3):
        hermite(x, degree).add_(1)
    hermite_features(x, 1).add_(1)
    assert torch.equal(x, torch.zeros(3))


def test_integers_are_taken_as_numbers():
    assert torch.equal(hermite(torch.tensor([2]), 1), torch.tensor([2.0]))


def test_gradient_is_the_derivative():
    # h_n' = sqrt(n) h_{n-1}
    x = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    hermite(x, 6).sum().backward()
    torch.testing.assert_close(x.grad, math.sqrt(6) * hermite(x.detach(), 5))


@pytest.mark.parametrize("degree", [-1, 1.5, True, "2", None])
def test_bad_degree(degree):
    for function in (hermite, hermite_features):
        with pytest.raises(ValueError, match=r"degree of a Hermite polynomial is an integer >= 0"):
            function(torch.zeros(2), degree)
