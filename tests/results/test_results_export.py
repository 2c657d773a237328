from __future__ import annotations

import csv
import dataclasses
import errno
import os
import pickle
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpsubmit.errors import UserError
from mlpsubmit.results import Dimension, ExptTrace, Layout, to_dataset, write

ENDINGS = [".nc", ".zarr", ".parquet", ".csv", ".pkl"]


def opened(path: Path) -> xr.Dataset:
    if path.suffix == ".zarr":
        return xr.open_zarr(path)
    return xr.open_dataset(path, engine="h5netcdf")


def read_parquet(path: Path):
    pq = pytest.importorskip("pyarrow.parquet")
    return pq.read_table(path)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def traced(fakes):
    """Two finished configs with traces, one that failed, one left out."""
    traces = {"step": [0, 2], "train_loss": [[1.0, 0.5]], "grab_step": [2]}
    packs = [
        fakes.pack(
            [2],
            thresholds=1,
            **traces,
            eval_step=[0, 1],
            test_loss=[[4.0, 5]],
            grab__w=[[[1, 2]]],
        ),
        fakes.pack([0], thresholds=1, **traces, test_loss=[[2.0, 3]], grab__w=[[[3, 4]]]),
    ]
    layout = fakes.layout(
        thresholds=[0.1],
        included=np.array([True, True, True, False]),
        attributes={"name": "staircase", "n": 3},
        width=[64, 256],
        act=["relu", "x,y"],
    )
    return layout, fakes.Source(packs, [fakes.Failure(np.array([1]), "ValueError: a\nb")])


@pytest.mark.slow
@pytest.mark.parametrize("large_grab_bytes", [0, 256])
@pytest.mark.parametrize("ending", [".nc", ".zarr"])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_what_is_written_opens_to_the_same_dataset(
    fakes, tmp_path_factory, ending, large_grab_bytes, data
):
    layout = data.draw(fakes.layouts())
    source = data.draw(fakes.sources(layout))
    path = tmp_path_factory.mktemp("files") / f"results{ending}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlpsubmit.results.schema.SMALL_ROW_BYTES", large_grab_bytes)
        assert write(layout, source, path) == path
        expected = to_dataset(layout, source)
    with opened(path) as dataset:
        xr.testing.assert_identical(dataset.load(), expected)
        for name in expected.variables:
            assert dataset[name].dtype.kind in {expected[name].dtype.kind, "O", "U"}
    assert list(path.parent.iterdir()) == [path]


def test_traces_are_chunked_by_config(fakes, traced, tmp_path):
    path = write(*traced, tmp_path / "results.nc")
    with opened(path) as dataset:
        assert dataset["train_loss"].encoding["chunksizes"] == (1, 1, 2)


def test_a_row_larger_than_a_chunk_is_split(fakes, tmp_path, monkeypatch):
    monkeypatch.setattr("mlpsubmit.results.netcdf_zarr.CHUNK_BYTES", 100)
    gram = np.arange(1200.0).reshape(2, 30, 20)
    source = fakes.Source([fakes.pack([0, 1], grab__gram=gram)])
    path = write(fakes.layout(a=[0, 1]), source, tmp_path / "results.nc")
    with opened(path) as dataset:
        assert np.prod(dataset["gram"].encoding["chunksizes"]) * 8 <= 100
        np.testing.assert_array_equal(dataset["gram"], gram)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "configs", "steps", "limit"),
    [
        (".nc", 200, 10_000, 2e6),
        (".zarr", 200, 10_000, 12e6),  # its own buffers come and go
        # Slower, so less; made in one piece, these tables take 4 and 12 MB.
        (".parquet", 40, 500, 1e6),
        (".csv", 40, 500, 1e6),
    ],
)
def test_memory_stays_at_one_pack(fakes, tmp_path, monkeypatch, ending, configs, steps, limit):
    """Runs of 32 MB of traces or long tables, in packs of 5 configs."""
    monkeypatch.setattr("mlpsubmit.results.tables.CHUNK_BYTES", 30_000)

    def lazily(index):
        return fakes.pack(index).held | {
            "step": np.arange(steps),
            "train_loss": lambda: np.add.outer(index, np.arange(float(steps))),
            "test_loss": lambda: np.add.outer(index, np.arange(float(steps))) + 1,
        }

    packs = [fakes.Pack(f"p{i}", lazily(np.arange(i, i + 5))) for i in range(0, configs, 5)]
    layout, source = fakes.layout(a=range(configs)), fakes.Source(packs)
    write(fakes.layout(a=range(5)), fakes.Source(packs[:1]), tmp_path / f"warm-up{ending}")
    tracemalloc.start()
    try:
        path = write(layout, source, tmp_path / f"results{ending}")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit
    if ending in (".nc", ".zarr"):
        with opened(path) as dataset:
            assert dataset["test_loss"][-1, -1] == configs + steps - 1
    elif ending == ".parquet":
        assert read_parquet(path).num_rows == configs * steps


def test_csv_has_a_row_per_config_and_step(traced, tmp_path):
    text = write(*traced, tmp_path / "results.csv").read_text()
    assert text == (
        "width,act,step,status,error,steps,seconds,train_loss,test_loss,timekey_0.1,"
        "crossed_0.1,w[0],w[1]\n"
        "64,relu,0,done,,10,0.0,1.0,2.0,0,True,,\n"
        "64,relu,2,done,,10,0.0,0.5,3.0,0,True,3.0,4.0\n"
        '64,"x,y",,failed,"ValueError: a\nb",,,,,,,,\n'
        "256,relu,0,done,,12,0.5,1.0,4.0,2,True,,\n"
        "256,relu,1,done,,12,0.5,,5.0,2,True,,\n"
        "256,relu,2,done,,12,0.5,0.5,,2,True,1.0,2.0\n"
    )


def test_csv_without_traces_has_a_row_per_config(fakes, tmp_path):
    zipped = Dimension("width_lr", {"width": (64, 256), "lr": (0.1, 0.03)})
    layout = Layout((zipped,), (0.15, 0.1), {})
    pack = fakes.pack(
        [1], thresholds=2, timekeys=[[7, -1]], grab__z=[1 + 2j], grab__big=np.ones((1, 1000))
    )
    rows = read_csv(write(layout, fakes.Source([pack]), tmp_path / "results.csv"))
    assert [row["status"] for row in rows] == ["missing", "done"]
    assert (rows[0]["width"], rows[0]["lr"], rows[0]["train_loss"]) == ("64", "0.1", "")
    assert (rows[1]["timekey_0.15"], rows[1]["timekey_0.1"]) == ("7", "")
    assert (rows[1]["crossed_0.15"], rows[1]["crossed_0.1"]) == ("True", "False")
    assert (rows[0]["timekey_0.1"], rows[0]["crossed_0.1"]) == ("", "")
    assert (rows[1]["z.real"], rows[1]["z.imag"], rows[1]["big[999]"]) == ("1.0", "2.0", "1.0")


def test_files_say_what_trained_together_where_a_pack_was_halved(fakes, tmp_path):
    layout = fakes.layout(trial=range(3))
    packs = [fakes.pack([0]), fakes.pack([1, 2], trained_together=np.array([1, 1]))]
    for ending in ENDINGS:
        path = write(layout, fakes.Source(packs), tmp_path / f"results{ending}")
        if ending == ".csv":
            assert [row["trained_together"] for row in read_csv(path)] == ["", "1", "1"]
        elif ending == ".parquet":
            assert read_parquet(path)["trained_together"].to_pylist() == [None, 1, 1]
        elif ending != ".pkl":  # whose keys are MLPscape's
            with opened(path) as dataset:
                np.testing.assert_array_equal(dataset["trained_together"], [np.nan, 1, 1])


def test_csv_rows_end_where_they_should(fakes, tmp_path):
    layout = fakes.layout(a=["x\r", 'y"\n'])
    path = write(layout, fakes.Source(), tmp_path / "results.csv")
    assert [row["a"] for row in read_csv(path)] == ["x\\r", 'y"\n']


def test_csv_refuses_large_arrays(fakes, tmp_path):
    source = fakes.Source([fakes.pack([0], grab__gram=np.ones((1, 40, 40)))])
    with pytest.raises(UserError, match=r"grab 'gram' has 1,600 entries per row, too many .* \.nc"):
        write(fakes.layout(), source, tmp_path / "results.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_threshold_that_a_config_does_not_have_is_empty(fakes, tmp_path):
    layout = dataclasses.replace(
        fakes.layout(thresholds=[0, 1], trial=range(2), few=[False, True]),
        threshold_axis=("few", [[0.5, 0.1], [0.5]]),
    )
    pack = fakes.pack([0, 1, 2], thresholds=2, timekeys=[[3, -1], [3, -1], [4, 9]])
    rows = read_csv(write(layout, fakes.Source([pack]), tmp_path / "results.csv"))
    assert [row["crossed_1"] for row in rows] == ["False", "", "True", ""]
    assert [row["crossed_0"] for row in rows] == ["True", "True", "True", ""]
    assert [row["timekey_1"] for row in rows] == ["", "", "9", ""]


def test_parquet_has_nulls_and_lists(traced, tmp_path):
    table = read_parquet(write(*traced, tmp_path / "results.parquet"))
    rows = table.to_pylist()
    assert [row["step"] for row in rows] == [0, 2, None, 0, 1, 2]
    assert [row["train_loss"] for row in rows] == [1.0, 0.5, None, 1.0, None, 0.5]
    assert [row["w"] for row in rows] == [
        [None] * 2,
        [3, 4],
        [None] * 2,
        [None] * 2,
        [None] * 2,
        [1, 2],
    ]
    assert [row["steps"] for row in rows] == [10, 10, None, 12, 12, 12]
    assert str(table.schema.field("timekey_0.1").type) == "int64"
    assert str(table.schema.field("crossed_0.1").type) == "bool"
    assert [row["crossed_0.1"] for row in rows] == [True, True, None, True, True, True]
    assert b'"name": "staircase"' in table.schema.metadata[b"mlpsubmit"]


def test_parquet_nests_the_lists_of_matrices(fakes, tmp_path):
    gram = np.arange(12.0).reshape(2, 2, 3)
    source = fakes.Source([fakes.pack([0, 1], grab__gram=gram)])
    table = read_parquet(write(fakes.layout(a=[0, 1]), source, tmp_path / "results.parquet"))
    assert table["gram"].to_pylist() == gram.tolist()


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(data=st.data(), batch=st.sampled_from([1, 200, 2**22]))
def test_both_tables_hold_the_dataset_whatever_the_batches(fakes, tmp_path_factory, data, batch):
    layout = data.draw(fakes.layouts())
    source = data.draw(fakes.sources(layout))
    folder = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlpsubmit.results.tables.CHUNK_BYTES", batch)
        rows = read_csv(write(layout, source, folder / "results.csv"))
        table = read_parquet(write(layout, source, folder / "results.parquet")).to_pylist()
    expected = list(expected_rows(layout, to_dataset(layout, source)))
    names = ("status", "step", "train_loss", "test_loss")
    assert [tuple(row.get(name) for name in names) for row in table] == expected
    found = [tuple(row.get(name) or None for name in names) for row in rows]
    assert found == [
        tuple(None if value is None else str(value) for value in row) for row in expected
    ]


def expected_rows(layout, dataset):
    """The obvious table: (status, step, train loss, test loss), entry by entry."""
    clocks = [dim for dim in ("step", "eval_step", "grab_step") if dim in dataset.dims]
    traces = [v for v in dataset.data_vars.values() if set(v.dims) & set(clocks)]
    ticks = sorted({int(step) for dim in clocks for step in dataset[dim].values})

    def entries(variable, where, tick):
        clock = next((dim for dim in variable.dims if dim in clocks), None)
        if clock is None:
            return [variable.values[where]]
        steps = dataset[clock].values.tolist()
        return variable.values[(*where, steps.index(tick))].ravel() if tick in steps else [np.nan]

    def loss(name, where, tick):
        value = float(entries(dataset[name], where, tick)[0])
        return None if np.isnan(value) else value

    for where in np.ndindex(*layout.shape):
        status = str(dataset["status"].values[where])
        if status == "excluded":
            continue
        kept = [t for t in ticks if not all(np.isnan(entries(v, where, t)).all() for v in traces)]
        for tick in kept or [None]:
            losses = (loss(name, where, tick) for name in ("train_loss", "test_loss"))
            yield (status, tick, *losses)


def test_pickle_is_the_dictionary_of_mlpscape(fakes, tmp_path):
    zipped = Dimension("width_lr", {"width": (64, 256), "lr": (0.1, 0.03)})
    layout = Layout((zipped, Dimension("m", {"m": ("x0", "x1")})), (0.15, 0.1), {})
    packs = [
        fakes.pack([3], thresholds=2, grab__w=[[5.0, 6]]),
        fakes.pack([0], thresholds=2, grab__w=[[7.0, 8]]),
    ]
    path = write(
        layout, fakes.Source(packs, [fakes.Failure(np.array([1]), "E")]), tmp_path / "r.pkl"
    )
    result = pickle.loads(path.read_bytes())
    assert result["jobs"] == [(64, 0.1, "x0"), (256, 0.03, "x1")]
    assert result["var_axes"] == ["width", "lr", "m"]
    losses = ExptTrace.deserialize(result["losses"])
    assert [losses[job].item() for job in result["jobs"]] == [2.0, 5.0]
    assert result["timekeys"]["vals"][256, 0.03, "x1"].tolist() == [3, 4]
    assert result["timekeys"]["vals"][256, 0.03, "x1"].dtype == np.int64
    assert ExptTrace.deserialize(result["extras"]["w"])[64, 0.1, "x0"].tolist() == [7, 8]
    assert set(result) == {"jobs", "var_axes", "losses", "timekeys", "extras"}


@pytest.mark.parametrize("tested", [True, False])
def test_online_the_losses_of_a_pickle_are_train_losses(fakes, tmp_path, tested):
    """As in MLPscape; in a sweep of both, offline configs have test losses there."""
    steps = np.array([0, 4])
    online, offline = (
        fakes.pack(
            [i], step=steps, eval_step=steps + 1, train_loss=[[4.0, i]], test_loss=[[6.0, 5]]
        )
        for i in range(2)
    )
    if not tested:
        del online.held["test_loss"], online.held["eval_step"]
    layout = dataclasses.replace(
        fakes.layout(online=[True, False]), tested=tested, online=np.array([True, False])
    )
    path = write(layout, fakes.Source([online, offline]), tmp_path / "both.pkl")
    losses = ExptTrace.deserialize(pickle.loads(path.read_bytes())["losses"])
    np.testing.assert_array_equal(losses[True], [4, np.nan, 0, np.nan])
    np.testing.assert_array_equal(losses[False], [np.nan, 6, np.nan, 5])
    layout = dataclasses.replace(fakes.layout(lr=[0.1]), tested=tested, online=True)
    path = write(layout, fakes.Source([online]), tmp_path / "online.pkl")
    losses = ExptTrace.deserialize(pickle.loads(path.read_bytes())["losses"])
    assert losses[0.1].tolist() == [4, 0]


def test_pickle_needs_nothing_but_builtins_and_numpy(traced, tmp_path):
    class Numpy(pickle.Unpickler):
        def find_class(self, module, name):
            assert module.split(".")[0] == "numpy", (module, name)
            return super().find_class(module, name)

    with write(*traced, tmp_path / "results.pkl").open("rb") as file:
        result = Numpy(file).load()
    # The test losses of both configs, at the steps of either: 0, 1, 2.
    losses = ExptTrace.deserialize(result["losses"])
    np.testing.assert_array_equal(losses[256, "relu"], [4, 5, np.nan])
    np.testing.assert_array_equal(losses[64, "relu"], [2, np.nan, 3])


def test_booleans_are_0_and_1_in_a_pickle(fakes, tmp_path):
    source = fakes.Source([fakes.pack([0, 1], grab__flag=[True, False])])
    path = write(fakes.layout(a=[1, 2]), source, tmp_path / "results.pkl")
    trace = ExptTrace.deserialize(pickle.loads(path.read_bytes())["extras"]["flag"])
    assert [trace[1].item(), trace[2].item()] == [1, 0]


def test_pickle_says_which_axis_expt_trace_refuses(fakes, tmp_path):
    with pytest.raises(UserError, match=r"do not fit a \.pkl: variable name 'val' .* write \.nc"):
        write(fakes.layout(val=[1]), fakes.Source([fakes.pack([0])]), tmp_path / "results.pkl")
    source = fakes.Source([fakes.pack([0, 1])])
    with pytest.raises(UserError, match="already exists"):
        write(fakes.layout(a=[1, True]), source, tmp_path / "results.pkl")


def test_an_unknown_ending_lists_the_valid_ones(fakes, tmp_path):
    with pytest.raises(UserError) as caught:
        write(fakes.layout(), fakes.Source(), tmp_path / "results.xlsx")
    assert str(caught.value) == (
        "cannot write results.xlsx: unknown ending '.xlsx'; "
        "valid are .nc, .zarr, .parquet, .csv, .pkl"
    )


def test_without_an_ending_it_is_netcdf(fakes, tmp_path):
    assert write(fakes.layout(), fakes.Source(), tmp_path / "results") == tmp_path / "results.nc"
    assert (tmp_path / "results.nc").is_file()


@pytest.mark.parametrize(
    ("ending", "module", "hint"),
    [
        (".parquet", "pyarrow", "'mlpsubmit[parquet]'"),
        (".zarr", "zarr", "'mlpsubmit[zarr]'"),
    ],
)
def test_a_missing_extra_is_named(fakes, tmp_path, monkeypatch, ending, module, hint):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as caught:
        write(fakes.layout(), fakes.Source(), tmp_path / f"results{ending}")
    assert str(caught.value) == f"writing {ending} needs {module}; try: pip install {hint}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_second_write_replaces_the_first(fakes, tmp_path, ending):
    path = tmp_path / f"results{ending}"
    write(fakes.layout(old=[0, 1]), fakes.Source([fakes.pack([0])]), path)
    write(fakes.layout(new=[0]), fakes.Source([fakes.pack([0])]), path)
    assert list(tmp_path.iterdir()) == [path]
    fresh = write(fakes.layout(new=[0]), fakes.Source([fakes.pack([0])]), tmp_path / f"b{ending}")
    if ending in (".nc", ".zarr"):
        with opened(path) as dataset, opened(fresh) as expected:
            xr.testing.assert_identical(dataset, expected)
    else:
        assert path.read_bytes() == fresh.read_bytes()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("ending", ENDINGS)
def test_an_interrupted_write_leaves_the_old_file_alone(fakes, traced, tmp_path, ending, error):
    path = write(*traced, tmp_path / f"results{ending}")
    before = content(path)

    def broken():
        raise error

    layout, source = traced
    source.held[-1].held["test_loss"] = broken
    with pytest.raises(type(error)):
        write(layout, source, path)
    assert list(tmp_path.iterdir()) == [path]
    assert content(path) == before


@pytest.mark.parametrize("ending", [".nc", ".zarr"])
def test_a_failed_rename_leaves_the_old_file_alone(traced, tmp_path, monkeypatch, ending):
    path = write(*traced, tmp_path / f"results{ending}")
    before = content(path)
    rename = os.rename

    def failing(source, target):
        if Path(target) == path and not failing.done:
            failing.done = True
            raise OSError(errno.EIO, "rename failed")
        rename(source, target)

    failing.done = False
    monkeypatch.setattr(os, "rename", failing)
    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="rename failed"):
        write(*traced, path)
    assert list(tmp_path.iterdir()) == [path]
    assert content(path) == before


def content(path: Path) -> dict[Path, bytes]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {file: file.read_bytes() for file in files}


def test_what_is_not_ours_is_not_replaced(fakes, tmp_path):
    folder = tmp_path / "results.zarr"
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"results.zarr: it exists and is not a zarr store"):
        write(fakes.layout(), fakes.Source(), folder)
    (tmp_path / "results.nc").mkdir()
    with pytest.raises(UserError, match=r"results.nc: a directory has this name"):
        write(fakes.layout(), fakes.Source(), tmp_path / "results.nc")
    with pytest.raises(UserError, match=r"the folder .*nowhere does not exist"):
        write(fakes.layout(), fakes.Source(), tmp_path / "nowhere" / "results.nc")
    assert (folder / "thesis.tex").read_text() == "precious"
