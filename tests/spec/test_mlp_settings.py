"""BIAS and NONLINEARITY of the built-in MLP: names, values, axes and errors."""

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit import MLP, Sweep, launch
from mlpsubmit.errors import SpecError, UserError
from mlpsubmit.grabs import bias
from mlpsubmit.spec.mlp_settings import NONLINEARITIES
from mlpsubmit.training.models import NONLINEARITIES as IMPLEMENTED
from mlpsubmit.training.parametrizations import parametrize

X = torch.linspace(-2, 2, 12).view(4, 3)
SMALL = {"WIDTH": 4, "N_SAMPLES": 4, "MAX_ITER": 2, "LOSS_CHECKPOINTS": [], "LR": 0.1}


def batches(bsz, gen):
    return lambda step: (torch.randn(bsz, 3, generator=gen), torch.ones(bsz))


def sweep(**further):
    return Sweep("mlp", batchfn=batches, **SMALL | further)


def test_every_name_is_a_nonlinearity():
    assert tuple(IMPLEMENTED) == NONLINEARITIES
    for name in NONLINEARITIES:
        expected = getattr(torch.nn.functional, name, getattr(torch, name, lambda x: x))(X)
        torch.testing.assert_close(MLP(3, nonlinearity=name.upper()).nonlin(X), expected)
    assert isinstance(MLP(3).nonlin, nn.ReLU)


def test_modules_classes_and_functions():
    module = nn.LeakyReLU(0.5)
    own = MLP(3, nonlinearity=module).nonlin
    torch.testing.assert_close(own(X), module(X))
    assert own is not module  # a parametrization sets hooks on it
    torch.testing.assert_close(MLP(3, nonlinearity=nn.Tanh).nonlin(X), X.tanh())
    torch.testing.assert_close(MLP(3, nonlinearity=torch.sin).nonlin(X), X.sin())
    with pytest.raises(SpecError, match=r"got 'tanhh'; should be one of .*did you mean 'tanh'"):
        MLP(3, nonlinearity="tanhh")


def test_only_relu_has_a_gain():
    for nonlinearity, gain in (("relu", 2**0.5), (nn.ReLU(), 2**0.5), ("tanh", 1.0)):
        model = MLP(3, 5, 1, nonlinearity=nonlinearity)
        parametrize(model, "mup", gamma=1.0, generator=torch.Generator())
        plain = IMPLEMENTED[nonlinearity]() if isinstance(nonlinearity, str) else nonlinearity
        torch.testing.assert_close(model.nonlin(X), plain(gain * X))


def test_both_are_settings_and_axes_in_any_case(workplace):
    def has_bias(model):
        return {"bias": model.input_layer.bias is not None, "at_one": model.nonlin(torch.ones(1))}

    axes = {"BIAS": [True, "false"], "nonlinearity": ["relu", "Tanh", torch.sin]}
    run = launch(sweep(axes=axes, grabs={"g": has_bias}), executor="debug")
    dataset = run.collect()
    assert dataset.bias.values.tolist() == [True, False]
    assert dataset.nonlinearity.values.tolist() == ["relu", "tanh", "sin"]
    assert (dataset.g_bias == dataset.bias).all()
    expected = [2**0.5, np.tanh(1), np.sin(1)]
    np.testing.assert_allclose(dataset.g_at_one.isel(bias=0).squeeze(), expected, rtol=1e-6)
    # As one fixed setting, and as the arguments of the same class given as MODEL.
    one = sweep(BIAS=False, Nonlinearity="tanh")
    assert one.arguments == {"bias": False, "nonlinearity": "tanh"}
    both = [
        launch(s, executor="debug").collect().train_loss
        for s in (one, sweep(MODEL=MLP, bias=False, nonlinearity="tanh"))
    ]
    assert both[0] == both[1] == dataset.train_loss.sel(bias=False, nonlinearity="tanh")


def test_overrides_on_the_command_line():
    changed = sweep().overridden({"nonlinearity": ["relu", "gelu"], "BIAS": False})
    assert changed.product.names == {"nonlinearity"}
    assert changed.arguments == {"bias": False}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bias": 0.1}, r"bias: got 0.1; should be True or False \(of the built-in MLP; an arg"),
        ({"NONLINEARITY": "rleu"}, r"got 'rleu'; should be one of 'relu', .*did you mean 'relu'"),
        ({"axes": {"nonlinearity": ["relu", 3]}}, r"axis nonlinearity: got 3; should be one of"),
        ({"axes": {"nonlinearity": ["relu", "ReLU"]}}, r"the value 'relu' appears more than once"),
    ],
)
def test_bad_values_are_refused(given, message):
    with pytest.raises(SpecError, match=message):
        sweep(**given)


def test_all_errors_at_once():
    with pytest.raises(SpecError, match="3 errors"):
        sweep(bias=3, nonlinearity=3, LR=-1)


def test_other_models_have_their_own():
    def model(d_in, d_out):
        return nn.Linear(d_in, d_out)

    with pytest.raises(SpecError, match=r"bias: neither a hyperparameter nor an argument"):
        sweep(MODEL=model, bias=True)

    def biased(d_in, d_out, bias="mine"):
        assert bias == "mine"
        return nn.Linear(d_in, d_out)

    assert sweep(MODEL=biased, bias="theirs").arguments == {"bias": "theirs"}
    both = sweep(axes={"MODEL": ["mlp", biased]}, nonlinearity="tanh")
    assert both.arguments == {"nonlinearity": "tanh"}


def test_a_layer_without_bias_has_none_to_measure(workplace):
    with pytest.raises(UserError, match=r"bias: layer 0 of MLP, .*, has none"):
        launch(sweep(bias=False, grabs={"b": bias}), executor="debug")
