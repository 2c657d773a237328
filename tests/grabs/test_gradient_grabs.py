"""The loss and the norms of its gradient, against autograd, closed forms and the train loop."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit import grabs
from mlpsubmit.arguments import call
from mlpsubmit.errors import SpecError
from mlpsubmit.grabs.losses import objective, trained_parameters
from mlpsubmit.training import train
from mlpsubmit.training.losses import stacked_loss
from mlpsubmit.training.models import MLP
from mlpsubmit.training.parametrizations import parametrize

D, N = 4, 8


def network(d_out=1, seed=0):
    torch.manual_seed(seed)
    model = MLP(d_in=D, width=6, depth=2, d_out=d_out)
    parametrize(model, "mup", gamma=0.5, generator=torch.Generator().manual_seed(seed))
    return model


def draw(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quartic(output, y):
    return (output - y).pow(4).mean()


CASES = {
    "mse of a vector": ("mse", 1, draw(N)),
    "mse of a column": ("mse", 1, draw(N, 1)),
    "mse of several": ("mse", 3, draw(N, 3)),
    "classes": ("cross_entropy", 3, torch.arange(N) % 3),
    "classes in a column": ("cross_entropy", 3, (torch.arange(N) % 3)[:, None]),
    "probabilities": ("cross_entropy", 3, draw(N, 3).softmax(1)),
    "hinge": ("hinge", 1, draw(N).sign()),
    "logistic of several": ("logistic", 3, draw(N, 3).sign()),
    "mae": ("mae", 1, draw(N)[:, None]),
    "huber": ("huber", 3, draw(N, 3)),
    "callable": (quartic, 1, draw(N)),
    "callable of several": (quartic, 3, draw(N, 3)),
}


@pytest.fixture(params=CASES)
def case(request):
    loss, d_out, y = CASES[request.param]
    return loss, network(d_out), network(d_out, seed=1), y


@pytest.mark.parametrize("centered", [True, False])
def test_the_loss_is_that_of_the_train_loop(case, centered):
    loss, model, model0, y = case
    X = draw(N, D, seed=4)
    value = objective("grab", model, model0, X, y, loss, centered)(trained_parameters(model))
    output = model(X) - model0(X) if centered else model(X)
    torch.testing.assert_close(value, stacked_loss(loss)(output[None], y[None])[0].detach())


@pytest.mark.parametrize("centered", [True, False])
def test_norms_are_those_of_a_backward_pass(case, centered):
    loss, model, model0, y = case
    X = draw(N, D, seed=4)
    arguments = (X, y, model0, loss, centered)
    whole, parts = grabs.gradient_norm(model, *arguments), grabs.gradient_norms(model, *arguments)
    assert not whole.requires_grad
    assert all(p.grad is None for p in model.parameters())

    other = copy.deepcopy(model)
    output = other(X) - model0(X) if centered else other(X)
    stacked_loss(loss)(output[None], y[None])[0].backward()
    layers = [other.input_layer, *other.hidden_layers, other.output_layer]
    squares = [sum(p.grad.square().sum() for p in layer.parameters()) for layer in layers]
    torch.testing.assert_close(parts, torch.stack(squares).sqrt())
    torch.testing.assert_close(whole, torch.stack(squares).sum().sqrt())


def test_of_a_linear_network_it_is_the_gradient_of_least_squares():
    model = nn.Linear(D, 2).double()
    X, Y = draw(N, D).double(), draw(N, 2, seed=5).double()
    A = np.hstack([X.numpy(), np.ones((N, 1))])
    w = np.vstack([model.weight.detach().numpy().T, model.bias.detach().numpy()])
    gradient = 2 * A.T @ (A @ w - Y.numpy()) / (2 * N)
    got = grabs.gradient_norm(model, X, Y, model, centered=False)
    np.testing.assert_allclose(got, np.linalg.norm(gradient), rtol=1e-12)
    # Centred at itself a network outputs 0.
    got = grabs.gradient_norm(model, X, Y, copy.deepcopy(model))
    np.testing.assert_allclose(got, np.linalg.norm(A.T @ Y.numpy() / N), rtol=1e-12)


def test_models_with_frozen_tied_and_convolved_weights():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 2)
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight
            self.head = nn.Linear(8, 1)
            self.head.requires_grad_(False)

        def forward(self, X):
            return self.head(self.b(self.a(self.conv(X).flatten(1).tanh()).tanh()))[:, 0]

    torch.manual_seed(0)
    model = Net()
    X, y = draw(N, 1, 3, 3), draw(N)
    value = (model(X) - y).square().mean()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    g = dict(zip(trained, torch.autograd.grad(value, list(trained.values())), strict=True))
    expected = torch.cat([t.flatten() for t in g.values()]).norm()
    torch.testing.assert_close(grabs.gradient_norm(model, X, y, model, centered=False), expected)
    tied = g["a.weight"].square().sum()
    squares = [
        g["conv.weight"].square().sum() + g["conv.bias"].square().sum(),
        tied + g["a.bias"].square().sum(),
        tied + g["b.bias"].square().sum(),
        torch.tensor(0.0),
    ]
    parts = grabs.gradient_norms(model, X, y, model, centered=False)
    torch.testing.assert_close(parts, torch.stack(squares).sqrt())


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_it_is_the_length_of_the_next_step_of_gradient_descent(loss, centered):
    K, steps = 3, 4
    y = draw(N, 3) if loss == "mse" else torch.arange(N) % 3

    def weights(model):
        return torch.cat([p.flatten() for p in model.parameters()])

    trained = train(
        [MLP(d_in=D, width=6, depth=2, d_out=3) for _ in range(K)],
        [lambda step: (draw(N, D, seed=4), y)] * K,
        {"LR": 0.05, "LOSS": loss, "CENTERED": centered, "ONLINE": False, "MAX_ITER": steps}
        | {"LOSS_CHECKPOINTS": [], "ONLYTHRESHOLDS": False},
        grabs={"weights": weights, "norm": grabs.gradient_norm, "norms": grabs.gradient_norms},
        contexts=[{"loss": loss, "centered": centered}] * K,
    ).grabs
    lengths = np.linalg.norm(np.diff(trained["weights"], axis=1), axis=2) / 0.05
    np.testing.assert_allclose(trained["norm"][:, :-1], lengths, rtol=2e-4)
    np.testing.assert_allclose(np.linalg.norm(trained["norms"], axis=2), trained["norm"], rtol=1e-5)


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_held_out_loss_is_the_train_loops_test_loss(name, centered):
    loss, d_out, y = CASES[name]
    K = 2
    trained = train(
        [MLP(d_in=D, width=6, depth=2, d_out=d_out) for _ in range(K)],
        [lambda step: (draw(N, D, seed=4), y)] * K,
        {"LR": 0.05, "LOSS": loss, "CENTERED": centered, "ONLINE": False, "MAX_ITER": 4}
        | {"LOSS_CHECKPOINTS": [], "ONLYTHRESHOLDS": False, "EMA_SMOOTHER": 0.0},
        test_fns=[lambda step: (draw(N, D, seed=5), y)] * K,
        grabs={"held_out": grabs.held_out_loss},
        contexts=[{"loss": loss, "centered": centered}] * K,
    )
    np.testing.assert_allclose(trained.grabs["held_out"], trained.test_loss, rtol=1e-5)
    assert (trained.test_loss != trained.train_loss).all()


def test_the_held_out_loss_leaves_the_model_as_it_is():
    model, model0 = network(), network(seed=1)
    result = grabs.held_out_loss(model, model0, draw(N, D), draw(N))
    assert not result.requires_grad
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(SpecError, match="held_out_loss: there is no test set; if train is called"):
        grabs.held_out_loss(model, model0, None, None)


def test_a_loss_that_is_none_is_refused():
    model, X, y = network(), draw(N, D), draw(N)
    message = r"gradient_norm: got loss='mes' \(did you mean 'mse'\?\); valid are 'mse', 'cross_en"
    with pytest.raises(SpecError, match=message):
        grabs.gradient_norm(model, X, y, model, loss="mes")
    with pytest.raises(SpecError, match="gradient_norms: got loss=2; valid are 'mse'"):
        grabs.gradient_norms(model, X, y, model, loss=2)
    with pytest.raises(SpecError, match="held_out_loss: got loss='l1'; valid are 'mse'"):
        grabs.held_out_loss(model, model, X, y, loss="l1")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["gradient_norm", "gradient_norms", "held_out_loss"])
def test_none_waits_for_the_gpu(name):
    grab, X, y = grabs.by_name(name), draw(N, D).cuda(), draw(N).cuda()
    offered = {"model": network().cuda(), "model0": network(seed=1).cuda()}
    offered |= {"X_tr": X, "y_tr": y, "X_te": X, "y_te": y}
    call(grab, offered)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = call(grab, offered)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.is_cuda
