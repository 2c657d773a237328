"""Adam's factors: against the papers' tables, one step by hand, and what they are for."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit.spec.hyperparameters import validate
from mlpsubmit.training import MLP, parametrize, streams, train

# Exponents of 1/width: the multiplier, the initial deviation, Adam's learning rate, and gradients;
# for the read-in, hidden layers and the read-out.
EXPONENTS = {
    # Tensor Programs V, table 9, and table 3, without multipliers; mfp has deviations of 1.
    # Gradients: Tensor Programs IVb, definition 2.5.1 and equation (2.5).
    "mup": [(-1 / 2, 1 / 2, 1 / 2, 1 / 2), (0, 1 / 2, 1, 1), (1 / 2, 1 / 2, 1 / 2, 1 / 2)],
    "mup-lr": [(0, 0, 0, 1), (0, 1 / 2, 1, 1), (0, 1, 1, 0)],
    "mfp": [(0, 0, 0, 1), (1 / 2, 0, 1 / 2, 3 / 2), (1, 0, 0, 1)],
    # Tensor Programs IVb, definition 2.4.1, and the same without multipliers.
    "ntp": [(0, 0, 1 / 2, 1 / 2), (1 / 2, 0, 1, 1), (1 / 2, 0, 1 / 2, 1 / 2)],
    "ntp-lr": [(0, 0, 1 / 2, 1 / 2), (0, 1 / 2, 3 / 2, 1 / 2), (0, 1 / 2, 1, 0)],
}
# Input 4, width 16, depth 2, so fan-ins 4, 16, 16. Per layer: factors of LR for weights and biases,
# and of EPS.
ON_MLP = {
    "mup": [(1 / 8, 1 / 2, 1 / 8), (1 / 16, 1.0, 1 / 16), (1 / 4, 4.0, 1 / 4)],
    "mfp": [(1 / 2, 2.0, 1 / 32), (1 / 4, 4.0, 1 / 64), (1.0, 16.0, 1 / 16)],
    "ntp": [(1 / 8, 1 / 2, 1 / 8), (1 / 16, 1.0, 1 / 16), (1 / 4, 4.0, 1 / 4)],
    "mup-lr": [(1 / 4, 1.0, 1 / 16), (1 / 16, 1.0, 1 / 16), (1 / 16, 1.0, 1.0)],
    "ntp-lr": [(1 / 16, 1 / 4, 1 / 4), (1 / 64, 1 / 4, 1 / 4), (1 / 16, 1.0, 1.0)],
}
# Fan-ins 9, 36, 64; the widest hidden layer has 16 channels.
ON_CONV = {
    "mup": [(1 / 12, 3 / 4, 1 / 12), (1 / 24, 3 / 2, 1 / 24), (1 / 8, 8.0, 1 / 8)],
    "ntp": [(1 / 12, 3 / 4, 1 / 12), (1 / 24, 3 / 2, 1 / 24), (1 / 8, 8.0, 1 / 8)],
    "mup-lr": [(1 / 9, 1.0, 1 / 16), (1 / 36, 1.0, 1 / 16), (1 / 64, 1.0, 1.0)],
}


def conv():
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 16, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64, 1)),
    )


CASES = [(functools.partial(MLP, 4, 16, 2), name, rows) for name, rows in ON_MLP.items()]
CASES += [(conv, name, rows) for name, rows in ON_CONV.items()]


@pytest.mark.parametrize(("build", "name", "rows"), CASES)
def test_factors_are_those_worked_out_by_hand(build, name, rows):
    factors = parametrize(build(), name, gamma=8.0, update="adam")
    weights, biases = list(factors.values())[::2], list(factors.values())[1::2]
    assert weights == [pytest.approx((lr, 1.0, eps / 8)) for lr, _, eps in rows]
    assert biases == [pytest.approx((lr, 1.0, eps / 8)) for _, lr, eps in rows]


@pytest.mark.parametrize("name", EXPONENTS)
def test_factors_scale_with_the_width_as_in_the_papers(name):
    def scales(width):
        model, generator = MLP(4, width, 2), torch.Generator().manual_seed(0)
        factors = parametrize(model, name, update="adam", generator=generator)
        for layer in ("input_layer", "hidden_layers.0", "output_layer"):
            module, own = model.get_submodule(layer), factors[f"{layer}.weight"]
            yield float(module.multiplier), float(module.weight.detach().std()), own.lr, own.eps

    small, large = np.array([*scales(64)]), np.array([*scales(1024)])
    exponents = np.log(small / large) / np.log(16)
    wanted = np.array(EXPONENTS[name])
    np.testing.assert_allclose(exponents[:, [0, 2, 3]], wanted[:, [0, 2, 3]], atol=1e-6)
    np.testing.assert_allclose(exponents[:, 1], wanted[:, 1], atol=0.1)


def test_factors_of_muon_are_those_worked_out_by_hand():
    """With h and g as above, h min(1, sqrt(m/d)) / g for the hidden matrices, of d inputs."""
    factors = {name: parametrize(conv(), name, update="muon") for name in ("mup", "ntp", "sp")}
    # The hidden layer has 16 outputs of 36 inputs.
    assert factors["mup"]["2.weight"].lr == pytest.approx((4 / 6) / (4 / 6))
    assert factors["ntp"]["2.weight"].lr == pytest.approx((1 / 4) * (4 / 6) / (1 / 6))
    assert set(factors["sp"].values()) == {(1.0, 1.0, 1.0)}
    tall = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    assert parametrize(tall, "mup", update="muon")["2.weight"].lr == pytest.approx(1 / 2)
    for name in ("mup", "ntp"):
        adam = parametrize(conv(), name, update="adam")
        others = [key for key in adam if key != "2.weight"]
        assert [factors[name][key] for key in others] == [adam[key] for key in others]


def drawn(step, d=4, n=16):
    X = torch.randn(n, d, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return X, X[:, 0] * (1 + X[:, 1])


SETTINGS = {"LOSS_CHECKPOINTS": [], "LR": 0.03}


def test_one_step_is_that_worked_out_in_numpy():
    w, d, gamma, eps, lr, decay = 16, 4, 0.5, 0.1, 0.03, 0.2
    model, X, y = MLP(d, w, 2).double(), *(part.numpy() for part in drawn(0))
    generator = torch.Generator().manual_seed(streams(42, 0).weights)
    parametrize(model, "mup", generator=generator)
    names = ("input_layer", "hidden_layers.0", "output_layer")
    W = [model.get_parameter(f"{name}.weight").detach().numpy().copy() for name in names]
    b = [model.get_parameter(f"{name}.bias").detach().numpy().copy() for name in names]
    further = {"MAX_ITER": 1, "OPTIMIZER": "adamw", "WEIGHT_DECAY": decay, "GAMMA": gamma}
    trained = [MLP(d, w, 2).double()]
    train(trained, [drawn], {**SETTINGS, **further, "EPS": eps})

    # Forward: z = g (W h + b), h = max(0, sqrt(2) z). The output is z / GAMMA, and centred: 0.
    g, h = [(w / d) ** 0.5, 1.0, w**-0.5], [X]
    for layer in range(2):
        h.append(np.maximum(0, 2**0.5 * g[layer] * (h[-1] @ W[layer].T + b[layer])))
    # Backward, from the loss mean (0 - y)^2.
    dz = -2 * y[:, None] / len(y) / gamma
    for layer in (2, 1, 0):
        gradients = g[layer] * dz.T @ h[layer], g[layer] * dz.sum(0)
        dz = g[layer] * dz @ W[layer] * (h[layer] > 0) * 2**0.5
        # The update of g W has entries of LR GAMMA / fan-in, that of g b of LR GAMMA, and EPS is
        # relative to gradients of order g / (w GAMMA), at the read-out g / GAMMA.
        order = (g[layer] if layer == 2 else g[layer] / w) / gamma
        for value, gradient, fan_in, kind in (
            (W[layer], gradients[0], W[layer].shape[1], "weight"),
            (b[layer], gradients[1], 1, "bias"),
        ):
            step = lr * gamma / fan_in / g[layer]
            wanted = (1 - lr * gamma * decay) * value
            wanted -= step * gradient / (np.abs(gradient) + eps * order)
            got = trained[0].get_parameter(f"{names[layer]}.{kind}").detach().numpy()
            np.testing.assert_allclose(got, wanted, rtol=1e-10)


@pytest.mark.parametrize("gamma", [0.3, 5.0])
@pytest.mark.parametrize(
    "optimizer",
    [
        {"OPTIMIZER": "adam"},
        {"OPTIMIZER": "adam", "EPS": 0.3},
        {"OPTIMIZER": "adamw", "WEIGHT_DECAY": 0.3, "EPS": 0.3},
        {"OPTIMIZER": torch.optim.Adam, "OPTIMIZER_KWARGS": {"eps": 0.3}},
        {"OPTIMIZER": functools.partial(torch.optim.AdamW, eps=0.3, amsgrad=True)},
    ],
)
def test_parametrizations_with_equal_products_agree(optimizer, gamma):
    def losses(name):
        further = {"MAX_ITER": 12, "ONLYTHRESHOLDS": False, "PARAMETRIZATION": name}
        settings = {**SETTINGS, **further, **optimizer, "GAMMA": gamma, "LR": 0.3}
        return train([MLP(4, 20, 3).double()], [drawn], settings).train_loss

    mup, ntp = losses("mup"), losses("ntp")
    for name, one in (("mfp", mup), ("mup-lr", mup), ("ntp-lr", ntp)):
        np.testing.assert_allclose(losses(name), one, rtol=1e-5)
    assert not np.allclose(mup, ntp, rtol=1e-2)


@pytest.mark.parametrize("name", ["mup", "ntp", "sp"])
def test_gamma_multiplies_the_first_update_by_what_is_below_one(name):
    def update(gamma):
        settings = {**SETTINGS, "MAX_ITER": 1, "OPTIMIZER": "adam", "EPS": 0.1, "GAMMA": gamma}
        torch.manual_seed(0)
        model = MLP(4, 8).double()
        before = MLP(4, 8).double()
        before.load_state_dict(model.state_dict())
        train([model], [drawn], {**settings, "PARAMETRIZATION": name})
        if name != "sp":
            generator = torch.Generator().manual_seed(streams(42, 0).weights)
            parametrize(before, name, generator=generator)
        pairs = zip(model.parameters(), before.parameters(), strict=True)
        return torch.cat([(p - p0).detach().flatten() for p, p0 in pairs])

    for gamma in (0.01, 0.3, 100.0):
        torch.testing.assert_close(update(gamma), min(1.0, gamma) * update(1.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.AdamW])
def test_a_class_of_torch_trains_like_its_stacked_counterpart(cls, same):
    settings = {**SETTINGS, "MAX_ITER": 9, "ONLYTHRESHOLDS": False, "GAMMA": 0.3, "EPS": 0.01}
    if cls is torch.optim.AdamW:
        settings["WEIGHT_DECAY"] = 0.3
    stacked = train([MLP(4, 8).double()], [drawn], {**settings, "OPTIMIZER": cls.__name__})
    same(stacked, train([MLP(4, 8).double()], [drawn], {**settings, "OPTIMIZER": cls}), rtol=1e-5)


def sgd_factors(model, opt, gamma, optimizer):
    """Scale as mup does, but for SGD: what was used for Adam before it had factors of its own."""
    parametrize(model, "mup", gamma=gamma)


def moved(model, model0, X_tr):
    """Return the root-mean-square changes of activations and output."""
    (h, f), (h0, f0) = model.get_activations(X_tr), model0.get_activations(X_tr)
    pairs = zip([*h, f], [*h0, f0], strict=True)
    return torch.stack([(one - other).square().mean().sqrt() for one, other in pairs])


def changes(parametrization, widths, **further):
    """Return the changes (widths, layers) after three steps."""
    rows = []
    for width in widths:
        settings = {**SETTINGS, "OPTIMIZER": "adam", "MAX_ITER": 3, **further}
        trained = train(
            [MLP(4, width, 2) for _ in range(4)],
            [drawn] * 4,
            {**settings, "PARAMETRIZATION": parametrization},
            grabs={"moved": moved},
            contexts=[{"optimizer": "adam"}] * 4,
        )
        rows.append(trained.grabs["moved"].mean(0))
    return np.array(rows)


WIDTHS = (32, 128, 512, 1024)


@pytest.mark.parametrize("further", [{}, {"GAMMA": 10.0}, {"EPS": 0.1}, {"WEIGHT_DECAY": 0.3}])
def test_activations_move_alike_at_all_widths(further):
    optimizer = "adamw" if "WEIGHT_DECAY" in further else "adam"
    got = changes("mup", WIDTHS, **further, OPTIMIZER=optimizer)
    assert (got.max(0) / got.min(0) < 1.4).all(), got


@pytest.mark.parametrize(
    "optimizer", [pytest.param("muon", marks=pytest.mark.slow), "lion", "rmsprop"]
)
def test_activations_move_alike_under_other_optimizers(optimizer):
    further = {"OPTIMIZER": optimizer, "GAMMA": 2.0}
    if optimizer == "rmsprop":  # whose first update is ten times as large
        further["LR"] = 0.003
    mup = changes("mup", (32, 512), **further)
    assert (mup.max(0) / mup.min(0) < 1.4).all(), mup
    np.testing.assert_allclose(changes("mup-lr", (32, 512), **further), mup, rtol=0.02)
    ntp = changes("ntp", (32, 512), **further) * np.array([[1, 1, 1], [4, 4, 1]])
    assert (ntp.max(0) / ntp.min(0) < 1.4).all(), ntp


def test_under_ntp_the_output_moves_alike_and_activations_by_one_over_sqrt_width():
    got = changes("ntp", WIDTHS) * np.sqrt(WIDTHS)[:, None] ** np.array([1, 1, 0])
    assert (got.max(0) / got.min(0) < 1.4).all(), got


def test_with_the_factors_of_sgd_activations_move_the_more_the_wider():
    got = changes(sgd_factors, WIDTHS[:3])
    assert (got[-1] / got[0] > [2, 4, 0]).all(), got


def lr_curve(parametrization, width, lrs):
    """Return the losses after 60 steps at these LRs, geometric means over two trials."""
    grid = [(lr, trial) for lr in lrs for trial in range(2)]
    batch_fns = [lambda step, trial=trial: drawn(step + 1000 * trial) for trial in range(2)]
    further = {"PARAMETRIZATION": parametrization, "MAX_ITER": 60, "OPTIMIZER": "adam"}
    trained = train(
        [MLP(4, width, 2) for _ in grid],
        [batch_fns[trial] for _, trial in grid],
        [validate({**SETTINGS, **further, "LR": lr}) for lr, _ in grid],
        trials=[trial for _, trial in grid],
        contexts=[{"optimizer": "adam"}] * len(grid),
    )
    return np.exp(np.log(trained.train_loss).reshape(len(lrs), 2).mean(1))


def lr_reaching(loss, lrs, curve):
    """Return the smallest LR that reaches a loss, interpolated in logarithms."""
    falling = slice(0, int(curve.argmin()) + 1)
    logs = [np.log(values[falling][::-1]) for values in (curve, lrs)]
    return np.exp(np.interp(np.log(loss), *logs))


@pytest.mark.slow
def test_the_best_lr_of_adam_is_the_same_at_all_widths():
    step = np.sqrt(10)
    lrs = 0.01 * step ** np.arange(6)
    narrow, wide = (lr_curve("mup", width, lrs) for width in (32, 512))
    assert abs(int(narrow.argmin()) - int(wide.argmin())) <= 1, (narrow, wide)
    assert lr_reaching(0.5, lrs, narrow) == pytest.approx(lr_reaching(0.5, lrs, wide), rel=0.2)

    # As it was before Adam had factors of its own, and is under sp.
    narrow, wide = (lr_curve(sgd_factors, width, lrs / 100) for width in (32, 512))
    assert lr_reaching(0.5, lrs, narrow) > 2 * step * lr_reaching(0.5, lrs, wide), (narrow, wide)


SILENT = [
    {"OPTIMIZER": "adam"},
    {"OPTIMIZER": "adamw", "WEIGHT_DECAY": 0.1},
    {"OPTIMIZER": torch.optim.AdamW},
    {"OPTIMIZER": functools.partial(torch.optim.Adam, amsgrad=True)},
    {"OPTIMIZER": "sgd", "WEIGHT_DECAY": 0.1, "GAMMA": 2.0},
    {"OPTIMIZER": "Adagrad", "PARAMETRIZATION": "sp"},
    {"OPTIMIZER": "lion", "WEIGHT_DECAY": 0.1},
    {"OPTIMIZER": "muon", "WEIGHT_DECAY": 0.1},
    {"OPTIMIZER": torch.optim.RMSprop},
    {"OPTIMIZER": "adam", "PARAMETRIZATION": "sp", "WEIGHT_DECAY": 0.1, "GAMMA": 2.0},
    {"OPTIMIZER": "sgd", "PARAMETRIZATION": lambda model, opt: None},
    {"OPTIMIZER": "adam", "PARAMETRIZATION": lambda model, opt, optimizer: None},
]
WARNED = [
    ({"OPTIMIZER": "Adagrad"}, "'mup' with OPTIMIZER=Adagrad: mlpsubmit has no learning-rate"),
    ({"OPTIMIZER": torch.optim.NAdam, "PARAMETRIZATION": "ntp"}, "'ntp' with OPTIMIZER=NAdam"),
    ({"OPTIMIZER": "Adagrad", "PARAMETRIZATION": "sp", "GAMMA": 2.0}, "those of SGD"),
    ({"OPTIMIZER": "adam", "PARAMETRIZATION": lambda m, o: None}, "if it takes an argument"),
    ({"OPTIMIZER": "adam", "WEIGHT_DECAY": 0.1}, "use OPTIMIZER='adamw'"),
    ({"OPTIMIZER": "rmsprop", "WEIGHT_DECAY": 0.1}, "use OPTIMIZER='adamw'"),
    (
        {"OPTIMIZER": torch.optim.Adam, "OPTIMIZER_KWARGS": {"weight_decay": 0.1}},
        "use OPTIMIZER='adamw'",
    ),
    ({"OPTIMIZER": functools.partial(torch.optim.Adam, weight_decay=0.1)}, "OPTIMIZER='adamw'"),
]


@pytest.mark.parametrize("settings", SILENT)
def test_what_has_a_theory_trains_without_a_warning(settings):
    contexts = [{"optimizer": settings["OPTIMIZER"]}]
    train([MLP(4, 8)], [drawn], {**SETTINGS, "MAX_ITER": 1, **settings}, contexts=contexts)


@pytest.mark.parametrize(("settings", "text"), WARNED)
def test_what_has_no_theory_trains_with_one(settings, text):
    with pytest.warns(UserWarning, match=text) as caught:
        train([MLP(4, 8)], [drawn], {**SETTINGS, "MAX_ITER": 1, **settings})
    assert len(caught) == 1


@pytest.mark.filterwarnings("ignore:PARAMETRIZATION='mup' with OPTIMIZER=LBFGS")
def test_an_optimizer_that_takes_one_group_of_parameters_trains_under_mup():
    settings = {**SETTINGS, "MAX_ITER": 3, "OPTIMIZER": "LBFGS", "ONLINE": False}
    assert train([MLP(4, 8)], [drawn], settings).steps == [3]


def test_a_callable_gets_the_factors_of_sgd_for_any_optimizer():
    def three_times(model, opt, optimizer):
        for group in opt.param_groups:
            group["lr"] *= 3

    def lr(model, opt):
        return opt.param_groups[0]["lr"]

    for optimizer, gamma, wanted in (("sgd", 0.5, 0.25), ("adam", 0.5, 0.25), ("adam", 2.0, 2.0)):
        further = {"MAX_ITER": 1, "OPTIMIZER": optimizer, "GAMMA": gamma}
        settings = {**SETTINGS, **further, "PARAMETRIZATION": three_times}
        contexts = [{"optimizer": optimizer}]
        trained = train([MLP(4, 8)], [drawn], settings, grabs={"lr": lr}, contexts=contexts)
        assert trained.grabs["lr"] == pytest.approx(0.03 * 3 * wanted)
