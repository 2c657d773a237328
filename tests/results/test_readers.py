"""Files of results, opened by programs that know nothing of mlpsubmit."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import numpy as np
import pandas
import polars
import pytest
import xarray as xr

from mlpsubmit import grabs
from mlpsubmit.results import to_dataset, write
from mlpsubmit.results.labels import Labels, labels_of
from mlpsubmit.results.source import FixedSetting


@pytest.fixture
def study(fakes):
    """Traces, a named dimension, a missing point, texts with quotes, and settings."""
    layout = replace(
        fakes.layout(width=[64, 256], act=["relu", 'x"é'], thresholds=[0.1]),
        labels={"norms": Labels(("layer",), {"layer": ("in", "out")}, "nats", "norms")},
        settings={"lr": FixedSetting(0.1), "online": FixedSetting(True)},
    )
    traces = {"step": [0, 2], "train_loss": [[1.0, 0.5]], "grab__norms": [[1.5, 2.5]]}
    packs = [fakes.pack([i], thresholds=1, **traces, test_loss=[3.0]) for i in (0, 1, 3)]
    return layout, fakes.Source(packs)


@pytest.fixture
def answer(installed):
    """A function that returns the output of another program."""

    def run(program: str, *arguments: str) -> str:
        command = [installed(program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_ncdump_reads_values_names_and_settings(study, answer, tmp_path):
    text = answer("ncdump", str(write(*study, tmp_path / "r.nc")))
    for line in (
        "double train_loss(width, act, step) ;",
        'string train_loss:long_name = "train loss" ;',
        "int64 steps(width, act) ;",
        "steps:_FillValue = -1LL ;",
        'string norms:units = "nats" ;',
        "norms(width, act, layer) ;",
        'string :Conventions = "CF-1.11" ;',
        ":lr = 0.1 ;",
        'string :online = "True" ;',
        " width = 64, 256 ;",
        ' layer = "in", "out" ;',
        " steps =\n  10, 11,\n  _, 13 ;",
    ):
        assert line in text, line
    assert "\t\twidth:_FillValue" not in text  # CF: coordinates have no missing values
    assert "\t\tthreshold:_FillValue" not in text


def test_r_reads_values_names_and_settings(study, answer, tmp_path):
    path = write(*study, tmp_path / "r.nc")
    script = f"""
    suppressWarnings(library(ncdf4))
    file <- nc_open("{path}")
    loss <- ncvar_get(file, "train_loss")
    steps <- ncvar_get(file, "steps")
    cat("\\n", dim(loss), loss[2, 1, 1], is.na(steps[1, 2]), steps[1, 1], "\\n")
    cat(ncvar_get(file, "status"), ncvar_get(file, "layer"), ncvar_get(file, "act"), "\\n")
    cat(ncatt_get(file, 0, "lr")$value, ncatt_get(file, "norms", "long_name")$value, "\\n")
    """
    lines = [line.strip() for line in answer("Rscript", "-e", script).splitlines()]
    assert "2 2 2 0.5 TRUE 10" in lines
    assert 'done done missing done in out relu x"é' in lines
    assert lines[-1] == "0.1 norms"


def test_xarray_reads_what_was_collected(study, tmp_path):
    expected = to_dataset(*study)
    for ending, opener in ((".nc", xr.open_dataset), (".zarr", xr.open_zarr)):
        with opener(write(*study, tmp_path / f"r{ending}")) as opened:  # no engine is named
            xr.testing.assert_identical(opened.load(), expected)


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_pandas_and_polars_read_the_same_table(study, tmp_path, ending):
    path = write(*study, tmp_path / f"r{ending}")
    in_pandas = pandas.read_parquet(path) if ending == ".parquet" else pandas.read_csv(path)
    in_polars = polars.read_parquet(path) if ending == ".parquet" else polars.read_csv(path)
    assert list(in_pandas.columns) == in_polars.columns
    assert len(in_pandas) == len(in_polars) == 7  # three configs of two steps; the missing one
    done = in_polars.filter(polars.col("status") == "done")
    assert done["steps"].dtype == polars.Int64
    assert done["steps"].to_list() == [10, 10, 11, 11, 13, 13]
    assert in_pandas[in_pandas.status == "done"].steps.tolist() == done["steps"].to_list()
    assert in_polars["act"].to_list() == in_pandas.act.tolist()
    loss = done.group_by("step").agg(polars.col("train_loss").mean()).sort("step")
    np.testing.assert_array_equal(loss["train_loss"], [1.0, 0.5])
    assert in_polars.filter(polars.col("status") == "missing")["steps"].to_list() == [None]


@pytest.fixture
def of_library(fakes):
    """What grabs of the library measure: coordinates that are texts and integers, and kernels."""
    found = {
        "c": labels_of(grabs.monomial_coefficients, {"basis": [{0: 1}, {1: 2}]}),
        "d": labels_of(grabs.gram_diagonal, {"monomials": {2: 1, 5: 1}}),
        "K": labels_of(grabs.empirical_ntk),
    }
    layout = replace(
        fakes.layout(width=[64, 256]),
        labels={name: own.of_grab(name) for name, own in found.items()},
        functions={"K": FixedSetting("empirical_ntk", "0badcafe")},
    )
    kernel = np.arange(9.0).reshape(1, 3, 3)
    measured = {"grab__c": [[0.5, 0.25]], "grab__d": [[2.0, 3.0]], "grab__K": kernel}
    packs = [fakes.pack([i], thresholds=0, train_loss=[1.0], **measured) for i in (0, 1)]
    return layout, fakes.Source(packs)


def test_dimensions_of_grabs_of_the_library_are_read(of_library, answer, tmp_path):
    path = write(*of_library, tmp_path / "r.nc")
    text = answer("ncdump", str(path))
    for line in (
        "double K(width, K_sample, K_other_sample) ;",
        'string K:long_name = "neural tangent kernel" ;',
        'string K:function_hash = "0badcafe" ;',
        'string c_monomial:description = "monomial along which the grab',
        ' c_monomial = "$x_{0}$", "$x_{1}^2$" ;',
        " d_index = 2, 5 ;",
    ):
        assert line in text, line
    script = f"""
    suppressWarnings(library(ncdf4))
    file <- nc_open("{path}")
    cat("\\n", ncvar_get(file, "c_monomial"), ncvar_get(file, "d_index"), "\\n")
    cat(dim(ncvar_get(file, "K")), ncvar_get(file, "K")[3, 1, 2], "\\n")
    """
    lines = [line.strip() for line in answer("Rscript", "-e", script).splitlines()]
    assert lines[-2:] == ["$x_{0}$ $x_{1}^2$ 2 5", "3 3 2 2"]
    expected = to_dataset(*of_library)
    with xr.open_dataset(path) as opened:
        xr.testing.assert_identical(opened.load(), expected)
        assert float(opened.d.sel(width=64, d_index=5)) == 3.0
    for ending, read in ((".parquet", polars.read_parquet), (".csv", polars.read_csv)):
        table = read(write(*of_library, tmp_path / f"r{ending}"))
        own = pandas.read_parquet if ending == ".parquet" else pandas.read_csv
        assert table.columns == list(own(tmp_path / f"r{ending}").columns)
        second = table["d"].list.get(1) if ending == ".parquet" else table["d[1]"]
        assert second.to_list() == [3.0, 3.0]
