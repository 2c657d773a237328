"""What a spec sets in its process holds where it trains, however and wherever that is."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from mlpsubmit import open_run
from mlpsubmit.jobs.store import run_directory

SPEC = Path(__file__).parents[1] / "specs" / "process_settings.py"


@pytest.fixture
def study(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a spec, and the files that its functions read."""
    monkeypatch.setenv("STUDY_REMOVED", "x")
    folder = workplace / "study"
    (folder / "tables").mkdir(parents=True)
    (folder / "lib").mkdir()
    np.save(folder / "tables" / "offset.npy", np.full(3, 0.125))
    (folder / "lib" / "targets_of_study.py").write_text("def target(X): return X[:, 0]\n")
    shutil.copy(SPEC, folder / "settings.py")
    monkeypatch.chdir(folder)
    return folder


def losses(mlpsubmit: Any, name: str) -> xarray.Dataset:
    assert mlpsubmit("collect", "settings", "--out", f"{name}.nc").code == 0
    with xarray.open_dataset(f"{name}.nc") as dataset:
        return dataset[["train_loss", "facts"]].load()


@pytest.mark.slow
def test_local_and_debug_give_the_same_bits(mlpsubmit: Any, study: Path) -> None:
    found = {}
    for executor in ("debug", "local"):
        done = mlpsubmit(
            "launch", "settings.py", "--executor", executor, "--tasks", 1, "--fresh", "--follow"
        )
        assert done.code == 0, done.err
        found[executor] = losses(mlpsubmit, executor)
    assert (found["local"].facts == 1).all()
    xarray.testing.assert_identical(found["local"].drop_attrs(), found["debug"].drop_attrs())

    # The value of a variable stands in sweep.pkl alone, which nobody else can read.
    run = open_run("settings").path
    having = [p.name for p in run.rglob("*") if p.is_file() and b"0.25117" in p.read_bytes()]
    assert having == [run_directory.SWEEP_PICKLE]
    mode = (run / run_directory.SWEEP_PICKLE).stat().st_mode
    assert stat.S_IMODE(mode) == 0o600

    # A study that was moved, and is resumed from another folder, finds its files.
    for file in run.glob("results/*"):
        file.unlink()
    shutil.rmtree(run / "data")
    (run / "data").mkdir()
    moved = study.rename(study.with_name("moved"))
    path = moved / run.relative_to(study) if run.is_absolute() else moved / run
    resumed = open_run(path)
    resumed.resume("local")
    assert resumed.wait().complete, [file.read_text() for file in resumed.logs().values()]
    again = resumed.collect()
    np.testing.assert_array_equal(again.train_loss, found["local"].train_loss)

    # Without its folder, it says so.
    shutil.move(path, moved.with_name("alone"))
    shutil.rmtree(moved)
    with pytest.warns(UserWarning, match=r"study, in which it was launched, is not here; func"):
        open_run(moved.with_name("alone")).resume("local")
