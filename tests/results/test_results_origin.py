"""A file of results is replaced by a later one of its own run only."""

from __future__ import annotations

import dataclasses
import os
import pickle

import pandas
import pytest
import xarray as xr

from mlpsubmit.errors import UserError
from mlpsubmit.results import export as export_module
from mlpsubmit.results import plot, summary_table, to_dataset, write
from mlpsubmit.results.origin import run_of

DATA = (".nc", ".zarr", ".parquet", ".csv", ".pkl")
FIGURES = (".png", ".pdf", ".svg")


@pytest.fixture
def written(fakes, tmp_path):
    """Return a function that writes the results of a run to a file, or a figure of them."""

    def write_run(run, ending, force=False, axes=None):
        layout = fakes.layout(**(axes or {"lr": [0.1, 0.2]}), attributes={"run": run, "sweep": "s"})
        source, path = fakes.Source([fakes.pack([0])]), tmp_path / f"results{ending}"
        if ending in FIGURES:
            plot(to_dataset(layout, source), out=path, force=force)
            return path
        return write(layout, source, path, force=force)

    return write_run


@pytest.mark.parametrize("ending", DATA + FIGURES)
def test_a_file_of_another_run_is_kept(written, ending):
    path = written("20260101-000000-aaaaaa", ending)
    assert run_of(path) == "20260101-000000-aaaaaa"
    assert written("20260101-000000-aaaaaa", ending) == path
    with pytest.raises(UserError, match=r"results of run 20260101-000000-aaaaaa, not of run b; "):
        written("b", ending)
    assert run_of(path) == "20260101-000000-aaaaaa"
    assert run_of(written("b", ending, force=True)) == "b"


@pytest.mark.parametrize("ending", DATA + FIGURES)
def test_a_file_that_is_not_ours_is_kept(written, tmp_path, ending):
    path = tmp_path / f"results{ending}"
    for content in ("", "text of the user\n", "run\n", "a,run\n1\n", "\x80"):
        path.write_text(content)
        with pytest.raises(UserError, match=r"run b; choose|is not a zarr store"):
            written("b", ending)
        assert path.read_text() == content


def test_force_replaces_any_file_but_no_folder(written, tmp_path):
    (tmp_path / "results.csv").write_text("theirs")
    assert run_of(written("b", ".csv", force=True)) == "b"
    (tmp_path / "results.zarr").mkdir()
    (tmp_path / "results.zarr" / "theirs").touch()
    with pytest.raises(UserError, match="it exists and is not a zarr store"):
        written("b", ".zarr", force=True)


@pytest.mark.parametrize("ending", DATA)
def test_a_file_that_appears_meanwhile_is_kept(written, tmp_path, monkeypatch, ending):
    path = tmp_path / f"results{ending}"

    def slow(writer):
        def write_slowly(*arguments):
            writer(*arguments)
            path.mkdir() if ending == ".zarr" else path.write_text("theirs")
            if ending == ".zarr":
                (path / "theirs").touch()

        return write_slowly

    resolve = export_module.pkgutil.resolve_name
    monkeypatch.setattr(export_module.pkgutil, "resolve_name", lambda name: slow(resolve(name)))
    with pytest.raises(UserError, match="it exists and is not"):
        written("b", ending)
    assert list(tmp_path.iterdir()) == [path]


def test_links_are_files_too(written, tmp_path):
    os.symlink(tmp_path / "nowhere", tmp_path / "results.csv")
    with pytest.raises(UserError, match="it exists and is not of run b"):
        written("b", ".csv")


def test_results_of_no_run_replace_any_file(fakes, tmp_path):
    (tmp_path / "results.csv").write_text("theirs")
    write(fakes.layout(), fakes.Source([fakes.pack([0])]), tmp_path / "results.csv")
    assert run_of(tmp_path / "results.csv") is None


@pytest.mark.parametrize("axes", [{"run": [1, 2]}, {"run": [1, 2], "run_id": ["x"]}])
def test_the_column_of_the_run_has_a_name_of_its_own(written, axes):
    table = pandas.read_csv(written("b", ".csv", axes=axes))
    assert table.iloc[:, -1].tolist() == ["b", "b"]
    assert table["run"].tolist() == [1, 2]
    assert table.columns.is_unique
    written("b", ".csv", axes=axes)


def test_a_pickle_loads_as_before(written):
    path = written("b", ".pkl")
    assert pickle.loads(path.read_bytes())["var_axes"] == ["lr"]


def test_a_dataset_of_two_empty_selections_has_a_table_of_rows(fakes, tmp_path):
    """Without thresholds: what has no elements cannot be selected from lazily."""
    layout = dataclasses.replace(
        fakes.layout(lr=[0.1, 0.2], width=[4, 8], trial=[0]), attributes={"run": "a"}
    )
    source = fakes.Source([fakes.pack([0, 3], step=[0, 1], train_loss=[[1.0, 2], [3, 4]])])
    source.held[0].held["test_loss"] = source.held[0].held["train_loss"]
    source.held[0].held["grab.none"] = source.held[0].held["train_loss"][:, :0]
    for ending in DATA:
        path = write(layout, source, tmp_path / f"results{ending}")
    with xr.open_dataset(tmp_path / "results.nc", engine="h5netcdf") as dataset:
        assert summary_table(dataset).row_count == 4
        plot(dataset, out=tmp_path / "figure.png")
    assert path.exists()
