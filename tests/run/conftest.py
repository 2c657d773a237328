"""Running the command line in this process, and specs to run it on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit.cli.main import main

#: Trains eight small configs in about a second.
SPEC = """
import torch
from mlpsubmit import Sweep

def linear(noise, bsz, gen, X=None, y=None):
    def batch_fn(step):
        inputs = torch.randn(bsz, 3, generator=gen)
        return inputs, inputs[:, 0] + noise
    return batch_fn

def size(model):
    return model.input_layer.weight.abs().mean()

sweep = Sweep(
    "small",
    axes={"WIDTH": [4, 8], "noise": [0.0, 0.5], "trial": range(2)},
    batchfn=linear,
    N_SAMPLES=16,
    MAX_ITER=100,
    LR=0.1,
    LOSS_CHECKPOINTS=[0.5],
    grabs={"size": size},
)
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own to work in, with the spec ``small.py``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLPSUBMIT_RUNS", raising=False)
    (tmp_path / "small.py").write_text(SPEC)
    return tmp_path


@pytest.fixture
def mlpsubmit(
    workplace: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Run a command of the command line, as its entry point does."""

    def run(*arguments: Any) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mlpsubmit", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Outcome(int(ended.value.code or 0), out, err)

    return run
