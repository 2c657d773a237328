"""What a dry run says about files and bytes, against what the run has made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import Sweep, launch
from mlpsubmit.jobs.executors.debug import DebugExecutor
from mlpsubmit.runs.footprint import footprint
from mlpsubmit.runs.launch import prepare
from mlpsubmit.spec.load import pickle_sweep

AXES = {"WIDTH": [4, 8], "LR": [0.1, 0.2], "trial": range(3)}
SETTINGS: dict[str, Any] = {"N_SAMPLES": 8, "N_TEST": 8, "d": 2}


def batches(bsz: int, d: int, gen: Any) -> Any:
    """Yield Gaussian inputs whose targets are products of two coordinates."""
    import torch

    def batch(step: int) -> Any:
        X = torch.randn(bsz, d, generator=gen)
        return X, X[:, 0] * X[:, 1]

    return batch


def norm(model: Any) -> float:
    """Measure the norm of the weights of the first layer."""
    return float(next(iter(model.parameters())).detach().norm())


def loaded(d: int) -> dict[str, Any]:
    """Return an entry of data."""
    return {"zeros": [0.0] * d}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ONLYTHRESHOLDS": False},
        {"ONLYTHRESHOLDS": False, "RECORD_EVERY": "log:9", "EVAL_EVERY": 10},
        {"METRICS": ["accuracy", "margin"], "ONLINE": False, "LOSS_CHECKPOINTS": [1e-5] * 1},
        {"METRIC_THRESHOLDS": {"test_accuracy": [0.8, 0.9]}, "STOP_ON": None},
        {"SAVE_WEIGHTS": 10, "KEEP_STATE": True},
        {"SEED": 3, "data": True, "same_device": True},
        {"axes": {"MAX_ITER": [10, 30]}, "ONLYTHRESHOLDS": False},
        {
            "axes": {"MAX_ITER": [10, 4000], "LR": [0.1]},
            "ONLYTHRESHOLDS": False,
            "where": lambda c: c.max_iter == 10,  # else the other is 400 times as large
        },
        {"grabs": {"norm": norm}, "ONLYTHRESHOLDS": False, "GRAB_EVERY": 5},
    ],
    ids=", ".join,
)
def test_a_run_makes_as_many_files_and_bytes_as_the_dry_run_says(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = {"MAX_ITER": 40, **SETTINGS, **changes}
    axes = {**AXES, **settings.pop("axes", {})}
    settings = {name: value for name, value in settings.items() if name not in axes}
    data = loaded if settings.pop("data", False) else None
    same_device = settings.pop("same_device", None)
    sweep = Sweep("sized", axes, batchfn=batches, data=data, **settings)
    executor, folder = DebugExecutor(None, pdb=False, keep_going=False), tmp_path / "runs"
    executor.same_device = same_device
    expected = footprint(prepare(sweep, executor, folder, frozen=pickle_sweep(sweep)))

    run = launch(sweep, executor="debug", runs_dir=folder, same_device=same_device)
    assert run.status().complete
    files = [file for file in run.path.rglob("*") if file.is_file()]
    assert len(files) == expected.files, sorted(file.name for file in files)
    made = sum(file.stat().st_size for file in (run.path / "results").glob("*.tar"))
    said = expected.result_bytes + expected.weight_bytes
    assert 0.7 < made / said < 1.3
