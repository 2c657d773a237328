"""Metrics, thresholds on them and early crossings: from a spec to every format of the results."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from mlpsubmit import Sweep, launch
from mlpsubmit.cli import terminal
from mlpsubmit.cli.main import cli
from mlpsubmit.display.text import crossed_at_start
from mlpsubmit.export.configs import Configs
from mlpsubmit.jobs.store.npz import ArrayHeader
from mlpsubmit.jobs.store.pack_schema import ANY_PACKS, PackSchema
from mlpsubmit.report.contents import read
from mlpsubmit.results import ExptTrace, summary_table
from mlpsubmit.results.axes import threshold_suffixes


def signs(bsz, gen):
    def batch_fn(step):
        X = torch.randn(bsz, 4, generator=gen, device=gen.device)
        return X, X[:, 0].sign()

    return batch_fn


def largest(output, y):
    return (output - y).abs().amax()


SETTINGS = {
    "batchfn": signs,
    "WIDTH": 8,
    "N_SAMPLES": 32,
    "N_TEST": 50,
    "MAX_ITER": 40,
    "LR": 0.3,
    "METRICS": ["accuracy", {"largest": (largest, "min")}],
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose thresholds are an axis, in two packs, with a grab called as a metric."""
    monkeypatch.chdir(tmp_path)
    axes = {
        "METRIC_THRESHOLDS": [
            {"test_accuracy": [0.9, 0.6], "test_loss": [0.5]},
            {"test_accuracy": [0.7]},
        ],
        "trial": range(2),
    }
    grabs = {"train_accuracy": lambda model: 7.0}
    sweep = Sweep("m", axes, LOSS_CHECKPOINTS=[2.0, 1e-9], grabs=grabs, **SETTINGS)
    return launch(sweep, executor="debug", runs_dir=tmp_path / "runs")


def test_what_was_measured_is_in_every_format(run, tmp_path: Path, capsys) -> None:
    ds = run.collect()
    assert ds.train_accuracy.dims == ds.test_largest.dims == ("metric_thresholds", "trial")
    assert (ds.train_accuracy_grab == 7).all()
    assert ((ds.test_accuracy > 0.5) & (ds.test_accuracy <= 1)).all()
    assert ds.test_loss.notnull().all()  # online: a threshold needs it
    assert ds.threshold_test_accuracy.values.tolist() == [0, 1]
    np.testing.assert_array_equal(
        ds.threshold_value_test_accuracy.values, [[0.6, 0.9], [0.7, np.nan]]
    )
    np.testing.assert_array_equal(ds.threshold_value_test_loss.values, [[0.5], [np.nan]])
    crossed = ds.timekeys_test_accuracy.notnull()
    np.testing.assert_array_equal(ds.crossed_test_accuracy.values, crossed.values)
    assert crossed.isel(threshold_test_accuracy=0).all()
    assert not ds.crossed_test_accuracy.values[1, :, 1].any()
    assert ds.timekeys_test_loss.attrs == {
        "long_name": "steps to test loss threshold",
        "units": "1",
        "description": "first step whose smoothed test loss is below the threshold; "
        "NaN if there is none, or no result",
    }
    assert ds.test_accuracy.attrs == {
        "long_name": "final test accuracy",
        "units": "1",
        "description": "metric accuracy on the test set, not smoothed; NaN where missing",
        "metric": "accuracy",
    }
    assert ds.threshold_value_test_accuracy.attrs["long_name"] == "test accuracy threshold"
    assert ds.threshold_test_accuracy.attrs["long_name"] == "number of the test accuracy threshold"
    assert ds.metric_thresholds.attrs["description"].startswith("METRIC_THRESHOLDS: thresholds on")
    assert threshold_suffixes(ds) == ["", "_test_accuracy", "_test_loss"]

    table = pd.read_csv(run.collect(tmp_path / "m.csv") and tmp_path / "m.csv")
    assert table.train_accuracy.tolist() == ds.train_accuracy.values.ravel().tolist()
    steps = table["timekey_test_accuracy_0"].tolist()
    assert steps == ds.timekeys_test_accuracy.values[..., 0].ravel().tolist()
    assert table["crossed_test_accuracy_1"].isna().tolist() == [False, False, True, True]

    run.collect(tmp_path / "m.pkl")
    found = pickle.loads((tmp_path / "m.pkl").read_bytes())
    extras = {name: ExptTrace.deserialize(trace) for name, trace in found["extras"].items()}
    assert {*extras} == {
        *("train_accuracy", "train_accuracy_grab", "train_largest", "test_accuracy"),
        *("test_largest", "timekeys_test_accuracy", "timekeys_test_loss"),
    }
    job = found["jobs"][-1]
    assert extras["train_accuracy"][job] == ds.train_accuracy.values[-1, -1]
    assert extras["timekeys_test_accuracy"][job].tolist()[1] == -1

    out = Console(file=io.StringIO(), width=400)
    out.print(summary_table(ds))
    assert "test accuracy" in out.file.getvalue()
    assert "steps to test accuracy number 0" in out.file.getvalue()
    labels = [column.label for column in read([run]).columns]
    assert "steps to test accuracy number 0" in labels
    first = next(Configs(run).finished(np.ones(4, dtype=bool)))
    assert "timekeys_test_accuracy [number 0]" in first.numbers


def test_thresholds_crossed_at_step_0_are_counted(capsys, run, tmp_path: Path) -> None:
    line = crossed_at_start(4)
    printed = capsys.readouterr().out  # of the two packs, as in the log of a task
    assert printed.count(f": {crossed_at_start(2)}\n") == 2
    assert line.startswith("4 configs crossed a threshold on the train loss at step 0, where the")
    status = run.status()
    assert status.early_crossings == line
    out = Console(file=io.StringIO(), width=400)
    out.print(terminal.render(status))
    assert line in out.file.getvalue()
    quiet = replace(status, tasks=[replace(status.tasks[0], heartbeat={})])
    assert quiet.early_crossings == ""
    collected = CliRunner().invoke(cli, ["collect", str(run.path), "--out", str(tmp_path / "m.nc")])
    assert f"{line}\n" in collected.output


def header(dtype: str, *shape: int) -> ArrayHeader:
    return ArrayHeader(shape, np.dtype(dtype))


@pytest.mark.parametrize(
    ("array", "known", "fits"),
    [
        (("metric.train_accuracy", header("<f8", 3)), (), True),
        (("metric.train_accuracy", header("<f8", 3, 5)), (), True),
        (("metric.test_accuracy", header("<f8", 3, 2)), (), True),
        (("metric.test_accuracy", header("<f8", 3, 5)), (), False),
        (("metric.train_accuracy", header("<f8", 3, 2)), (), False),
        (("metric.train_accuracy", header("<f8", 2)), (), False),
        (("metric.train_accuracy", header("|S8", 3)), (), False),
        (("timekeys.test_loss", header("<i8", 3, 2)), (("test_loss", 2),), True),
        (("timekeys.test_loss", header("<i8", 3, 3)), (("test_loss", 2),), False),
        (("timekeys.test_loss", header("<f8", 3, 2)), (("test_loss", 2),), False),
        (("timekeys.test_loss", header("<i8", 3)), (("test_loss", 2),), False),
        (("timekeys.other", header("<i8", 3, 2)), (("test_loss", 2),), False),
        (("timekeys.other", header("<i8", 3, 2)), None, True),
    ],
)
def test_arrays_of_other_shapes_are_not_of_the_run(array, known, fits) -> None:
    headers = {
        "index": header("<i8", 3),
        "key": header("|S32", 3),
        "status": header("|u1", 3),
        "steps": header("<i8", 3),
        "seconds": header("<f8", 3),
        "timekeys": header("<i8", 3, 1),
        "train_loss": header("<f8", 3),
        "step": header("<i8", 5),
        "eval_step": header("<i8", 2),
    }
    schema = PackSchema(points=9, thresholds=1, packs=1, reused=0, metric_thresholds=known)
    schema = ANY_PACKS if known is None else schema
    assert schema.fits("0000000.npz", {**headers, array[0]: array[1]}) is fits


def test_a_metric_that_cannot_be_computed_is_refused_at_the_launch(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    def spread(output, y):
        return (output - y).abs()

    metrics = {"METRICS": {"spread": (spread, "min")}, "WIDTH": 8}
    with pytest.raises(Exception, match=r"METRICS: 'spread', spread\(output, y\), gave shape"):
        launch(Sweep("m", **{**SETTINGS, **metrics}), executor="debug", runs_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_metric_that_keeps_state_is_refused_at_the_launch(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = []

    def counting(output, y):
        seen.append(1)
        return float(len(seen))

    metrics = {"METRICS": {"count": (counting, "max")}, "EVAL_EVERY": 1}
    with pytest.raises(Exception, match=r"METRICS 'count' counting.*from its arguments alone"):
        launch(Sweep("m", **{**SETTINGS, **metrics}), executor="debug", runs_dir=tmp_path / "runs")
