"""Continue a finished run with KEEP_STATE: the bits are those of one long training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlpsubmit import Run, Sweep, launch
from mlpsubmit.training import loop


def noisy(noise: float, bsz: int, gen: torch.Generator) -> Any:
    def batch_fn(step: int) -> Any:
        X = torch.randn(bsz, 3, generator=gen)
        return X, X[:, 0] + noise

    return batch_fn


def norm(model: torch.nn.Module, X_tr: torch.Tensor) -> torch.Tensor:
    return model(X_tr).norm()


def long(model: torch.nn.Module, max_iter: int) -> float:
    return float(max_iter)


AXES: dict[Any, Any] = {"WIDTH": [4, 6], "LR": [0.05, 1e-4], "noise": [0.0, 0.3]}
SETTINGS: dict[str, Any] = {"N_SAMPLES": 8, "MAX_ITER": 30, "LOSS_CHECKPOINTS": [0.6, 0.3]}
SETTINGS |= {"KEEP_STATE": True, "grabs": {"norm": norm}, "EMA_SMOOTHER": 0.7}


def trained(folder: Path, axes: Any = None, **settings: Any) -> Run:
    axes = AXES if axes is None else axes
    given = {n: v for n, v in {**SETTINGS, **settings}.items() if n not in axes}
    sweep = Sweep("further", axes, batchfn=noisy, **given)
    return launch(sweep, executor="debug", runs_dir=folder)


CONTINUE = "{} continue from the states kept by run {}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "further",
    [
        {"MAX_ITER": 45},
        {"LOSS_CHECKPOINTS": [0.6, 0.3, 0.2]},
        {"MAX_ITER": 50, "LOSS_CHECKPOINTS": [0.6, 0.3, 0.1], "KEEP_STATE": False},
        {"axes": {**AXES, "MAX_ITER": [30, 40]}},
        {"PERCENT_THRESHOLDS": [0.9, 0.5, 0.3]},
    ],
    ids=["steps", "thresholds", "both", "axis", "percent"],
)
def test_packs_go_on_and_end_as_if_asked_for_at_once(
    further: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loop, "BLOCK", 8)
    kept: dict[str, Any] = {"SAVE_WEIGHTS": "final"}
    if "PERCENT_THRESHOLDS" in further:
        kept |= {"LOSS_CHECKPOINTS": None, "PERCENT_THRESHOLDS": [0.9, 0.5]}
    first = trained(tmp_path / "a", **kept)
    assert (first.collect().steps == 30).any()
    assert first.collect().crossed.isel(threshold=-1).any()
    capsys.readouterr()
    second = trained(tmp_path / "a", **{**kept, **further})
    said = capsys.readouterr().out
    assert CONTINUE.format("2 packs", first.id) in said
    assert "from scratch" not in said
    at_once = trained(tmp_path / "b", **{**kept, **further})
    one, other = second.collect(), at_once.collect()
    assert one.attrs["results_hash"] == other.attrs["results_hash"]
    a, b = (run.measure({"w": lambda model: model.input_layer.weight}) for run in (second, at_once))
    np.testing.assert_array_equal(a.w, b.w)


@pytest.mark.slow
def test_a_longer_run_goes_further_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "BLOCK", 8)
    traces = {"ONLYTHRESHOLDS": False, "RECORD_EVERY": 4, "GRAB_EVERY": 3, "axes": {"noise": [0.0]}}
    traces |= {"WIDTH": 4, "LR": 0.02}
    for steps in (20, 37, 60):
        run = trained(tmp_path / "a", MAX_ITER=steps, **traces)
    assert capsys.readouterr().out.count("continues from the states") == 2
    at_once = trained(tmp_path / "b", MAX_ITER=60, **traces)
    assert run.collect().attrs["results_hash"] == at_once.collect().attrs["results_hash"]


@pytest.mark.parametrize(
    ("first", "then", "text"),
    [
        ({"KEEP_STATE": False}, {"MAX_ITER": 40}, r"has kept no states \(KEEP_STATE=True keeps"),
        pytest.param(
            *({}, {"MAX_ITER": 40, "PACK_SIZE": 1}, "are composed differently"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *({"EVAL_EVERY": "log:4"}, {"MAX_ITER": 40}, "EVAL_EVERY='log:4' depends on MAX_ITER"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"RECORD_EVERY": "log:4", "METRICS": ["r2"], "ONLYTHRESHOLDS": True},
            {"MAX_ITER": 40},
            "RECORD_EVERY='log:4' depends on MAX_ITER",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(
                {"LR_SCHEDULE": "cosine"},
                {"MAX_ITER": 40},
                "LR_SCHEDULE='cosine' depends on MAX_ITER",
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *({"grabs": {"long": long}}, {"MAX_ITER": 40}, "a function of the spec takes MAX_ITER"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(
                {},
                {"LOSS_CHECKPOINTS": [0.6, 0.5, 0.3]},
                "a new threshold is not below all earlier",
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(
                {"LOSS_CHECKPOINTS": []},
                {"LOSS_CHECKPOINTS": [0.6]},
                "a new threshold is not below",
            ),
            marks=pytest.mark.slow,
        ),
        (
            {"METRIC_THRESHOLDS": {"test_r2": [0.1]}, "EVAL_EVERY": 2},
            {"METRIC_THRESHOLDS": {"test_r2": [0.1, 0.5]}},
            "METRIC_THRESHOLDS are not those of run",
        ),
        pytest.param(
            {"EVAL_EVERY": 2},
            {"METRIC_THRESHOLDS": {"test_r2": [0.1]}, "MAX_ITER": 40},
            "METRIC_THRESHOLDS are not those of run",
            marks=pytest.mark.slow,
        ),
    ],
    ids=[
        *("not kept", "packs", "log", "metrics", "rates", "function", "between", "first"),
        *("crossings", "first crossings"),
    ],
)
def test_a_launch_says_why_it_trains_anew(
    first: dict[str, Any],
    then: dict[str, Any],
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    axes = {"noise": [0.0, 0.3]}
    settings: dict[str, Any] = {"WIDTH": 4, "LR": 0.05, "MAX_ITER": 4}
    trained(tmp_path, axes, **{**settings, **first})
    capsys.readouterr()
    run = trained(tmp_path, axes, **{**settings, **first, **then})
    said = capsys.readouterr().out
    assert "from scratch, with configs that an earlier run trained to a smaller MAX_ITER" in said
    assert text.replace("\\", "") in said
    assert "from the states kept" not in said
    assert run.status().complete


def test_one_schedule_of_a_pack_is_enough_to_train_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = {"LR_SCHEDULE": ["constant", "linear"]}
    settings: dict[str, Any] = {"WIDTH": 4, "LR": 0.05, "noise": 0.0, "LOSS_CHECKPOINTS": []}
    trained(tmp_path, axes, **settings, MAX_ITER=4)
    run = trained(tmp_path, axes, **settings, MAX_ITER=8)
    assert "LR_SCHEDULE='linear' depends on MAX_ITER" in capsys.readouterr().out
    alone = trained(tmp_path / "b", axes, **settings, MAX_ITER=8)
    assert run.collect().attrs["results_hash"] == alone.collect().attrs["results_hash"]


@pytest.mark.slow
def test_other_configs_just_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"axes": {"noise": [0.0]}, "WIDTH": 4, "MAX_ITER": 6}
    trained(tmp_path, LR=0.05, **settings)
    for other in (
        {"LR": 0.1},
        {"LR": 0.05, "MAX_ITER": 5},
        {"LR": 0.05, "LOSS_CHECKPOINTS": [0.2]},
    ):
        trained(tmp_path, **{**settings, **other})
    said = capsys.readouterr().out
    assert "from scratch" not in said
    assert "from the states kept" not in said


def test_a_damaged_state_is_not_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"axes": {"noise": [0.0]}, "WIDTH": 4, "LR": 0.01}
    first = trained(tmp_path / "a", MAX_ITER=6, **settings)
    for file in (first.path / "states").iterdir():
        file.write_bytes(file.read_bytes()[:-9] + bytes(9))
    run = trained(tmp_path / "a", MAX_ITER=9, **settings)
    assert "is unusable, starting from scratch" in capsys.readouterr().out
    at_once = trained(tmp_path / "b", MAX_ITER=9, **settings)
    assert run.collect().attrs["results_hash"] == at_once.collect().attrs["results_hash"]


def test_a_dry_run_says_it_too(mlpsubmit: Any, workplace: Path) -> None:
    keep = ["small.py", "MAX_ITER=10", "KEEP_STATE=True", "LOSS_CHECKPOINTS=[0.01]"]
    assert mlpsubmit("launch", *keep, "--executor", "debug").code == 0
    keep[1] = "MAX_ITER=20"
    assert "2 packs continue from the states" in mlpsubmit("launch", *keep, "--dry-run").out
