"""What a launch in the caller's process leaves as it was."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.deterministic

from mlpsubmit import SpecError, Sweep, launch


def state() -> dict[str, Any]:
    numpy_state: Any = np.random.get_state()
    filling: Any = torch.utils.deterministic
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [part.tolist() if hasattr(part, "tolist") else part for part in numpy_state],
        "random": random.getstate(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "filling": filling.fill_uninitialized_memory,
        "matmul": torch.get_float32_matmul_precision(),
        "gradients": torch.is_grad_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "errors": np.geterr(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }


def drawing() -> dict[str, Any]:
    torch.rand(3), np.random.rand(3), random.random()
    return {"scale": 1.0}


def meddling(bsz: int, gen: Any, at: int) -> Any:
    def batch_fn(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        X = torch.randn(bsz, 2, generator=gen)
        np.seterr(over="ignore")
        torch.backends.cudnn.benchmark = True
        os.environ["MLPSUBMIT_MEDDLED"] = "1"
        os.environ.pop("MLPSUBMIT_PRESENT", None)
        os.chdir("/")
        if step == at:
            raise ValueError("as asked")
        return X, X[:, 0]

    return batch_fn


@pytest.mark.filterwarnings("ignore:batchfn meddling")
@pytest.mark.parametrize("at", [-1, 3, 0])
def test_a_debug_launch_leaves_the_process_as_it_was(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the function raises, in the launch (step 0) or in the training."""
    monkeypatch.setenv("MLPSUBMIT_PRESENT", "yes")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    torch.set_num_threads(2)
    torch.manual_seed(3)
    before = state()
    settings = {"WIDTH": 4, "MAX_ITER": 6, "N_SAMPLES": 8, "at": at}
    sweep = Sweep("meddles", data=drawing if at else None, batchfn=meddling, **settings)
    raises = pytest.raises(SpecError, match="as asked") if at == 0 else contextlib.nullcontext()
    with raises:
        launch(sweep, executor="debug", runs_dir=tmp_path)
    assert state() == before
