"""The hash of all results: equal for equal numbers, whatever way they took."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from mlpsubmit.results import to_dataset, write
from mlpsubmit.results.source import Layout, ResultSource

from .conftest import Failure, FakePack, FakeSource, make_layout, make_pack

LAYOUT = make_layout([0.5], width=[8, 16], trial=[0, 1])


def traced(index: list[int], **changes: Any) -> FakePack:
    """A pack with traces and a large grab, which are streamed."""
    numbers = np.array(index)
    arrays = {
        "step": np.arange(50),
        "train_loss": np.add.outer(numbers, np.arange(50) / 7),
        "test_loss": np.add.outer(numbers, np.arange(50) / 3),
        "grab__gram": np.multiply.outer(numbers, np.ones((9, 9))),
        "grab__size": numbers / 3,
    }
    return make_pack(index, thresholds=1, **{**arrays, **changes})


def of(source: ResultSource, layout: Layout = LAYOUT) -> str:
    return str(to_dataset(layout, source).attrs["results_hash"])


WHOLE = FakeSource([traced([0, 1]), traced([2, 3])])


def test_equal_results_have_one_hash_however_they_are_packed() -> None:
    assert len(of(WHOLE)) == 32
    assert of(FakeSource([traced([2]), traced([3, 0, 1])])) == of(WHOLE)
    again = FakeSource([traced([0, 1], train_loss=np.zeros((2, 50))), *WHOLE.held])
    assert of(again) == of(WHOLE), "a later pack overrides an earlier one"


def test_seconds_and_divisions_do_not_count() -> None:
    slower = traced([2, 3], seconds=np.array([7.0, 8.0]), trained_together=np.array([1, 1]))
    assert of(FakeSource([traced([0, 1]), slower])) == of(WHOLE)


def test_errors_do_not_count() -> None:
    failed = FakeSource([traced([0, 1])], [Failure(np.array([2, 3]), "ValueError: no")])
    assert of(failed) == of(FakeSource([traced([0, 1])])) != of(WHOLE)


@pytest.mark.parametrize(
    "change",
    [
        {"train_loss": np.add.outer([2, 3], np.nextafter(np.arange(50) / 7, 9))},
        {"grab__gram": np.multiply.outer(np.array([2, 3]), -np.ones((9, 9)))},
        {"grab__size": np.array([2 / 3, np.nextafter(1, 2)])},
        {"steps": np.array([12, 14])},
        {"status": np.array([1, 2], dtype=np.uint8)},
        {"timekeys": np.array([[2], [-1]])},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_other_number_counts(change: dict[str, Any]) -> None:
    assert of(FakeSource([traced([0, 1]), traced([2, 3], **change)])) != of(WHOLE)


def test_the_values_of_the_axes_count() -> None:
    assert of(WHOLE, make_layout([0.5], width=[8, 32], trial=[0, 1])) != of(WHOLE)
    assert of(WHOLE, make_layout([0.25], width=[8, 16], trial=[0, 1])) != of(WHOLE)
    assert of(WHOLE, dataclasses.replace(LAYOUT, attributes={"host": "b"})) == of(WHOLE)


@pytest.mark.parametrize(
    "source", [WHOLE, FakeSource([traced([1, 2])]), FakeSource()], ids=["all", "some", "none"]
)
def test_every_format_has_the_same_hash(source: FakeSource, tmp_path: Path) -> None:
    expected = of(source)
    write(LAYOUT, source, tmp_path / "a.nc")
    with xarray.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as dataset:
        assert dataset.attrs["results_hash"] == expected
    pytest.importorskip("zarr")
    write(LAYOUT, source, tmp_path / "a.zarr")
    with xarray.open_zarr(tmp_path / "a.zarr") as dataset:
        assert dataset.attrs["results_hash"] == expected
