"""Dictionaries and named dimensions in datasets and files."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from mlpsubmit.results import to_dataset, write
from mlpsubmit.results.grab_arrays import array_name, grab_of
from mlpsubmit.results.labels import Labels
from tests.results.conftest import FakeSource, make_layout, make_pack

LAYER = Labels(("layer",), {"layer": ("first", "second", "last")}, "nats", "norm of the weight")


def labelled(labels, **axes):
    return replace(make_layout(**(axes or {"depth": [1, 2]})), labels=labels)


def source(**arrays):
    return FakeSource(
        [make_pack([0], grab__n=[[1.0, 2.0]], **arrays), make_pack([1], grab__n=[[1.0, 2.0, 3.0]])]
    )


@pytest.mark.parametrize("key", [None, "", "key", "a.b", "]x[", "\n", "0"])
@pytest.mark.parametrize("grab", ["g", "a.b", "[3].abc", "grab[1].x", "é\n/"])
def test_names_of_arrays_are_read_back(grab, key):
    assert grab_of(array_name(grab, key)) == (grab, key)


@pytest.mark.parametrize(
    "name", ["train_loss", "grab", "grab[", "grab[9].abc", "grab[x].a.b", "grab[-1].a.b"]
)
def test_other_arrays_are_of_no_grab(name):
    assert grab_of(name) is None


def test_dims_coords_units_and_long_names_are_those_of_the_labels():
    dataset = to_dataset(labelled({"n": LAYER}), source())
    assert dataset.n.dims == ("depth", "layer")
    assert dataset.n.attrs == {
        "long_name": "norm of the weight",
        "units": "nats",
        "description": "result of the grab 'n', after the last step; NaN where missing",
    }
    assert dataset.n.sel(depth=2, layer="last") == 3
    assert np.isnan(dataset.n.sel(depth=1, layer="last"))


def test_dictionaries_are_variables_of_their_own_and_share_dimensions():
    packs = FakeSource(
        [
            make_pack([0], **{"grab[1].n.w": [[1, 2]], "grab[1].n.b": [[3, 4]]}),
            make_pack([1], **{"grab[1].n.w": [[1, 2]], "grab[1].n.x y/z": [5], "grab.m": [[6, 7]]}),
        ]
    )
    labels = {
        "n": Labels({"w": ("layer",)}, {}, {"w": "nats"}),
        "m": Labels(("layer",), {"layer": (0, 1)}),
    }
    dataset = to_dataset(labelled(labels), packs)
    assert dataset.n_w.dims == dataset.m.dims == ("depth", "layer")
    assert dataset.n_w.dtype == np.int64
    assert dataset.n_w.units == "nats"
    assert dataset.n_b.dims == ("depth", "n_b_dim0")
    assert np.isnan(dataset.n_b.sel(depth=2)).all()
    np.testing.assert_array_equal(dataset["n_x y_z"], [np.nan, 5])
    np.testing.assert_array_equal(dataset.layer, [0, 1])


def test_grabs_of_other_sizes_along_one_dimension_are_padded():
    packs = FakeSource(
        [make_pack([0, 1], grab__n=np.ones((2, 2), int), grab__m=np.ones((2, 3), int))]
    )
    dataset = to_dataset(labelled({"n": Labels(("layer",)), "m": Labels(("layer",))}), packs)
    assert dataset.sizes["layer"] == 3
    assert dataset.n.isnull().sum() == 2
    assert "layer" not in dataset.coords


def test_names_that_are_taken_give_way():
    packs = FakeSource(
        [
            make_pack(
                [0, 1],
                grab__layer=[1, 2],
                **{"grab[5].train.loss": [3, 4]},
                grab__n=np.ones((2, 1)),
            )
        ]
    )
    labels = {"n": Labels(("depth",)), "layer": Labels(), "train": Labels()}
    dataset = to_dataset(labelled(labels), packs)  # of a sweep.json that nobody has checked
    assert dataset.n.dims == ("depth", "depth_dim")
    np.testing.assert_array_equal(dataset.train_loss_grab, [3, 4])


def test_results_with_other_dimensions_than_their_labels_keep_numbers():
    with pytest.warns(UserWarning, match=r"grab 'n' has results of the shape \(2,\), and its dims"):
        dataset = to_dataset(labelled({"n": Labels(("a", "b"))}), source())
    assert dataset.n.dims == ("depth", "n_dim0")
    short = Labels(("layer",), {"layer": (1, 2)})
    assert "layer" not in to_dataset(labelled({"n": short}), source()).coords


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_files_have_the_labels(tmp_path, suffix, traced):
    large = np.arange(2 * 3 * 2 * 40.0).reshape(2, 3, 2, 40)
    arrays = {"grab[1].g.big": large if traced else large[:, 0]}
    arrays |= (
        {"grab_step": [0, 1, 2], "step": [0, 1, 2], "train_loss": np.ones((2, 3))} if traced else {}
    )
    labels = Labels({"big": ("layer", "unit")}, {"layer": ("in", "out")}, "nats", {"big": "values"})
    layout, packs = labelled({"g": labels}), FakeSource([make_pack([0, 1], **arrays)])
    path = write(layout, packs, tmp_path / f"out{suffix}")
    opened = xr.open_dataset(path, engine="h5netcdf") if suffix == ".nc" else xr.open_zarr(path)
    with opened:
        xr.testing.assert_identical(opened.load(), to_dataset(layout, packs))
        assert opened.g_big.attrs["long_name"] == "values"
        assert opened.g_big.attrs["units"] == "nats"
        assert opened.layer.values.tolist() == ["in", "out"]


def test_tables_and_pickles_have_columns_per_key(tmp_path):
    packs = FakeSource([make_pack([0, 1], **{"grab[1].n.w": np.ones((2, 2))}, grab__n=[[1], [2]])])
    layout = labelled({"n": Labels({"w": ("layer",)}, {"layer": (5, 6)})})
    header = write(layout, packs, tmp_path / "out.csv").read_text().splitlines()[0].split(",")
    assert header[-3:] == ["n[0]", "n_w[0]", "n_w[1]"]
    with write(layout, packs, tmp_path / "out.pkl").open("rb") as file:
        assert set(pickle.load(file)["extras"]) == {"n", "n_w"}
