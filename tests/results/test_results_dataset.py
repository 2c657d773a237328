from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpsubmit.errors import UserError
from mlpsubmit.results import Dimension, Layout, to_dataset, write
from mlpsubmit.results.source import Text

NAN = np.nan


def values(dataset, name):
    return dataset[name].values.tolist()


def test_final_values_are_labelled_and_missing_points_are_nan(fakes):
    layout = fakes.layout(
        width=[64, 256], gamma=[0.1, 1], thresholds=[0.15, 0.1], attributes={"name": "staircase"}
    )
    one = fakes.pack([0, 3], thresholds=2, timekeys=[[5, -1], [0, 9]], status=np.uint8([1, 2]))
    dataset = to_dataset(layout, fakes.Source([one]))

    assert dataset["train_loss"].dims == ("width", "gamma")
    assert dataset["timekeys"].dims == ("width", "gamma", "threshold")
    assert values(dataset, "width") == [64, 256]
    assert dataset["train_loss"].sel(width=256, gamma=1).item() == 4.0
    assert math.isnan(dataset["train_loss"].sel(width=64, gamma=1))
    assert values(dataset, "status") == [["done", "missing"], ["missing", "diverged"]]
    never = dataset.sel(width=64, gamma=0.1)
    np.testing.assert_array_equal(never["timekeys"], [5, np.nan])
    assert never["crossed"].values.tolist() == [True, False]
    missing = dataset.sel(width=256, gamma=0.1)
    assert np.isnan(missing["timekeys"]).all()
    assert not missing["crossed"].any()
    assert (dataset["crossed"].dims, dataset["crossed"].dtype) == (dataset["timekeys"].dims, bool)
    np.testing.assert_array_equal(dataset["steps"], [[10, NAN], [NAN, 13]])
    np.testing.assert_array_equal(dataset["seconds"], [[0, NAN], [NAN, 0.75]])
    assert "error" not in dataset
    assert len(dataset.attrs.pop("results_hash")) == 32
    assert dataset.attrs == {
        "Conventions": "CF-1.11",
        "name": "staircase",
        "n_configs": 4,
        "n_missing": 2,
        "n_done": 1,
        "n_diverged": 1,
        "n_failed": 0,
        "n_excluded": 0,
    }


def test_a_failure_is_recorded_unless_the_config_has_a_result(fakes):
    layout = fakes.layout(trial=range(4), included=np.array([True, True, True, False]))
    failures = [
        fakes.Failure(np.array([0, 1]), "ValueError: boom\0\ud800"),
        fakes.Failure(np.array([1]), "MemoryError"),
    ]
    dataset = to_dataset(layout, fakes.Source([fakes.pack([0])], failures))
    assert values(dataset, "status") == ["done", "failed", "missing", "excluded"]
    assert values(dataset, "error") == ["", "MemoryError", "", ""]
    dataset = to_dataset(layout, fakes.Source([], failures[:1]))
    assert values(dataset, "error") == [r"ValueError: boom\0\ud800"] * 2 + ["", ""]


def test_what_trained_together_is_said_where_a_pack_was_halved(fakes):
    layout = fakes.layout(trial=range(6))
    planned = fakes.pack([0, 1])
    assert "trained_together" not in to_dataset(layout, fakes.Source([planned]))
    halved = fakes.pack([2, 3, 4], trained_together=np.array([2, 2, 1]))
    dataset = to_dataset(layout, fakes.Source([planned, halved]))
    np.testing.assert_array_equal(dataset["trained_together"], [NAN, NAN, 2, 2, 1, NAN])
    assert dataset["trained_together"].dtype == np.float64
    # A later result, of a pack as planned, takes it back.
    anew = fakes.pack([2, 3, 4])
    assert "trained_together" not in to_dataset(layout, fakes.Source([halved, anew]))
    # A grab of that name makes way.
    grab = fakes.pack([0], grab__trained_together=[7.0])
    dataset = to_dataset(layout, fakes.Source([grab, halved]))
    assert dataset["trained_together_grab"][0] == 7.0
    assert np.isnan(dataset["trained_together"][0])


@pytest.mark.parametrize("ending", [".nc", ".zarr"])
def test_counts_are_integers_with_a_fill_value_in_files(fakes, tmp_path, ending):
    layout = fakes.layout(trial=range(3))
    halved = fakes.pack([0, 1], trained_together=np.array([2, 2]))
    whole = to_dataset(layout, fakes.Source([halved, fakes.pack([2])]))
    assert whole.steps.dtype == np.int64
    path = write(layout, fakes.Source([halved]), tmp_path / f"r{ending}")
    opener = partial(xr.open_dataset, engine="h5netcdf") if ending == ".nc" else xr.open_zarr
    for name, expected in (("steps", [10, 11]), ("trained_together", [2, 2])):
        with opener(path) as opened:
            np.testing.assert_array_equal(opened[name], [*expected, NAN])
        with opener(path, mask_and_scale=False) as stored:
            assert stored[name].dtype == np.int64
            assert stored[name].values.tolist() == [*expected, -1]
            assert stored[name].attrs["_FillValue"] == -1


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_every_variable_and_coordinate_says_what_it_is(fakes, data):
    layout = data.draw(fakes.layouts())
    dataset = to_dataset(layout, data.draw(fakes.sources(layout)))
    for name, variable in dataset.variables.items():
        assert all(variable.attrs[key] for key in ("long_name", "units", "description")), name
    assert dataset.seconds.attrs["units"] == "s"


def test_axes_are_described_by_their_layout(fakes):
    text = Text("learning rate", "LR: base learning rate", "1/step")
    layout = replace(fakes.layout(lr=[0.1], my_axis=[1]), texts={"lr": text})
    dataset = to_dataset(layout, fakes.Source())
    assert dataset.lr.attrs == {
        "long_name": "learning rate",
        "units": "1/step",
        "description": "LR: base learning rate",
    }
    assert dataset.my_axis.attrs["long_name"] == "my axis"
    assert dataset.my_axis.attrs["description"] == "axis my_axis of the sweep"


def test_without_any_result_everything_is_missing(fakes):
    dataset = to_dataset(fakes.layout(width=[1, 2], thresholds=[0.1]), fakes.Source())
    assert values(dataset, "status") == ["missing", "missing"]
    for name in ("train_loss", "test_loss", "timekeys", "steps", "seconds"):
        assert dataset[name].isnull().all()


def test_a_sweep_of_one_config_has_no_dimensions(fakes):
    dataset = to_dataset(fakes.layout(), fakes.Source([fakes.pack([0], grab__norm=[2.0])]))
    assert dataset["train_loss"].dims == ()
    assert dataset["status"].item() == "done"
    assert dataset["norm"].item() == 2.0


def test_zipped_axes_are_coordinates_of_one_dimension(fakes):
    zipped = Dimension("width_lr", {"width": (64, 256), "lr": (0.1, 0.03)})
    layout = Layout((zipped, Dimension("act", {"act": ("relu", "x^2")})), (), {})
    dataset = to_dataset(layout, fakes.Source([fakes.pack([3])]))
    assert dataset["status"].dims == ("width_lr", "act")
    assert dataset["width"].dims == dataset["lr"].dims == ("width_lr",)
    assert "width_lr" not in dataset.coords
    assert dataset.set_xindex("lr").sel(lr=0.03, act="x^2")["train_loss"] == 4.0


@pytest.mark.parametrize(
    ("given_values", "kind", "kept"),
    [
        ((1, 2), "i", [1, 2]),
        ((1, 0.5), "f", [1.0, 0.5]),
        ((np.float64(0.5), np.int64(2)), "f", [0.5, 2.0]),
        ((True, False), "b", [True, False]),
        (("a", 1), "U", ["a", "1"]),
        ((True, 1), "U", ["True", "1"]),
        ((2**70, 1), "U", [str(2**70), "1"]),
    ],
)
def test_coordinates_have_one_plain_type(fakes, given_values, kind, kept):
    coordinate = to_dataset(fakes.layout(a=given_values), fakes.Source())["a"]
    assert coordinate.dtype.kind == kind
    assert coordinate.values.tolist() == kept


def test_traces_stand_at_their_own_steps(fakes):
    layout = fakes.layout(max_iter=[3, 6])
    short = fakes.pack(
        [0], step=[0, 1, 2], train_loss=[[3.0, 2, 1]], eval_step=[0, 2], test_loss=[[9.0, 8]]
    )
    long = fakes.pack(
        [1], step=[0, 2, 5], train_loss=[[6.0, 5, 4]], eval_step=[5], test_loss=[[7.0]]
    )
    dataset = to_dataset(layout, fakes.Source([short, long]))
    assert dataset["train_loss"].dims == ("max_iter", "step")
    assert dataset["test_loss"].dims == ("max_iter", "eval_step")
    assert values(dataset, "step") == [0, 1, 2, 5]
    assert values(dataset, "eval_step") == [0, 2, 5]
    np.testing.assert_array_equal(dataset["train_loss"], [[3, 2, 1, NAN], [6, NAN, 5, 4]])
    np.testing.assert_array_equal(dataset["test_loss"], [[9, 8, NAN], [NAN, NAN, 7]])


def test_what_is_recorded_at_the_same_steps_shares_a_dimension(fakes):
    traces = {
        "step": [0, 4],
        "train_loss": [[1.0, 2]],
        "eval_step": [0, 4],
        "test_loss": [[3.0, 4]],
    }
    pack = fakes.pack([0], **traces, grab_step=[0, 4], grab__norm=[[5, 6]])
    dataset = to_dataset(fakes.layout(), fakes.Source([pack]))
    for name in ("train_loss", "test_loss", "norm"):
        assert dataset[name].dims == ("step",)
    assert "eval_step" not in dataset.coords
    assert "grab_step" not in dataset.coords
    assert dataset["norm"].dtype == np.int64

    pack = fakes.pack([0], **traces, grab_step=[4], grab__norm=[[6]])
    dataset = to_dataset(fakes.layout(), fakes.Source([pack]))
    assert dataset["norm"].dims == ("grab_step",)


def test_final_values_among_traces_stand_at_the_last_step(fakes):
    traced = fakes.pack([0], step=[0, 4], train_loss=[[1.0, 2]], test_loss=[[3.0, 4]])
    final = fakes.pack([1], steps=[8])
    dataset = to_dataset(fakes.layout(onlythresholds=[0, 1]), fakes.Source([traced, final]))
    assert values(dataset, "step") == [0, 4, 7]
    np.testing.assert_array_equal(dataset["train_loss"], [[1, 2, NAN], [NAN, NAN, 2]])
    np.testing.assert_array_equal(dataset["test_loss"], [[3, 4, NAN], [NAN, NAN, 3]])


def test_grabs_of_other_shapes_are_padded(fakes):
    packs = [
        fakes.pack([0], grab__gram=np.ones((1, 2, 2), dtype=np.int64)),
        fakes.pack([1], grab__gram=np.full((1, 3, 1), 7)),
    ]
    gram = to_dataset(fakes.layout(width=[2, 3]), fakes.Source(packs))["gram"]
    assert gram.dims == ("width", "gram_dim0", "gram_dim1")
    np.testing.assert_array_equal(gram[0], [[1, 1], [1, 1], [NAN, NAN]])
    np.testing.assert_array_equal(gram[1], [[7, NAN], [7, NAN], [7, NAN]])


@pytest.mark.parametrize(
    ("dtype", "whole", "with_gaps"),
    [
        (np.int32, np.int32, np.float64),
        (np.bool_, np.bool_, np.float64),
        (np.float32, np.float32, np.float32),
        (np.float16, np.float32, np.float32),
        (np.complex64, np.complex64, np.complex64),
        (np.complex128, np.complex128, np.complex128),
        (">f8", np.float64, np.float64),
    ],
)
def test_a_grab_keeps_its_type_where_it_can(fakes, dtype, whole, with_gaps):
    source = fakes.Source([fakes.pack([0, 1], grab__g=np.ones(2, dtype))])
    assert to_dataset(fakes.layout(a=[0, 1]), source)["g"].dtype == whole
    grab = to_dataset(fakes.layout(a=[0, 1, 2]), source)["g"]
    assert grab.dtype == with_gaps
    assert grab.isnull().values.tolist() == [False, False, True]


def test_names_that_are_taken_get_a_suffix(fakes):
    pack = fakes.pack(
        [0], grab__steps=[1.0], grab__width=[2.0], grab__status=[3.0], **{"grab__a/b": [4.0]}
    )
    layout = Layout(
        (Dimension("step", {"step": (0,)}), Dimension("width", {"width": (1,)})), (), {}
    )
    dataset = to_dataset(layout, fakes.Source([pack]))
    grabs = {"steps_grab": 1, "width_grab": 2, "status_grab": 3, "a_b": 4}
    assert {name: dataset[name].item() for name in grabs} == grabs
    assert dataset["status"].dims == ("step_axis", "width")


def test_wrong_grabs_are_named(fakes):
    layout = fakes.layout(a=[0, 1])
    packs = [fakes.pack([0], grab__g=np.ones((1, 2))), fakes.pack([1], grab__g=np.ones((1, 2, 3)))]
    with pytest.raises(UserError, match=r"grab 'g' .* got the shapes \(2,\), \(2, 3\); make"):
        to_dataset(layout, fakes.Source(packs))
    with pytest.raises(UserError, match=r"grab 'g' must return numbers .* got the type <U3"):
        to_dataset(layout, fakes.Source([fakes.pack([0], grab__g=["abc"])]))


def test_an_overridden_pack_leaves_no_trace(fakes):
    """Neither its values, nor its steps, nor its shapes."""
    old = fakes.pack(
        [0, 1], step=[0, 9], train_loss=[[1.0, 2], [3, 4]], test_loss=[[1.0, 2], [3, 4]]
    )
    old.held["grab.g"] = np.ones((2, 5))
    new = [fakes.pack([i], grab__g=np.full((1, 2), i)) for i in (0, 1)]
    layout = fakes.layout(a=[0, 1])
    xr.testing.assert_identical(
        to_dataset(layout, fakes.Source([old, *new])), to_dataset(layout, fakes.Source(new))
    )


def test_packs_that_appear_while_a_run_is_read_are_left_out(fakes):
    layout = fakes.layout(a=range(9))
    first = [fakes.pack([1]), fakes.pack([3]), fakes.pack([1], train_loss=[7.0])]

    class Growing(fakes.Source):
        def packs(self):
            yield from super().packs()
            self.held.insert(1, fakes.pack([4 + len(self.held) % 5]))

    dataset = to_dataset(layout, Growing(list(first)))
    xr.testing.assert_identical(dataset, to_dataset(layout, fakes.Source(first)))
    assert dataset["train_loss"][1] == 7


def test_packs_that_disappear_while_a_run_is_read_are_named(fakes):
    class Shrinking(fakes.Source):
        def packs(self):
            yield from super().packs()
            self.held.pop()

    source = Shrinking([fakes.pack([0]), fakes.pack([1])])
    with pytest.raises(RuntimeError, match="packs disappeared while they were read: pack-1"):
        to_dataset(fakes.layout(a=range(9)), source)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_entry_is_that_of_the_last_pack_to_hold_it(fakes, data):
    """Against the obvious: one point, one step, one entry at a time."""
    layout = data.draw(fakes.layouts())
    source = data.draw(fakes.sources(layout))
    dataset = to_dataset(layout, source)
    failed = {int(i) for failure in source.failed for i in failure.indices}
    for point, where in enumerate(np.ndindex(*layout.shape)):
        holders = [pack for pack in source.held if point in pack["index"]]
        status = dataset["status"].values[where]
        if not holders:
            included = layout.included is None or layout.included[point]
            assert status == (
                "failed" if point in failed else "missing" if included else "excluded"
            )
            assert all(
                dataset[n][where].isnull().all() for n in ("train_loss", "timekeys", "steps")
            )
            continue
        pack = holders[-1]
        row = pack["index"].tolist().index(point)
        assert status == ("done", "diverged")[pack["status"][row] - 1]
        steps = [step if step >= 0 else np.nan for step in pack["timekeys"][row].tolist()]
        np.testing.assert_array_equal(dataset["timekeys"].values[where], steps)
        crossed = [step >= 0 for step in pack["timekeys"][row].tolist()]
        assert dataset["crossed"].values[where].tolist() == crossed
        for array, clock in (("train_loss", "step"), ("test_loss", "eval_step")):
            if array not in pack.arrays():
                assert dataset[array][where].isnull().all()
                continue
            check_entries(dataset[array][where], pack, row, array, clock)
        for array in pack.arrays():
            if array.startswith("grab."):
                name = {"grab.steps": "steps_grab"}.get(array, array[5:])
                check_entries(dataset[name][where], pack, row, array, "grab_step")


def check_entries(found, pack, row, array, clock):
    """What was recorded is there, and nothing else is."""
    recorded = pack[array][row]
    dim = next((dim for dim in found.dims if dim in ("step", "eval_step", "grab_step")), None)
    if dim is None:
        cells = {(): recorded}
    elif clock in pack.arrays():
        at = [found[dim].values.tolist().index(step) for step in pack[clock]]
        cells = {(place,): value for place, value in zip(at, recorded, strict=True)}
    else:
        cells = {(found.sizes[dim] - 1,): recorded}
    expected = {
        (*place, *inner): np.asarray(value)[inner]
        for place, value in cells.items()
        for inner in np.ndindex(*np.shape(value))
    }
    for entry in np.ndindex(*found.shape):
        value = found.values[entry]
        assert value == expected[entry] if entry in expected else np.isnan(value)


def test_the_package_imports_nothing_heavy():
    code = (
        "import sys, mlpsubmit.results, mlpsubmit.results.expt_trace, mlpsubmit.results.export\n"
        "mlpsubmit.results.write, mlpsubmit.results.plot, mlpsubmit.results.summary_table\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {
        "torch",
        "xarray",
        "pandas",
        "h5netcdf",
        "h5py",
        "zarr",
        "pyarrow",
        "matplotlib",
        "submitit",
    }
    assert heavy.isdisjoint(done.stdout.split())
    assert "mlpsubmit.jobs" not in done.stdout


def test_an_unknown_name_is_an_attribute_error():
    import mlpsubmit.results

    with pytest.raises(AttributeError, match="attribute nonsense"):
        _ = mlpsubmit.results.nonsense
    assert "ExptTrace" in dir(mlpsubmit.results)
