"""What makes models equal, and what a single model may do that a stack cannot."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from mlpsubmit.errors import SpecError
from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import train
from mlpsubmit.training.batches import BatchError
from mlpsubmit.training.comparison import StackingError, signature
from mlpsubmit.training.undisturbed import undisturbed

PLAIN = {"MAX_ITER": 5, "PARAMETRIZATION": "sp", "CENTERED": False, "LR": 0.05}


class Net(nn.Module):
    def __init__(self, own=None):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.own = own

    def forward(self, X):
        h = self.b(self.a(X).tanh()).tanh()
        return self.c(h if self.own is None else self.own(self, h))


def by_hand(model, batch_fn, steps=5, lr=0.05):
    """Train a model with torch.optim; return its parameters."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for step in range(steps):
        X, y = batch_fn(step)
        optimizer.zero_grad()
        (model(X).squeeze(1) - y).square().mean().backward()
        optimizer.step()
    return dict(model.named_parameters())


def closed_parameter(model):
    bias = model.a.bias
    model.own = lambda self, h: h * bias


def shared_memory(model):
    model.b.weight.data = model.b.weight.data.clone()
    model.d = nn.Linear(4, 4)
    model.d.weight.data = model.b.weight.data
    model.own = lambda self, h: self.d(h)


def plain_view(model):
    model.view = model.b.weight.data
    model.own = lambda self, h: h @ self.view


def inner_hook(model):
    def own(self, h):
        h = h * 1
        h.register_hook(lambda gradient: gradient * 3)
        return h

    model.own = own


def gradient_hook(model):
    model.a.weight.register_hook(lambda gradient: gradient * 3)


def twice(model):
    model.d = model.b
    model.own = lambda self, h: self.d(h)


@pytest.mark.parametrize(
    "change", [closed_parameter, shared_memory, plain_view, inner_hook, gradient_hook, twice]
)
def test_a_single_model_does_what_it_does_in_pytorch(change, gaussian):
    torch.manual_seed(0)
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())
    for model in (ours, theirs):
        torch.manual_seed(1)
        change(model)
    probe = gaussian(9)(0)[0]
    train([ours], [gaussian(0)], PLAIN)
    expected = by_hand(theirs, gaussian(0))
    with torch.no_grad():
        if change is not inner_hook:
            torch.testing.assert_close(ours(probe), theirs(probe))
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, expected[name])

    models = [Net(), Net()]
    for model in models:
        change(model)
    with pytest.raises(StackingError, match=r"models: cannot be trained together: .*separately"):
        train(models, [gaussian(0)] * 2, PLAIN)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_networks_train_alone(kind, gaussian):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = kind(1, 4, batch_first=True), nn.Linear(4, 1)

        def forward(self, X):
            return self.out(self.rnn(X[..., None])[0][:, -1])

    ours, theirs = Recurrent(), Recurrent()
    theirs.load_state_dict(ours.state_dict())
    train([ours], [gaussian(0)], PLAIN)
    expected = by_hand(theirs, gaussian(0))
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, expected[name])
    assert (
        signature(ours).alone == f"rnn is an nn.{kind.__name__}, which computes one model at a time"
    )
    train([Recurrent()], [gaussian(0)], {**PLAIN, "CENTERED": True})


def test_equal_content_is_equal_and_anything_else_is_not():
    class Holder:
        def __init__(self, value):
            self.value = value

    def with_own(value):
        return Net(Holder(value))

    equal = [1, 1.5, "a", (1, [2, {"k": {3}}]), np.arange(3), torch.ones(2), len, None]
    for value in equal:
        assert signature(with_own(value)) == signature(with_own(value))
    pairs = [
        (1, True),
        (0.0, -0.0),
        (1, 1.0),
        ([1], (1,)),
        ({"a": 1}, {"a": 2}),
        (np.zeros(2), np.zeros(2, np.float32)),
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        (torch.ones(2), torch.tensor([1.0, 2.0])),
        (lambda h: h, lambda h: h + 1),
        (iter([1]), iter([2])),
    ]
    for one, other in pairs:
        assert signature(with_own(one)) != signature(with_own(other)), (one, other)
    assert signature(with_own(float("nan"))) == signature(with_own(float("nan")))
    assert "Net.own" in signature(with_own(1)).difference(signature(with_own(2)))
    # A generator cannot be taken apart: it equals itself alone.
    made = (k for k in range(3))
    assert signature(with_own(made)) == signature(with_own(made))
    assert signature(with_own(made)) != signature(with_own(k for k in range(3)))


class Unwilling:
    def __reduce_ex__(self, protocol):
        raise RuntimeError("not me")

    @property
    def __dict__(self):
        raise RuntimeError("not me")


def test_what_cannot_be_compared_is_different():
    one, other = Net(Unwilling()), Net(Unwilling())
    assert signature(one) != signature(other)
    assert "cannot be compared (RuntimeError: not me)" in signature(one).alone


class Counting(nn.Module):
    """Counts its forward passes in a buffer, in one that it replaces, and in an attribute."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 1)
        self.norm = nn.BatchNorm1d(4, affine=False)
        self.register_buffer("calls", torch.zeros(()))
        self.attribute, self.shapes = 0, []

    def forward(self, X):
        self.calls += 1
        self.attribute += 1
        self.shapes.append(X.shape)
        return self.b(self.norm(self.a(X)))


def test_a_call_that_leaves_no_trace():
    model = Counting()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    with undisturbed(model):
        model(torch.randn(5, 3))
        model.calls = torch.ones(())
        model.made = 1
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert (model.attribute, model.shapes, hasattr(model, "made")) == (0, [], False)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_buffers_count_the_steps_of_their_config_alone(count, online, gaussian, short_blocks):
    """Not the checks of shapes, f0, test sets or grabs; and not after a config has stopped."""
    models = [Counting() for _ in range(count)]
    base = {"ONLINE": online, "MAX_ITER": 24, "LR": 0.05, "PARAMETRIZATION": "sp"}
    settings = {**base, "PERCENT_THRESHOLDS": [0.9], "ONLYTHRESHOLDS": False, "GRAB_EVERY": 3}
    hs = [validate({**settings, "LR": lr}) for lr in (0.2, 0.05, 1e-5)[:count]]
    got = train(
        models,
        [gaussian(k) for k in range(count)],
        hs,
        test_fns=[gaussian(9)] * count,
        grabs={"out": lambda model, X_tr: model(X_tr).mean()},
    )
    assert count == 1 or len(set(got.steps)) > 1
    assert [int(model.calls) for model in models] == got.steps.tolist()
    assert [int(model.norm.num_batches_tracked) for model in models] == got.steps.tolist()


def test_a_hook_that_would_never_be_called_is_refused(gaussian):
    model = Net()
    model.a.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.raises(SpecError, match=r"a\.weight has a post-accumulate-grad hook, which is"):
        train([model], [gaussian(0)], PLAIN)


def test_what_fails_in_the_backward_pass_of_a_stack_trains_alone(gaussian):
    def saving(self, h):
        return torch.utils.checkpoint.checkpoint(torch.tanh, h, use_reentrant=False)

    with pytest.raises(StackingError, match="computed in the backward pass \\(checkpointing"):
        train([Net(saving), Net(saving)], [gaussian(0)] * 2, PLAIN)
    train([Net(saving)], [gaussian(0)], PLAIN)


def test_a_buffer_keeps_its_shape(gaussian):
    def growing(self, h):
        self.seen = torch.zeros(7)
        return h

    model = Net(growing)
    model.register_buffer("seen", torch.zeros(3))
    with pytest.raises(SpecError, match=r"replaces the buffer 'seen' of shape \(3,\) by \(7,\)"):
        train([model], [gaussian(0)], PLAIN)


def test_batch_norm_of_one_sample_is_refused_in_words(gaussian):
    with pytest.raises(BatchError, match="on which the model fails") as caught:
        train([Counting()], [gaussian(0, n=1)], PLAIN)
    assert "X of shape (1, 3)" in str(caught.value)


def test_every_global_that_a_function_uses_of_a_module_is_compared(tmp_path, monkeypatch):
    (tmp_path / "scales_of_two.py").write_text("first = second = 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    scales = importlib.import_module("scales_of_two")
    namespace = {"scales": scales, "__name__": __name__}
    functions = [
        eval(f"lambda self, h: h * scales.{name}", namespace) for name in ("first", "second")
    ]
    for changed in ("first", "second"):
        before = signature(Net(functions))
        setattr(scales, changed, 2.0)
        assert signature(Net(functions)) != before
