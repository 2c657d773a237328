"""The loop against an obvious one: a plain module, torch.optim and Python floats."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from mlpsubmit.protocol import DIVERGED, DONE
from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import parametrize, streams, train
from mlpsubmit.training.parametrizations import effective_lr
from mlpsubmit.training.schedules import Schedule


def reference(model, batch_fn, h, trial, test_fn=None, grab=None):
    """Train one config in the most obvious way."""
    generator = torch.Generator().manual_seed(streams(h.seed, trial).weights)
    factors = parametrize(model, h.parametrization, gamma=h.gamma, generator=generator)
    f0 = copy.deepcopy(model)
    lr = effective_lr(h.lr, h.gamma)
    groups = [{"params": [p], "lr": lr * factors[n].lr} for n, p in model.named_parameters()]
    momentum = h.of_optimizer("momentum")
    optimizer = torch.optim.SGD(
        groups, lr=lr, momentum=momentum, weight_decay=h.weight_decay or 0.0
    )

    def loss_on(X, y):
        X, y = X.double(), y.double()
        with torch.no_grad():
            y0 = f0(X) if h.centered else 0.0
        return ((model(X) - y0).squeeze(1) - y).square().mean()

    fixed = None if h.online else batch_fn(0)
    test = None if test_fn is None or h.test_every is None else test_fn(0)
    thresholds, timekeys = list(h.thresholds), [-1] * len(h.thresholds)
    s, at = h.ema_smoother, lambda name: set(Schedule(getattr(h, name), h.max_iter).steps)
    record_at, grab_at, eval_at = at("record_every"), at("grab_every"), at("test_every")
    out = {"train": {}, "test": {}, "grab": {}, "status": DONE}
    ema_te, since = math.nan, 0  # steps since the last test loss
    for i in range(h.max_iter):
        X, y = fixed or batch_fn(i)
        loss = loss_on(X, y)
        if i == 0:
            ema = loss.item()
            if h.percent_thresholds is not None:
                thresholds = [t * ema for t in thresholds]
        else:
            ema = s * ema + (1 - s) * loss.item()
        if i in record_at or not math.isfinite(ema):
            out["train"][i] = ema
        if not math.isfinite(ema):
            out |= {"status": DIVERGED, "steps": i, "final": (ema, math.nan)}
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for t, threshold in enumerate(thresholds):
            if timekeys[t] < 0 and ema < threshold:
                timekeys[t] = i
        stops = (bool(thresholds) and timekeys[-1] >= 0) or i == h.max_iter - 1
        if test is not None and (i in eval_at or stops):
            with torch.no_grad():
                value = loss_on(*test).item()
            for _ in range(since):  # as if it had been the loss of each of them
                ema_te = s * ema_te + (1 - s) * value
            ema_te, since = (value if i == 0 else ema_te), 0
        since += 1
        if i in eval_at or stops:
            out["test"][i] = ema_te
        if grab is not None and (i in grab_at or stops):
            out["grab"][i] = grab(model, X.double(), opt=None)
        out |= {"steps": i + 1, "final": (ema, out["test"].get(i, math.nan))}
        if stops:
            out["train"][i] = ema
            break
    return out | {"timekeys": timekeys, "model": model}


def trace(values, steps, final=None):
    """Lay recorded values out along all the steps: after the last one they stay."""
    last = max(values, default=-1)
    kept = values[last] if final is None else final
    return [values[s] if s < last else kept for s in steps]


def mean_out(model, X_tr, **kwargs):
    return model(X_tr).detach().mean()


CASES = {
    "defaults": {},
    "never": {"LOSS_CHECKPOINTS": [1e-9]},
    "tested": {"LOSS_CHECKPOINTS": [0.7], "EVAL_EVERY": 1},
    "no thresholds": {"LOSS_CHECKPOINTS": []},
    "absolute": {"LOSS_CHECKPOINTS": [1.2, 0.6]},
    "relative": {"PERCENT_THRESHOLDS": [0.9, 0.5], "EMA_SMOOTHER": 0.5},
    "no smoothing": {"LOSS_CHECKPOINTS": [1.0, 0.5], "EMA_SMOOTHER": 0.0},
    "sparse": {"LOSS_CHECKPOINTS": [0.7], "RECORD_EVERY": 7, "EVAL_EVERY": 5, "GRAB_EVERY": 3},
    "log": {"LOSS_CHECKPOINTS": [0.7], "RECORD_EVERY": "log:9", "EVAL_EVERY": "log:6"},
    "uncentred": {"CENTERED": False, "LOSS_CHECKPOINTS": [0.8]},
    "momentum": {"MOMENTUM": 0.8, "LR": 0.01, "WEIGHT_DECAY": 0.01, "GAMMA": 2.0},
    "diverges": {"LR": 3000.0},
}


@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
@pytest.mark.parametrize("only", [True, False], ids=["final", "traces"])
@pytest.mark.parametrize("case", CASES)
def test_every_config_of_a_pack_is_what_the_obvious_loop_makes_of_it(
    case, only, online, gaussian, make_mlps, short_blocks
):
    settings = {"MAX_ITER": 45, "LR": 0.1, "ONLINE": online, "ONLYTHRESHOLDS": only, **CASES[case]}
    base = validate(settings)
    K = 3
    hs = [base.model_copy(update={"lr": base.lr * (1 + k), "gamma": 1 + k / 2}) for k in range(K)]
    models = [model.double() for model in make_mlps(K)]  # rounding grows along a training
    got = train(
        models,
        [gaussian(k) for k in range(K)],
        hs,
        test_fns=[gaussian(10 + k) for k in range(K)],
        grabs={"mean": mean_out},
    )
    assert models[0].output_layer.weight.shape == (1, 6)
    tested = not online or "EVAL_EVERY" in CASES[case]
    assert np.isnan(got.test_loss).all() or tested
    assert (got.eval_step.size > 0) == (tested and not only)
    for k, (model, h) in enumerate(zip(make_mlps(K), hs, strict=True)):
        want = reference(model.double(), gaussian(k), h, k, gaussian(10 + k), mean_out)
        assert got.status[k] == want["status"]
        assert got.steps[k] == want["steps"]
        assert got.timekeys[k].tolist() == want["timekeys"]
        close = {"rtol": 1e-9, "atol": 1e-12}
        if only:
            np.testing.assert_allclose(got.train_loss[k], want["final"][0], **close)
            if tested:
                np.testing.assert_allclose(got.test_loss[k], want["final"][1], **close)
            value = math.nan if want["status"] == DIVERGED else want["grab"][want["steps"] - 1]
            np.testing.assert_allclose(got.grabs["mean"][k], value, **close)
        else:
            final = want["final"] if want["status"] == DIVERGED else (None, None)
            np.testing.assert_allclose(
                got.train_loss[k], trace(want["train"], got.step, final[0]), **close
            )
            if want["status"] == DONE:
                if tested:
                    tests = trace(want["test"], got.eval_step)
                    np.testing.assert_allclose(got.test_loss[k], tests, **close)
                grabbed = trace({i: float(v) for i, v in want["grab"].items()}, got.grab_step)
                np.testing.assert_allclose(got.grabs["mean"][k], grabbed, **close)
            else:
                assert np.isnan(got.grabs["mean"][k][got.grab_step >= want["steps"]]).all()
                if tested:
                    assert not np.isfinite(got.test_loss[k][got.eval_step >= want["steps"]]).any()
        wanted = want["model"].state_dict()  # also of a diverged config: as they were before
        for name, tensor in models[k].state_dict().items():
            torch.testing.assert_close(tensor, wanted[name], **close)


@pytest.mark.parametrize("centered", [True, False])
def test_evaluating_the_test_loss_online_leaves_the_training_alone(
    centered, gaussian, make_mlps, short_blocks
):
    def run(**settings):
        settings = {"MAX_ITER": 40, "LR": 0.1, "CENTERED": centered, **settings}
        models = make_mlps(3)
        fns, tests = [gaussian(k) for k in range(3)], [gaussian(9)] * 3
        return train(models, fns, settings, test_fns=tests), models

    (plain, models), (tested, others) = run(), run(EVAL_EVERY=3)
    assert np.isnan(plain.test_loss).all()
    assert not np.isclose(tested.test_loss, tested.train_loss, rtol=1e-3).any()
    np.testing.assert_array_equal(plain.train_loss, tested.train_loss)
    for one, other in zip(models, others, strict=True):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name])


def test_the_cases_do_what_their_names_say(gaussian, make_mlps):
    def statuses(case):
        settings = {"MAX_ITER": 45, "LR": 0.1, **CASES[case]}
        return train(make_mlps(1), [gaussian(0)], settings)

    assert statuses("diverges").status.tolist() == [DIVERGED]
    assert statuses("never").timekeys.tolist() == [[-1]]
    assert statuses("no thresholds").timekeys.shape == (1, 0)
    assert 0 < statuses("relative").steps[0] < 45


@pytest.mark.parametrize("thresholds", [[], [0.7]], ids=["to the end", "threshold"])
@pytest.mark.parametrize("only", [True, False], ids=["final", "traces"])
@pytest.mark.parametrize("every", [1, 7, "log:5"])
def test_the_test_loss_is_smoothed_per_step_however_rarely_it_is_evaluated(
    every, only, thresholds, gaussian, make_mlps, short_blocks
):
    settings = {
        "MAX_ITER": 100,
        "ONLINE": False,
        "ONLYTHRESHOLDS": only,
        "EVAL_EVERY": every,
        "PERCENT_THRESHOLDS": thresholds,
    }
    base, varied = validate(settings), [(0.05, 0.9), (0.1, 0.5), (0.2, 0.99), (0.1, 0.0)]
    hs = [base.model_copy(update={"lr": lr, "ema_smoother": s}) for lr, s in varied]
    fns, tests = ([gaussian(start + k) for k in range(4)] for start in (0, 10))
    got = train([m.double() for m in make_mlps(4)], fns, hs, test_fns=tests)
    evaluated = Schedule(every, 100).steps
    between = set(got.steps - 1) - set(evaluated)
    assert len(between) >= (2 if thresholds and every != 1 else 0)
    for k, (model, h) in enumerate(zip(make_mlps(4), hs, strict=True)):
        want = reference(model.double(), gaussian(k), h, k, gaussian(10 + k))
        losses = [want["final"][1]] if only else trace(want["test"], evaluated)
        np.testing.assert_allclose(np.atleast_1d(got.test_loss[k]), losses, rtol=1e-10)


@pytest.mark.parametrize("every", [20, 1000])
def test_a_test_loss_evaluated_rarely_does_not_lag_behind(every, gaussian, make_mlps):
    def final(every):
        settings = {"MAX_ITER": 100, "LR": 0.2, "ONLINE": False, "LOSS_CHECKPOINTS": []}
        fn = gaussian(0)(0)
        result = train(
            make_mlps(1),
            [lambda step: fn],
            {**settings, "EVAL_EVERY": every},
            test_fns=[lambda step: fn],
        )
        return result.test_loss.item()

    assert final(every) == pytest.approx(final(1), rel=0.25)
    assert final(1) < 0.1


@pytest.mark.parametrize("online", [True, False])
def test_final_values_are_the_last_of_the_traces(online, gaussian, make_mlps):
    def run(only, every=1):
        settings = {
            "MAX_ITER": 80,
            "LR": 0.1,
            "ONLINE": online,
            "ONLYTHRESHOLDS": only,
            "LOSS_CHECKPOINTS": [0.5],
            "RECORD_EVERY": every,
            "EVAL_EVERY": every,
        }
        fns = [gaussian(k) for k in range(3)]
        return train(make_mlps(3), fns, settings, test_fns=[gaussian(9)] * 3)

    for every in (1, 13):
        final, traces = run(True, every), run(False, every)
        np.testing.assert_array_equal(final.train_loss, traces.train_loss[:, -1])
        np.testing.assert_array_equal(final.test_loss, traces.test_loss[:, -1])
        assert traces.train_loss.shape == (3, len(traces.step))
        assert final.step.size == final.eval_step.size == final.grab_step.size == 0


@pytest.mark.parametrize("settings", [{"ONLINE": False}, {"EVAL_EVERY": 2}])
def test_without_a_test_set_the_test_loss_is_nan(settings, gaussian, make_mlps):
    got = train(make_mlps(1), [gaussian(0)], {"MAX_ITER": 5, **settings})
    assert np.isnan(got.test_loss).all()
