"""Packs of several stacks: what the log says, and how they continue after an interruption."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlpsubmit import Sweep, launch, open_run
from mlpsubmit.jobs.checkpoint import Checkpoint
from mlpsubmit.jobs.pack_parts import PackParts
from mlpsubmit.training.monitor import StateError


def drawn(bsz: int, gen: torch.Generator, v: float) -> Any:
    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        if os.environ.get("PYTEST_KILL_AT") == f"{v}:{step}":
            del os.environ["PYTEST_KILL_AT"]
            os.kill(os.getpid(), signal.SIGTERM)
        X = torch.randn(bsz, 3, generator=gen)
        return X, X[:, 0] * X[:, 1]

    return batch_fn


class Normed(nn.Module):
    """Keeps statistics, which BatchNorm changes in place."""

    def __init__(self, v: float, choosy: bool) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)
        self.v, self.choosy = 0.0 if choosy else v, choosy

    def forward(self, X: Tensor) -> Tensor:
        h = self.norm(self.a(X)) + self.norm.running_mean * self.v
        if self.choosy and h.norm() > 5:
            h = h / 2
        return self.b(h)


def made(choosy: bool) -> Sweep:
    return Sweep(
        "stacks",
        axes={"v": [1.0, 2.0], "LR": [0.01, 0.05]},
        batchfn=drawn,
        MODEL=Normed,
        choosy=choosy,
        PARAMETRIZATION="sp",
        N_SAMPLES=6,
        N_TEST=6,
        MAX_ITER=20,
        LOSS_CHECKPOINTS=[],
        PACK_SIZE=4,
        CHECKPOINT_MINUTES=1000,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choosy", "said"),
    [
        (False, "4 configs train in 2 stacks: they differ in Normed.v"),
        (True, "4 configs train one at a time: MODEL has a branch that depends on the data (line "),
    ],
)
def test_a_pack_of_several_stacks_continues_where_it_was(
    choosy: bool,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = pytest.warns(UserWarning, match="configs train one at a time, not together: MODEL has a")
    with told if choosy else contextlib.nullcontext():
        whole = launch(made(choosy), executor="debug", runs_dir=tmp_path / "whole")
    monkeypatch.setattr("mlpsubmit.assembly.probe.warn_of_single_configs", lambda *args: None)
    assert said in capsys.readouterr().out
    monkeypatch.setenv("PYTEST_KILL_AT", "2.0:7")
    with pytest.raises(KeyboardInterrupt):
        launch(made(choosy), executor="debug", runs_dir=tmp_path / "interrupted")
    run = open_run("stacks", tmp_path / "interrupted")
    assert "interrupted, its state is saved" in capsys.readouterr().out
    monkeypatch.delenv("PYTEST_KILL_AT")  # a launch has restored it
    run.resume(executor="debug")
    assert "from scratch" not in capsys.readouterr().out
    one, other = whole.collect(), run.collect()
    assert (other.status == "done").all()
    np.testing.assert_array_equal(one.train_loss, other.train_loss)


def test_a_part_divides_into_groups() -> None:
    parts = PackParts.whole(6)
    parts.separate([[0, 3], [1, 4]], done={4})
    assert parts.left == [[0, 3], [1], [2, 5]]
    parts.drop_first()
    parts.separate([[1]], done={0, 3, 4})
    assert parts.left == [[1], [2, 5]]


def test_a_state_of_other_configs_is_not_continued_from(tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(tmp_path / "pack.pt", "cpu", 3)
    checkpoint.check_stack([0, 2])
    checkpoint.save({"start": 5}, 1.0)
    again = Checkpoint.load(tmp_path / "pack.pt", "cpu", 3)
    again.check_stack([0, 2])
    with pytest.raises(StateError, match=r"of the configs \[0, 2\] of the pack, but now \[0, 1\]"):
        again.check_stack([0, 1])
    again.begin_stack()
    again.check_stack([0, 1])
    again.finished.append({"row": np.array([0, 1])})
    with pytest.raises(StateError, match="make something else at every start"):
        again.check_stack([1, 2])
