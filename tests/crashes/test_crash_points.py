"""Whatever the moment of a crash: no number is wrong, and nothing that was finished is lost.

The commands run once, under watch. Then every state in which a crash may leave the files is made,
read as it is, and continued from.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray
from disk import TEMPORARY, Crash
from hypothesis import settings
from recorder import FIRST, GROWN, OUT
from study import RUNS, study, trained_configs

from mlpsubmit import launch
from mlpsubmit.runs.locate import all_runs, readable
from mlpsubmit.runs.run import Run

pytestmark = pytest.mark.slow


#: By day one crash in so many is recovered from; all are read.
EVERY = 40


def at_night() -> bool:
    """Return whether everything is to be tried, however long that takes."""
    return settings.get_current_profile_name() == "night"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crashes")


@pytest.fixture(scope="module")
def crashes(folder: Path) -> list[Crash]:
    """Return all crashes whose files differ; by day, in more than what was not yet complete."""
    for name in ("disk", "specs"):
        (folder / name).mkdir()
    which = "all" if at_night() else "complete"
    recorder = Path(__file__).with_name("recorder.py")
    command = [sys.executable, recorder, folder / "disk", folder / "specs", folder / "crashes"]
    subprocess.run(command, check=True, capture_output=True)
    found: list[Crash] = pickle.loads((folder / "crashes").read_bytes())[which]
    return found


def numbers(run: Run) -> xarray.Dataset:
    """Return the results of a run without what depends on the clock or the attempts."""
    dataset = run.collect().drop_vars("seconds")
    dataset.attrs = {}
    return dataset


def check_read(folder: Path, expected: xarray.Dataset, crash: Crash) -> None:
    """Check what can be read before anything is repaired: nothing is wrong or lost."""
    crash.tree.write(folder / "disk")
    if (folder / "disk" / OUT).exists():
        xarray.open_dataset(folder / "disk" / OUT).close()  # the old one or the new one, whole
    found: set[str] = set()
    for directory in readable(all_runs(folder / "disk" / RUNS)):
        run = Run(directory)
        run.status()
        run.logs()
        tasks = {shard.name.partition("-")[0] for shard in directory.results.shards("[0-9]*")}
        assert tasks <= {f"{number:03d}" for number in directory.submissions()}, crash
        for pack in directory.results.packs():
            found.update(key.decode() for key in pack["key"])
        results = run.collect()
        done = results.status.values == "done"
        for name in ("train_loss", "timekeys", "steps"):  # by numpy, as xarray takes long
            right = expected[name].values[:, : results.sizes["noise"]]
            np.testing.assert_array_equal(results[name].values[done], right[done], repr(crash))
    lost = (crash.note.finished | crash.note.partly) - found
    assert not lost, f"{crash}: {len(lost)} finished configs were lost"


def check_recovery(folder: Path, expected: xarray.Dataset, crash: Crash) -> None:
    """Check that the next commands end with the results of a run without a crash."""
    crash.tree.write(folder / "disk")
    noises = GROWN if "grow" in crash.note.at else FIRST
    runs = folder / "disk" / RUNS
    keys: list[str] = []
    with trained_configs(keys.extend):
        sweep = study(folder / "specs", noises)
        run = launch(sweep, executor="debug", runs_dir=runs, keep_going=True)
    assert not crash.note.finished & set(keys), f"{crash}: finished configs were trained again"
    xarray.testing.assert_identical(numbers(run), expected.sel(noise=list(noises)))
    out = folder / "disk" / OUT
    run.collect(out, force=True).close()
    with xarray.open_dataset(out) as written:
        assert (written.status == expected.status.sel(noise=list(noises))).all(), crash
    left = [path for path in runs.rglob(".*") if TEMPORARY.fullmatch(path.name)]
    assert not left, f"{crash}: {left} remain"


@pytest.fixture
def expected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> xarray.Dataset:
    """Return the results of the commands if nothing disturbs them."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # to save time
    runs = folder / "expected"
    for noises in (FIRST, GROWN):
        sweep = study(folder / "specs", noises)
        run = launch(sweep, executor="debug", runs_dir=runs, keep_going=True)
    dataset = numbers(run).load()
    assert sorted(dataset.status.values.ravel()) == ["done"] * 5 + ["failed"]
    return dataset


def test_every_crash_point(crashes: list[Crash], folder: Path, expected: xarray.Dataset) -> None:
    print(f"{len(crashes)} crashes")
    for crash in crashes:
        check_read(folder, expected, crash)
    for crash in crashes[:: 1 if at_night() else EVERY]:
        check_recovery(folder, expected, crash)
