"""Runs whose grabs return dictionaries and name their dimensions."""

from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr

from mlpsubmit import Sweep, grab, launch
from mlpsubmit.errors import SpecError, UserError
from mlpsubmit.grabs import singular_values, weight, weight_norms
from mlpsubmit.training import GrabError


def batches(bsz, gen):
    def batch_fn(step):
        X = torch.randn(bsz, 3, generator=gen)
        return X, X[:, 0]

    return batch_fn


def study(**further):
    settings = {"WIDTH": 4, "MAX_ITER": 6, "N_SAMPLES": 4, "LOSS_CHECKPOINTS": []} | further
    return Sweep("labelled", batchfn=batches, **settings)


def parts(model, depth):
    hidden = {f"hidden{i}": W.weight.norm() for i, W in enumerate(model.hidden_layers)}
    return {"first": model.input_layer.weight.norm(), **hidden}


def test_keys_that_differ_between_configs_and_named_layers(workplace):
    sweep = study(
        axes={"DEPTH": [1, 3], "trial": range(2)},
        grabs={"parts": parts, "norms": weight_norms},
        ONLYTHRESHOLDS=False,
        GRAB_EVERY=2,
    )
    run = launch(sweep, executor="debug")
    dataset = run.collect()
    assert dataset.norms.dims == ("depth", "trial", "grab_step", "layer")
    assert dataset.norms.long_name == "Frobenius norm of the weight"
    assert {"parts_first", "parts_hidden0", "parts_hidden1"} <= set(dataset)
    first = dataset.norms.isel(layer=0, drop=True)
    np.testing.assert_allclose(dataset.parts_first, first, rtol=1e-6)
    hidden = dataset.norms.sel(depth=3).isel(layer=2, drop=True)
    np.testing.assert_allclose(dataset.parts_hidden1.sel(depth=3), hidden, rtol=1e-6)
    assert dataset.parts_hidden1.sel(depth=1).isnull().all()
    assert dataset.norms.sel(depth=1).isel(layer=slice(2, None)).isnull().all()
    lazy = run.collect("labelled.nc")
    xr.testing.assert_identical(lazy.load(), dataset)


def test_dimensions_of_a_grabs_own_follow_its_name(workplace):
    @grab(dims=("_part",), coords=["in", "out"])
    def ends(model):
        return [model.input_layer.weight.norm(), model.output_layer.weight.norm()]

    grabs = {
        "ends": ends,
        "same": ends,
        "first": partial(weight, layer=0),
        "last": partial(weight, layer=-1),
        "spectrum": singular_values,
    }
    dataset = launch(study(grabs=grabs, axes={"trial": range(2)}), executor="debug").collect()
    assert dataset.ends.dims == ("trial", "ends_part")
    assert dataset.same_part.values.tolist() == ["in", "out"]
    assert dataset.first.sizes == {"trial": 2, "first_output": 4, "first_input": 3}
    assert dataset["last"].sizes == {"trial": 2, "last_output": 1, "last_input": 4}
    assert dataset.spectrum.dims == ("trial", "spectrum_number")
    assert dataset.spectrum.long_name == "singular value of the weight"
    np.testing.assert_allclose(
        dataset.ends.sel(ends_part="in") ** 2,
        (dataset["first"] ** 2).sum(["first_output", "first_input"]),
        rtol=1e-5,
    )


def test_new_labels_reuse_the_results(workplace):
    def scales(model):
        return torch.stack([p.norm() for p in model.parameters()])[:2]

    first = launch(study(grabs={"scales": scales}), executor="debug")
    marked = grab(dims="layer", coords=["in", "out"], units="nats")(scales)
    second = launch(study(grabs={"scales": marked}), executor="debug")
    assert second.id != first.id
    assert second.directory.sweep["reused"] == 1
    dataset = second.collect()
    assert dataset.scales.sel(layer="out") == first.collect().scales.isel(scales_dim0=1)
    assert dataset.scales.units == "nats"
    assert launch(study(grabs={"scales": marked}), executor="debug").id == second.id


def test_grabs_on_saved_networks_have_their_own_labels(workplace):
    @grab(dims={"all": "layer"}, units={"all": "nats"})
    def scales(model):
        norms = torch.stack([p.norm() for p in model.parameters()])
        return {"all": norms, "first": norms[0]}

    sweep = study(SAVE_WEIGHTS="final", grabs={"scales": scales}, axes={"trial": range(2)})
    run = launch(sweep, executor="debug")
    dataset, again = run.collect(), run.measure({"scales": scales})
    assert len(dataset.scales_all.attrs["function_hash"]) == 8
    for name in ("scales_all", "scales_first"):
        xr.testing.assert_identical(again[name], dataset[name])
    file = open(__file__)  # noqa: SIM115 - a function that holds one has no hash
    other = {"norms": "weight_norms", "scales": lambda: [1.0], "lines": lambda: file.fileno()}
    other = run.measure(other)
    file.close()
    assert other.norms.dims == ("trial", "layer")
    assert other.norms.function == "weight_norms"
    assert "function_hash" not in other.norms.attrs | other.lines.attrs
    assert other.scales.function == other.lines.function == "<lambda>"
    assert other.scales.function_hash != dataset.scales_all.function_hash
    with pytest.raises(SpecError, match=r"its dimension 'trial' and the axis 'trial'"):
        run.measure({"g": grab(dims="trial")(scales)})


@pytest.mark.parametrize(
    ("function", "labels", "message"),
    [
        (lambda: 1, {"dims": "layer"}, r"shape \(\), which has 0 dimensions"),
        (lambda: [1, 2], {"dims": "layer", "coords": ["a"]}, r"2 values along 'layer', but its co"),
        (lambda: {"a": {"b": 1}}, {}, r"a dictionary within a dictionary, under 'a'"),
        (lambda: {"wieght": [1]}, {"dims": {"weight": "layer"}}, r"did you mean 'wieght'\?"),
    ],
)
def test_a_launch_refuses_what_does_not_fit(workplace, function, labels, message):
    with pytest.raises(GrabError, match=rf"grab 'g' .*{message}"):
        launch(study(grabs={"g": grab(**labels)(function)}), executor="debug")
    assert not (workplace / "mlpruns").exists()


def test_a_grab_with_state_is_named_whatever_it_returns(workplace):
    class Counter:
        calls = 0

        def __call__(self):
            self.calls += 1
            return {"calls": self.calls}

    with pytest.raises(UserError, match=r"grab 'g': its attribute 'calls' changes during the tra"):
        launch(study(grabs={"g": grab(units="1")(Counter())}), executor="debug")


@pytest.mark.slow
def test_functions_of_a_spec_travel_with_their_labels(workplace, mlpsubmit):
    (workplace / "spec.py").write_text(
        "import functools\n"
        "from mlpsubmit import Sweep, grab\n"
        "from tests.runs.test_labelled_grabs import batches\n\n\n"
        "@grab(dims=('layer',), coords={'layer': ['first', 'last']})\n"
        "def norms(model, scale):\n"
        "    return [scale * W.weight.norm() for W in (model.input_layer, model.output_layer)]\n\n"
        "sweep = Sweep('spec', batchfn=batches, WIDTH=4, MAX_ITER=5, N_SAMPLES=4,\n"
        "    grabs={'a': functools.partial(norms, scale=2),\n"
        "           'b': functools.partial(norms, scale=1),\n"
        "           'c': grab(dims='unit')(lambda model: model.output_layer.weight[0])})\n"
    )
    assert mlpsubmit("launch", "spec.py", "--executor", "local", "--follow").code == 0
    assert mlpsubmit("collect", "--out", "spec.nc").code == 0
    with xr.open_dataset("spec.nc", engine="h5netcdf") as dataset:
        assert dataset.a.sel(layer="first") == 2 * dataset.b.sel(layer="first")
        assert dataset.c.dims == ("unit",)
