"""Metrics and their thresholds against an obvious loop: a plain module, torch.optim and NumPy."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from mlpsubmit.protocol import DIVERGED, DONE
from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import Interrupted, parametrize, streams, train
from mlpsubmit.training.accel.mlp import ClosedForm
from mlpsubmit.training.parametrizations import effective_lr
from mlpsubmit.training.schedules import Schedule

K, STEPS = 3, 45


# ---- the obvious loop ----------------------------------------------------------------------------


def accuracy_of(f, y):
    return float(np.mean(np.where(f > 0, 1, -1) == np.where(y > 0, 1, -1)))


def error_of(f, y):
    return float(np.sum(np.where(f > 0, 1, -1) != np.where(y > 0, 1, -1))) / len(y)


def r2_of(f, y):
    return 1 - float(np.sum((y - f) ** 2)) / float(np.sum((y - np.mean(y)) ** 2))


def largest(output, y):
    """A metric that vmap computes."""
    return (output - y).abs().amax()


def median(output, y):
    """A metric that vmap cannot compute."""
    return float(np.median((output - y).detach().numpy()))


METRICS = {
    "accuracy": ("accuracy", accuracy_of),
    "error": ("error", error_of),
    "r2": ("r2", r2_of),
    "largest": ((largest, "min"), lambda f, y: float(np.abs(f - y).max())),
    "median": ((median, "max"), lambda f, y: float(np.median(f - y))),
}
MAX = ("accuracy", "r2", "median")


def reaches(key, value, threshold):
    if key == "test_loss":
        return value < threshold
    return value >= threshold if key.partition("_")[2] in MAX else value <= threshold


def reference(model, batch_fn, test, h, trial):
    """Train one config in the most obvious way; return what is measured at each step."""
    generator = torch.Generator().manual_seed(streams(h.seed, trial).weights)
    factors = parametrize(model, h.parametrization, gamma=h.gamma, generator=generator)
    f0, lr = copy.deepcopy(model), effective_lr(h.lr, h.gamma)
    groups = [{"params": [p], "lr": lr * factors[n].lr} for n, p in model.named_parameters()]
    optimizer = torch.optim.SGD(groups, lr=lr)

    def on(X, y):
        X, y = X.double(), y.double()
        f = (model(X) - f0(X)).squeeze(1)
        with np.errstate(all="ignore"):
            found = {name: METRICS[name][1](f.detach().numpy(), y.numpy()) for name in h.measured}
        return (f - y).square().mean(), found

    fixed, s = None if h.online else batch_fn(0), h.ema_smoother
    record_at = set(Schedule(h.record_every, h.max_iter).steps)
    eval_at = set(Schedule(h.test_every, h.max_iter).steps)
    thresholds = {"train_loss": h.thresholds, **h.ordered_thresholds}
    timekeys = {key: [-1] * len(own) for key, own in thresholds.items()}
    values = {}  # by name and step

    def look(key, value, step):
        for n, threshold in enumerate(thresholds.get(key, ())):
            reached = value < threshold if "loss" in key else reaches(key, value, threshold)
            if timekeys[key][n] < 0 and reached:
                timekeys[key][n] = step

    ema = ema_te = math.nan
    since = 0  # steps since the last evaluation
    for i in range(h.max_iter):
        loss, of_batch = on(*(fixed or batch_fn(i)))
        ema = loss.item() if i == 0 else s * ema + (1 - s) * loss.item()
        if not math.isfinite(ema):
            return {"status": DIVERGED, "steps": i, "values": values, "timekeys": timekeys}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        look("train_loss", ema, i)
        if i in record_at:
            for name, value in of_batch.items():
                look(f"train_{name}", value, i)

        def evaluate(i=i):
            nonlocal ema_te, since
            value, of_test = on(*test)
            for _ in range(since):
                ema_te = s * ema_te + (1 - s) * value.item()
            ema_te, since = (value.item() if i == 0 else ema_te), 0
            look("test_loss", ema_te, i)
            for name, value in of_test.items():
                look(f"test_{name}", value, i)
            values.update({(f"test_{name}", i): value for name, value in of_test.items()})

        if i in eval_at:
            evaluate()
        since = since + 1  # an evaluation sets it back
        stop_on = timekeys.get(h.stop_on, [])
        stops = i == h.max_iter - 1 or (bool(stop_on) and stop_on[-1] >= 0)
        if stops:
            for name, value in of_batch.items():
                look(f"train_{name}", value, i)
            if h.test_every is not None and i not in eval_at:
                evaluate()
        if i in record_at or stops:
            values.update({(f"train_{name}", i): value for name, value in of_batch.items()})
        if stops:
            return {"status": DONE, "steps": i + 1, "values": values, "timekeys": timekeys}
    raise AssertionError


CASES = {
    "offline": {"ONLINE": False, "METRIC_THRESHOLDS": {"test_accuracy": [0.6, 0.7, 0.99]}},
    "online": {"METRIC_THRESHOLDS": {"train_accuracy": [0.9], "train_error": [0.2, 0.3]}},
    "stop": {"METRIC_THRESHOLDS": {"test_accuracy": [0.7, 0.9]}, "STOP_ON": "test_accuracy"},
    "stop rarely": {
        "ONLINE": False,
        "EVAL_EVERY": 7,
        "RECORD_EVERY": 5,
        "METRIC_THRESHOLDS": {"test_r2": [-2.0, 0.45], "train_largest": [2.0], "test_loss": [1.1]},
        "STOP_ON": "test_r2",
    },
    "stop on a metric of the batch": {
        "RECORD_EVERY": 4,
        "METRIC_THRESHOLDS": {"train_largest": [2.5, 1.5], "train_median": [0.1]},
        "STOP_ON": "train_largest",
    },
    "stop on the test loss": {"METRIC_THRESHOLDS": {"test_loss": [1.0]}, "STOP_ON": "test_loss"},
    "stop on the loss, between": {
        "EVAL_EVERY": 20,
        "RECORD_EVERY": 6,
        "LOSS_CHECKPOINTS": [1.5, 0.8],
        "METRIC_THRESHOLDS": {"train_error": [0.3], "test_accuracy": [0.85], "test_loss": [1.2]},
    },
    "never stops": {"LOSS_CHECKPOINTS": [1.5], "STOP_ON": None},
    "diverges": {"LR": 3000.0, "ONLINE": False, "METRIC_THRESHOLDS": {"test_accuracy": [0.99]}},
    "log": {"ONLINE": False, "EVAL_EVERY": "log:6", "RECORD_EVERY": "log:9"},
}


def pack(case, gaussian, make_mlps, monitor=None, **further):
    """Train K configs of a case; return the results, and what determines them."""
    settings = {"MAX_ITER": STEPS, "LR": 0.1, "LOSS_CHECKPOINTS": [], "EMA_SMOOTHER": 0.5}
    settings |= {"METRICS": {name: metric for name, (metric, _) in METRICS.items()}}
    base = validate({**settings, **CASES[case], **further})
    hs = [base.model_copy(update={"lr": base.lr * (1 + k), "gamma": 1 + k / 2}) for k in range(K)]
    models = [model.double() for model in make_mlps(K)]
    fns, tests = ([gaussian(start + k, n=20) for k in range(K)] for start in (0, 10))
    generators = [fn.generator for fn in (*fns, *tests)]
    found = train(models, fns, hs, test_fns=tests, generators=generators, monitor=monitor)
    return found, hs, models


@pytest.mark.parametrize(
    "only", [pytest.param(True, marks=pytest.mark.slow), False], ids=["final", "traces"]
)
@pytest.mark.parametrize("case", CASES)
def test_every_config_is_what_the_obvious_loop_makes_of_it(
    case, only, gaussian, make_mlps, short_blocks
):
    got, hs, _ = pack(case, gaussian, make_mlps, ONLYTHRESHOLDS=only)
    tested = hs[0].test_every is not None
    sets = ("train", "test") if tested else ("train",)
    assert set(got.metrics) == {f"{one}_{name}" for one in sets for name in METRICS}
    assert set(got.metric_timekeys) == set(hs[0].metric_thresholds)
    for k, (model, h) in enumerate(zip(make_mlps(K), hs, strict=True)):
        test = gaussian(10 + k, n=20)(0)
        want = reference(model.double(), gaussian(k, n=20), test, h, k)
        assert got.status[k] == want["status"]
        assert got.steps[k] == want["steps"]
        for key, timekeys in got.metric_timekeys.items():
            assert timekeys[k].tolist() == want["timekeys"][key], key
        assert got.timekeys[k].tolist() == want["timekeys"]["train_loss"]
        for name, values in got.metrics.items():
            own = {step: v for (n, step), v in want["values"].items() if n == name}
            last = max(own, default=-1)
            final = math.nan if want["status"] == DIVERGED else own[last]
            steps = got.step if name.startswith("train") else got.eval_step
            expected = [own[s] if s < last or s in own else final for s in steps]
            if want["status"] == DIVERGED:
                expected = [own[s] if s < want["steps"] else math.nan for s in steps]
            expected = final if only else expected
            np.testing.assert_allclose(values[k], expected, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.slow
def test_the_cases_do_what_their_names_say(gaussian, make_mlps):
    found = {case: pack(case, gaussian, make_mlps)[0] for case in CASES}
    for case in CASES:
        stops = case.startswith("stop")
        assert (found[case].steps.min() < STEPS) == (stops or case == "diverges"), case
    crossed = found["stop on the loss, between"]
    assert all((times >= 0).any() for times in crossed.metric_timekeys.values())
    late = {int(step) for step in crossed.metric_timekeys["test_accuracy"].ravel() if step >= 0}
    assert late - set(Schedule(20, STEPS).steps)  # at the evaluation of a config that has stopped


# ---- the same bits, however it is trained --------------------------------------------------------


@pytest.mark.parametrize("case", ["stop rarely", "stop on a metric of the batch", "online"])
def test_an_interrupted_training_has_the_same_bits(
    case, gaussian, make_mlps, saver, same, short_blocks
):
    further = {"ONLYTHRESHOLDS": False}
    straight, _, models = pack(case, gaussian, make_mlps, **further)
    for every in (3, 11):
        monitor = saver(every=every, interrupting=True)
        with pytest.raises(Interrupted):
            pack(case, gaussian, make_mlps, monitor, **further)
        resumed, _, others = pack(case, gaussian, make_mlps, saver(monitor.state), **further)
        same(straight, resumed)
        for one, other in zip(models, others, strict=True):
            for a, b in zip(one.parameters(), other.parameters(), strict=True):
                assert torch.equal(a, b)


def test_metrics_leave_the_training_as_it_is(gaussian, make_mlps, short_blocks):
    for case, stop in itertools.product(["online", "offline"], [None, "train_loss"]):
        settings = {"LOSS_CHECKPOINTS": [0.5], "STOP_ON": stop, "EVAL_EVERY": 3}
        with_metrics, _, models = pack(case, gaussian, make_mlps, **settings)
        without, _, others = pack(
            case, gaussian, make_mlps, **settings, METRICS=[], METRIC_THRESHOLDS={}
        )
        np.testing.assert_array_equal(with_metrics.train_loss, without.train_loss)
        np.testing.assert_array_equal(with_metrics.test_loss, without.test_loss)
        assert without.metrics == without.metric_timekeys == {}
        for one, other in zip(models, others, strict=True):
            for a, b in zip(one.parameters(), other.parameters(), strict=True):
                assert torch.equal(a, b)


def test_other_ways_to_make_a_step_measure_the_same(gaussian, make_mlps, monkeypatch):
    """Without the closed form; and with a kernel in its place, which keeps no outputs."""

    def found(**further):
        case = "stop on a metric of the batch"
        return pack(case, gaussian, make_mlps, ONLYTHRESHOLDS=False, **further)[0]

    plain, others = found(), [found(COMPILE=False)]
    closed = ClosedForm.losses_and_gradients

    def kernel(self, tensors, batch, initial_output, loss, kept=None):
        return closed(self, tensors, batch, initial_output, loss)

    monkeypatch.setattr(ClosedForm, "losses_and_gradients", kernel)
    for other in (*others, found()):
        for name, values in plain.metrics.items():
            np.testing.assert_allclose(values, other.metrics[name], rtol=1e-9)
