"""Tasks that compile their networks keep what they have made where the others find it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import open_run

Command = Callable[..., Any]

OWN = """
import torch


def tanh(d_in):
    linear = torch.nn.Linear
    return torch.nn.Sequential(linear(d_in, 4), torch.nn.Tanh(), linear(4, 1))
"""


@pytest.mark.slow
def test_what_is_compiled_lies_in_the_run_directory(mlpsubmit: Command, workplace: Path) -> None:
    spec = (workplace / "small.py").read_text()
    (workplace / "own.py").write_text(OWN + spec.replace('grabs={"size": size}', "MODEL=tanh"))
    trained = mlpsubmit("launch", "own.py", "--executor", "local", "COMPILE=True", "MAX_ITER=3")
    assert trained.code == 0, trained.err
    run = open_run()
    (machine,) = (run.path / "compiled").iterdir()
    assert list(machine.rglob("*.so"))
    assert "could not be compiled" not in mlpsubmit("logs").out
