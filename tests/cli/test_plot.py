"""``mlpsubmit plot``: of a run, in progress and of a file; what it prints, and its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray

from mlpsubmit import SpecError, launch, open_run
from mlpsubmit.spec.load import load_spec

Command = Callable[..., Any]


@pytest.fixture
def run(workplace: Path) -> Iterator[Any]:
    yield launch(load_spec(workplace / "small.py"), executor="debug")
    plt.close("all")


def test_a_figure_of_a_run_and_of_its_file(mlpsubmit: Command, run: Any) -> None:
    done = mlpsubmit("plot", "small", "--y", "timekeys", "--x", "width", "--hue", "noise")
    assert (done.code, done.out, done.err) == (0, "plot: small.png\n", "")
    assert Path("small.png").read_bytes().startswith(b"\x89PNG")
    assert mlpsubmit("collect", "--no-table", "--out", "mine.nc").code == 0
    options = ("--y", "size,seconds", "--sel", "noise=0.5", "--out", "b.pdf")
    done = mlpsubmit("plot", "mine.nc", *options)
    assert (done.code, done.out) == (0, "plot: b.pdf\n")
    options = ("--kind", "heatmap", "--x", "width", "--y", "noise")
    assert mlpsubmit("plot", "mine.nc", *options).code == 0
    assert Path("mine.png").exists()
    assert not plt.get_fignums()  # what a command draws is not kept


def test_the_same_from_python(run: Any) -> None:
    axes = run.plot("size", x="width", hue="noise", sel={"trial": [0, 1]}, errorbar="range")
    assert axes.shape == (1, 1)
    expected = run.collect()["size"].mean("trial").transpose("noise", "width")
    drawn = [line.get_ydata() for line in axes[0, 0].lines]
    np.testing.assert_allclose(drawn, expected)
    assert plt.get_fignums() == [axes[0, 0].figure.number]
    run.plot(out="figure.svg")
    assert Path("figure.svg").read_text().startswith("<?xml")
    assert open_run("small").plot("steps").shape == (1, 1)


def test_only_what_is_drawn_is_read(mlpsubmit: Command, run: Any) -> None:
    command = ("launch", "small.py", "ONLYTHRESHOLDS=False", "--executor", "debug")
    assert mlpsubmit(*command).code == 0
    run = open_run("small")
    partial, whole = run.partial({"train_loss"}), run.collect()
    assert dict(partial.sizes) == dict(whole.sizes)
    assert set(partial.data_vars) == set(whole.data_vars)
    xarray.testing.assert_equal(partial.train_loss, whole.train_loss)
    assert partial["size"].isnull().all()
    assert partial["size"].values.strides == (0,) * partial["size"].ndim  # takes no memory
    (line, *_) = run.plot("size", "step", hue="width", sel={"trial": 0, "noise": 0.0})[0, 0].lines
    expected = whole["size"].isel(width=0, trial=0, noise=0)
    np.testing.assert_allclose(line.get_ydata()[0], expected[0])


def test_a_run_with_failures_says_what_is_not_shown(mlpsubmit: Command, workplace: Path) -> None:
    text = (workplace / "small.py").read_text()
    wrong = "    if noise: raise ValueError('boom')\n    def batch_fn"
    Path("small.py").write_text(text.replace("    def batch_fn", wrong))
    launch(load_spec(Path("small.py")), executor="debug", keep_going=True)
    done = mlpsubmit("plot")
    assert (done.code, done.err) == (0, "of 8 configs 4 failed\n")
    done = mlpsubmit("plot", "--sel", "noise=0.5", "--out", "other.png")
    assert done.code == 2
    assert "error: nothing to draw yet: of the 4 configs 4 failed; see mlpsubmit status" in done.err
    assert not Path("other.png").exists()
    later = "        if step > 5: raise ValueError('boom')\n        inputs"
    Path("small.py").write_text(text.replace("        inputs", later))
    launch(load_spec(Path("small.py")), executor="debug", keep_going=True)
    done = mlpsubmit("collect", "--no-table", "--plot", "collected.png", "--force")
    assert done.code == 1
    assert "no plot: nothing to draw yet: of the 8 configs 8 failed" in done.out
    assert not Path("collected.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--hue", "nois"],
            "error: hue: 'nois' is not an axis of what is drawn (did you mean 'noise'?)",
        ),
        (
            ["--sel", "noise"],
            "error: sel: got 'noise'; should be NAME=VALUE, as in width=64, width=",
        ),
        (
            ["--sel", "noise=0", "--sel", "noise=0.5"],
            "sel: noise is given twice; write noise=0,0.5",
        ),
        (["--sel", "width", "--kind", "bar"], "error: 2 errors:\n  - sel: got 'width'; should be"),
        (
            ["--out", "a.gif"],
            "error: cannot draw a.gif: unknown ending '.gif'; valid are .png, .pdf",
        ),
        (["--out", "none/a.png"], "cannot write none/a.png: the folder none does not exist"),
        (
            ["--y", "typo", "--sel", "wrong", "--sel", "with=1", "--out", "theirs.png"],
            "error: 4 errors:\n  - sel: got 'wrong'; should be",
        ),
        (["--out", "theirs.png"], "cannot write theirs.png: it exists and is not of run"),
    ],
)
def test_errors_make_no_file(
    mlpsubmit: Command, run: Any, arguments: list[str], message: str
) -> None:
    Path("theirs.png").write_text("mine")
    before = sorted(Path().iterdir())
    done = mlpsubmit("plot", *arguments)
    assert done.code == 2
    assert message in done.err
    assert sorted(Path().iterdir()) == before
    assert mlpsubmit("plot", "--out", "theirs.png", "--force").code == 0


def test_files_that_are_no_datasets(mlpsubmit: Command, workplace: Path) -> None:
    Path("text.nc").write_text("text")
    xarray.Dataset({"a": 1}).to_netcdf("other.nc", engine="h5netcdf")
    for name, message in [
        ("none.nc", "error: none.nc: no such file; give a collected .nc file, or a run"),
        ("text.nc", "error: text.nc: cannot be read as a netCDF file ("),
        ("a.pkl", "error: a.pkl: plot reads .nc files; write one with mlpsubmit collect --out"),
        ("other.nc", "error: plot: the dataset has no variable 'status'; give one that collect"),
    ]:
        done = mlpsubmit("plot", name)
        assert (done.code, message in done.err) == (2, True), done.err
        assert not list(Path().glob("*.png"))


def test_names_of_a_spec_are_inert(mlpsubmit: Command, workplace: Path) -> None:
    run = launch(load_spec(workplace / "small.py"), executor="debug")
    with pytest.raises(SpecError, match="x: 'a\\\\x1b"):
        run.plot(x="a\x1b[31m")
    done = mlpsubmit("plot", "--x", "a\x1b[31m")
    assert "\x1b" not in done.err


def test_several_runs_are_joined(mlpsubmit: Command, run: Any) -> None:
    assert mlpsubmit("launch", "small.py", "LR=0.3", "--executor", "debug").code == 0
    other = open_run("small").id
    done = mlpsubmit("plot", run.id, other, "--y", "steps", "--x", "width", "--hue", "lr")
    assert (done.code, done.out) == (0, "plot: joined.png\n")
    assert mlpsubmit("plot", other, run.id, "--errorbar", "none").code == 0  # replaces its own
    assert mlpsubmit("collect", "--no-table", "--out", "one.nc").code == 0
    refused = mlpsubmit("plot", run.id, "one.nc")
    assert refused.code == 2
    assert "one.nc: plot joins runs, and draws one file; join files in Python:" in refused.err
    refused = mlpsubmit("plot", run.id, run.id)
    assert refused.code == 2
    assert f"run {run.id} is given several times; name each run once" in refused.err
