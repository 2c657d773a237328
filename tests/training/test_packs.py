"""Packs: configs trained together give the results of each alone, whichever stops when."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import DIVERGED, DONE
from mlpsubmit.spec.hyperparameters import PARAMETRIZATIONS, validate
from mlpsubmit.training import train
from mlpsubmit.training.comparison import StackingError
from mlpsubmit.training.stack import Stack

OPTIMIZERS = {
    "sgd": {},
    "momentum": {"MOMENTUM": 0.9, "NESTEROV": True, "WEIGHT_DECAY": 0.01},
    "adam": {"OPTIMIZER": "adam", "WEIGHT_DECAY": 0.01},
    "adamw": {"OPTIMIZER": "adamw", "WEIGHT_DECAY": 0.1},
}


def squared(output, y):
    return (output - y).square().mean()


def distance(model, model0, X_tr, opt):
    moved = [(p - p0).norm() for p, p0 in zip(model.parameters(), model0.parameters(), strict=True)]
    return torch.stack([*moved, model(X_tr).norm(), torch.tensor(opt.param_groups[0]["lr"])])


def varied(K, **settings):
    """Return K configs that differ in every stacked setting but the seed."""
    base = validate({"MAX_ITER": 12, "LR": 0.02, "LOSS_CHECKPOINTS": [], **settings})
    return [
        base.model_copy(
            update={
                "lr": base.lr * (1 + k / 3),
                "gamma": (0.5, 1.0, 2.0, 3.0)[k % 4],
                "momentum": (base.momentum or 0.0) * (1 - k / 10),
                "weight_decay": (base.weight_decay or 0.0) * k,
                "ema_smoother": 0.9 - k / 10,
                "lr_schedule": ("constant", "linear", "cosine", lambda step: 0.9**step)[k % 4],
                "warmup_steps": k,
                "lr_final_factor": k / 10,
                "lr_factors": {"*": 1 / (1 + k)} if k else {},
                "grad_clip_norm": 1.0 if k % 2 else None,
            }
        )
        for k in range(K)
    ]


def joined(results):
    """Put the results of single configs together."""
    first = results[0]
    whole = {
        name: np.concatenate([getattr(r, name) for r in results])
        for name in ("status", "steps", "timekeys", "train_loss", "test_loss")
    }
    grabs = {name: np.concatenate([r.grabs[name] for r in results]) for name in first.grabs}
    steps = {name: getattr(first, name) for name in ("step", "eval_step", "grab_step")}
    return type(first)(**whole, **steps, grabs=grabs)


#: Every parametrization under one loss, every loss under one parametrization; all others are slow.
LOSSES_PARAMETRIZED = [
    pytest.param(loss, name, marks=[pytest.mark.slow] * (loss != "mse" and name != "mup"))
    for loss in ("mse", "cross_entropy", squared)
    for name in PARAMETRIZATIONS
]


@pytest.mark.parametrize(("loss", "parametrization"), LOSSES_PARAMETRIZED)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore:WEIGHT_DECAY with OPTIMIZER=adam")
def test_a_pack_is_its_configs_one_by_one(
    optimizer, loss, parametrization, gaussian, make_mlps, same
):
    kind = "cross_entropy" if loss == "cross_entropy" else "mse"
    d_out = 3 if kind == "cross_entropy" else 1
    settings = {"LOSS": loss, "PARAMETRIZATION": parametrization, **OPTIMIZERS[optimizer]}
    hs = varied(3, **settings, ONLYTHRESHOLDS=False)

    def results(configs):
        return train(
            [make_mlps(3, d_out)[k] for k in configs],
            [gaussian(k, kind=kind) for k in configs],
            [hs[k] for k in configs],
            trials=configs,
            grabs={"distance": distance},
        )

    together = results([0, 1, 2])
    same(together, joined([results([k]) for k in range(3)]), rtol=1e-5)
    same(together, results([0, 1, 2]))
    assert together.status.tolist() == [DONE] * 3


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("only", [True, False])
def test_configs_that_stop_leave_the_others_as_they_are(
    only, shared, online, gaussian, make_mlps, same, short_blocks, monkeypatch
):
    settings = {
        "MAX_ITER": 70,
        "LR": 0.05,
        "ONLINE": online,
        "ONLYTHRESHOLDS": only,
        "OPTIMIZER": "adam",
        "EVAL_EVERY": 6,
        "GRAB_EVERY": 4,
        "PERCENT_THRESHOLDS": [0.9, 0.7],
    }
    base = validate(settings)
    lrs = (0.003, 0.3, 0.06, 0.1, 0.02)
    hs = [base.model_copy(update={"lr": lr}) for lr in lrs]
    sizes = []
    shrink = Stack.shrink
    monkeypatch.setattr(Stack, "shrink", lambda s, keep: (sizes.append(len(keep)), shrink(s, keep)))

    def results(configs):
        one, test = gaussian(7), gaussian(8)
        return train(
            [make_mlps(5)[k] for k in configs],
            [one if shared else gaussian(k // 2) for k in configs],
            [hs[k] for k in configs],
            trials=configs,
            test_fns=[test] * len(configs),
            grabs={"distance": distance},
        )

    together = results(range(5))
    assert len(sizes) >= 2  # it shrank, and again
    assert len(set(together.steps)) >= 4
    same(together, joined([results([k]) for k in range(5)]), rtol=1e-4)


def test_a_diverging_config_leaves_its_neighbours_alone(gaussian, make_mlps, same, short_blocks):
    base = validate({"MAX_ITER": 20, "LR": 0.02, "ONLYTHRESHOLDS": False})
    hs = [base, base.model_copy(update={"lr": 1e4}), base]

    def grab(model, X_tr):
        assert not model.input_layer.weight.isnan().any(), "called for a diverged config"
        return torch.linalg.eigvalsh(model.input_layer.weight.T @ model.input_layer.weight)

    def results(configs):
        return train(
            [make_mlps(3)[k] for k in configs],
            [gaussian(k) for k in configs],
            [hs[k] for k in configs],
            trials=configs,
            grabs={"spectrum": grab},
        )

    together = results([0, 1, 2])
    assert together.status.tolist() == [DONE, DIVERGED, DONE]
    bad = together.steps[1]
    assert 0 < bad < 20
    same(joined([results([k]) for k in range(3)]), together, rtol=1e-5)
    kept = together.train_loss[1]
    assert np.isfinite(kept[:bad]).all()
    assert not np.isfinite(kept[bad:]).any()
    assert np.isfinite(together.grabs["spectrum"][1, : bad - 1]).all()
    assert np.isnan(together.grabs["spectrum"][1, bad:]).all()

    final = train(
        make_mlps(3),
        [gaussian(k) for k in range(3)],
        [h.model_copy(update={"onlythresholds": True}) for h in hs],
        grabs={"spectrum": grab},
    )
    assert np.isnan(final.grabs["spectrum"][1]).all()
    assert np.isfinite(final.grabs["spectrum"][[0, 2]]).all()
    assert final.steps.tolist() == [20, bad, 20]


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 4, 3, stride=2)
        self.relu = nn.ReLU()
        self.head = nn.Linear(4 * 2 * 2, 1)

    def forward(self, X):
        h = self.relu(self.conv2(self.relu(self.conv1(X))))
        return self.head(h.flatten(1)).squeeze(1)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("online", [True, False])
def test_convolutions_train_in_packs_too(online, shared, same):
    hs = varied(3, ONLINE=online, MAX_ITER=8)

    def images(seed):
        generator = torch.Generator().manual_seed(seed)

        def batch_fn(step):
            X = torch.randn(6, 1, 5, 5, generator=generator)
            return X, X.mean((1, 2, 3))

        return batch_fn

    def results(configs):
        one = images(9)
        return train(
            [Conv() for _ in configs],
            [one if shared else images(k) for k in configs],
            [hs[k] for k in configs],
            trials=configs,
        )

    same(results([0, 1, 2]), joined([results([k]) for k in range(3)]), rtol=1e-5)


def test_a_shared_batch_function_is_called_once_per_step(gaussian, make_mlps, same, short_blocks):
    one, other = gaussian(1), gaussian(2)
    fns = [one, other, one, one]
    hs = varied(4, MAX_ITER=10)
    mixed = train(make_mlps(4), fns, hs)
    assert (one.calls, other.calls) == (10, 10)
    same(mixed, train(make_mlps(4), [gaussian(1), gaussian(2), gaussian(1), gaussian(1)], hs))

    fixed = [gaussian(3)] * 2
    train(make_mlps(2), fixed, validate({"MAX_ITER": 6, "ONLINE": False}), test_fns=fixed)
    assert fixed[0].calls == 2


def test_functions_of_configs_that_left_are_not_called_any_more(gaussian, make_mlps, short_blocks):
    base = validate({"MAX_ITER": 40, "PERCENT_THRESHOLDS": [0.8]})
    hs = [base.model_copy(update={"lr": lr}) for lr in (0.1, 1e-9)]
    batches, calls = [gaussian(k)(0) for k in range(2)], [[], []]
    fns = [lambda step, k=k: (calls[k].append(step), batches[k])[1] for k in range(2)]
    got = train(make_mlps(2), fns, hs)
    assert got.steps[0] < 32
    assert calls[0] == list(range(-(-got.steps[0] // 4) * 4))  # to the end of its block
    assert calls[1] == list(range(40))


def test_models_end_with_their_own_final_weights(gaussian, make_mlps, short_blocks):
    base = validate({"MAX_ITER": 30, "PERCENT_THRESHOLDS": [0.5], "LR": 0.1, "ONLINE": False})
    hs = [base.model_copy(update={"lr": lr}) for lr in (0.3, 0.2, 0.05, 1e-5)]
    models = make_mlps(4)
    got = train(models, [gaussian(0)] * 4, hs, grabs={"out": lambda model, X_tr: model(X_tr)})
    X, _ = gaussian(0)(0)
    for k, model in enumerate(models):
        np.testing.assert_allclose(model(X).detach(), got.grabs["out"][k], rtol=1e-6)
        weight = model.input_layer.weight
        assert weight.untyped_storage().nbytes() == weight.nbytes  # no view of the whole stack


def test_a_last_batch_is_that_of_each_configs_last_step(gaussian, make_mlps, short_blocks):
    base = validate({"MAX_ITER": 30, "PERCENT_THRESHOLDS": [0.6], "EMA_SMOOTHER": 0.5})
    hs = [base.model_copy(update={"lr": lr}) for lr in (0.3, 0.1, 1e-5)]
    for fns in ([gaussian(0)] * 3, [gaussian(k) for k in range(3)]):
        seeds = [0, 0, 0] if fns[0] is fns[1] else [0, 1, 2]
        got = train(make_mlps(3), fns, hs, grabs={"X": lambda X_tr, y_tr: X_tr + y_tr[:, None]})
        assert len(set(got.steps)) > 1
        for k, seed in enumerate(seeds):
            again = gaussian(seed)
            for _ in range(got.steps[k]):
                X, y = again(0)
            np.testing.assert_array_equal(got.grabs["X"][k], X + y[:, None])


def test_what_a_pack_holds_once_may_not_differ(gaussian, make_mlps):
    hs = [validate({"MAX_ITER": 5}), validate({"MAX_ITER": 6, "DEPTH": 3, "LR": 0.5})]
    with pytest.raises(SpecError) as caught:
        train(make_mlps(2), [gaussian(0)] * 2, hs)
    assert "MAX_ITER differs between configs trained together: 5 and 6; only" in str(caught.value)
    assert "DEPTH differs" in str(caught.value)
    assert "LR differs" not in str(caught.value)


def test_arguments_that_do_not_fit_together_are_refused(gaussian, make_mlps):
    models, fns = make_mlps(2), [gaussian(0)] * 2
    cases = [
        (([], [], {}), {}, "models: got none"),
        ((models, fns[:1], {}), {"trials": [1, 2, 3]}, "batch_fns: got 1 for 2 models; give 2"),
        ((models, fns, [validate({})]), {}, "hyperparameters: got 1 for 2 models; give 2"),
        ((models[:1] * 2, fns, {}), {}, "the same module occurs twice"),
        (([*models[:1], *make_mlps(1, width=7)], fns, {}), {}, "input_layer.weight is"),
        ((models, fns, {"OPTIMIZER": "LBFGS"}), {}, "OPTIMIZER=LBFGS trains one config at a time"),
    ]
    for arguments, further, text in cases:
        with pytest.raises(SpecError, match=text):
            train(*arguments, **further)


class Tied(nn.Module):
    """Two hidden layers with one weight between them, and a parameter that is not trained."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4)
        self.third, self.last = nn.Linear(4, 4), nn.Linear(4, 1)
        self.third.weight = self.second.weight
        self.last.bias.requires_grad_(False)

    def forward(self, X):
        return self.last(self.third(self.second(self.first(X)).tanh()).tanh())


def test_tied_and_frozen_parameters_stay_tied_and_frozen(gaussian):
    settings = {"MAX_ITER": 5, "PARAMETRIZATION": "sp", "CENTERED": False, "LR": 0.05}
    models = [Tied(), Tied()]
    plain = [Tied(), Tied()]
    for one, other in zip(models, plain, strict=True):
        other.load_state_dict(one.state_dict())
    train(models, [gaussian(0), gaussian(1)], settings)
    for k, model in enumerate(plain):
        optimizer, batch_fn = torch.optim.SGD(model.parameters(), lr=0.05), gaussian(k)
        for step in range(5):
            X, y = batch_fn(step)
            optimizer.zero_grad()
            (model(X).squeeze(1) - y).square().mean().backward()
            optimizer.step()
        assert models[k].third.weight is models[k].second.weight
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(models[k].get_parameter(name), parameter)
    for parameter in models[0].parameters():
        parameter.requires_grad_(False)
    with pytest.raises(SpecError, match="none of its parameters requires a gradient"):
        train(models[:1], [gaussian(0)], settings)


@pytest.mark.parametrize("at", [0, 2])
def test_a_loss_of_minus_infinity_diverges_and_crosses_nothing(at, gaussian, make_mlps):
    steps = iter(range(100))

    def falling(output, y):
        return output.square().mean() * 0 + (-np.inf if next(steps) >= at else 1.0)

    hs = validate({"MAX_ITER": 5, "LOSS": falling, "LOSS_CHECKPOINTS": [2.0, 0.5]})
    result = train(make_mlps(1), [gaussian(0)], hs)
    assert result.status.tolist() == [DIVERGED]
    assert result.steps.tolist() == [at]
    assert result.timekeys.tolist() == [[0 if at else -1, -1]]
    assert np.isneginf(result.train_loss).all()


def test_a_grab_finds_no_gradients_of_another(gaussian, make_mlps, same):
    def gradient(model, model0, X_tr):
        for module in (model, model0):
            module(X_tr).square().sum().backward()
        return torch.stack([m.output_layer.weight.grad.norm() for m in (model, model0)])

    def results(configs):
        return train(
            [make_mlps(3)[k] for k in configs],
            [gaussian(k) for k in configs],
            {"MAX_ITER": 9, "ONLYTHRESHOLDS": False, "GRAB_EVERY": 4, "LOSS_CHECKPOINTS": []},
            trials=configs,
            grabs={"one": gradient, "two": gradient},
        )

    together = results(range(3))
    same(together, joined([results([k]) for k in range(3)]), rtol=1e-4)
    np.testing.assert_array_equal(together.grabs["one"], together.grabs["two"])


def test_a_loss_that_raises_by_its_value_is_evaluated_on_centred_outputs(gaussian, make_mlps):
    """As when its config trains alone; the pack is separated, and no config has failed."""

    def strict(output, y):
        loss = (output - y).square().mean()
        if loss > 1e3:
            raise ValueError("diverged")
        return loss

    settings = {"MAX_ITER": 3, "LOSS": strict, "GAMMA": 1e-3, "LOSS_CHECKPOINTS": []}
    alone = train(make_mlps(1), [gaussian(0)], settings)
    assert alone.train_loss < 1e3
    with pytest.raises(StackingError, match="LOSS strict has a branch that depends on the data"):
        train(make_mlps(2), [gaussian(0)] * 2, settings)
