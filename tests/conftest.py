"""What all tests share: one thread each, and the command line run in this process."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpsubmit.cli.main import main
from mlpsubmit.files import publish_json
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.masks import encode_mask
from mlpsubmit.jobs.store.records import CostSettings
from mlpsubmit.jobs.store.run_directory import RunDirectory

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


def _places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the position of every value in a JSON content, and of itself."""
    yield path
    keys: Sequence[Any] = ()
    if isinstance(content, dict):
        keys = list(content)
    elif isinstance(content, list):
        keys = range(min(len(content), 2))
    for key in keys:
        yield from _places(content[key], (*path, key))


def _changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a content with one value replaced, or left out if the new one is ``...``."""
    if not path:
        return {} if value is ... else value
    content = json.loads(json.dumps(content))
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    if value is ...:
        del inner[path[-1]]
    return content


@dataclass(frozen=True)
class Outcome:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def installed() -> Callable[[str], str]:
    """Return a function that finds a program; in CI, one that is missing is a failure."""

    def find(name: str) -> str:
        found = shutil.which(name)
        if found is None:
            why = f"needs {name} (make test installs it for root on Debian)"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
        return found

    return find


@pytest.fixture
def without_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take PyTorch in place of the functions in C, as where there is no compiler."""
    for function in (
        *("batchfns.normal.library", "jobs.environment.library"),
        "training.accel.native_mlp.library",
        *("training.loss_history.fused_loss_step", "training.optimizers.sgd.sgd_step"),
        "training.optimizers.adam.adam_step",
    ):
        monkeypatch.setattr(f"mlpsubmit.{function}", lambda *arguments: None)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the spec ``small.py``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLPSUBMIT_RUNS", raising=False)
    (tmp_path / "small.py").write_text(SPEC)
    return tmp_path


@pytest.fixture
def mlpsubmit(
    workplace: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Outcome]:
    """Return a function that runs an mlpsubmit command in this process."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("mlpsubmit.runs.overview.cache_folder", lambda: cache)

    def run(*arguments: Any) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mlpsubmit", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # main() sets it
        monkeypatch.setattr("mlpsubmit.cli.main.postpone_collection", lambda: None)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Outcome(int(ended.value.code or 0), out, err)

    return run


class Records:
    """Whole JSON records of a run directory, for tests of runs that were never launched."""

    @staticmethod
    def intent(slices: Any = (((0, 1),),), **fields: Any) -> dict[str, Any]:
        """Return the content of an intent.json, for SLURM if ``executor`` is slurm."""
        local: dict[str, Any] = {"executor": "local", "host": "x", "created": 0.0, "gpus": False}
        local |= {"same_device": False, "workers": 1}
        listed = [[list(one) for one in slice_] for slice_ in slices]
        slurm = {"arrays": [], "retries": 0, "retry": None, "template": {}, "tasks": None}
        slurm |= {"cluster": "mlp", "user": os.getuid()}
        slurm |= {"later": [], "continues": None, "limit": None}
        further = slurm if fields.get("executor") == "slurm" else {}
        return {**local, **further, "slices": listed, **fields}

    @staticmethod
    def job(id: str, first: int = 0, count: int = 1, **fields: Any) -> dict[str, Any]:
        """Return a job of a jobs.json."""
        further = {"array": False, "host": "x", "pid": None, "process_start": None}
        further["pid_namespace"] = None
        return {"id": id, "first": first, "count": count, **further, **fields}

    @staticmethod
    def wrong(content: Any, values: Sequence[Any], every: int) -> Iterator[Any]:
        """Yield a JSON content with each of its values replaced in turn, and left out.

        Of a list the first two entries. At each place every so many-th of the values is tried,
        beginning with another one.
        """
        for number, place in enumerate(_places(content)):
            for value in (..., *values[number % every :: every]):
                yield _changed(content, place, value)

    @staticmethod
    def beat(**fields: Any) -> dict[str, Any]:
        """Return a heartbeat of a task that has not begun a pack."""
        own = {"state": "starting", "host": "x", "pid": 1, "started": 0.0, "updated": 0.0}
        return {**own, **fields}

    @staticmethod
    def create(path: Path, packs: int = 10, reused: int = 0) -> RunDirectory:
        """Create the directory of a run with packs of two configs each, along the axis ``n``.

        Args:
            reused: configs at the end of the axis, with results of earlier runs.
        """
        configs = 2 * packs
        values = list(range(configs + reused))
        trained = np.arange(configs + reused) < configs
        one = {"axis": None, "values": [1.0]}
        plan = {
            "configs": configs,
            "packs": packs,
            "shape": [configs + reused],
            "order": [0],
            "outside": 0,
            "classes": {},
            "pack_limits": [[1, 2]],
            "cost_settings": dict.fromkeys(CostSettings.__annotations__, one),
            "threads": 1,
            "kept": encode_mask(trained) if reused else None,
        }
        sweep = {
            "format": run_directory.FORMAT,
            "name": "a",
            "id": path.name,
            "fingerprint": "f",
            "created": "",
            "configs": configs + reused,
            "axes": [{"dimension": "n", "names": ["n"], "values": [values], "hashes": [[]]}],
            "included": None,
            "reused": reused,
            "thresholds": [0.1],
            "threshold_axis": None,
            "metrics": [],
            "metric_thresholds": [],
            "tested": False,
            "given": [],
            "overrides": {},
            "sources": [],
            "reads": [],
            "labels": {},
            "hyperparameters": {"online": True},
            "arguments": {},
            "functions": {},
            "devices": "all",
            "launched_in": {"folder": str(path), "run": str(path)},
            "origin": {},
        }
        for folder in run_directory.FOLDERS:
            (path / folder).mkdir(parents=True, exist_ok=True)
        publish_json(path / run_directory.SWEEP_JSON, sweep)
        publish_json(path / run_directory.PLAN, plan)
        return RunDirectory.open(path)


@pytest.fixture
def records() -> Records:
    """Whole JSON records of a run directory."""
    return Records()


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


def pytest_collection_finish() -> None:
    """Prepare the process, once all tests are imported.

    The collector is spared what lives until the end: it would pass over all of it, each time.
    Modules that tests write get no bytecode, which Python would read where one has changed within
    the second in which it was written; tests themselves have theirs.
    """
    gc.collect()
    gc.freeze()
    sys.dont_write_bytecode = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that need a GPU on machines without one."""
    if torch is None or not torch.cuda.is_available():
        without = [item for item in items if item.get_closest_marker("gpu") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in without])
        items[:] = without
