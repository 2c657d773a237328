"""Schedules, clipping and rates by parameter: against plain loops in PyTorch, config by config."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit.errors import SpecError
from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import Interrupted, train
from mlpsubmit.training.lr_schedules import lr_factor
from mlpsubmit.training.precision import default_dtype

STEPS = 23

COMMON = {
    "MAX_ITER": STEPS,
    "PARAMETRIZATION": "sp",
    "CENTERED": False,
    "ONLYTHRESHOLDS": False,
    "LOSS_CHECKPOINTS": [],
    "EMA_SMOOTHER": 0.0,
    "PRECISION": "fp64",
}


def decaying(step):
    return 1 / (1 + step / 5)


def of_torch(h, optimizer):
    """Return the scheduler of torch for these settings."""
    schedulers = torch.optim.lr_scheduler
    W, rest = h.warmup_steps, h.max_iter - h.warmup_steps
    after = {
        "constant": lambda: schedulers.ConstantLR(optimizer, 1.0),
        "linear": lambda: schedulers.LinearLR(optimizer, 1.0, h.lr_final_factor, rest),
        "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, rest, h.lr * h.lr_final_factor),
    }
    then = (
        schedulers.LambdaLR(optimizer, lambda i: h.lr_schedule(i + W))
        if callable(h.lr_schedule)
        else after[h.lr_schedule]()
    )
    if W == 0:
        return then
    warmup = schedulers.LinearLR(optimizer, 1 / W, 1.0, max(1, W - 1))
    return schedulers.SequentialLR(optimizer, [warmup, then], [W])


def in_torch(model, batch_fn, h, cls, trained=lambda name: True, **arguments):
    """Train a model in a plain loop; return its losses before each step, and its rates."""
    model.double()
    parameters = [p for name, p in model.named_parameters() if trained(name)]
    optimizer = cls(parameters, lr=h.lr, **arguments)
    scheduler = of_torch(h, optimizer)
    losses, rates = [], []
    for step in range(h.max_iter):
        with default_dtype(torch.float64):
            X, y = batch_fn(step)
        loss = (model(X).squeeze(1) - y).square().mean()
        model.zero_grad()
        loss.backward()
        if h.grad_clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, h.grad_clip_norm)
        optimizer.step()
        losses.append(loss.item())
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return losses, rates


def rate(model, opt):
    return [group["lr"] for group in opt.param_groups]


SCHEDULES = [
    {},
    {"LR_SCHEDULE": "linear"},
    {"LR_SCHEDULE": "linear", "WARMUP_STEPS": 5, "LR_FINAL_FACTOR": 0.1},
    {"LR_SCHEDULE": "cosine", "WARMUP_STEPS": 5},
    {"LR_SCHEDULE": "cosine", "LR_FINAL_FACTOR": 0.3},
    {"WARMUP_STEPS": 7},
    {"LR_SCHEDULE": decaying, "WARMUP_STEPS": 4, "GRAD_CLIP_NORM": 0.5},
    {"GRAD_CLIP_NORM": 0.2},
]
OPTIMIZERS = {
    "sgd": ({"MOMENTUM": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
    "adamw": (
        {"OPTIMIZER": "adamw", "WEIGHT_DECAY": 0.3, "LR": 0.01},
        torch.optim.AdamW,
        {"weight_decay": 0.3},
    ),
}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_pack_of_schedules_trains_as_each_in_a_loop_of_torch(
    optimizer, gaussian, make_mlps, short_blocks
):
    own, cls, arguments = OPTIMIZERS[optimizer]
    hs = [validate({**COMMON, "LR": 0.05, **own, **schedule}) for schedule in SCHEDULES]
    K = len(hs)
    got = train(make_mlps(K), [gaussian(0)] * K, hs, grabs={"rate": rate})
    for k, model in enumerate(make_mlps(K)):
        losses, rates = in_torch(model, gaussian(0), hs[k], cls, **arguments)
        np.testing.assert_allclose(got.train_loss[k], losses, rtol=1e-10)
        np.testing.assert_allclose(got.grabs["rate"][k, :, 0], rates, rtol=1e-12)
        np.testing.assert_allclose(rates, [hs[k].lr * lr_factor(hs[k], i) for i in range(STEPS)])


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_a_class_of_torch_follows_the_schedule(name, gaussian, make_mlps, short_blocks):
    cls = getattr(torch.optim, name)
    schedule = {"LR_SCHEDULE": "cosine", "WARMUP_STEPS": 3, "GRAD_CLIP_NORM": 0.3}
    factors = {"LR_FACTORS": {"hidden_layers.*": 0, "*.bias": 0}}
    h = validate({**COMMON, "LR": 0.05, "OPTIMIZER": cls, **schedule, **factors})
    models = make_mlps(1)
    got = train(models, [gaussian(0)], h)
    (model,) = make_mlps(1)
    losses, _ = in_torch(
        model, gaussian(0), h, cls, lambda n: n in ("input_layer.weight", "output_layer.weight")
    )
    np.testing.assert_allclose(got.train_loss[0], losses, rtol=1e-10)
    for one, other in zip(models[0].parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_formula_of_the_schedules():
    h = validate(
        {"LR_SCHEDULE": "linear", "WARMUP_STEPS": 2, "MAX_ITER": 6, "LR_FINAL_FACTOR": 0.2}
    )
    np.testing.assert_allclose([lr_factor(h, i) for i in range(6)], [0.5, 1, 1, 0.8, 0.6, 0.4])
    h = h.model_copy(update={"lr_schedule": "cosine"})
    s = [(1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)]
    wanted = [0.5, 1.0, *(0.2 + 0.8 * one for one in s)]
    np.testing.assert_allclose([lr_factor(h, i) for i in range(6)], wanted)
    h = h.model_copy(update={"lr_schedule": decaying, "warmup_steps": 9})
    np.testing.assert_allclose([lr_factor(h, i) for i in range(6)], np.arange(1, 7) / 9)


def test_each_config_is_clipped_by_its_own_norm_whatever_the_others_do(gaussian, make_mlps, same):
    """One config diverges, one has stopped; what is not clipped keeps its bits."""
    base = {**COMMON, "PRECISION": "fp32", "LOSS_CHECKPOINTS": [1e-4], "PERCENT_THRESHOLDS": None}
    kinds = [
        {"GRAD_CLIP_NORM": 0.1},
        {"LR": 1e4},
        {"LR": 1e4, "GRAD_CLIP_NORM": 1e30},
        {},
        {"GRAD_CLIP_NORM": 1e30},
    ]
    hs = [validate({**base, "LR": 0.05, **kind}) for kind in kinds]
    fns = [gaussian(k) for k in (0, 1, 1, 2, 2)]
    got = train(make_mlps(5), fns, hs)
    assert got.status.tolist() == [1, 2, 2, 1, 1]
    alone = train(make_mlps(1), [gaussian(0)], hs[:1])
    np.testing.assert_allclose(got.train_loss[0], alone.train_loss[0], rtol=1e-5)
    unclipped = validate({**base, "LR": 0.05})
    without = train(make_mlps(5), [gaussian(k) for k in (0, 1, 1, 2, 2)], unclipped)
    np.testing.assert_array_equal(got.train_loss[3], without.train_loss[3])


FROZEN = {"input_layer.*": 0, "hidden_layers.*.weight": 0}
NOT_FROZEN = ("hidden_layers.0.bias", "output_layer.weight", "output_layer.bias")


@pytest.mark.parametrize(
    "further",
    [
        {},
        {"MOMENTUM": 0.9, "WEIGHT_DECAY": 0.1},
        {"OPTIMIZER": "adam", "WEIGHT_DECAY": 0.1},
        {"OPTIMIZER": "adamw", "WEIGHT_DECAY": 0.1, "LR_SCHEDULE": "linear"},
        {"OPTIMIZER": torch.optim.AdamW, "WEIGHT_DECAY": 0.1},
    ],
)
def test_frozen_parameters_keep_their_bits_and_all_others_train(further, gaussian, make_mlps):
    mixed = not isinstance(further.get("OPTIMIZER"), type)
    settings = [{"LR_FACTORS": FROZEN}, {}, {"LR_FACTORS": {"*": 0}}][: 3 if mixed else 1]
    hs = [validate({**COMMON, "LR": 0.05, **further, **own}) for own in settings]
    models, before = make_mlps(len(hs)), make_mlps(len(hs))
    with torch.no_grad():
        for model in (*models, *before):
            model.input_layer.weight[0, 0] = -0.0
    train(models, [gaussian(0)] * len(hs), hs)
    for k, model in enumerate(models):
        for name, p in model.named_parameters():
            start = before[k].double().get_parameter(name)
            same = torch.equal(p.view(torch.int64), start.view(torch.int64))
            assert same == (k == 2 or (k == 0 and name not in NOT_FROZEN)), (k, name)


def test_factors_of_several_patterns_multiply(gaussian, make_mlps):
    def rates(model, opt):
        return [group["lr"] for group in opt.param_groups]

    patterns = {"*_layer.*": 0.5, "*.bias": 3, "output_layer.bi[a]s": 0.1}
    h = {**COMMON, "MAX_ITER": 1, "LR": 1.0, "LR_FACTORS": patterns}
    got = train(make_mlps(1), [gaussian(0)], h, grabs={"rates": rates}).grabs["rates"][0, 0]
    np.testing.assert_allclose(got, [0.5, 1.5, 1.0, 3.0, 0.5, 0.15])


def test_clipping_counts_trained_parameters_only(gaussian, make_mlps):
    h = validate({**COMMON, "LR": 0.05, "GRAD_CLIP_NORM": 0.05, "LR_FACTORS": FROZEN})
    hs = [h, h.model_copy(update={"lr_factors": {}})]
    got = train(make_mlps(2), [gaussian(0)] * 2, hs)
    alone = train(make_mlps(1), [gaussian(0)], h)
    for k, model in enumerate(make_mlps(2)):
        losses, _ = in_torch(
            model,
            gaussian(0),
            hs[k],
            torch.optim.SGD,
            lambda name, k=k: k == 1 or name in NOT_FROZEN,
        )
        np.testing.assert_allclose(got.train_loss[k], losses, rtol=1e-10)
    np.testing.assert_allclose(alone.train_loss[0], got.train_loss[0], rtol=1e-10)


def test_an_interrupted_schedule_goes_on_where_it_was(
    gaussian, make_mlps, saver, same, short_blocks
):
    """The pack shrinks, and the interruptions come within blocks."""
    base = {**COMMON, "PRECISION": "fp32", "PERCENT_THRESHOLDS": [0.5], "OPTIMIZER": "adamw"}
    del base["LOSS_CHECKPOINTS"]
    hs = [
        validate({**base, "LR": lr, "WEIGHT_DECAY": 0.1, "GRAD_CLIP_NORM": 0.4, **schedule})
        for lr, schedule in zip((0.3, 1e-4, 0.3, 1e-3), SCHEDULES[1:5], strict=True)
    ]

    def run(monitor=None):
        fn = gaussian(0)
        models = make_mlps(4)
        got = train(models, [fn] * 4, hs, generators=[fn.generator], monitor=monitor)
        return got, [p for model in models for p in model.parameters()]

    undisturbed, weights = run()
    assert sorted(undisturbed.steps.tolist())[1] < 12
    state = None
    for _ in range(STEPS):
        monitor = saver(state, every=3, interrupting=True)
        try:
            resumed, again = run(monitor)
            break
        except Interrupted:
            state = monitor.state
    same(undisturbed, resumed)
    assert all(torch.equal(one, other) for one, other in zip(weights, again, strict=True))


def test_a_callable_is_checked_for_its_values(gaussian, make_mlps):
    def nan_at_the_end(step):
        return float("nan") if step == STEPS - 1 else 1.0

    def negative_in_between(step):
        return -1 if step == 9 else 1

    def text(step):
        return "0.1"

    calls = []

    def counting(step):
        calls.append(step)
        return 1 / len(calls)

    for schedule, message in (
        (nan_at_the_end, rf"nan_at_the_end\({STEPS - 1}\) gave nan; valid is a finite number >= 0"),
        (negative_in_between, r"negative_in_between\(9\) gave -1; valid"),
        (text, r"text\(0\) gave '0.1'; valid"),
        (counting, r"counting\(0\) gave 1 and then 0.5; steps are asked for in any order"),
    ):
        with pytest.raises(SpecError, match=message):
            train(make_mlps(1), [gaussian(0)], {**COMMON, "LR_SCHEDULE": schedule})
    numbers = {**COMMON, "LR_SCHEDULE": lambda step: np.float32(0.5), "LR": 0.2}
    got = train(make_mlps(1), [gaussian(0)], numbers)
    same = train(make_mlps(1), [gaussian(0)], {**COMMON, "LR": 0.1})
    np.testing.assert_array_equal(got.train_loss, same.train_loss)


def test_a_pattern_that_matches_nothing_is_refused(gaussian, make_mlps):
    settings = {**COMMON, "LR_FACTORS": {"input_layer.*": 0.1, "imput*": 0, "fc?": 2}}
    text = "LR_FACTORS: no parameter of the model matches 'imput\\*', 'fc\\?'; they are input_layer"
    with pytest.raises(SpecError, match=text):
        train(make_mlps(1), [gaussian(0)], settings)
