"""Grabs: their arguments, their results, and the messages of their errors."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import DIVERGED, DONE
from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import GrabError, measurements, streams, train
from mlpsubmit.training.parametrizations import parametrize
from mlpsubmit.training.stack import Stack


def final(models, fns, grabs, **further):
    settings = {"MAX_ITER": 5, "LOSS_CHECKPOINTS": [], **further.pop("settings", {})}
    return train(models, fns, settings, grabs=grabs, **further)


def test_a_grab_gets_what_it_declares(gaussian, make_mlps):
    seen = {}

    def everything(model, X_tr, y_tr, X_te, y_te, opt, model0, power, width=3, *, missing="absent"):
        seen.update(locals())
        return 0

    def open_ended(X_tr, **kwargs):
        seen["kwargs"] = kwargs
        return 0

    models = make_mlps(1)
    final(
        models,
        [gaussian(0)],
        {"everything": everything, "open": open_ended},
        contexts=[{"power": 2.5, "unasked": 1, "X_tr": "a context does not hide the batch"}],
        test_fns=[gaussian(5)],
        settings={"LR": 0.1, "GAMMA": 2.0, "PARAMETRIZATION": "mfp"},
    )
    assert (seen["power"], seen["width"], seen["missing"]) == (2.5, 3, "absent")
    assert seen["model"] is models[0]
    again = gaussian(0)
    for _ in range(5):
        X, y = again(0)
    assert torch.equal(seen["X_tr"], X)
    assert torch.equal(seen["y_tr"], y)
    assert torch.equal(seen["X_te"], gaussian(5)(0)[0])
    groups = {group["name"]: group for group in seen["opt"].param_groups}
    assert groups["input_layer.weight"]["lr"] == pytest.approx(0.1 * 2.0 * 6)
    assert groups["input_layer.weight"]["params"][0] is models[0].input_layer.weight
    start = make_mlps(1)[0]
    parametrize(
        start, "mfp", gamma=2.0, generator=torch.Generator().manual_seed(streams(42, 0).weights)
    )
    assert torch.equal(seen["model0"](X), start(X))
    assert set(seen["kwargs"]) >= {"model", "y_te", "opt", "model0", "power", "unasked"}


def test_offline_the_fixed_set_is_given_and_online_no_test_set_is_none(gaussian, make_mlps):
    def sums(X_tr, X_te):
        return torch.stack([X_tr.sum(), torch.tensor(0.0) if X_te is None else X_te.sum()])

    X, X_te = gaussian(0)(0)[0].sum(), gaussian(5)(0)[0].sum()
    offline = {"ONLINE": False}
    got = final(make_mlps(1), [gaussian(0)], {"s": sums}, test_fns=[gaussian(5)], settings=offline)
    np.testing.assert_allclose(got.grabs["s"][0], [X, X_te], rtol=1e-6)
    assert final(make_mlps(1), [gaussian(0)], {"s": sums}).grabs["s"][0, 1] == 0


def test_gradients_are_enabled_and_leave_the_training_alone(gaussian, make_mlps, same):
    def gradient_norm(model, X_tr, y_tr):
        assert torch.is_grad_enabled()
        assert all(p.is_leaf and p.requires_grad and p.grad is None for p in model.parameters())
        (model(X_tr).squeeze() - y_tr).square().mean().backward()
        return model.input_layer.weight.grad.norm()

    traces = {"ONLYTHRESHOLDS": False}
    with_grabs = final(make_mlps(2), [gaussian(0)] * 2, {"g": gradient_norm}, settings=traces)
    without = final(make_mlps(2), [gaussian(0)] * 2, {}, settings=traces)
    assert with_grabs.grabs["g"].shape == (2, 5)
    assert (with_grabs.grabs.pop("g") > 0).all()
    assert with_grabs.grab_step.tolist() == [*range(5)]
    assert not len(without.grab_step)
    with_grabs.grab_step = without.grab_step
    same(with_grabs, without)


RESULTS = {
    "int": (3, (), np.int64),
    "bool": (True, (), np.bool_),
    "float": (0.5, (), np.float64),
    "numpy": (np.arange(6.0, dtype=np.float32).reshape(2, 3), (2, 3), np.float32),
    "list": ([1, 2.5], (2,), np.float64),
    "nested": ([[1, 2], [3, 4]], (2, 2), np.int64),
    "tensor": (torch.ones(2, 2), (2, 2), np.float32),
    "integers": (torch.arange(3), (3,), np.int64),
    "bfloat16": (torch.ones(2, dtype=torch.bfloat16), (2,), np.float32),
    "complex": (torch.ones(2, dtype=torch.complex64), (2,), np.complex64),
    "tensors": ([torch.ones(2), torch.zeros(2)], (2, 2), np.float32),
    "empty": ([], (0,), np.float64),
}


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("only", [True, False])
def test_numbers_arrays_tensors_and_lists_are_kept(name, only, gaussian, make_mlps):
    value, shape, dtype = RESULTS[name]
    settings = {"ONLYTHRESHOLDS": only}
    got = final(make_mlps(2), [gaussian(0)] * 2, {"g": lambda: value}, settings=settings)
    leading = (2,) if only else (2, 5)
    assert got.grabs["g"].shape == leading + shape
    assert got.grabs["g"].dtype == dtype
    if isinstance(value, torch.Tensor) and value.dtype != torch.bfloat16:
        assert (got.grabs["g"] == value.numpy()).all()


def test_integers_that_some_configs_lack_are_floats(gaussian, make_mlps):
    contexts = [{"n": 1}, {"n": 2}]
    grabs = {"several": lambda n: [7] * n, "mixed": lambda n: 3 if n == 1 else 0.5}
    got = final(make_mlps(2), [gaussian(0)] * 2, grabs, contexts=contexts)
    np.testing.assert_array_equal(got.grabs["several"], [[7, np.nan], [7, 7]])
    np.testing.assert_array_equal(got.grabs["mixed"], [3, 0.5])
    assert {got.grabs[name].dtype for name in grabs} == {np.dtype(np.float64)}


def test_what_a_view_of_the_weights_showed_is_kept(gaussian, make_mlps):
    settings = {"ONLYTHRESHOLDS": False, "LR": 0.1}
    grabs = {
        "view": lambda model: model.input_layer.weight,
        "numpy": lambda model: model.input_layer.weight.detach().numpy(),
    }
    got = final(make_mlps(1), [gaussian(0)], grabs, settings=settings)
    assert (got.grabs["view"][0, 0] != got.grabs["view"][0, 1]).any()
    np.testing.assert_array_equal(got.grabs["view"], got.grabs["numpy"])


def test_results_of_different_lengths_are_padded_between_configs(gaussian, make_mlps):
    contexts = [{"n": 1}, {"n": 3}, {"n": 2}]
    for only in (True, False):
        got = final(
            make_mlps(3),
            [gaussian(0)] * 3,
            {"g": lambda n: [7.0] * n},
            contexts=contexts,
            settings={"ONLYTHRESHOLDS": only},
        )
        value = got.grabs["g"] if only else got.grabs["g"][:, -1]
        nan = np.nan
        np.testing.assert_array_equal(value, [[7, nan, nan], [7, 7, 7], [7, 7, nan]])


def test_errors_of_grabs_name_grab_config_and_step(gaussian, make_mlps):
    def fails(k):
        if k == 1:
            raise ZeroDivisionError("by zero")
        return 0

    calls = []

    def grows(model):
        calls.append(0)
        return np.zeros(len(calls))

    contexts = [{"k": 0}, {"k": 1}]
    traces = {"ONLYTHRESHOLDS": False}
    cases = [
        (fails, {}, "grab 'g' of model 1 at step 4 failed: ZeroDivisionError: by zero"),
        (fails, traces, "grab 'g' of model 1 at step 0 failed: ZeroDivisionError"),
        (
            lambda: {"a"},
            {},
            "grab 'g' of model 0 at step 4 returned set {'a'}; valid are",
        ),
        (
            lambda: None,
            {},
            "returned None; valid are numbers, arrays, tensors, lists of these in equal shapes, "
            "and dictionaries of these; return it: a function without return gives None",
        ),
        (lambda: 2**53 + 1, {}, "grab 'g' returned the integer 9007199254740993; results hold"),
        (lambda: np.uint64(2**63 + 1), {}, "return it in parts, such as n >> 32 and n & 0xFF"),
        (lambda: torch.tensor([1, -(2**60)]), traces, "returned the integer 1152921504606846976;"),
        (lambda: "text", {}, "returned str 'text'; valid are"),
        (lambda: [[1], [1, 2]], {}, "returned list [[1], [1, 2]]; valid are"),
        (
            grows,
            traces,
            "grab 'g' of model 0 at step 1 returned shape (3,), but (1,) before",
        ),
        (lambda k: np.zeros((2,) * k), {}, "returned shape (2,), but () for model 0; configs"),
    ]
    for grab, settings, text in cases:
        with pytest.raises(GrabError, match=re.escape(text)) as caught:
            final(
                make_mlps(2), [gaussian(0)] * 2, {"g": grab}, contexts=contexts, settings=settings
            )
        if grab is fails:
            assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_is_masked_is_missing_and_other_kinds_of_numbers_are_converted(gaussian, make_mlps):
    grabs = {
        "masked": lambda: np.ma.array([1, -999, 3], mask=[0, 1, 0]),
        "listed": lambda: [np.ma.masked, np.float64(2)],
        "whole": lambda: np.ma.array([1, 2]),
        "long": lambda: np.longdouble(0.5),
        "sparse": lambda: torch.eye(2).to_sparse(),
    }
    found = final(make_mlps(1), [gaussian(0)], grabs).grabs
    np.testing.assert_array_equal(found["masked"], [[1, np.nan, 3]])
    np.testing.assert_array_equal(found["listed"], [[np.nan, 2]])
    assert found["whole"].tolist() == [[1, 2]]
    assert (found["long"].tolist(), found["long"].dtype) == ([0.5], np.float64)
    assert found["sparse"].tolist() == [[[1, 0], [0, 1]]]


def test_a_trace_that_cannot_fit_is_refused_and_a_large_one_read_back_early(
    gaussian, make_mlps, monkeypatch, same
):
    settings = {"ONLYTHRESHOLDS": False}

    def weight(model):
        return model.input_layer.weight

    got = final(make_mlps(2), [gaussian(0)] * 2, {"w": weight}, settings=settings)
    monkeypatch.setattr(measurements, "_PENDING_BYTES", 100)
    same(got, final(make_mlps(2), [gaussian(0)] * 2, {"w": weight}, settings=settings))
    text = r"returns shape \(6, 3\): 1 x 1000000000000 of these take .* try GRAB_EVERY='log:100'"
    common = validate({"MAX_ITER": 10**12, "ONLYTHRESHOLDS": False})
    grabber = measurements.Grabber({"w": weight}, [{}], [{}], common, None, [], None, None, None)
    with pytest.raises(GrabError, match=text):
        grabber._array_for("w", np.zeros((6, 3)))


def test_an_argument_that_nothing_offers_is_refused_before_training(gaussian, make_mlps):
    fn = gaussian(0)
    with pytest.raises(SpecError, match="needs 'monomial'"):
        final(make_mlps(1), [fn], {"g": lambda model, monomial: 0})
    assert fn.calls == 0


def test_grabs_of_traces_come_at_their_steps_and_stay(gaussian, make_mlps, short_blocks):
    settings = {
        "MAX_ITER": 40,
        "ONLYTHRESHOLDS": False,
        "GRAB_EVERY": 6,
        "PERCENT_THRESHOLDS": [0.8],
        "LR": 0.1,
        "ONLINE": False,
    }
    steps = []

    def counter(model):
        steps.append(len(steps))
        return float(len(steps))

    got = train(make_mlps(1), [gaussian(0)], settings, grabs={"n": counter})
    assert got.grab_step.tolist() == [0, 6, 12, 18, 24, 30, 36, 39]
    stop = got.steps[0] - 1
    made = int((got.grab_step < stop).sum()) + 1  # the last one at the step at which it stops
    assert stop not in got.grab_step
    assert len(steps) == made < 8
    assert got.grabs["n"][0].tolist() == [min(i + 1, made) for i in range(8)]


def output(model, model0, X_tr, y_tr):
    return torch.stack([(model(X_tr) - model0(X_tr)).squeeze(1), y_tr])


def weight(model, opt):
    return model.input_layer.weight * opt.param_groups[0]["lr"]


@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
@pytest.mark.parametrize("shared", [True, False], ids=["one batch", "batches"])
@pytest.mark.parametrize("grabs", [{"o": output}, {"w": weight}, {"o": output, "w": weight}])
def test_sparse_traces_are_excerpts_of_whole_ones_and_end_with_the_final_values(
    grabs, shared, online, gaussian, make_mlps, short_blocks, monkeypatch
):
    settings = {"MAX_ITER": 100, "ONLINE": online, "PERCENT_THRESHOLDS": [0.7]}
    lrs = (0.1, 1e4, 0.03, 1e-7, 0.05, 0.02)
    sizes, shrink = [], Stack.shrink
    monkeypatch.setattr(Stack, "shrink", lambda s, keep: (sizes.append(len(keep)), shrink(s, keep)))

    def run(**further):
        base = validate({**settings, **further})
        hs = [base.model_copy(update={"lr": lr}) for lr in lrs]
        fns = [gaussian(0)] * 6 if shared else [gaussian(k) for k in range(6)]
        return train(make_mlps(6), fns, hs, grabs=grabs)

    final, whole = run(), run(ONLYTHRESHOLDS=False, GRAB_EVERY=1)
    assert final.status.tolist() == [DONE, DIVERGED, *[DONE] * 4]
    assert final.steps[3] == 100
    for every in ("log:5", 9, 1000):
        sizes.clear()
        sparse = run(ONLYTHRESHOLDS=False, GRAB_EVERY=every)
        assert sizes  # it left some behind
        assert len(set(final.steps - 1) - set(sparse.grab_step)) >= 3
        for name in grabs:
            np.testing.assert_array_equal(sparse.grabs[name][:, -1], final.grabs[name])
            at_steps = whole.grabs[name][:, sparse.grab_step]
            np.testing.assert_array_equal(sparse.grabs[name], at_steps)


def test_a_trace_keeps_last_batches_only_where_a_config_may_stop_between_grabs(
    gaussian, make_mlps, monkeypatch
):
    kept = []
    monkeypatch.setattr(measurements, "latest", lambda *arguments: kept.append(arguments))

    def steps_kept(grab=output, **settings):
        kept.clear()
        settings = {"MAX_ITER": 6, "ONLYTHRESHOLDS": False, **settings}
        train(make_mlps(1), [gaussian(0)], settings, grabs={"g": grab})
        return len(kept)

    never = [1e-9]
    assert steps_kept(GRAB_EVERY=2, LOSS_CHECKPOINTS=never) == 6
    assert steps_kept(GRAB_EVERY="log:3", LOSS_CHECKPOINTS=never) == 6
    assert steps_kept(GRAB_EVERY=1, LOSS_CHECKPOINTS=never) == 0
    assert steps_kept(GRAB_EVERY="log:99", LOSS_CHECKPOINTS=never) == 0  # every step
    assert steps_kept(GRAB_EVERY=2, LOSS_CHECKPOINTS=[]) == 0
    assert steps_kept(weight, GRAB_EVERY=2, LOSS_CHECKPOINTS=never) == 0
    assert steps_kept(GRAB_EVERY=2, LOSS_CHECKPOINTS=never, ONLINE=False) == 0


def test_a_column_that_meets_a_vector_is_told(gaussian, make_mlps):
    def residual(model, X_tr, y_tr):
        return (model(X_tr) - y_tr).norm()

    def meant(model, X_tr, y_tr):
        f, column = model(X_tr).flatten(), model(X_tr)
        pairs = y_tr[:, None] - y_tr, f[:, None] * y_tr[None, :], column - y_tr[:, None]
        by_vmap = torch.vmap(lambda one: (one * f - y_tr).sum())(f)
        lengths, ranks = (X_tr**2).sum(1, keepdim=True), f.sort().values
        pairs += lengths + (X_tr**2).sum(1), column < ranks
        return sum(one.double().norm() for one in pairs) + by_vmap.sum()

    text = r"grab 'r': an operation on shapes \((\d+), 1\) and \(\1,\) gives a number for each pair"
    with pytest.warns(UserWarning, match=text) as told:
        final(make_mlps(2), [gaussian(0)] * 2, {"r": residual, "other": meant})
    assert len(told) == 1
    final(make_mlps(1), [gaussian(0)], {"meant": meant})
