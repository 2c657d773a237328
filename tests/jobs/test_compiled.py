"""Tasks that compile their networks keep what they have made where the others find it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import open_run

Command = Callable[..., Any]

#: Its forward function uses what stands around it in the spec, as most do.
OWN = """
import torch


def bent(signal):
    return torch.tanh(signal)


class Net(torch.nn.Module):
    def __init__(self, d_in):
        super().__init__()
        self.read_in, self.read_out = torch.nn.Linear(d_in, 4), torch.nn.Linear(4, 1)

    def forward(self, X):
        return self.read_out(bent(self.read_in(X)))


def loss(output, y):
    return torch.nn.functional.mse_loss(output, y)
"""


@pytest.mark.slow
def test_what_is_compiled_lies_in_the_run_directory(mlpsubmit: Command, workplace: Path) -> None:
    spec = (workplace / "small.py").read_text()
    (workplace / "own.py").write_text(
        OWN + spec.replace('grabs={"size": size}', "MODEL=Net, LOSS=loss")
    )
    trained = mlpsubmit("launch", "own.py", "--executor", "local", "COMPILE=True", "MAX_ITER=3")
    assert trained.code == 0, trained.err
    run = open_run()
    (machine,) = (run.path / "compiled").iterdir()
    assert list(machine.rglob("*.so"))
    assert "could not be compiled" not in mlpsubmit("logs").out
