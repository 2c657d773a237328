"""Which config was trained on what, and by which task: in the dataset, files, joins and reuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import xarray as xr

from mlpsubmit import Sweep, collect, launch
from mlpsubmit.results.join import join
from mlpsubmit.runs.run import Run

FAST, SLOW = "Fast 9000", "Slow 1"


def batches(bsz: int, gen: Any) -> Any:
    import torch

    def batch_fn(step: int) -> Any:
        X = torch.randn(bsz, 2, generator=gen)
        return X, X[:, 0]

    return batch_fn


def started(trials: Any, name: str = "study", **how: Any) -> Run:
    fixed = {"MAX_ITER": 3, "N_SAMPLES": 4, "WIDTH": 4, "LOSS_CHECKPOINTS": [], "PACK_SIZE": 1}
    return launch(Sweep(name, {"trial": trials}, batchfn=batches, **fixed), executor="debug", **how)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """From now on, train on another model of CPU, by its name."""

    def change(cpu: str) -> None:
        monkeypatch.setattr("mlpsubmit.jobs.environment.cpu_name", lambda: cpu)

    return change


@pytest.fixture
def mixed(workplace: Path, on: Callable[[str], None]) -> Run:
    """A run of four configs, of which the first two come from an earlier one on another CPU."""
    on(FAST)
    started([0, 1])
    on(SLOW)
    return started([0, 1, 2, 3])


def kinds(dataset: xr.Dataset) -> list[str]:
    return [str(text).partition(" (")[0] for text in dataset.trained_on.values]


def test_the_dataset_says_which_task_ran_on_what(mixed: Run, workplace: Path) -> None:
    runs = [path.name for path in (workplace / "mlpruns" / "study").glob("2*")]
    run = mixed.id
    (first,) = [name for name in runs if name != run]
    dataset = mixed.collect()
    assert kinds(dataset) == [FAST, FAST, SLOW, SLOW]
    assert dataset.trained_by.values.tolist() == [
        *(f"{first}/000-0000", f"{first}/000-0000", f"{run}/000-0000", f"{run}/000-0000")
    ]
    assert "bit_identity" in dataset.attrs
    for suffix in (".nc", ".zarr", ".csv", ".parquet"):
        mixed.collect(f"study{suffix}")
    with xr.open_dataset("study.nc", engine="h5netcdf") as read:
        xr.testing.assert_equal(read.load(), dataset)
        assert read.trained_on.attrs["long_name"] == "trained on"
    with xr.open_zarr("study.zarr") as read:
        assert kinds(read) == [FAST, FAST, SLOW, SLOW]
    for table in (pd.read_csv("study.csv"), pd.read_parquet("study.parquet")):
        assert table["trained_on"].tolist() == dataset.trained_on.values.tolist()
        assert table["trained_by"].tolist() == dataset.trained_by.values.tolist()


def test_where_all_was_trained_on_one_device_the_attribute_says_it(mixed: Run, on: Any) -> None:
    on(SLOW)
    alone = started([0, 1, 2, 3], fresh=True).collect()
    assert alone.attrs["cpu"] == SLOW
    assert not {"trained_on", "trained_by"} & set(alone.data_vars)
    # What trained them is no result.
    assert alone.attrs["results_hash"] == mixed.collect().attrs["results_hash"]


def test_joins_say_it_for_both(mixed: Run, on: Any) -> None:
    on(SLOW)
    slow, both = started([4], "slow"), mixed
    on(FAST)
    fast = started([5], "fast")
    expected = [FAST, FAST, SLOW, SLOW, SLOW]
    datasets = [both.collect(), slow.collect()]
    joined = collect(both, slow)
    assert kinds(joined) == kinds(join(datasets)) == expected
    assert joined.trained_by.values[-1] == f"{slow.id}/000-0000"
    assert join(datasets).trained_by.values[-1] == slow.id  # of a dataset no task is known
    # Each of them was trained on one device, and they differ.
    assert kinds(join([slow.collect(), fast.collect()])) == [SLOW, FAST]
    assert kinds(collect(slow, fast)) == [SLOW, FAST]


def test_a_missing_config_was_trained_on_nothing(mixed: Run) -> None:
    mixed.directory.results.shards()[-1].unlink()
    dataset = mixed.collect()
    assert "trained_on" not in dataset
    assert dataset.status.values.tolist() == ["done", "done", "missing", "missing"]


def test_a_pack_that_went_on_elsewhere_has_both(
    workplace: Path, on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its state was saved on one device, and another one has continued it."""
    from mlpsubmit.jobs.checkpoint import Checkpoint

    on(FAST)
    enter = Checkpoint.enter

    def entered(own: Checkpoint, environment: dict[str, Any]) -> None:
        enter(own, environment)
        if own.file.name == "0000001.pt":
            own.environments.insert(0, {**environment, "cpu": SLOW})

    monkeypatch.setattr(Checkpoint, "enter", entered)
    run = started([0, 1])
    one, both = run.collect().trained_on.values
    assert one.startswith(FAST)
    assert [text.partition(" (")[0] for text in both.split("; ")] == [SLOW, FAST]
    again = started([0, 1, 2])
    assert again.collect().trained_on.values[:2].tolist() == [one, both]


def test_one_config_says_it(mixed: Run, mlpsubmit: Any) -> None:
    shown = mlpsubmit("show", mixed.id, "--config", "0")
    assert shown.code == 0, shown.err
    assert f"trained on {FAST}" in shown.out
    assert f"trained on {SLOW}" in mlpsubmit("show", mixed.id, "--config", "3").out
    assert mlpsubmit("report", mixed.id).code == 0
    assert FAST in Path("study.html").read_text()
