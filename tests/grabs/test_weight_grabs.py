import copy
import inspect

import numpy as np
import pytest
import torch
from torch import nn

from mlpsubmit import grabs
from mlpsubmit.batchfns import Monomial
from mlpsubmit.errors import SpecError
from mlpsubmit.grabs import weights
from mlpsubmit.training.parametrizations import parametrize

NAMES = weights.__all__
#: Those whose decomposition has the host wait for a GPU.
DECOMPOSING = {"spectral_norms", "singular_values"}
#: Those that can measure what the layers compute with, the forward multiplier included.
EFFECTIVE = [
    name for name in NAMES if "effective" in inspect.signature(grabs.by_name(name)).parameters
]


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layer = nn.Linear(4, 7)
        self.hidden_layers = nn.ModuleList([nn.Linear(7, 7), nn.Linear(7, 7)])
        self.output_layer = nn.Linear(7, 2)


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 5, kernel_size=2), nn.ReLU())
        self.head = nn.Linear(5, 1)


@pytest.fixture(params=[MLP, ConvNet])
def model(request):
    torch.manual_seed(0)
    return request.param()


def matrices(model):
    """The weights of all layers, as double-precision matrices of numpy."""
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    return [p.detach().double().numpy().reshape(len(p), -1) for p in weights]


def close(tensor, expected):
    assert not tensor.requires_grad
    np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_weights(model):
    close(grabs.readin_weight(model), matrices(model)[0])
    close(grabs.readout_weight(model), matrices(model)[-1])


def test_grams(model):
    W = matrices(model)[0]
    close(grabs.readin_gram(model), np.einsum("ki,kj->ij", W, W))
    close(grabs.readin_gram(model, side="output"), np.einsum("ik,jk->ij", W, W))
    close(grabs.readin_gram_trace(model), np.trace(W.T @ W))
    close(grabs.readin_gram_diagonal(model), np.diag(W.T @ W))


@pytest.mark.parametrize(
    ("monomials", "indices"),
    [
        ({2: 1}, [2]),
        (Monomial({3: 2, 0: 1}), [0, 3]),
        ([{3: 1}, Monomial({1: 1, 3: 4})], [1, 3]),
        (({0: 1},), [0]),
        (Monomial(), []),
    ],
)
def test_diagonal_at_the_indices_of_monomials(monomials, indices):
    model = MLP()
    diagonal = (matrices(model)[0] ** 2).sum(axis=0)
    close(grabs.readin_gram_diagonal(model, monomials=monomials), diagonal[indices])
    close(grabs.gram_diagonal(model, monomials=monomials), diagonal[indices])


def test_monomials_that_come_uninvited_count_for_the_networks_inputs_alone():
    model, monomials = MLP(), [{0: 1}, {3: 2}]
    for layer in (1, -1):
        close(grabs.gram_diagonal(model, layer, monomials=monomials), diagonal(model, layer))
    outputs = grabs.gram_diagonal(model, side="output", monomials=monomials)
    close(outputs, (matrices(model)[0] ** 2).sum(axis=1))
    close(grabs.gram_diagonal(model, -4, monomials=monomials), diagonal(model, 0)[[0, 3]])
    # Those that mean nothing to the layer are not looked at.
    close(grabs.gram_diagonal(model, 1, monomials=[{9: 1}]), diagonal(model, 1))
    assert grabs.gram_diagonal(ConvNet(), 1, monomials={0: 1}).shape == (5,)


def diagonal(model, layer):
    return (matrices(model)[layer] ** 2).sum(axis=0)


def count(model):
    return len(matrices(model))


def test_every_layer_counts_from_both_ends(model):
    biases = [p.detach().numpy() for name, p in model.named_parameters() if name.endswith("bias")]
    for layer in range(-count(model), count(model)):
        W = matrices(model)[layer]
        close(grabs.weight(model, layer), W)
        close(grabs.bias(model, layer), biases[layer])
        close(grabs.weight_gram(model, layer), W.T @ W)
        close(grabs.weight_gram(model, layer, side="output"), W @ W.T)
        close(grabs.gram_trace(model, layer), np.trace(W @ W.T))
        close(grabs.gram_diagonal(model, layer), np.diag(W.T @ W))
        close(grabs.gram_diagonal(model, layer, side="output"), np.diag(W @ W.T))
        close(grabs.singular_values(model, layer), np.linalg.svd(W, compute_uv=False))
    close(grabs.weight(model, np.int64(1)), matrices(model)[1])


@pytest.mark.parametrize("parametrization", ["mup", "ntp", "mfp", "mup-lr", "ntp-lr", "sp"])
def test_effective_weights_and_biases_are_what_the_layers_compute_with(parametrization):
    model = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 6), nn.Linear(6, 2))
    parametrize(model, parametrization, gamma=3.0, generator=torch.Generator().manual_seed(0))
    h = X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    for layer in range(3):
        h = h @ grabs.weight(model, layer, effective=True).T
        h = h + grabs.bias(model, layer, effective=True)
    close(h, model(X).detach().numpy())


@pytest.mark.parametrize("name", EFFECTIVE)
def test_every_effective_measurement_is_that_of_a_model_with_the_multipliers_in_its_weights(name):
    model = MLP()
    parametrize(model, "mup", gamma=2.0, generator=torch.Generator().manual_seed(0))
    absorbed, fresh = copy.deepcopy(model), MLP()
    with torch.no_grad():
        for layer in weights.layers_of(absorbed):
            layer.weight *= layer.multiplier
            layer.bias *= layer.multiplier
        for parameter, source in zip(fresh.parameters(), absorbed.parameters(), strict=True):
            parameter.copy_(source)
    grab = grabs.by_name(name)
    close(grab(model, effective=True), grab(fresh).numpy())
    close(grab(fresh, effective=True), grab(fresh).numpy())  # without multipliers, the same
    assert not torch.allclose(grab(model), grab(fresh))


def test_norms(model):
    close(grabs.weight_norms(model), [np.sqrt((W**2).sum()) for W in matrices(model)])
    singular = [np.linalg.svd(W, compute_uv=False)[0] for W in matrices(model)]
    close(grabs.spectral_norms(model), singular)


def test_spectral_norm_of_zero_and_of_what_is_not_finite():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.no_grad():
        model[0].weight.zero_()
        model[1].weight[0, 0] = torch.inf
    norms = grabs.spectral_norms(model)
    assert norms[0] == 0
    assert norms[1].isnan()
    assert norms[2] > 0


def test_singular_values_of_what_is_not_finite_are_nan():
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    assert grabs.singular_values(model).isnan().tolist() == [True] * 3
    assert (grabs.singular_values(model, layer=1) > 0).all()


def test_distance_from_init(model):
    assert not grabs.distance_from_init(model, copy.deepcopy(model)).any()
    model0 = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
    pairs = zip(matrices(model), matrices(model0), strict=True)
    close(
        grabs.distance_from_init(model, model0),
        [np.linalg.norm(W - W0) / np.linalg.norm(W0) for W, W0 in pairs],
    )


def test_distance_of_a_layer_that_began_at_zero():
    model0 = nn.Linear(2, 2)
    nn.init.zeros_(model0.weight)
    assert grabs.distance_from_init(model0, model0).isnan().all()
    assert grabs.distance_from_init(nn.Linear(2, 2), model0).isinf().all()


def measure(name, model):
    grab = grabs.by_name(name)
    model0 = {"model0": copy.deepcopy(model)} if name == "distance_from_init" else {}
    return grab(model, **model0)


@pytest.mark.parametrize("name", NAMES)
def test_results_stay_as_they_are_while_training_goes_on(name, model):
    result = measure(name, model)
    kept = result.clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    assert torch.equal(result, kept)


@pytest.mark.parametrize("name", NAMES)
def test_models_without_layers_are_refused(name):
    message = r"weights of Embedding cannot be measured: it has no Linear or Conv2d layer; write"
    with pytest.raises(SpecError, match=message):
        measure(name, nn.Embedding(3, 2))


@pytest.mark.parametrize("name", NAMES)
def test_grabs_declare_only_what_they_need(name):
    parameters = inspect.signature(grabs.by_name(name)).parameters
    assert set(parameters) <= {"model", "model0", "monomials", "side", "layer", "effective"}
    assert "model" in parameters


@pytest.mark.parametrize(
    ("measure_it", "message"),
    [
        (
            lambda: grabs.readin_gram(MLP(), side="outputs"),
            r"got side='outputs' \(did you mean 'output'\?\); valid are 'input' for W\^T W and",
        ),
        (
            lambda: grabs.readin_gram_diagonal(MLP(), monomials={4: 1}),
            r"gram_diagonal: the monomial \$x_\{4\}\$ has the index 4, but d=4; valid",
        ),
        (
            lambda: grabs.readin_gram_diagonal(MLP(), monomials=[0, 1]),
            r"2 errors:\n  - gram_diagonal: bad monomial 0: a monomial is a mapping",
        ),
        (
            lambda: grabs.gram_diagonal(MLP(), monomials={0: 0}),
            r"gram_diagonal: bad monomial \{0: 0\}: the exponents of a monomial are integers >= 1",
        ),
        (
            lambda: grabs.gram_diagonal(MLP(), side="inputs"),
            r"gram_diagonal: got side='inputs' \(did you mean 'input'\?\)",
        ),
        (
            lambda: grabs.weight(MLP(), layer=4),
            r"weight: got layer=4, but MLP has 4 Linear and Conv2d layers; valid are 0 to 3, or -4 "
            r"to -1 from the end",
        ),
        (lambda: grabs.bias(ConvNet(), layer=-3), r"bias: got layer=-3, but ConvNet has 2 Linear"),
        (lambda: grabs.weight_gram(MLP(), layer="in"), r"weight_gram: got layer='in', but MLP has"),
        (lambda: grabs.gram_trace(MLP(), layer=True), r"gram_trace: got layer=True, but MLP has 4"),
        (lambda: grabs.gram_diagonal(MLP(), layer=9), r"gram_diagonal: got layer=9, but MLP has 4"),
        (lambda: grabs.singular_values(MLP(), layer=0.5), r"singular_values: got layer=0.5, but"),
        (
            lambda: grabs.bias(nn.Linear(2, 3, bias=False)),
            r"bias: layer 0 of Linear, Linear\(in_.*bias=False\), has none; try another layer",
        ),
        (
            lambda: grabs.readin_gram_diagonal(ConvNet(), monomials={0: 1}),
            r"inputs of an MLP, .* got ConvNet, whose first layer is Conv2d; try monomials=None",
        ),
        (lambda: grabs.gram_diagonal(ConvNet(), monomials={0: 1}), r"first layer is Conv2d; try"),
        (
            lambda: grabs.distance_from_init(MLP(), nn.Linear(2, 3)),
            r"same layers; got weights of shapes \[\(7, 4\).* and \[\(3, 2\)\]",
        ),
        (
            lambda: grabs.by_name(["trace"]),
            r"got \['trace'\]; should be a function, or the name of a",
        ),
        (
            lambda: grabs.by_name("readin_gram_trac"),
            r"no grab named 'readin_gram_trac' \(did you mean 'readin_gram_trace'\?\); valid are",
        ),
    ],
)
def test_errors(measure_it, message):
    with pytest.raises(SpecError, match=message):
        measure_it()


def test_registry_and_module_name_the_same_functions():
    makers = {"by_name", "grab", "on_test_set"}
    for name in set(grabs.__all__) - makers:
        assert grabs.by_name(name) is getattr(grabs, name)
        assert grabs.by_name(name).__name__ == name
    for name in makers:
        with pytest.raises(SpecError, match=f"no grab named '{name}'") as caught:
            grabs.by_name(name)
        assert f"{name}, " not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(set(NAMES) - DECOMPOSING))
def test_no_grab_but_those_that_decompose_waits_for_the_gpu(name):
    model = MLP().cuda()
    measure(name, model)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = measure(name, model)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.is_cuda
