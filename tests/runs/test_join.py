"""Runs that are collected together, against a launch of the union of their sweeps."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from mlpsubmit import Sweep, collect, launch
from mlpsubmit.errors import UserError
from mlpsubmit.grabs import weight_norms
from mlpsubmit.results.join import join
from mlpsubmit.results.settings import hashes_of
from mlpsubmit.results.values import identity
from mlpsubmit.runs.value_labels import value_hash


def batches(bsz, gen, noise=0.25):
    def batch_fn(step):
        X = torch.randn(bsz, 3, generator=gen)
        return X, X[:, 0] + noise

    return batch_fn


def size(model):
    return sum(p.numel() for p in model.parameters())


def trained(axes, **given):
    """A finished run; what is on an axis is not fixed."""
    settings = {"MAX_ITER": 12, "N_SAMPLES": 4, "LOSS_CHECKPOINTS": [0.9, 0.5], "WIDTH": 4}
    settings |= {"batchfn": batches, "grabs": {"size": size, "norms": weight_norms}} | given
    names = {name for axis in axes for name in (axis if isinstance(axis, tuple) else [axis])}
    fixed = {name: value for name, value in settings.items() if name not in names}
    return launch(Sweep("study", axes=axes, **fixed), executor="debug", fresh=True)


def assert_same(found, expected):
    """The same variables with the same bits, where the union of the runs has results."""
    expected = expected.transpose(*found.status.dims, ...)
    inside = found.status != "excluded"
    assert set(found.variables) == set(expected.variables)
    for name, coordinate in found.coords.items():
        np.testing.assert_array_equal(coordinate, expected[name])
    for name, own in found.data_vars.items():
        if name != "seconds":
            assert own.dims == expected[name].dims
            xr.testing.assert_equal(own.where(inside), expected[name].where(inside))
            if own.dtype == expected[name].dtype:
                assert own.attrs == expected[name].attrs
            else:  # integers, of which some are excluded here
                assert expected[name].dtype.kind in "iu"
                assert own.attrs["description"].endswith("; NaN where missing")


def test_parts_of_an_axis_are_joined_to_what_one_launch_gives(workplace):
    parts = [trained({"WIDTH": own, "trial": range(2)}) for own in ([4, 8], [16, 8])]
    union = trained({"WIDTH": [4, 8, 16], "trial": range(2)})
    found, expected = collect(*parts), union.collect()
    assert_same(found, expected)
    assert (found.status == "done").all()
    assert found.steps.dtype == np.int64
    # The hash of all results, by which runs are compared, says the same.
    assert found.results_hash == expected.results_hash
    for name, own in expected.attrs.items():
        if name not in ("run", "created", "command"):
            assert found.attrs[name] == own, name
    lazily = collect(*(run.path for run in parts), out="all.nc")
    xr.testing.assert_identical(lazily.load(), found)
    assert_same(join([run.collect() for run in parts]), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "union"),
    [
        # A fixed setting of one is an axis of the other; what differs becomes an axis.
        (
            ({"LR": [0.1, 0.2]}, {"WIDTH": 4}),
            ({"WIDTH": [4, 8]}, {"LR": 0.2}),
            ({"WIDTH": [4, 8], "LR": [0.1, 0.2]}, {}),
        ),
        # Other thresholds, along an axis that numbers them.
        (
            ({"trial": range(2)}, {"LOSS_CHECKPOINTS": [0.9, 0.6, 0.3]}),
            ({"trial": range(2)}, {"LOSS_CHECKPOINTS": [0.8]}),
            ({"LOSS_CHECKPOINTS": [[0.9, 0.6, 0.3], [0.8]], "trial": range(2)}, {}),
        ),
        # Final values of one, traces of the other; other steps.
        (
            ({"trial": range(2)}, {"ONLYTHRESHOLDS": True}),
            ({"trial": range(2)}, {"ONLYTHRESHOLDS": False}),
            ({"ONLYTHRESHOLDS": [True, False], "trial": range(2)}, {}),
        ),
        (
            ({"GRAB_EVERY": [2]}, {"ONLYTHRESHOLDS": False, "RECORD_EVERY": 3}),
            ({"GRAB_EVERY": [5]}, {"ONLYTHRESHOLDS": False, "RECORD_EVERY": 3}),
            ({"GRAB_EVERY": [2, 5]}, {"ONLYTHRESHOLDS": False, "RECORD_EVERY": 3}),
        ),
        # Several settings at once: a zipped axis; arguments of functions, and metrics.
        (
            ({"trial": range(2)}, {"LR": 0.1, "noise": 0.5}),
            ({"trial": range(2)}, {"LR": 0.2, "noise": 0.1}),
            ({("LR", "noise"): [(0.1, 0.5), (0.2, 0.1)], "trial": range(2)}, {}),
        ),
        (
            ({"trial": range(2)}, {"METRICS": ["r2"], "METRIC_THRESHOLDS": {"test_r2": [0.0]}}),
            ({"trial": [0]}, {"METRICS": ["r2"], "METRIC_THRESHOLDS": {"test_r2": [-1.0, 0.1]}}),
            (
                {
                    "METRIC_THRESHOLDS": [{"test_r2": [0.0]}, {"test_r2": [-1.0, 0.1]}],
                    "trial": range(2),
                },
                {"METRICS": ["r2"]},
            ),
        ),
    ],
)
def test_settings_and_axes_that_differ(workplace, first, second, union):
    parts = [trained(axes, **settings) for axes, settings in (first, second)]
    axes, settings = union
    whole = trained(axes, **settings).collect()
    found = collect(*parts)
    assert_same(found, whole)
    again = join([run.collect() for run in parts])
    for name in found.data_vars:
        np.testing.assert_array_equal(again[name].values, found[name].values)


def test_a_grab_added_later_is_joined_to_the_same_configs(workplace):
    first = trained({"trial": range(2)}, grabs={"size": size})
    second = trained({"trial": range(2)}, grabs={"norms": weight_norms})
    with pytest.warns(UserWarning, match="has no grab"):
        found = collect(first, second)
    assert found["size"].values.tolist() == [41, 41]
    xr.testing.assert_equal(found.norms, second.collect().norms)


def from_a_file(bsz, gen):
    offset = float(Path("offset.txt").read_text())

    def batch_fn(step):
        X = torch.randn(bsz, 3, generator=gen)
        return X, X[:, 0] + offset

    return batch_fn


def test_results_that_differ_are_refused_before_a_file_is_made(workplace, mlpsubmit):
    runs = []
    for offset in ("0.5", "0.75"):  # which no setting tells
        Path("offset.txt").write_text(offset)
        with pytest.warns(UserWarning, match="keys do not cover what it holds"):
            runs.append(trained({"trial": [0, 1]}, batchfn=from_a_file, grabs={"size": size}).id)
    done = mlpsubmit("collect", *runs, "--out", "all.nc")
    assert done.code == 2
    assert f"run {runs[0]} and run {runs[1]} have different results for 2 configs:" in done.err
    assert re.search(r"\n  trial=1: .*train_loss [0-9.]+ and [0-9.]+", done.err)
    assert "a joined dataset has one result per config; collect these runs separately" in done.err
    assert not Path("all.nc").exists()


def test_the_command_joins_runs(workplace, mlpsubmit):
    first = trained({"WIDTH": [4, 8]}, LR=0.1)
    second = trained({"WIDTH": [8]}, LR=0.2)
    done = mlpsubmit("collect", first.id, second.id, "--out", "all.nc")
    assert done.code == 0
    assert "results: all.nc (3 of 3 configs of 2 runs)" in done.out
    assert "lr" in done.out
    with xr.open_dataset("all.nc", engine="h5netcdf") as found:
        assert found.status.dims == ("lr", "width")
    again = mlpsubmit("collect", second.id, first.id, "--no-table", "--out", "all.nc")
    assert again.code == 0  # of the same runs
    one = mlpsubmit("collect", second.id, "--out", "all.nc")
    assert one.code == 2
    both = "+".join(sorted([first.id, second.id]))
    assert f"has results of run {both}, not of run {second.id}" in one.err
    twice = mlpsubmit("collect", first.id, first.path)
    assert twice.code == 2
    assert f"run {first.id} is given several times; name each run once" in twice.err
    table = mlpsubmit("collect", first.id, second.id, "--no-table", "--out", "all.csv")
    assert table.code == 0
    rows = Path("all.csv").read_text().splitlines()
    assert len(rows) == 4
    assert rows[0].startswith("lr,width,")


def test_a_run_without_an_axis_of_another_is_refused(workplace, mlpsubmit):
    def other(bsz, gen, scale):
        return batches(bsz, gen, scale)

    first = trained({"trial": range(2)})
    sweep = Sweep(
        "other", axes={"scale": [1.0, 2.0]}, batchfn=other, MAX_ITER=2, N_SAMPLES=4, WIDTH=4
    )
    second = launch(sweep, executor="debug")
    done = mlpsubmit("collect", first.id, second.id)
    assert done.code == 2
    assert (
        f"run {second.id} has the axis scale, and run {first.id} neither that axis nor a setting "
        "scale; launch it with scale=VALUE, or join other runs" in done.err
    )
    assert not Path("joined.nc").exists()
    with pytest.raises(UserError, match="has the axis scale"):
        collect(first, second)


# ---- values are identified by what they are, and not by their texts ------------------------------


def using(bsz, gen, v=None):
    def batch_fn(step):
        X = torch.randn(bsz, 3, generator=gen)
        return X, X[:, 0]

    return batch_fn


def told(model, v=None):
    """A number that tells values of one text apart."""
    result = v(torch.tensor([-1.0, 0.5])).sum() if callable(v) else len(repr(v))
    return float(result) + (100.0 if isinstance(v, str) else 0.0)


def at_least(x):
    return functools.partial(torch.clamp, min=x)


def times(factor):
    def f(x):
        return x * factor

    return f


def of_values(axes, **given):
    return trained(axes, batchfn=using, grabs={"told": told}, MAX_ITER=2, **given)


def by_identity(dataset):
    """A dataset with the hashes of the values as its coordinate, sorted."""
    labels = dataset.v.values.tolist()
    hashes = hashes_of(labels, dataset.v.attrs)
    found = [identity(*pair) for pair in zip(labels, hashes, strict=True)]
    return dataset.assign_coords(v=found).sortby("v").drop_vars("seconds")


@pytest.mark.parametrize(
    ("first", "second", "union"),
    [
        (
            {"v": [torch.relu, torch.nn.functional.relu6], "trial": [0]},
            {"v": [torch.nn.functional.relu6, torch.relu], "trial": [1]},
            {"v": [torch.relu, torch.nn.functional.relu6], "trial": [0, 1]},
        ),
        (
            {"v": [at_least(0.0)], "trial": [0]},
            {"v": [at_least(0.0), at_least(1.0)], "trial": [0]},
            {"v": [at_least(0.0), at_least(1.0)], "trial": [0]},
        ),
        (
            {"v": [at_least(0.0), at_least(1.0)], "trial": [0]},
            {"v": [at_least(1.0), at_least(2.0)], "trial": [0]},
            {"v": [at_least(2.0), at_least(0.0), at_least(1.0)], "trial": [0]},
        ),
        (
            {"v": [times(1), times(2)], "trial": [0]},
            {"v": [times(2)], "trial": [1]},
            {"v": [times(1), times(2)], "trial": [0, 1]},
        ),
        ({"v": [1, "1"], "trial": [0]}, {"v": ["1"], "trial": [1]}, None),
        ({"v": [None], "trial": [0]}, {"v": ["None"], "trial": [1]}, None),
        ({"v": [2**53], "trial": [0]}, {"v": [2**53 + 1], "trial": [0]}, None),
    ],
)
def test_each_value_is_there_once(workplace, first, second, union):
    runs = [of_values(axes) for axes in (first, second)]
    if union is None:
        together = {"v": first["v"], "trial": first["trial"]}
        together["v"] = list({value_hash(one): one for one in first["v"] + second["v"]}.values())
        together["trial"] = sorted({*first["trial"], *second["trial"]})
        union = together
    found, expected = by_identity(collect(*runs)), by_identity(of_values(union).collect())
    inside = found.status != "excluded"
    assert int(inside.sum()) == found.attrs["n_configs"]
    for name in ("train_loss", "steps", "told", "status"):
        xr.testing.assert_equal(found[name].where(inside), expected[name].where(inside))
    datasets = [run.collect() for run in runs]
    xr.testing.assert_identical(by_identity(join(datasets)).told, found.told)
    # What is joined already is joined again; and from files.
    collect(*runs).to_netcdf("joined.nc", engine="h5netcdf")
    with xr.open_dataset("joined.nc", engine="h5netcdf") as read:
        again = join([read.load(), *datasets])
    xr.testing.assert_equal(by_identity(again).told, found.told)
    # Where it is fixed, too.
    fixed = of_values({"trial": second["trial"]}, v=second["v"][0])
    xr.testing.assert_equal(by_identity(collect(*runs, fixed)).told, found.told)


@pytest.mark.parametrize(
    ("one", "two", "apart"),
    [
        (torch.relu, torch.nn.functional.relu, True),
        (True, "True", True),
        (1, 1.0, False),
        ((0, 1), (0.0, 1.0), False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, False),
        (at_least(1.0), at_least(1.0), False),
    ],
)
def test_fixed_values_that_differ_become_an_axis(workplace, one, two, apart):
    runs = [of_values({"trial": [n]}, v=value) for n, value in enumerate((one, two))]
    found = collect(*runs)
    assert found.status.dims == (("v", "trial") if apart else ("trial",))
    assert found.attrs["n_configs"] == 2
    xr.testing.assert_equal(join([run.collect() for run in runs]), found)


def test_seeds_beyond_the_digits_of_floats_are_told_apart(workplace):
    runs = [of_values({"trial": [0]}, SEED=seed) for seed in (2**53, 2**53 + 1)]
    assert collect(*runs).seed.values.tolist() == [2**53, 2**53 + 1]


def test_a_batch_function_is_told_apart_by_its_code_and_not_by_the_arguments_that_are_settings(
    workplace,
):
    runs = [
        trained({"trial": [0]}, batchfn=functools.partial(batches, noise=noise), MAX_ITER=2)
        for noise in (0.5, 0.75)
    ]
    runs.append(trained({"trial": [0]}, batchfn=batches, noise=0.25, MAX_ITER=2))
    assert collect(*runs).status.dims == ("noise", "trial")
    positional = [functools.partial(noisy, noise) for noise in (0.5, 0.75)]
    runs = [trained({"trial": [0]}, batchfn=own, MAX_ITER=2) for own in positional]
    assert collect(*runs).sizes["batchfn"] == 2


def noisy(noise, bsz, gen):
    return batches(bsz, gen, noise)


def test_thresholds_of_both_kinds_are_joined(workplace):
    """Whichever of them lies along an axis."""
    parts = [
        trained({"PERCENT_THRESHOLDS": [[0.5], [0.3]], "trial": [0]}, LOSS_CHECKPOINTS=None),
        trained({"trial": [0]}, LOSS_CHECKPOINTS=[0.4]),
        trained({"LOSS_CHECKPOINTS": [[0.9], [0.7, 0.1]], "trial": [0]}),
    ]
    pairs = [(None, [0.5]), (None, [0.3]), ([0.4], None), ([0.9], None), ([0.7, 0.1], None)]
    union = trained({("LOSS_CHECKPOINTS", "PERCENT_THRESHOLDS"): pairs, "trial": [0]})
    expected = union.collect()
    for kept in ([0, 1], [1, 0], [0, 2], [2, 0], [0, 1, 2]):
        found = collect(*(parts[n] for n in kept))
        (dim, _) = found.status.dims
        at = {pair: n for n, pair in enumerate(zip(*_kinds(expected), strict=True))}
        own = expected.isel(
            {expected.status.dims[0]: [at[p] for p in zip(*_kinds(found), strict=True)]}
        )
        own = own.isel(threshold=slice(found.sizes["threshold"]))
        np.testing.assert_array_equal(found.timekeys, own.timekeys)
        np.testing.assert_array_equal(found.threshold_value, own.threshold_value)
        assert found.sizes[dim] == found.attrs["n_configs"]
        xr.testing.assert_equal(join([parts[n].collect() for n in kept]), found)


def _kinds(dataset):
    return dataset.loss_checkpoints.values.tolist(), dataset.percent_thresholds.values.tolist()
