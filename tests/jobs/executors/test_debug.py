"""Training in the process of a script: what a signal does to it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlpsubmit import Sweep, launch, open_run

LAST = 2999


def sweep(at: int, number: int) -> Sweep:
    """Return one whose process sends itself a signal, once, when it trains and comes to a step."""

    def signals(bsz: int, gen: torch.Generator) -> Callable[[int], Any]:
        def batch_fn(step: int) -> Any:
            trains = any(Path("mlpruns").glob("*/*/heartbeats/*"))
            if step == at and trains and not os.path.exists("signalled"):
                Path("signalled").touch()
                os.kill(os.getpid(), number)
            return torch.ones(bsz, 2), torch.ones(bsz)

        return batch_fn

    return Sweep(
        "own", {"WIDTH": [4]}, batchfn=signals, MAX_ITER=LAST + 1, N_SAMPLES=4, LOSS_CHECKPOINTS=[]
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("at", "state"), [(20, "stopped"), (LAST, "done")])
def test_a_script_does_not_go_on_after_a_signal(
    workplace: Path, number: int, at: int, state: str
) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"^run .*: stopped by a signal; what it has train"):
        launch(sweep(at, number), executor="debug")
    run = open_run("own")
    assert run.status().state == state
    run.resume("debug")
    assert run.status().complete


def test_the_command_reports_how_far_it_came(
    workplace: Path, mlpsubmit: Callable[..., Any]
) -> None:
    (workplace / "own.py").write_text(
        f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\n"
        f"import test_debug\nsweep = test_debug.sweep(20, {int(signal.SIGINT)})\n"
    )
    stopped = mlpsubmit("launch", "own.py", "--executor", "debug")
    assert stopped.code == 1
    assert "0 of 1 config done, 1 missing; continue with: mlpsubmit resume" in stopped.err
    assert mlpsubmit("resume", "--executor", "debug").code == 0
