"""Hidden activations, their kernels and preactivations, against the model's own forward pass."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit import grabs
from mlpsubmit.errors import SpecError
from mlpsubmit.training.models import MLP
from mlpsubmit.training.parametrizations import parametrize

NAMES = ["activation_kernel", "activations", "preactivation_stats"]


def mlp(depth=3, nonlinearity=None, parametrization="mup"):
    torch.manual_seed(0)
    model = MLP(d_in=4, width=6, depth=depth, d_out=2, nonlinearity=nonlinearity)
    parametrize(model, parametrization, gamma=2.0, generator=torch.Generator().manual_seed(1))
    return model


def inputs(n=9, *shape):
    return torch.randn(n, *(shape or (4,)), generator=torch.Generator().manual_seed(2))


class ConvNet(nn.Module):
    """Two convolutions, a pooling and an in-place nonlinearity on the way to the head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 3, 2)
        self.second = nn.Conv2d(3, 2, 2)
        self.head = nn.Linear(2 * 2 * 2, 1)
        self.relu = nn.ReLU(inplace=True)

    def parts(self, X):
        """The received inputs of the second convolution and of the head, and the output."""
        h1 = torch.relu(self.first(X))
        h2 = torch.relu(nn.functional.max_pool2d(self.second(h1), 2)).flatten(1)
        return [h1.flatten(1), h2], self.head(h2)

    def forward(self, X):
        h = self.relu(self.first(X))
        h = self.relu(nn.functional.max_pool2d(self.second(h), 2))
        return self.head(h.flatten(1))


@pytest.mark.parametrize("parametrization", ["mup", "ntp", "mup-lr", "sp"])
@pytest.mark.parametrize("nonlinearity", [nn.ReLU(), nn.Tanh(), nn.Identity()])
def test_activations_of_every_hidden_layer_of_an_mlp(nonlinearity, parametrization):
    model, X = mlp(nonlinearity=nonlinearity, parametrization=parametrization), inputs()
    expected, _ = model.get_activations(X)
    for hidden in range(-3, 3):
        A = expected[hidden].detach()
        torch.testing.assert_close(grabs.activations(model, X, hidden), A)
        kernel = np.einsum("ai,bi->ab", A.double(), A.double()) / 6
        np.testing.assert_allclose(grabs.activation_kernel(model, X, hidden), kernel, rtol=1e-5)
    torch.testing.assert_close(grabs.activations(model, X), expected[-1].detach())
    first = grabs.activations(model, X, hidden=np.int64(0))
    torch.testing.assert_close(first, expected[0].detach())


def test_activations_of_convolutions_are_what_the_next_layer_receives():
    torch.manual_seed(0)
    model, X = ConvNet(), inputs(5, 1, 6, 6)
    expected, output = model.parts(X)
    torch.testing.assert_close(model(X), output)
    for hidden in (0, 1):
        torch.testing.assert_close(grabs.activations(model, X, hidden), expected[hidden].detach())
    assert grabs.activations(model, X, hidden=0).shape == (5, 3 * 5 * 5)
    assert grabs.activation_kernel(model, X, hidden=0).shape == (5, 5)


def test_what_a_model_changes_in_place_afterwards_is_kept_as_it_was():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, X):
            h = self.inner(X)
            output = self.outer(h)
            h += 100
            return output

    model, X = Residual(), inputs()
    torch.testing.assert_close(grabs.activations(model, X), model.inner(X).detach())


@pytest.mark.parametrize("parametrization", ["mup", "ntp", "mfp", "mup-lr", "ntp-lr", "sp"])
def test_preactivations_have_the_multiplier_but_not_the_gain_of_relus(parametrization):
    model, X = mlp(parametrization=parametrization), inputs()
    gain = 1.0 if parametrization == "sp" else 2**0.5
    h, expected = X, []
    for layer in [model.input_layer, *model.hidden_layers, model.output_layer]:
        value = (h @ layer.weight.T + layer.bias) * layer.multiplier
        h = (gain * value).clamp_min(0)
        v = value.detach().double().numpy()
        expected.append([v.mean(), v.std(), np.count_nonzero(v > 0) / v.size, np.abs(v).max()])
    got = grabs.preactivation_stats(model, X)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6)
    output = model(X).detach()
    np.testing.assert_allclose(got[-1, 3], output.abs().max(), rtol=1e-6)


def test_preactivations_of_convolutions_are_over_all_places():
    torch.manual_seed(0)
    model, X = ConvNet(), inputs(5, 1, 6, 6)
    got = grabs.preactivation_stats(model, X)
    # The ReLU works in place on the first layer's output, which is measured before.
    first = model.first(X).detach()
    np.testing.assert_allclose(got[0, 0], first.mean(), rtol=1e-5)
    np.testing.assert_allclose(got[0, 2], (first > 0).double().mean(), rtol=1e-6)
    assert got.shape == (3, 4)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_first_ones(name):
    grab, model, X = grabs.by_name(name), mlp(), inputs()
    for rows in (4, np.int64(4), np.int32(4)):
        torch.testing.assert_close(grab(model, X, rows=rows), grab(model, X[:4]))
    torch.testing.assert_close(grab(model, X, rows=99), grab(model, X))
    torch.testing.assert_close(grab(model, X, rows=None), grab(model, X))


def hooks(model):
    return [
        (list(m._forward_hooks.values()), list(m._forward_pre_hooks.values()))
        for m in model.modules()
    ]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_in_the_model_even_where_it_raises(name):
    grab, model, X = grabs.by_name(name), mlp(), inputs()
    before, weights = hooks(model), copy.deepcopy(model.state_dict())
    result = grab(model, X)
    assert not result.requires_grad
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        grab(model, X[:, :3])
    assert hooks(model) == before
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    assert model.training


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, X):
        return self.used(X)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (
            lambda: grabs.activations(mlp(), inputs(), hidden=3),
            "activations: got hidden=3, but MLP has 3 hidden layers; valid are 0 to 2, or -3 to -1",
        ),
        (
            lambda: grabs.activation_kernel(mlp(), inputs(), hidden=-4),
            "activations: got hidden=-4, but",
        ),
        (
            lambda: grabs.activations(nn.Linear(4, 1), inputs()),
            "activations: Linear has one layer and so no hidden one; .* try preactivation_stats",
        ),
        (
            lambda: grabs.activations(Idle(), inputs()),
            "activations: Idle has a layer 1 that its forward pass does not call; remove it",
        ),
        (lambda: grabs.preactivation_stats(Idle(), inputs()), "stats: Idle has a layer 1 that"),
        (
            lambda: grabs.activations(mlp(), inputs(), rows=0),
            "activations: got rows=0; valid is an integer >= 1, or None for all",
        ),
        (
            lambda: grabs.activation_kernel(mlp(), inputs(), rows=True),
            "activations: got rows=True; val",
        ),
        (lambda: grabs.preactivation_stats(mlp(), inputs(), rows=1.5), "stats: got rows=1.5; va"),
        (
            lambda: grabs.preactivation_stats(nn.ReLU(), inputs()),
            "the weights of ReLU cannot be measured: it has no Linear or Conv2d layer",
        ),
    ],
)
def test_errors(measure, message):
    with pytest.raises(SpecError, match=message):
        measure()


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_none_waits_for_the_gpu(name):
    grab, model, X = grabs.by_name(name), mlp().cuda(), inputs().cuda()
    grab(model, X)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = grab(model, X)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.is_cuda
