"""Axes that change the shape of what is measured still give one dataset, in every format."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import xarray

from mlpsubmit import Sweep, launch
from mlpsubmit.results import ExptTrace, plot, summary_table


def noisy(bsz: int, gen: Any, d: int = 3) -> Any:
    import torch

    def batch_fn(step: int) -> Any:
        X = torch.randn(bsz, d, generator=gen)
        return X, X[:, 0]

    return batch_fn


def gram(model: Any) -> Any:
    weight = model.input_layer.weight
    return (weight.T @ weight).detach()


def trained(axes: dict[Any, Any], **settings: Any) -> Any:
    fixed = {"MAX_ITER": 20, "N_SAMPLES": 8, "WIDTH": 4, "LOSS_CHECKPOINTS": [1e-9], **settings}
    names = {name for key in axes for name in (key if isinstance(key, tuple) else (key,))}
    fixed = {name: value for name, value in fixed.items() if name not in names}
    run = launch(Sweep("shapes", axes, batchfn=noisy, **fixed), executor="debug")
    assert run.status().complete
    return run


def test_a_zipped_axis_may_repeat_values(workplace: Path) -> None:
    run = trained({("d", "LR", "LOSS"): [(2, 0.1, "mse"), (2, 0.2, "mse"), (3, 0.1, "mse")]})
    dataset = run.collect("out.nc")
    assert dataset.d.values.tolist() == [2, 2, 3]
    assert dataset.lr.values.tolist() == [0.1, 0.2, 0.1]
    assert dataset.loss.values.tolist() == ["mse"] * 3
    with xarray.open_dataset("out.nc", engine="h5netcdf") as opened:
        assert opened.d.values.tolist() == [2, 2, 3]
    for ending in ("csv", "parquet", "zarr", "pkl"):
        run.collect(f"out.{ending}")
    plot(dataset, out="out.png")
    assert pandas.read_csv("out.csv").lr.tolist() == [0.1, 0.2, 0.1]


def test_thresholds_as_an_axis(workplace: Path) -> None:
    run = trained({"LOSS_CHECKPOINTS": [[5.0], [5.0, 1e-9], []]})
    dataset = run.collect()
    assert dataset.threshold.values.tolist() == [0, 1]
    np.testing.assert_array_equal(dataset.timekeys, [[0, np.nan], [0, np.nan], [np.nan] * 2])
    assert dataset.crossed.values.tolist() == [[True, False], [True, False], [False, False]]
    values = [[5, np.nan], [5, 1e-9], [np.nan] * 2]
    np.testing.assert_array_equal(dataset.threshold_value, values)
    columns = [list(column.cells) for column in summary_table(dataset).columns[-2:]]
    assert [[str(cell) for cell in column] for column in columns] == [
        ["0", "0", "–"],
        ["–", "never", "–"],
    ]
    for ending in ("nc", "csv", "parquet", "zarr"):
        run.collect(f"out.{ending}")
    assert "threshold_value" not in pandas.read_csv("out.csv")
    run.collect("out.pkl")
    content = pickle.loads(Path("out.pkl").read_bytes())
    assert ExptTrace.deserialize(content["timekeys"])["(5.0, 1e-09)"].tolist() == [0, -1]


def test_lengths_of_training_and_schedules_as_axes(workplace: Path) -> None:
    axes = {"MAX_ITER": [5, 9], "RECORD_EVERY": [2, 4]}
    run = trained(axes, ONLYTHRESHOLDS=False, EVAL_EVERY=2)
    dataset = run.collect()
    assert dataset.step.values.tolist() == [0, 2, 4, 6, 8]
    recorded = dataset.train_loss.notnull()
    assert recorded.sel(max_iter=5, record_every=2).values.tolist() == [True] * 3 + [False] * 2
    assert recorded.sel(max_iter=9, record_every=4).values.tolist() == [True, False] * 2 + [True]


@pytest.mark.parametrize("ending", [".nc", ".zarr", ".parquet", ".csv", ".pkl"])
def test_grabs_of_different_shapes_in_every_format(workplace: Path, ending: str) -> None:
    run = trained({"d": [2, 3], ("WIDTH", "LR"): [(4, 0.1), (5, 0.2)]}, grabs={"gram": gram})
    dataset = run.collect(f"out{ending}")
    whole = run.collect()
    assert dataset.drop_attrs().equals(whole.drop_attrs())
    assert whole.gram.dims == ("d", "width_lr", "gram_dim0", "gram_dim1")
    assert whole.gram.sel(d=2).isnull().sum() == 2 * 5
    assert whole.width.values.tolist() == [4, 5]
    dataset.close()
    if ending == ".zarr":
        with xarray.open_zarr("out.zarr") as stored:
            assert stored.drop_attrs().equals(whole.drop_attrs())
    if ending == ".csv":
        table = pandas.read_csv("out.csv", float_precision="round_trip")
        assert table["gram[0,1]"].tolist() == whole.gram.values[..., 0, 1].ravel().tolist()
    if ending == ".parquet":
        assert len(pandas.read_parquet("out.parquet")) == 4


def test_a_sweep_of_one_config(workplace: Path) -> None:
    run = trained({})
    dataset = run.collect("one.nc")
    assert dataset.train_loss.ndim == 0
    assert dataset.status.item() == "done"
    dataset.close()


def test_excluded_points_are_no_missing_ones(workplace: Path) -> None:
    axes = {"WIDTH": [4, 5], "LR": [0.1, 0.2]}
    run = trained(axes, where=lambda c: c.width == 4 or c.LR > 0.1)
    assert run.status().configs == 3
    dataset = run.collect()
    assert dataset.status.values.tolist() == [["done", "done"], ["excluded", "done"]]
    assert dataset.train_loss.isnull().sum() == 1
