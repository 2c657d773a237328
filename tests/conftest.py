"""What all tests share: one thread each, and the command line run in this process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit.cli.main import main

try:
    import torch
except ModuleNotFoundError:  # as in tests/pythons
    torch = None  # type: ignore[assignment]

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
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the spec ``small.py``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLPSUBMIT_RUNS", raising=False)
    (tmp_path / "small.py").write_text(SPEC)
    return tmp_path


@pytest.fixture
def mlpsubmit(
    workplace: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Return a function that runs an mlpsubmit command in this process."""

    def run(*arguments: Any) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mlpsubmit", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # main() sets it
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Outcome(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: at these sizes more threads only wait for each other."""
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_configure() -> None:
    """Give each of several xdist workers one thread, as they share the cores."""
    # A shell starts its background jobs with Ctrl-C ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ and torch is not None:
        torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that need a GPU on machines without one."""
    if torch is None or not torch.cuda.is_available():
        without = [item for item in items if item.get_closest_marker("gpu") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in without])
        items[:] = without
