import numpy as np
import pytest
import torch

from mlpsubmit.batchfns import image_transforms
from mlpsubmit.batchfns.image_transforms import (
    flattened_spectrum,
    grayscale_of,
    normalized_by_training,
    spectrum,
)
from mlpsubmit.errors import SpecError


@pytest.fixture(params=[4096, 7])
def block(request, monkeypatch):
    """Run a test with all rows in one block, and with several."""
    monkeypatch.setattr(image_transforms, "_BLOCK", request.param)


def inputs(n, d, seed=0):
    random = np.random.RandomState(seed)
    return (random.rand(n, d) @ random.rand(d, d)).astype(np.float32)


def by_svd(X, strength):
    """MLPscape's preprocess, center=True, in float64 and up to its scale."""
    centred = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
    U, S, Vt = np.linalg.svd(centred, full_matrices=False)
    flat = S / np.sqrt(strength / np.mean(S**2) * S**2 + 1)
    return U @ np.diag(flat / np.linalg.norm(flat)) @ Vt


def test_grayscale_is_the_mean_over_channels():
    images = inputs(5, 3 * 4 * 2).reshape(5, 3, 4, 2)
    gray = grayscale_of(images)
    assert gray.shape == (5, 1, 4, 2)
    assert gray.dtype == np.float32
    for i, y, x in np.ndindex(5, 4, 2):
        expected = (images[i, 0, y, x] + images[i, 1, y, x] + images[i, 2, y, x]) / 3
        assert gray[i, 0, y, x] == pytest.approx(expected, rel=1e-6)


@pytest.mark.usefixtures("block")
def test_normalized_inputs_have_mean_zero_and_mean_squared_norm_d():
    X, X_test = inputs(30, 6), inputs(9, 6, seed=1)
    train, test = normalized_by_training(X, X_test)
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-6)
    assert np.mean(np.linalg.norm(train, axis=1) ** 2) == pytest.approx(6, rel=1e-6)
    slope, offset = np.polyfit(X[:, 0], train[:, 0], 1)
    np.testing.assert_allclose(test[:, 0], slope * X_test[:, 0] + offset, atol=1e-5)
    assert train.dtype == test.dtype == np.float32


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("strength", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("n", [40, 5])
def test_the_spectrum_is_flattened_as_by_the_singular_values(n, strength):
    X = inputs(n, 8)
    flattened, _ = flattened_spectrum(X, X, strength)
    expected = by_svd(X, strength)
    centred = flattened - flattened.mean(axis=0)
    np.testing.assert_allclose(centred / np.linalg.norm(centred), expected, atol=2e-6)
    np.testing.assert_allclose(flattened.mean(axis=0), X.mean(axis=0), rtol=1e-5)
    assert flattened.var(axis=0).sum() == pytest.approx(X.var(axis=0).sum(), rel=1e-5)


@pytest.mark.usefixtures("block")
def test_test_inputs_go_through_the_linear_map_of_the_training_inputs():
    X, X_test = inputs(40, 5), inputs(11, 5, seed=1)
    train, test = flattened_spectrum(X, X_test, 3.0)
    with_one = np.hstack([X, np.ones((40, 1))])
    affine, residuals, rank, _ = np.linalg.lstsq(with_one, train, rcond=None)
    assert rank == 6
    assert residuals.max() < 1e-8
    np.testing.assert_allclose(test, np.hstack([X_test, np.ones((11, 1))]) @ affine, atol=1e-4)
    np.testing.assert_allclose(affine[:5], affine[:5].T, atol=1e-4)


def test_strength_zero_is_the_identity_and_infinity_whitens():
    X, X_test = inputs(50, 6), inputs(9, 6, seed=1)
    for before, after in zip((X, X_test), flattened_spectrum(X, X_test, 0.0), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-5)
    white, _ = normalized_by_training(*flattened_spectrum(X, X_test, 1e12))
    np.testing.assert_allclose(white.T @ white / 50, np.eye(6), atol=1e-4)


def test_directions_without_variance_keep_test_inputs_finite():
    X, X_test = inputs(20, 4), inputs(6, 4, seed=1)
    X[:, 2] = 0
    train, test = flattened_spectrum(X, X_test, 1.0)
    assert np.abs(train[:, 2]).max() < 1e-6
    ratio = test[:, 2] / X_test[:, 2]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    assert np.isfinite(test).all()


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("n", [30, 3])
def test_spectrum_is_that_of_the_second_moment(n):
    X = inputs(n, 5)
    eigvals = spectrum(X)
    assert eigvals.dtype == np.float32
    expected = np.zeros(5)
    singular = torch.linalg.svdvals(torch.from_numpy(X).double()).numpy()
    expected[: len(singular)] = singular**2 / n
    np.testing.assert_allclose(eigvals, expected, rtol=1e-5, atol=1e-6)
    assert (eigvals >= 0).all()


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (normalized_by_training, r"the 3 training images are all the same, so they cannot be norm"),
        (
            lambda X, X_test: flattened_spectrum(X, X_test, 1.0),
            r"cannot be whitened; try a larger N_TRAIN, or zca_strength=0",
        ),
    ],
)
def test_images_that_are_all_the_same(transform, message):
    X = np.full((3, 4), 0.5, np.float32)
    with pytest.raises(SpecError, match=message):
        transform(X, X)
