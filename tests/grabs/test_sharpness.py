"""Eigenvalues of the Hessian, against whole Hessians, closed forms and dense decompositions."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit import grabs
from mlpsubmit.errors import SpecError
from mlpsubmit.grabs.lanczos import VECTORS, largest_eigenvalues
from mlpsubmit.training.losses import stacked_loss
from mlpsubmit.training.models import MLP
from mlpsubmit.training.parametrizations import parametrize


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- the method ------------------------------------------------------------------------------

line = np.linspace

SPECTRA = {
    "positive": (line(0, 1, 200), 1),
    "most negative": (line(-100, 1, 300), 1),
    "all negative": (line(-100, -1, 300), 1),
    "one small positive": (np.r_[1e-3, -np.ones(300)], 1),
    "power law": (1 / np.arange(1, 500) ** 2, 5),
    "multiple": (np.r_[[5.0] * 4, line(-1, 1, 200)], 3),
    "fewer large ones than asked for": (np.r_[[5.0] * 4, 4, line(-1, 1, 200)], 6),
    "of low rank": (np.r_[[5.0] * 3, np.zeros(200)], 6),
    "more than fit the basis": (np.r_[line(2, 3, 10), line(-1, 1, 200)], 10),
    "zero": (np.zeros(100), 2),
    "one value": (np.full(100, -3.0), 2),
    "a row less than the basis": (line(0, 1, VECTORS - 1), 3),
    "as many as the basis": (line(0, 1, VECTORS), VECTORS),
    "one more than the basis": (line(0, 1, VECTORS + 1), 1),
    "a number": (np.array([-2.0]), 1),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SPECTRA)
def test_largest_eigenvalues_of_matrices(name, dtype):
    spectrum, count = SPECTRA[name]
    Q, _ = torch.linalg.qr(draw(len(spectrum), len(spectrum), seed=1))
    A = (Q * torch.from_numpy(spectrum)) @ Q.T
    A = ((A + A.T) / 2).to(dtype)
    start = draw(count, len(spectrum), seed=2).to(dtype)
    got = largest_eigenvalues(lambda v: A @ v, start, tolerance=1e-3, iterations=2000)
    assert got.dtype == dtype
    expected = np.sort(spectrum)[::-1][:count]
    size = np.abs(spectrum).max()
    rounding = 100 * torch.finfo(dtype).eps * size
    np.testing.assert_allclose(got, expected, atol=2e-4 * abs(expected[0]) + rounding, rtol=0)


def test_fewer_products_than_needed_give_a_lower_bound():
    A = torch.diag(torch.linspace(-1, 1, 400, dtype=torch.float64).pow(3))
    products = []

    def product(v):
        products.append(0)
        return A @ v

    def largest(iterations):
        products.clear()
        start = draw(1, 400)
        return float(largest_eigenvalues(product, start, tolerance=1e-9, iterations=iterations))

    bounds = [largest(n) for n in (1, 5, 15, 60, 1000)]
    assert bounds == sorted(bounds)
    assert bounds[0] < 0.5
    assert bounds[-1] == pytest.approx(1, rel=1e-9)
    assert len(products) < 1000
    largest(37)
    assert len(products) == 37


# ---- of networks -----------------------------------------------------------------------------


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 2), nn.Linear(16, 3)

    def forward(self, X):
        return self.head(torch.relu(self.conv(X)).flatten(1))


def quartic(output, y):
    return (output - y).pow(4).mean()


def mlp(d_out=1, nonlinearity=None, seed=0):
    model = MLP(d_in=4, width=6, depth=2, d_out=d_out, nonlinearity=nonlinearity)
    parametrize(model, "mup", gamma=0.5, generator=torch.Generator().manual_seed(seed))
    return model.double()


def conv_net():
    torch.manual_seed(0)
    return ConvNet().double()


N = 12
CASES = {
    "relu": ("mse", mlp(), draw(N, 4), draw(N)),
    "tanh": ("mse", mlp(nonlinearity=nn.Tanh()), draw(N, 4), draw(N)),
    "several outputs": ("mse", mlp(d_out=3), draw(N, 4), draw(N, 3)),
    "classes": ("cross_entropy", mlp(d_out=3), draw(N, 4), torch.arange(N) % 3),
    "callable": (quartic, mlp(d_out=2), draw(N, 4), draw(N, 2)),
    "convolution": ("cross_entropy", conv_net(), draw(N, 1, 3, 3), torch.arange(N) % 3),
}


def whole_hessian(loss, model, model0, X, y, centered):
    """Row by row from a second backward pass, of the train loop's own loss."""
    parameters = list(model.parameters())
    output = model(X) - model0(X).detach() if centered else model(X)
    value = stacked_loss(loss)(output[None], y[None])[0]
    gradient = torch.autograd.grad(value, parameters, create_graph=True)
    rows = [
        torch.autograd.grad(slope, parameters, retain_graph=True, materialize_grads=True)
        for slope in torch.cat([g.flatten() for g in gradient])
    ]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_eigenvalues_are_those_of_the_whole_hessian(name, centered):
    loss, model, X, y = CASES[name]
    model0 = copy.deepcopy(model)
    with torch.no_grad():
        for seed, parameter in enumerate(model0.parameters()):
            parameter += 0.3 * draw(*parameter.shape, seed=seed)
    H = whole_hessian(loss, model, model0, X, y, centered)
    assert len(H) > 2 * VECTORS
    expected = torch.linalg.eigvalsh(H).flip(0)[:5]
    arguments = (X, y, model0, loss, centered)
    got = grabs.hessian_eigenvalues(model, *arguments)
    assert not got.requires_grad
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * float(expected[0]))
    torch.testing.assert_close(grabs.sharpness(model, *arguments), expected[0], rtol=1e-5, atol=0)
    tight = grabs.hessian_eigenvalues(model, *arguments, tolerance=1e-10, iterations=10_000)
    torch.testing.assert_close(tight, expected, rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in (*model.parameters(), *model0.parameters()))


def test_of_linear_regression_each_eigenvalue_is_there_once_per_output():
    model = nn.Linear(6, 4).double()
    X, y = draw(N, 6), draw(N, 4)
    A = np.hstack([X.numpy(), np.ones((N, 1))])
    spectrum = np.linalg.eigvalsh(2 * A.T @ A / (4 * N))[::-1]
    got = grabs.hessian_eigenvalues(model, X, y, model, count=10, tolerance=1e-8)
    np.testing.assert_allclose(got, np.repeat(spectrum, 4)[:10], rtol=1e-7)


def test_at_the_saddle_of_a_linear_network_it_is_the_correlation_of_inputs_and_targets():
    # At zero weights f = a^T W x has the Hessian -2 E[y x_i] between a_k and W_ki, else 0: its
    # eigenvalues are +-2 |E[y x]|, once per hidden unit, and zeros.
    model = nn.Sequential(nn.Linear(5, 7, bias=False), nn.Linear(7, 1, bias=False)).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    X, y = draw(N, 5), draw(N)
    slope = 2 * (X * y[:, None]).mean(0).norm()
    got = grabs.hessian_eigenvalues(model, X, y, model, count=8, tolerance=1e-9)
    torch.testing.assert_close(got, slope * torch.tensor([1.0] * 7 + [0.0]).double())
    torch.testing.assert_close(grabs.sharpness(model, X, y, model), slope)


def test_the_largest_is_meant_algebraically():
    def hill(output, y):
        return -output.square().mean()

    model, X = nn.Linear(30, 1, bias=False).double(), draw(40, 30)
    got = grabs.sharpness(model, X, torch.zeros(40), model, loss=hill, centered=False)
    expected = -torch.linalg.eigvalsh(2 * X.T @ X / 40)[0]
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=0)


def test_gradient_descent_diverges_beyond_two_over_the_sharpness():
    X, y = draw(N, 4), draw(N)
    model = nn.Linear(4, 1, bias=False).double()
    sharpness = float(grabs.sharpness(model, X, y, model, centered=False, tolerance=1e-8))
    for excess in (0.99, 1.01):
        w = torch.zeros(4, dtype=torch.float64)
        for _ in range(5000):
            w -= excess * 2 / sharpness * 2 * X.T @ (X @ w - y) / N
        assert (w.norm() < 1e3) == (excess < 1)


def test_single_precision_a_share_of_the_rows_and_repetition():
    _, model, X, y = CASES["relu"]
    exact = grabs.sharpness(model, X, y, model, rows=7, tolerance=1e-8)
    torch.testing.assert_close(exact, grabs.sharpness(model, X[:7], y[:7], model, tolerance=1e-8))
    single = copy.deepcopy(model).float()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    got = grabs.sharpness(single, X.float(), y.float(), single, rows=7)
    again = grabs.sharpness(single, X.float(), y.float(), single, rows=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(got, again)
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=0)


def test_numbers_may_be_of_numpy():
    _, model, X, y = CASES["relu"]
    numbers = {"count": 2, "rows": 7, "iterations": 150}
    expected = grabs.hessian_eigenvalues(model, X, y, model, tolerance=1e-4, **numbers)
    numbers = {name: np.int64(number) for name, number in numbers.items()}
    got = grabs.hessian_eigenvalues(model, X, y, model, tolerance=np.float64(1e-4), **numbers)
    assert torch.equal(got, expected)


def test_a_diverged_network_has_none():
    for name in ("relu", "convolution"):
        loss, model, X, y = CASES[name]
        model = copy.deepcopy(model)
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] = torch.nan
        got = grabs.hessian_eigenvalues(model, X, y, model, loss, count=2)
        assert got.isnan().tolist() == [True, True]
    tiny = nn.Linear(2, 1)
    nn.init.constant_(tiny.weight, 1.0)
    X = torch.full((3, 2), torch.inf)
    assert grabs.sharpness(tiny, X, torch.zeros(3), tiny, centered=False).isnan()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "msee"}, r"hessian_eigenvalues: got loss='msee' \(did you mean 'mse'\?\); val"),
        ({"rows": -1}, "hessian_eigenvalues: got rows=-1; valid is an integer >= 1, or None"),
        (
            {"count": 4},
            "eigenvalues: got count=4; valid is an integer from 1 to 3, the number of param",
        ),
        ({"count": 2.0}, r"got count=2.0; valid is an integer from 1 to 3"),
        ({"count": 0, "tolerance": 0, "iterations": True}, r"3 errors:[^$]*tolerance=0; valid"),
        ({"tolerance": "1"}, r"got tolerance='1'; valid is a finite number > 0, such as 1e-3"),
        ({"tolerance": np.nan}, r"got tolerance=nan; valid is a finite number > 0"),
        ({"iterations": 0}, r"got iterations=0; valid is an integer >= 1"),
    ],
)
def test_errors(arguments, message):
    model, X, y = nn.Linear(2, 1), torch.ones(3, 2), torch.ones(3)
    with pytest.raises(SpecError, match=message):
        grabs.hessian_eigenvalues(model, X, y, model, **{"count": 1, **arguments})
    if "count" not in arguments:
        with pytest.raises(SpecError, match="hessian_eigenvalues: got"):
            grabs.sharpness(model, X, y, model, **arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_gives_the_same(name):
    loss, model, X, y = CASES[name]
    here = grabs.sharpness(model, X, y, model, loss)
    there = copy.deepcopy(model).cuda()
    got = grabs.sharpness(there, X.cuda(), y.cuda(), there, loss)
    assert got.is_cuda
    torch.testing.assert_close(got.cpu(), here, rtol=1e-5, atol=0)
