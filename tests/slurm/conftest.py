"""A real cluster, and studies that are launched on it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import xarray

from mlpsubmit import launch, open_run
from mlpsubmit.runs.run import Run
from mlpsubmit.spec.load import load_spec

# The tests' folders are no packages: a module beside the tests is loaded by its path.
_SPEC = importlib.util.spec_from_file_location(
    "slurm_cluster", Path(__file__).parent / "cluster.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
slurm_cluster = importlib.util.module_from_spec(_SPEC)
sys.modules["slurm_cluster"] = slurm_cluster
_SPEC.loader.exec_module(slurm_cluster)

COMMAND = str(Path(sys.executable).parent / "mlpsubmit")

#: Four configs in two packs. How long a step takes is read from a file at every step, so that tests
#: can catch a task in the middle; no number depends on it.
SPEC = """
import time
from pathlib import Path
import torch
from mlpsubmit import Sweep

def products(bsz, gen, X=None, y=None):
    def batch_fn(step):
        pace = Path(PACE_HERE)
        if step > 0 and pace.exists():
            time.sleep(pace.stat().st_size / 1000)  # not read: a launch warns of that
        inputs = torch.randn(bsz, 4, generator=gen)
        return inputs, inputs[:, 0] * inputs[:, 1]
    return batch_fn

def mean_output(model, X_tr):
    return model(X_tr).abs().mean()

sweep = Sweep(
    NAME_HERE, axes={"WIDTH": [8, 16], "GAMMA": [0.5, 1]}, batchfn=products, N_SAMPLES=16,
    MAX_ITER=600, LOSS_CHECKPOINTS=[1e-12], OPTIMIZER="adam", LR=0.05, ONLYTHRESHOLDS=False,
    RECORD_EVERY=7, GRAB_EVERY=50, CHECKPOINT_MINUTES=0.01, grabs={"mean_output": mean_output},
)
"""

#: What a task of these tests asks for: little of a node, so that many run side by side.
SMALL = {"gpus": 0, "cpus": 1, "mem": "600M", "time": "10"}


def _missing() -> str:
    """Return why no cluster can run on this machine; empty where one can."""
    missing = [name for name in slurm_cluster.PACKAGES if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} (make test installs them for root on Debian)"
    return "root: device nodes and mounts are made" if os.geteuid() else ""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a cluster; each worker of pytest-xdist starts its own, and takes whole files.

    Where none can run, its tests are skipped with the reason; in CI that is a failure.
    """
    missing = _missing()
    for item in items:
        if not {"cluster", "bare_cluster"}.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.slurm)
        if missing and item.get_closest_marker("slurm"):
            if os.environ.get("CI"):
                raise pytest.UsageError(f"{item.nodeid} must not be skipped, and needs {missing}")
            item.add_marker(pytest.mark.skip(reason=f"needs {missing}"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A cluster with accounting, the one that all tests share."""
    with slurm_cluster.Cluster() as running:
        yield running


@pytest.fixture(scope="session")
def bare_cluster() -> Iterator[Any]:
    """A cluster without accounting: no sacct, no accounts, no qos."""
    with slurm_cluster.Cluster(accounting=False) as running:
        yield running


@dataclass
class Study:
    """A folder to launch sweeps from, on a cluster."""

    cluster: Any
    folder: Path
    command: str = COMMAND
    plain_spec: str = SPEC

    def pace(self, name: str, seconds: float | None) -> None:
        """Set how long a step takes, from now on; None for as short as it can.

        The file stays: a step may be between finding it and reading its size.
        """
        file = self.folder / f"{name}.pace"
        file.write_bytes(b"." * round(1000 * (seconds or 0)))  # a byte per millisecond

    def spec(self, name: str, text: str = SPEC) -> Path:
        """Write a spec under the name of its sweep."""
        pace = repr(str(self.folder / f"{name}.pace"))
        text = text.replace("NAME_HERE", repr(name)).replace("PACE_HERE", pace)
        (self.folder / f"{name}.py").write_text(text)
        return self.folder / f"{name}.py"

    def launch(self, name: str, *, tasks: int = 1, text: str = SPEC, **how: Any) -> Run:
        """Launch a sweep from this very process."""
        asked = {**SMALL, **how.pop("slurm", {})}
        path = self.spec(name, text)
        options = {"executor": "slurm", "runs_dir": self.folder / "runs", **how}
        return launch(load_spec(path), spec=path, tasks=tasks, slurm=asked, **options)

    def cli(self, *arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a process of its own, in the study's folder."""
        return subprocess.run(
            [self.command, *map(str, arguments)],
            cwd=self.folder,
            env={**os.environ, "MLPSUBMIT_RUNS": str(self.folder / "runs"), **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def open(self, name: str) -> Run:
        """Open the latest run of a sweep, as another process sees it."""
        return open_run(name, self.folder / "runs")

    def queued(self, run: Run) -> list[str]:
        """Return the states of the run's jobs in the queue, as SLURM shows them."""
        rows = self.cluster.run("squeue", "--noheader", "--format=%j|%T").stdout.splitlines()
        return [row.rpartition("|")[2] for row in rows if run.id in row]

    def job(self, run: Run) -> str:
        """Return the id of the run's array in its latest submission."""
        jobs = run.directory.jobs(run.directory.submissions()[-1])
        assert jobs is not None
        return str(jobs["jobs"][0]["id"])

    def log(self, run: Run) -> str:
        """Return what all tasks of a run have printed."""
        return "".join(file.read_text() for file in run.logs().values())


def _study(cluster: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    for variable, value in cluster.environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.chdir(folder)
    return Study(cluster, folder)


@pytest.fixture
def study(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study on the cluster with accounting."""
    return _study(cluster, tmp_path, monkeypatch)


@pytest.fixture
def bare_study(bare_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study on the cluster that keeps no accounts."""
    return _study(bare_cluster, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def slurm_text() -> str:
    """Return the text of the spec of these tests, for variants of it."""
    return SPEC


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., Any]:
    """Return the first true value of a condition; fail where it stays false."""

    def wait(condition: Callable[[], Any], seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := condition():
                return value
            time.sleep(0.05)
        raise AssertionError("what the test waits for did not come")

    return wait


@pytest.fixture
def training(wait_for: Callable[..., Any]) -> Callable[[Run], dict[str, Any]]:
    """Wait until the first task of a run is in the middle of a pack; return its heartbeat."""

    def beat(run: Run) -> dict[str, Any]:
        last = run.directory.last_heartbeat(f"{run.directory.submissions()[-1]:03d}-0000") or {}
        return last if last.get("state") == "training" and last.get("step", 0) > 0 else {}

    return lambda run: wait_for(lambda: beat(run))


@pytest.fixture(scope="session")
def results() -> Callable[[Run], xarray.Dataset]:
    """Return all that a run measured, without what depends on the clock or the launch."""

    def measured(run: Run) -> xarray.Dataset:
        dataset = run.collect().drop_vars("seconds")
        dataset.attrs = {}
        return dataset

    return measured


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, results: Callable[[Run], xarray.Dataset]
) -> xarray.Dataset:
    """What the spec gives where nothing happens: trained in this process, without any SLURM."""
    import torch

    study = Study(None, tmp_path_factory.mktemp("undisturbed"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    path = study.spec("undisturbed")
    run = launch(load_spec(path), spec=path, executor="debug", runs_dir=study.folder / "runs")
    torch.set_num_threads(threads)
    assert run.status().complete
    return results(run)
