"""A run that is held, in a script or a notebook, while folders change."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray

from mlpsubmit import Sweep, launch, open_run
from mlpsubmit.errors import RunError


def ones(bsz: int, gen: Any) -> Any:
    return lambda step: (torch.ones(bsz, 2), torch.ones(bsz))


def test_it_is_the_same_from_any_folder_and_an_error_once_it_is_gone(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"WIDTH": 4, "N_SAMPLES": 8, "MAX_ITER": 3, "LOSS_CHECKPOINTS": []}
    sweep = Sweep("held", {"LR": [0.1, 0.2]}, batchfn=ones, SAVE_WEIGHTS="final", **settings)
    run = launch(sweep, executor="debug")
    before, file = run.collect(), tmp_path / "held.nc"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    opened = open_run(os.path.relpath(run.path))
    for one in (run, opened):
        xarray.testing.assert_identical(one.collect(), before)
        assert one.measure({"one": lambda model: 1.0}).one.values.tolist() == [1, 1]
    run.collect(file).close()
    shutil.rmtree(run.path / "results")  # as by a copy that has no empty folders
    assert run.status().done == 0
    shutil.move(run.path.parents[1], tmp_path / "moved")
    for look in (run.collect, run.status, lambda: run.collect(file, force=True)):
        with pytest.raises(RunError, match="the run was moved or removed"):
            look()
    with xarray.open_dataset(file) as kept:
        assert kept.train_loss.notnull().all()
