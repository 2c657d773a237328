"""The built-in metrics against NumPy, those of the user's, and the targets that do not fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import DONE
from mlpsubmit.spec.hyperparameters import validate, validate_one
from mlpsubmit.training import MLP, train
from mlpsubmit.training.batches import BatchError
from mlpsubmit.training.guard import WriteError
from mlpsubmit.training.metric_functions import stacked_metric

K, N, C = 3, 40, 5


def not_called(row):
    raise AssertionError(f"no metric here draws, and row {row} was given a stream")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measured(name, output, y):
    """Measure K configs with targets of their own, with shared ones, and one alone."""
    metric = stacked_metric(name, validate_one("metrics", [name])[name], not_called)
    values = metric(output, y)
    assert values.shape == (len(output),)
    shared = metric(output, y[:1])
    torch.testing.assert_close(
        metric(output[:1], y[:1]), shared[:1], rtol=0, atol=0, equal_nan=True
    )
    torch.testing.assert_close(values[:1], shared[:1], rtol=0, atol=0, equal_nan=True)
    return values.tolist()


def classes_of(y):
    """Return integer classes (n,), whatever form they come in."""
    y = y.numpy()
    return y.reshape(len(y)).astype(int) if y.ndim == 1 or y.shape[1] == 1 else y.argmax(1)


CLASSES = torch.randint(0, C, (K, N), generator=torch.Generator().manual_seed(7))
ONE_HOT = torch.nn.functional.one_hot(CLASSES, C).float()
OF_CLASSES = {
    "classes": CLASSES,
    "a column of classes": CLASSES.unsqueeze(-1),
    "classes as floats": CLASSES.float(),
    "one-hot": ONE_HOT,
    "columns of -1 and 1": 2 * ONE_HOT - 1,
    "probabilities": (5 * ONE_HOT + drawn(K, N, C, seed=1)).softmax(-1),
}


@pytest.mark.parametrize("form", OF_CLASSES)
def test_classes_are_those_of_numpy(form):
    output, y = drawn(K, N, C), OF_CLASSES[form]
    wanted = [classes_of(one) for one in y]
    predicted = [one.numpy().argmax(1) for one in output]
    pairs = list(zip(predicted, wanted, strict=True))
    assert measured("accuracy", output, y) == [float(np.mean(p == w)) for p, w in pairs]
    assert measured("error", output, y) == [float(np.sum(p != w)) / N for p, w in pairs]
    margins = []
    for one, classes in zip(output.numpy(), wanted, strict=True):
        others = [np.delete(row, c).max() for row, c in zip(one, classes, strict=True)]
        margins.append(float((one[np.arange(N), classes] - others).min()))
    assert measured("margin", output, y) == pytest.approx(margins, rel=1e-6)


@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("kind", ["signs", "real numbers", "0 and 1"])
def test_signs_are_those_of_numpy(kind, column):
    output, y = drawn(K, N, 1), drawn(K, N, seed=1)
    y = {"signs": y.sign(), "real numbers": y, "0 and 1": (y > 0).float()}[kind]
    y = y.unsqueeze(-1) if column else y
    f, positive = output.numpy().reshape(K, N), y.numpy().reshape(K, N) > 0
    right = (f > 0) == positive
    assert measured("accuracy", output, y) == right.mean(1).tolist()
    assert measured("error", output, y) == (np.sum(~right, 1) / N).tolist()
    wanted = np.where(positive, f, -f).min(1)
    assert measured("margin", output, y) == wanted.tolist()


def test_classes_of_every_position_of_a_sequence():
    output = drawn(K, N, 4, C)
    classes = torch.randint(0, C, (K, N, 4), generator=torch.Generator().manual_seed(7))
    right = output.numpy().argmax(-1) == classes.numpy()
    assert measured("accuracy", output, classes) == right.mean((1, 2)).tolist()
    assert measured("error", output, classes) == ((~right).sum((1, 2)) / (4 * N)).tolist()


@pytest.mark.parametrize("d_out", [1, 3])
def test_r2_is_that_of_numpy(d_out):
    y = drawn(K, N, d_out, seed=1) + torch.arange(d_out)
    output = y + 0.3 * drawn(K, N, d_out)
    f, t = output.double().numpy(), y.double().numpy()
    residual = ((t - f) ** 2).sum((1, 2))
    wanted = 1 - residual / ((t - t.mean(1, keepdims=True)) ** 2).sum((1, 2))
    found = measured("r2", output, y.squeeze(-1) if d_out == 1 else y)
    assert found == pytest.approx(wanted.tolist(), rel=1e-4)
    assert measured("r2", y.unsqueeze(-1) if y.ndim < 3 else y, y) == [1.0] * K


def test_edges():
    y = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    assert measured("accuracy", torch.zeros(1, 4, 1), y) == [0.5]  # at initialisation
    assert math.isnan(measured("accuracy", torch.tensor([[[1.0], [math.nan], [1], [1]]]), y)[0])
    assert math.isnan(measured("error", torch.tensor([[[1.0], [math.inf], [1], [1]]]), y)[0])
    assert measured("r2", torch.zeros(1, 4, 1), torch.ones(1, 4)) == [-math.inf]
    tied = torch.zeros(1, 2, 3)  # the first of equal outputs is predicted
    assert measured("accuracy", tied, torch.tensor([[0, 1]])) == [0.5]


def test_a_share_is_as_exact_as_its_threshold(make_mlps):
    """9 of 10 right is 0.9; as float32, that is below 0.9."""
    y = torch.tensor([1.0] * 9 + [-1.0])

    def share(output, y):
        return ((output > 0) == (y > 0)).float().mean()

    settings = {"MAX_ITER": 1, "CENTERED": False, "PARAMETRIZATION": "sp", "LOSS_CHECKPOINTS": []}
    settings |= {"METRICS": {"share": (share, "max"), "wrong": (lambda f, y: 1 - 0.9, "min")}}
    settings["METRIC_THRESHOLDS"] = {
        "train_accuracy": [0.9],
        "train_error": [0.1],
        "train_share": [0.9],
    }
    model = torch.nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(0.0), model.bias.fill_(1.0)
    got = train([model], [lambda step: (torch.ones(10, 1), y)], settings)
    assert {key: steps.item() for key, steps in got.metric_timekeys.items()} == {
        "train_accuracy": 0,
        "train_error": 0,
        "train_share": 0,
    }


# ---- those of the user's -------------------------------------------------------------------------


def run(metric, y=None, count=2, **settings):
    """Train a step of some configs; return the metric of the batch."""
    X = drawn(8, 3)
    y = X[:, 0].sign() if y is None else y
    settings = {"MAX_ITER": 2, "METRICS": {"mine": (metric, "max")}, **settings}
    models = [MLP(3, 4, 1) for _ in range(count)]
    return train(models, [lambda step: (X, y)] * count, settings).metrics["train_mine"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_metric_gets_targets_in_the_shape_of_the_output(count):
    shapes = set()

    def spread(output, y):
        shapes.add((tuple(output.shape), tuple(y.shape)))
        return (output - y).abs().mean()

    assert np.isfinite(run(spread, count=count)).all()
    assert shapes == {((8, 1), (8, 1))}


@pytest.mark.parametrize(
    "metric",
    [
        lambda output, y: 3,
        lambda output, y: 3.0,
        lambda output, y: np.float32(3),
        lambda output, y: np.array(3),
        lambda output, y: torch.tensor(3),
        lambda output, y: (output == output).sum() - 5,
        lambda output, y: float(output.numpy().size) - 5,
        lambda output, y: 3.0 if output.sum() < 1e9 else 4.0,
    ],
)
def test_any_real_number_is_a_value(metric):
    assert run(metric).tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("metric", "got"),
    [
        (lambda output, y: np.ma.masked, r"gave a masked value for output \(8, 1\)"),
        (lambda output, y: output - y, r"gave shape \(8, 1\) of float32 for output \(8, 1\)"),
        (lambda output, y: "high", "gave str 'high'"),
        (
            lambda output, y: None,
            "gave None .*; valid is one real number; return it: a function without return",
        ),
        (lambda output, y: [1.0, 2.0], r"gave shape \(2,\) of float64"),
        (lambda output, y: 1j, r"gave shape \(\) of complex128"),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_what_is_no_real_number_is_refused(metric, got, count):
    with pytest.raises(SpecError, match=rf"METRICS: 'mine', <lambda>\(output, y\), {got}"):
        run(metric, count=count)


@pytest.mark.parametrize("count", [1, 2])
def test_a_metric_that_writes_is_refused(count):
    def writes(output, y):
        y -= 1
        return y.mean()

    with pytest.raises(WriteError, match=r"METRICS: 'mine', writes\(output, y\), changes output"):
        run(writes, count=count)


def test_an_error_of_a_metric_is_its_own():
    def fails(output, y):
        raise ZeroDivisionError("of the user")

    with pytest.raises(ZeroDivisionError, match="of the user"):
        run(fails)


# ---- targets that do not fit ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "y", "d_out", "loss", "text"),
    [
        (
            "accuracy",
            torch.tensor([0.0, 1.0, 1.0, 0.0]),
            1,
            "mse",
            "gave y from 0 to 1; expected targets of either sign for METRICS 'accuracy' of one "
            "output; try 2 * y - 1 for 0 and 1, or a metric of your own",
        ),
        ("error", torch.ones(4, 3), 3, "mse", "several largest entries in a row; expected one-hot"),
        (
            "r2",
            torch.arange(4) % 3,
            3,
            "cross_entropy",
            "for outputs (3,) of a sample; expected targets in the shape of the outputs",
        ),
        (
            "accuracy",
            torch.arange(4),
            3,
            lambda output, y: output.square().mean(),
            "expected classes from 0 to 2 for METRICS 'accuracy' of 3 outputs",
        ),
        (
            "margin",
            torch.ones(4, 2),
            1,
            lambda output, y: output.square().mean(),
            "expected one target per sample for METRICS 'margin'",
        ),
    ],
)
def test_targets_that_do_not_fit_are_refused(metric, y, d_out, loss, text):
    settings = {"MAX_ITER": 1, "METRICS": [metric], "LOSS": loss}
    with pytest.raises(BatchError) as caught:
        train([MLP(3, 4, 1, d_out)], [lambda step: (drawn(4, 3), y)], settings)
    assert text in str(caught.value)


def test_zeros_and_ones_are_classes_of_a_loss_for_them():
    def bce(output, y):
        return torch.nn.functional.binary_cross_entropy_with_logits(output, y)

    X = drawn(30, 3)
    settings = {"MAX_ITER": 60, "METRICS": ["accuracy"], "LOSS": bce, "LR": 0.5, "ONLINE": False}
    settings["LOSS_CHECKPOINTS"] = []
    got = train([MLP(3, 16, 1)], [lambda step: (X, (X[:, 0] > 0).float())], settings)
    assert got.status.tolist() == [DONE]
    assert got.metrics["train_accuracy"].item() > 0.9


def test_batches_of_other_sizes():
    def batch_fn(step):
        X = drawn(4 + step % 2, 3, seed=step)
        return X, X[:, 0].sign()

    base = {"MAX_ITER": 6, "METRICS": ["accuracy"], "LOSS_CHECKPOINTS": []}
    got = train([MLP(3, 4, 1)], [batch_fn], {**base, "ONLYTHRESHOLDS": False})
    assert np.isfinite(got.metrics["train_accuracy"]).all()
    with pytest.raises(BatchError, match="METRICS at some of the steps need batches"):
        train([MLP(3, 4, 1)], [batch_fn], validate({**base, "RECORD_EVERY": 2}))
