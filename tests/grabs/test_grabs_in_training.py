"""The library's grabs where they are used: in the train loop, on the packed networks of a sweep."""

import functools
import re

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from mlpsubmit import Monomial, Sweep, grabs, launch
from mlpsubmit.arguments import declared
from mlpsubmit.assembly.assemble import assemble
from mlpsubmit.batchfns import polynomial, power_law, sample
from mlpsubmit.grabs import on_test_set
from mlpsubmit.grabs.lookup import grab_names
from mlpsubmit.grabs.named_grabs import named_grab
from mlpsubmit.results.labels import labels_of

EIGVALS = torch.tensor([1.0, 0.5, 0.25])

#: Grabs of every kind, some with other arguments than their defaults.
GRABS = {
    "weight": functools.partial(grabs.weight, layer=-1),
    "bias": functools.partial(grabs.bias, layer=1, effective=True),
    "weight_gram": functools.partial(grabs.weight_gram, side="output"),
    "gram_trace": grabs.gram_trace,
    "gram_diagonal": grabs.gram_diagonal,
    "singular_values": functools.partial(grabs.singular_values, layer=1),
    "readin_gram_diagonal": grabs.readin_gram_diagonal,
    "weight_norms": grabs.weight_norms,
    "spectral_norms": grabs.spectral_norms,
    "distance_from_init": grabs.distance_from_init,
    "activations": functools.partial(grabs.activations, hidden=0, rows=3),
    "activation_kernel": functools.partial(grabs.activation_kernel, rows=4),
    "preactivation_stats": grabs.preactivation_stats,
    "gradient_norm": grabs.gradient_norm,
    "gradient_norms": grabs.gradient_norms,
    "sharpness": functools.partial(grabs.sharpness, tolerance=1e-6),
    "hessian_eigenvalues": functools.partial(grabs.hessian_eigenvalues, count=2, tolerance=1e-6),
    "empirical_ntk": functools.partial(grabs.empirical_ntk, rows=4),
    "empirical_ntk_trace": grabs.empirical_ntk_trace,
    "ntk_eigenvalues": functools.partial(grabs.ntk_eigenvalues, count=3),
    "ntk_alignment": grabs.ntk_alignment,
    "held_out_loss": grabs.held_out_loss,
    "activations of tests": on_test_set(grabs.activations, hidden=0, rows=3),
    "kernel of tests": on_test_set(functools.partial(grabs.empirical_ntk, rows=4)),
    "gradient of tests": on_test_set("gradient_norm"),
    "monomial_coefficients": grabs.monomial_coefficients,
}


def sweep(axes=None, **settings):
    defaults = {"MAX_ITER": 4, "N_SAMPLES": 16, "N_TEST": 32, "WIDTH": 8, "LR": 0.05}
    defaults |= {"LOSS_CHECKPOINTS": [], "ONLYTHRESHOLDS": False, "batchfn": polynomial}
    axes = {"trial": [0]} if axes is None else axes
    settings = defaults | {"monomials": Monomial({0: 1, 1: 1})} | settings
    return Sweep("s", axes, data=lambda: {"data_eigvals": EIGVALS}, **settings)


def run(a_sweep, configs):
    entry = {"data_eigvals": EIGVALS}
    (stack,) = assemble(a_sweep, configs, [entry] * len(configs), torch.device("cpu"))
    return stack, stack.train()


AXES = {"GAMMA": [0.5, 2.0], "trial": range(2)}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"ONLINE": False, "ONLYTHRESHOLDS": True}])
def test_packed_and_one_by_one_they_measure_the_same_and_change_nothing(settings):
    measured = sweep(AXES, grabs=GRABS, **settings)
    configs = list(measured)
    stack, packed = run(measured, configs)
    for k, config in enumerate(configs):
        _, alone = run(measured, [config])
        for name in GRABS:
            got, expected = packed.grabs[name][k], alone.grabs[name][0]
            assert np.isfinite(expected).all(), name
            np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-5, err_msg=name)
    bare = sweep(AXES, **settings)
    without, unmeasured = run(bare, list(bare))
    np.testing.assert_array_equal(packed.train_loss, unmeasured.train_loss)
    for model, other in zip(stack.models, without.models, strict=True):
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
            assert a.grad is None
        for module, twin in zip(model.modules(), other.modules(), strict=True):
            assert len(module._forward_hooks) == len(twin._forward_hooks)
            assert len(module._forward_pre_hooks) == len(twin._forward_pre_hooks)


class Features(nn.Module):
    def __init__(self, d_out):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 2), nn.Linear(12, d_out)

    def forward(self, X):
        return self.head(torch.tanh(self.conv(X)).flatten(1))


def pictures(bsz, gen):
    def batch_fn(step):
        X = torch.randn(bsz, 1, 3, 3, generator=gen)
        return X, (X.mean((1, 2, 3)) > 0).long() + (X[:, 0, 0, 0] > 0).long()

    return batch_fn


@pytest.mark.parametrize("centered", [True, False])
def test_loss_and_centering_come_from_the_sweep_and_models_may_be_convolutions(centered):
    def plain(model, model0, X_tr, y_tr):
        output = model(X_tr) - model0(X_tr).detach() if centered else model(X_tr)
        value = nn.functional.cross_entropy(output, y_tr)
        gradients = torch.autograd.grad(value, list(model.parameters()))
        return torch.cat([g.flatten() for g in gradients]).norm()

    measured = {name: grab for name, grab in GRABS.items() if name != "monomial_coefficients"}
    ours = Sweep(
        "s",
        AXES,
        grabs={**measured, "plain": plain},
        batchfn=pictures,
        MODEL=Features,
        D_OUT=3,
        LOSS="cross_entropy",
        CENTERED=centered,
        N_SAMPLES=16,
        MAX_ITER=3,
        LR=0.5,
        LOSS_CHECKPOINTS=[],
    )
    configs = list(ours)
    (stack,) = assemble(ours, configs, [{}] * len(configs), torch.device("cpu"))
    got = stack.train().grabs
    np.testing.assert_allclose(got["gradient_norm"], got["plain"], rtol=1e-5)
    assert got["activations"].shape == got["activations of tests"].shape == (4, 3, 12)
    assert all(np.isfinite(values).all() for values in got.values())
    hessian = got["hessian_eigenvalues"]
    np.testing.assert_allclose(hessian[:, 0], got["sharpness"], rtol=1e-4)


def test_coefficients_approach_the_target_as_the_loss_falls():
    ours = sweep(
        grabs={"c": grabs.monomial_coefficients},
        monomials=[Monomial({0: 1}), Monomial({1: 1})],
        WIDTH=64,
        N_SAMPLES=256,
        N_TEST=2000,
        MAX_ITER=150,
        LR=0.1,
        GRAB_EVERY=10,
    )
    _, trained = run(ours, list(ours))
    (c,) = trained.grabs["c"]
    assert c.shape[1:] == (2,)
    loss = float(trained.train_loss[0, -1])
    assert loss < 0.05
    # E[(f - y)^2] is the sum of the squared errors of all coefficients.
    assert ((c[-1] - 0.5) ** 2).sum() < 1.5 * loss
    assert (np.abs(c[-1] - 0.5) < 0.5 * np.abs(c[0] - 0.5)).all()


def test_online_the_test_set_stays_the_same_while_the_batch_changes():
    def inputs(X_tr):
        return X_tr[:3]

    ours = sweep(AXES, grabs={"batch": inputs, "tests": on_test_set(inputs)})
    configs = list(ours)
    _, trained = run(ours, configs)
    batch, tests = trained.grabs["batch"], trained.grabs["tests"]
    assert batch.shape == tests.shape == (4, 4, 3, 3)
    assert (batch[:, 0] != batch[:, 1]).all()
    assert (tests == tests[:, :1]).all()
    trials = np.array([config.trial for config in configs])
    for a, b in np.ndindex(4, 4):  # paired across axes, different in trials
        assert (tests[a] == tests[b]).all() == (trials[a] == trials[b])


def test_online_the_held_out_loss_shows_what_minibatches_of_a_finite_set_do_not():
    X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(40, generator=torch.Generator().manual_seed(1))
    entries = {"X_train": X[:20], "y_train": noise[:20], "X_test": X[20:], "y_test": noise[20:]}
    ours = Sweep(
        "s",
        {"trial": range(2)},
        data=lambda: entries,
        batchfn=sample,
        grabs={"held_out": grabs.held_out_loss},
        N_SAMPLES=10,
        N_TEST=20,
        WIDTH=64,
        MAX_ITER=200,
        LR=0.2,
        ONLYTHRESHOLDS=False,
        LOSS_CHECKPOINTS=[],
    )
    configs = list(ours)
    (stack,) = assemble(ours, configs, [entries] * 2, torch.device("cpu"))
    trained = stack.train()
    held_out = trained.grabs["held_out"]
    assert np.isnan(trained.test_loss).all()  # it is evaluated on request only
    # Noise is learned by heart, and nothing of it carries over.
    assert (trained.train_loss[:, -1] < 0.5 * trained.train_loss[:, 0]).all()
    assert (held_out[:, -1] > held_out[:, 0]).all()
    assert held_out.shape == (2, 200)


def test_monomials_may_be_an_axis_of_one_or_several(tmp_path):
    several = [Monomial({0: 1}), [{0: 1}], [{0: 1}, {1: 2, 2: 1}, Monomial({2: 1})]]
    coordinates = [[0], [0], [0, 1, 2]]
    ours = Sweep(
        "monomials",
        {"monomials": several, "WIDTH": [6, 8]},
        data=power_law(d=3, alpha=1.0),
        batchfn=polynomial,
        grabs={
            "c": grabs.monomial_coefficients,
            "readin": grabs.readin_gram_diagonal,
            "readout": functools.partial(grabs.gram_diagonal, layer=-1),
            "kernel": on_test_set(grabs.empirical_ntk, rows=5),
            "held_out": grabs.held_out_loss,
        },
        N_SAMPLES=16,
        N_TEST=32,
        MAX_ITER=4,
        LOSS_CHECKPOINTS=[],
    )
    results = launch(ours, executor="debug", runs_dir=tmp_path).collect()
    assert (results["status"] == "done").all()
    shapes = {name: results[name].shape for name in ours.grabs}
    assert shapes == {
        "c": (3, 2, 3),
        "readin": (3, 2, 3),
        "readout": (3, 2, 8),
        "kernel": (3, 2, 5, 5),
        "held_out": (3, 2),
    }
    for name in ("c", "readin"):
        for place, indices in enumerate(coordinates):
            found = np.isfinite(results[name].values[place]).sum(axis=-1)
            assert (found == len(indices)).all(), name
    assert np.isfinite(results["readout"].values).sum(axis=-1).tolist() == [[6, 8]] * 3
    assert np.isfinite(results["kernel"].values).all()
    # A list of one is the same target as its monomial.
    for name in shapes:
        np.testing.assert_array_equal(results[name].values[0], results[name].values[1])


def test_arguments_of_a_grab_may_be_axes_whether_it_is_named_or_given():
    axes = {"layer": [0, 1, -1]}
    named = sweep(axes, OTHER_MODEL_GRABS={"trace": "gram_trace"}, ONLYTHRESHOLDS=True)
    given = sweep(axes, grabs={"trace": grabs.gram_trace}, ONLYTHRESHOLDS=True)
    stack, trained = run(named, list(named))
    _, same = run(given, list(given))
    expected = [
        grabs.gram_trace(model, layer=layer)
        for model, layer in zip(stack.models, axes["layer"], strict=True)
    ]
    np.testing.assert_allclose(trained.grabs["trace"], torch.stack(expected), rtol=1e-6)
    np.testing.assert_array_equal(trained.grabs["trace"], same.grabs["trace"])
    assert len(set(trained.grabs["trace"])) == 3


def _of_the_library(name):
    """Return a grab of the library with the arguments that it needs, and few values."""
    of_matrix = {"diagonal": {}, "entry": {"i": 0}, "trace": {}}
    if name in of_matrix:
        return named_grab(name, matrix="gram", arguments=of_matrix[name])
    few = {"count": 2, "rows": 4}
    grab = getattr(grabs, name)
    return functools.partial(grab, **{k: few[k] for k in few.keys() & declared(grab)})


@pytest.mark.slow
def test_every_grab_of_the_library_names_what_it_measures(workplace):
    of_library = {name: _of_the_library(name) for name in grab_names()}
    assert all(labels_of(grab).long_name for grab in of_library.values())
    several = {
        "of pairs": functools.partial(grabs.empirical_ntk, outputs="full", rows=4),
        "basis": functools.partial(grabs.monomial_coefficients, basis=[{0: 1}, {1: 2}]),
        "outputs": functools.partial(grabs.gram_diagonal, layer=1, side="output"),
    }
    run = launch(sweep(grabs={**of_library, **several}), executor="debug")
    dataset = run.collect()
    assert set(dataset) > set(of_library)
    for name, variable in dataset.variables.items():
        assert not [dim for dim in variable.dims if re.search(r"_dim\d*$", dim)], name
        assert {"long_name", "units", "description"} <= variable.attrs.keys(), name
    own = {name: dataset[name].dims[2:] for name in ("empirical_ntk", "of pairs", "outputs")}
    assert own == {
        "empirical_ntk": ("empirical_ntk_sample", "empirical_ntk_other_sample"),
        "of pairs": tuple(f"of_pairs_{d}sample" for d in ("", "other_"))
        + tuple(f"of_pairs_{d}output" for d in ("", "other_")),
        "outputs": ("outputs_index",),
    }
    assert dataset.basis_monomial.values.tolist() == ["$x_{0}$", "$x_{1}^2$"]
    assert dataset.basis_monomial.description == "monomial along which the grab 'basis' has values"
    assert dataset.sel(basis_monomial=Monomial({1: 2})).basis.shape == (1, 4)
    assert dataset.gram_diagonal_index.values.tolist() == [0, 1]  # those of the target
    for file in ("all.nc", "all.zarr"):
        xr.testing.assert_identical(run.collect(file).load(), dataset)
