"""Batches: which shapes and values are valid, and the errors for others."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit.errors import SpecError
from mlpsubmit.training import MLP, BatchError, train

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
ONLINE, OFFLINE = {"MAX_ITER": 2}, {"MAX_ITER": 2, "ONLINE": False}
ENTROPY = {"MAX_ITER": 2, "LOSS": "cross_entropy"}


def named(X, y):
    def pairs(step):
        return X, y

    return pairs


def loss_of(X, y, d_out=1, **settings):
    return train([MLP(3, 4, 2, d_out)], [named(X, y)], {**OFFLINE, **settings}).train_loss[0]


REFUSED = {
    "lengths": (
        X,
        torch.zeros(7),
        1,
        ONLINE,
        "pairs gave X of shape (8, 3) and y of shape (7,); e",
    ),
    "empty": (
        X[:0],
        torch.zeros(0),
        1,
        ONLINE,
        "expected X (n, ...) and y (n,) or (n, d_out) with",
    ),
    "scalar": (
        X,
        torch.tensor(0.0),
        1,
        ONLINE,
        "gave X of shape (8, 3) and y of shape (); expected",
    ),
    "too wide": (
        *(X, torch.zeros(8, 2), 1, ONLINE),
        "y of shape (8, 2), for a model whose output is (n, 1); expected y (n,); set D_OUT",
    ),
    "too narrow": (X, torch.zeros(8), 2, ONLINE, "output is (n, 2); expected y (n, 2); set D_OUT"),
    "inputs": (
        *(torch.zeros(8, 5), torch.zeros(8), 1, ONLINE),
        "gave X of shape (8, 5), 5 inputs per sample; expected 3, as in the X that MODEL is made",
    ),
    "NaN in X": (X / 0 * 0, torch.zeros(8), 1, OFFLINE, "gave NaN or infinite entries in X"),
    "NaN in y": (
        X,
        torch.full((8,), torch.nan),
        1,
        OFFLINE,
        "infinite entries in y; expected fini",
    ),
    "class": (
        *(X, torch.full((8,), 3), 3, ENTROPY),
        "gave classes from 3 to 3; expected integer y (n,) from 0 to 2, or probabilities y (n, 3)",
    ),
    "float class": (X, torch.zeros(8), 3, ENTROPY, "y of shape (8,) (float32); expected integer y"),
    "class shape": (X, torch.zeros(8, 3).long(), 3, ENTROPY, "(8, 3) (int64); expected integer y"),
    "signs": (
        *(X, torch.tensor([[1.5, -0.5]] * 8), 2, ENTROPY),
        "gave y whose rows are not probabilities (negative, or not summing to 1); expected",
    ),
    "sums": (X, torch.full((8, 2), 0.6), 2, ENTROPY, "not probabilities (negative, or not"),
    "one class": (X, torch.zeros(8).long(), 1, ENTROPY, "expected (n, C) with C >= 2 classes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_batch_that_does_not_fit_is_refused(case):
    inputs, y, d_out, settings, text = REFUSED[case]
    with pytest.raises(BatchError, match=re.escape(text)):
        train([MLP(3, 4, 2, d_out)], [named(inputs, y)], settings)


@pytest.mark.parametrize("settings", [ONLINE | {"EVAL_EVERY": 1}, OFFLINE])
@pytest.mark.parametrize("model", [MLP(3, 4), nn.Sequential(nn.Linear(3, 1))])
def test_a_test_set_of_another_width_is_refused(settings, model):
    wide = named(torch.zeros(6, 5), torch.zeros(6))
    text = r"test batch function .* gave X of shape \(6, 5\), "
    known = isinstance(model, MLP) or settings is OFFLINE
    text += "5 inputs per sample; expected 3, as in the X" if known else "on which the model fails"
    settings = settings | {"PARAMETRIZATION": "sp"}
    with pytest.raises(BatchError, match=text):
        train([copy.deepcopy(model)], [named(X, X[:, 0])], settings, test_fns=[wide])


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_a_model_of_integers_is_told_how_it_gets_them(dtype):
    tokens = named(torch.zeros(8, 2, dtype=dtype), torch.zeros(8))
    model = nn.Sequential(nn.Embedding(3, 4), nn.Flatten(), nn.Linear(8, 1))
    text = "on which the model fails .* X becomes float32: where MODEL needs integers, write X.long"
    with pytest.raises(BatchError, match=text):
        train([model], [tokens], ONLINE | {"PARAMETRIZATION": "sp"})


def test_a_shape_that_changes_during_training_is_checked_again():
    def changing(step):
        return (X, torch.zeros(8)) if step < 3 else (X, torch.zeros(5))

    with pytest.raises(BatchError, match=r"changing gave .* y of shape \(5,\)"):
        train([MLP(3, 4, 2)], [changing], {"MAX_ITER": 5})
    smaller = train([MLP(3, 4, 2)], [lambda i: (X[: 8 - i], X[: 8 - i, 0])], {"MAX_ITER": 5})
    assert np.isfinite(smaller.train_loss).all()
    with pytest.raises(BatchError, match=r"X changed its shape from \(8, 3\) to \(7, 3\)"):
        train(
            [MLP(3, 4, 2)],
            [lambda i: (X[: 8 - i], X[: 8 - i, 0])],
            {"MAX_ITER": 5},
            grabs={"X": lambda X_tr: X_tr},
        )


def test_what_is_no_pair_is_refused():
    with pytest.raises(BatchError, match=r"returned Tensor; expected a pair \(X, y\) of tensors"):
        train([MLP(3, 4, 2)], [lambda step: X], ONLINE)
    with pytest.raises(BatchError, match=r"test batch function .* returned int"):
        train([MLP(3, 4, 2)], [named(X, X[:, 0])], OFFLINE, test_fns=[lambda step: 3])


def test_configs_trained_together_need_batches_of_equal_shapes():
    fns = [named(X, X[:, 0]), named(X[:5], X[:5, 0])]
    with pytest.raises(BatchError, match="they need equal shapes"):
        train([MLP(3, 4, 2), MLP(3, 4, 2)], fns, ONLINE)


def test_columns_types_and_arrays_are_taken_alike():
    y = (X[:, 0] > 0).long()
    wanted = loss_of(X, y.float())
    for inputs, targets in [
        (X, y.float().unsqueeze(1)),
        (X, y),
        (X, y.bool()),
        (X.double(), y.double()),
        (X.numpy(), y.numpy()),
        (X.view(8, 3, 1), y),
    ]:
        assert loss_of(inputs, targets) == wanted


LAYOUTS = {
    "contiguous": lambda given: given,
    "transposed": lambda given: given.mT.contiguous().mT if given.ndim > 1 else given,
    "every second": lambda given: given.repeat_interleave(2, 0)[::2],
    "negative": lambda given: torch.complex(torch.zeros(()), -given).conj().imag,
    "of double precision": lambda given: given.double(),
    "with a gradient": lambda given: given.clone().requires_grad_(),
}


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_the_layout_of_batches_does_not_matter(loss):
    """Those of a pack lie apart; one in another layout, and of another in each step."""

    def trained(layouts):
        def of(k):
            def batch_fn(step):
                layout = LAYOUTS[layouts[(step + k) % len(layouts)]]
                own = torch.randn(9, 3, generator=torch.Generator().manual_seed(10 * step + k))
                pair = own, own[:, 0].clone()
                return tuple(map(layout, pair))

            return batch_fn

        models = [MLP(3, 4) for _ in range(3)]
        found = train(models, [of(k) for k in range(3)], {"MAX_ITER": 12, "LOSS": loss})
        return found.train_loss, [p for model in models for p in model.parameters()]

    losses, weights = trained(["contiguous"])
    for layouts in (["transposed"], ["negative"], list(LAYOUTS)):
        again, others = trained(layouts)
        assert again.tolist() == losses.tolist()
        assert all(map(torch.equal, weights, others))


def test_one_that_becomes_sparse_is_refused():
    def batch_fn(step):
        return (X if step < 2 else X.to_sparse()), X[:, 0]

    with pytest.raises(BatchError, match=r"a tensor that is not dense .* try X\.to_dense\(\)"):
        train([MLP(3, 4), MLP(3, 4)], [batch_fn, lambda step: (X, X[:, 0])], {"MAX_ITER": 4})


def test_integer_classes_and_one_hot_probabilities_are_alike():
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    wanted = loss_of(X, y, 3, LOSS="cross_entropy")
    one_hot = nn.functional.one_hot(y, 3).float()
    for targets in (y.int(), y.unsqueeze(1), one_hot):
        assert loss_of(X, targets, 3, LOSS="cross_entropy") == pytest.approx(wanted, rel=1e-6)


def test_a_callable_loss_is_mse_if_it_computes_it():
    for y in (X[:, 0], X[:, :1]):
        wanted = loss_of(X, y)
        assert loss_of(X, y, LOSS=nn.MSELoss()) == pytest.approx(wanted, rel=1e-6)
        assert loss_of(X, y, LOSS=nn.functional.mse_loss) == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(SpecError, match=r"per_sample\(output, y\) gave shape \(8, 1\) for output"):
        loss_of(X, X[:, 0], LOSS=per_sample)
    with pytest.raises(SpecError, match="gave 3 for output"):
        loss_of(X, X[:, 0], LOSS=lambda output, y: 3)


def per_sample(output, y):
    return (output - y) ** 2


def test_the_default_network_is_that_of_mlpscape():
    model = MLP(12, 5, 3, 2)
    assert model.input_layer.weight.shape == (5, 12)
    assert [layer.weight.shape for layer in model.hidden_layers] == [(5, 5)] * 2
    assert model.output_layer.weight.shape == (2, 5)
    images = torch.randn(4, 3, 2, 2)
    activations, output = model.get_activations(images)
    assert torch.equal(output, model(images.flatten(1)))
    assert [h.shape for h in activations] == [(4, 5)] * 3
    assert isinstance(MLP(2, 3, nonlinearity=nn.Tanh()).nonlin, nn.Tanh)
    assert MLP(2, 3, bias=False).output_layer.bias is None
    got = train([MLP(3, 4, bias=False)], [named(X, X[:, 0])], ONLINE)
    assert np.isfinite(got.train_loss).all()
