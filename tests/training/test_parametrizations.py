"""The table of parametrizations against numbers computed by hand."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from mlpsubmit.errors import SpecError
from mlpsubmit.training import MLP, parametrize, train
from mlpsubmit.training.parametrizations import Factors, effective_lr

# d_in = 4, width 16, depth 2, so fan-ins 4, 16, 16. Per layer: multiplier, lr factor, deviation.
ON_MLP = {
    "mup": [(2.0, 1.0, 0.25), (1.0, 1.0, 0.25), (0.25, 1.0, 0.25)],
    "mfp": [(0.5, 16.0, 1.0), (0.25, 16.0, 1.0), (0.0625, 16.0, 1.0)],
    "ntp": [(0.5, 1.0, 1.0), (0.25, 1.0, 1.0), (0.25, 1.0, 1.0)],
    "mup-lr": [(1.0, 4.0, 0.5), (1.0, 1.0, 0.25), (1.0, 0.0625, 0.0625)],
    "ntp-lr": [(1.0, 0.25, 0.5), (1.0, 0.0625, 0.25), (1.0, 0.0625, 0.25)],
}
# One channel in, 3x3 kernels to 4 then 16 channels, 64 inputs to the read-out: fan-ins 9, 36, 64;
# the widest hidden layer has 16 channels.
ON_CONV = {
    "mup": [(4 / 3, 1.0, 0.25), (2 / 3, 1.0, 0.25), (0.125, 1.0, 0.25)],
    "mfp": [(1 / 3, 16.0, 1.0), (1 / 6, 16.0, 1.0), (0.03125, 16.0, 1.0)],
    "ntp": [(1 / 3, 1.0, 1.0), (1 / 6, 1.0, 1.0), (0.125, 1.0, 1.0)],
    "mup-lr": [(1.0, 16 / 9, 1 / 3), (1.0, 4 / 9, 1 / 6), (1.0, 1 / 64, 1 / 32)],
    "ntp-lr": [(1.0, 1 / 9, 1 / 3), (1.0, 1 / 36, 1 / 6), (1.0, 1 / 64, 1 / 8)],
}


def mlp():
    return MLP(4, 16, 2)


def conv():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 1),
    )


def layers(model):
    return [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


CASES = [(mlp, name, rows) for name, rows in ON_MLP.items()]
CASES += [(conv, name, rows) for name, rows in ON_CONV.items()]


@pytest.mark.parametrize(("build", "name", "rows"), CASES)
def test_multipliers_and_learning_rates_are_those_worked_out_by_hand(build, name, rows):
    model = build()
    factors = parametrize(model, name, gamma=8.0, generator=seeded())
    names = [n for n, m in model.named_modules() if m in layers(model)]
    for (g, r, _), layer, path in zip(rows, layers(model), names, strict=True):
        g = g / 8.0 if layer is layers(model)[-1] else g
        assert layer.multiplier.item() == pytest.approx(g, rel=1e-6)
        assert factors[f"{path}.weight"].lr == factors[f"{path}.bias"].lr == pytest.approx(r)


@pytest.mark.parametrize("name", ON_MLP)
def test_initial_weights_and_biases_have_the_deviation_of_the_table(name):
    model = MLP(4, 400, 2)
    parametrize(model, name, generator=seeded())
    a = 20.0 if name.startswith("m") else 1.0
    of_lr = [a / 2 / a, a / 20 / a, 1 / 20 / a]  # sqrt(q) / a for fan-ins 4, 400, 400
    wanted = {"mup": [1 / 20] * 3, "mfp": [1.0] * 3, "ntp": [1.0] * 3}.get(name, of_lr)
    for layer, std in zip(layers(model), wanted, strict=True):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
        if layer.bias.numel() > 1:
            assert layer.bias.std().item() == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize("name", ON_MLP)
@pytest.mark.parametrize("build", [mlp, conv])
def test_the_forward_pass_is_the_formula(build, name):
    model = build()
    parametrize(model, name, gamma=3.0, generator=seeded())
    rows = (ON_MLP if build is mlp else ON_CONV)[name]
    X = torch.randn(5, 4) if build is mlp else torch.randn(5, 1, 6, 6)
    h = X
    for (g, _, _), layer in zip(rows, layers(model), strict=True):
        if build is conv and isinstance(layer, nn.Linear):
            h = h.flatten(1)
        linear = nn.functional.linear if isinstance(layer, nn.Linear) else nn.functional.conv2d
        z = g * linear(h, layer.weight, layer.bias)
        h = (math.sqrt(2) * z).clamp(min=0)
    torch.testing.assert_close(model(X), z / 3.0)


def test_parametrizations_with_equal_products_agree_at_the_start_and_along_gradient_descent():
    # mup, mfp and mup-lr are one parametrization written in three ways, and so are ntp and ntp-lr.
    def batch_fn(step):
        X = torch.randn(16, 4, generator=seeded(step))
        return X, X[:, 0] * X[:, 1]

    def losses(name):
        settings = {"MAX_ITER": 30, "LR": 0.2, "LOSS_CHECKPOINTS": [], "ONLYTHRESHOLDS": False}
        settings["PARAMETRIZATION"] = name
        return train([MLP(4, 64, 2).double()], [batch_fn], settings).train_loss

    np.testing.assert_allclose(losses("mup"), losses("mfp"), rtol=1e-5)
    np.testing.assert_allclose(losses("mup"), losses("mup-lr"), rtol=1e-5)
    np.testing.assert_allclose(losses("ntp"), losses("ntp-lr"), rtol=1e-5)
    assert not np.allclose(losses("ntp"), losses("mup"), rtol=1e-3)


def test_sp_keeps_the_initialisation_and_divides_by_gamma():
    model = mlp()
    plain = copy.deepcopy(model)
    factors = parametrize(model, "sp", gamma=4.0)
    X = torch.randn(5, 4)
    torch.testing.assert_close(model(X), plain(X) / 4.0)
    assert set(factors.values()) == {Factors(lr=1.0, decay=1.0, eps=0.25)}
    for name, parameter in plain.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)


def test_doing_it_again_replaces_the_first():
    X = torch.randn(5, 4)
    once, twice = mlp(), mlp()
    parametrize(once, "mup", gamma=2.0, generator=seeded())
    for name in ("ntp", "mup", "mup-lr", "mup"):
        parametrize(twice, name, gamma=5.0, generator=seeded())
    parametrize(twice, "mup", gamma=2.0, generator=seeded())
    assert torch.equal(once(X), twice(X))
    weights = copy.deepcopy(once.state_dict())
    parametrize(once, "sp")
    plain = mlp()
    plain.load_state_dict(weights, strict=False)
    torch.testing.assert_close(once(X), plain(X))


def test_a_parametrized_model_can_be_copied_and_pickled():
    model, X = mlp(), torch.randn(5, 4)
    parametrize(model, "mup", gamma=2.0, generator=seeded())
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(X), model(X))
        again.output_layer.multiplier.mul_(2)
        torch.testing.assert_close(again(X), 2 * model(X))


def test_the_draw_is_that_of_the_generator_alone():
    one, other = mlp(), mlp().double()
    parametrize(one, "mup", generator=seeded(3))
    torch.manual_seed(17)
    parametrize(other, "mup", generator=seeded(3))
    for name, parameter in one.named_parameters():
        assert torch.equal(other.get_parameter(name), parameter.double())
    parametrize(other, "mup", generator=seeded(4))
    assert not torch.equal(other.input_layer.weight, one.input_layer.weight.double())


def mupify_like(model, optimizer):
    """Bind forward functions and split parameter groups, as mupify does."""
    base = optimizer.param_groups[0]["lr"]
    optimizer.param_groups = [
        {**optimizer.param_groups[0], "params": [p]} for p in model.parameters()
    ]
    for layer in layers(model):
        if not hasattr(layer, "_base_fwd"):
            layer._base_fwd = layer.forward
        layer.forward = lambda x, layer=layer: 2.0 * layer._base_fwd(x)
        with torch.no_grad():
            layer.weight.normal_(0, 0.3)
        for group in optimizer.param_groups:
            if group["params"][0] is layer.weight:
                group["lr"] = base * 3


def test_a_callable_changes_weights_forward_functions_and_learning_rates():
    model = mlp()
    factors = parametrize(model, mupify_like, gamma=4.0, lr=0.1, generator=seeded())
    assert factors["input_layer.weight"] == pytest.approx((3.0, 3.0, 1.0))
    assert factors["input_layer.bias"] == pytest.approx((1.0, 1.0, 1.0))
    again, before = mlp(), torch.random.get_rng_state()
    parametrize(again, mupify_like, gamma=4.0, lr=0.1, generator=seeded())
    assert torch.equal(again.input_layer.weight, model.input_layer.weight)
    assert torch.equal(before, torch.random.get_rng_state())
    X = torch.randn(3, 4)
    out = model(X)
    h = X
    for layer in layers(model):
        z = 2.0 * nn.functional.linear(h, layer.weight, layer.bias)
        h = z.clamp(min=0)
    torch.testing.assert_close(out, z / 4.0)


def test_a_callable_trains_in_packs(gaussian, make_mlps, same):
    def distance(model, model0, X_tr):
        return (model(X_tr) - model0(X_tr)).norm(), model0(X_tr).norm()

    def results(configs):
        return train(
            [make_mlps(3)[k] for k in configs],
            [gaussian(k) for k in configs],
            {"MAX_ITER": 6, "PARAMETRIZATION": mupify_like, "GAMMA": 2.0},
            trials=configs,
            grabs={"distance": distance},
        )

    together = results([0, 1, 2])
    same(together, results([0, 1, 2]))
    for k in range(3):
        alone = results([k])
        np.testing.assert_allclose(together.train_loss[k], alone.train_loss[0], rtol=1e-5)
        np.testing.assert_allclose(
            together.grabs["distance"][k], alone.grabs["distance"][0], rtol=1e-4
        )


def make_net():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def test_what_the_table_does_not_cover_is_refused():
    normed = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    with pytest.raises(SpecError, match=r"its module '1' \(LayerNorm\) has weights of its own"):
        parametrize(normed, "mup")
    pruned = make_net()
    prune.random_unstructured(pruned[2], "weight", amount=0.01)
    with pytest.raises(SpecError, match=r"'2' \(Linear\) has weights of its own \(bias, weight_or"):
        parametrize(pruned, "ntp")  # the next forward pass would compute the weight anew
    old = make_net()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(old[0])
    with pytest.raises(SpecError, match=r"'0' \(Linear\) has weights of its own \(bias, weight_g"):
        parametrize(old, "mup")
    with_gain = make_net()
    with_gain[0].register_parameter("gain", nn.Parameter(torch.ones(4)))
    with pytest.raises(SpecError, match=r"has weights of its own \(weight, bias, gain\)"):
        parametrize(with_gain, "mup")
    with pytest.raises(SpecError, match=r"covers nn\.Linear and nn\.Conv2d layers only"):
        parametrize(nn.Sequential(nn.ConvTranspose2d(1, 2, 3), nn.Linear(3, 4)), "ntp")
    bare = mlp()
    bare.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(SpecError, match=r"MODEL: the model itself \(MLP\) has weights"):
        parametrize(bare, "mup")
    with pytest.raises(SpecError, match=r"Linear has 1 nn\.Linear or nn\.Conv2d layers"):
        parametrize(nn.Linear(3, 1), "mup")
    with pytest.raises(SpecError, match="got 'nope'; valid are mup, ntp"):
        parametrize(mlp(), "nope")
    with pytest.raises(SpecError, match=r"forgetful left .*output_layer.bias out"):
        parametrize(mlp(), forgetful)
    with pytest.raises(SpecError, match="GAMMA=2 divides the output of the last"):
        parametrize(nn.LayerNorm(3), lambda model, optimizer: None, gamma=2.0)


def test_sp_leaves_everything_as_pytorch_made_it():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 1))
    before = {name: p.clone() for name, p in model.named_parameters()}
    X = torch.randn(5, 3)
    outputs = model(X)
    assert parametrize(model, "sp", gamma=4.0) == dict.fromkeys(before, Factors(1.0, eps=0.25))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    torch.testing.assert_close(model(X), outputs / 4)

    no_layer = nn.LayerNorm(3)
    assert parametrize(no_layer, "sp") == dict.fromkeys(["weight", "bias"], Factors(1.0))
    with pytest.raises(SpecError, match="GAMMA=2 divides the output of the last"):
        parametrize(no_layer, "sp", gamma=2.0)


def forgetful(model, optimizer):
    del optimizer.param_groups[0]["params"][-1]


def test_the_learning_rate_follows_gamma():
    assert effective_lr(0.1, 3.0) == pytest.approx(0.3)
    assert effective_lr(0.1, 1.0) == 0.1
    assert effective_lr(0.1, 0.5) == pytest.approx(0.025)
    assert effective_lr(0.1, 3.0, "adam") == effective_lr(0.1, 1.0, "adam") == 0.1
    assert effective_lr(0.1, 0.5, "adam") == pytest.approx(0.05)


@pytest.mark.parametrize("parametrization", [*ON_MLP, "sp"])
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_plain_network_needs_no_multipliers(parametrization, nonlinearity, bias):
    model = MLP(6, 5, 3, 2, bias=bias, nonlinearity=nonlinearity).double()
    parametrize(model, parametrization, gamma=3.0)
    plain, X = model.plain(), torch.randn(4, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(plain(X), model(X), rtol=1e-12, atol=1e-12)
    kinds = {type(module) for module in plain}
    assert kinds == {nn.Flatten, nn.Linear, nn.ReLU if nonlinearity == "relu" else nn.Tanh}
    again = nn.Sequential(*[copy.deepcopy(module) for module in plain])
    again.load_state_dict(plain.state_dict())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain)
    model.output_layer.register_forward_hook(lambda module, given, output: output + 1)
    with pytest.raises(SpecError, match="plain: a layer of the network has hooks"):
        model.plain()
