"""Nothing finished is lost, and an interrupted run gives the very numbers of an undisturbed one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xarray

from mlpsubmit import open_run
from mlpsubmit.runs.run import Run

pytestmark = pytest.mark.slow

COMMAND = [str(Path(sys.executable).parent / "mlpsubmit")]

#: Trains for some seconds, in two tasks; each step sleeps, so that it can be caught in the middle.
SPEC = """
import time
import torch
from mlpsubmit import Sweep

def products(bsz, gen, X=None, y=None):
    def batch_fn(step):
        if X is not None:
            return X, y
        time.sleep(0.002)
        inputs = torch.randn(bsz, 4, generator=gen)
        return inputs, inputs[:, 0] * inputs[:, 1]
    return batch_fn

def drag(model, X_tr):
    time.sleep(0.002)
    return model(X_tr).abs().mean()

sweep = Sweep(
    "recovery", axes={"WIDTH": [8, 16], "GAMMA": [0.5, 1]}, batchfn=products, ONLINE=ONLINE_HERE,
    N_SAMPLES=16, N_TEST=32, MAX_ITER=STEPS_HERE, LOSS_CHECKPOINTS=[1e-12], OPTIMIZER="adam",
    LR=0.05, ONLYTHRESHOLDS=False, RECORD_EVERY=7, EVAL_EVERY=7, GRAB_EVERY=EVERY_HERE,
    CHECKPOINT_MINUTES=0.004, grabs={"drag": drag},
)
"""


def write_spec(folder: Path, *, online: bool, steps: int = 1200) -> Path:
    """Write the spec; offline, where no batches are drawn, its grab does the dawdling."""
    text = SPEC.replace("ONLINE_HERE", str(online)).replace("EVERY_HERE", "50" if online else "2")
    text = text.replace("STEPS_HERE", str(steps))
    (folder / "recovery.py").write_text(text)
    return folder / "recovery.py"


def cli(*arguments: Any, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Return the first true value of a condition; fail where it stays false."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("what the test waits for did not come")


def saved_mid_training(run: Run) -> list[int]:
    """Return the pids of both workers, once a state is saved in the middle of a pack."""
    pids = [task.heartbeat["pid"] for task in run.status().tasks if task.heartbeat]
    saved = list(run.directory.checkpoint("-").parent.glob("[!.]*.pt"))
    return pids if saved and len(pids) == 2 else []


def living(group: int) -> list[str]:
    """Return the states of the living processes of a process group."""
    stats = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            stats.append(file.read_text().rpartition(")")[2].split())
    return [fields[0] for fields in stats if int(fields[2]) == group and fields[0] not in "ZX"]


def results(run: Run) -> xarray.Dataset:
    """Return all that a run measured, without what depends on the clock or the launch."""
    dataset = run.collect().drop_vars("seconds")
    dataset.attrs = {}
    return dataset


@pytest.fixture(scope="module", params=[True, False], ids=["online", "offline"])
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bool, xarray.Dataset]:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = cli("launch", write_spec(folder, online=request.param), cwd=folder)
    assert done.returncode == 0, done.stderr
    dataset = results(open_run("recovery", folder / "mlpruns"))
    assert (dataset.status == "done").all()
    return request.param, dataset


def test_a_killed_worker_goes_on_from_its_checkpoint(
    undisturbed: tuple[bool, xarray.Dataset], tmp_path: Path
) -> None:
    online, expected = undisturbed
    launched = cli("launch", write_spec(tmp_path, online=online), "--detach", cwd=tmp_path)
    assert launched.returncode == 0, launched.stderr
    run = open_run("recovery", tmp_path / "mlpruns")
    for pid in wait_for(lambda: saved_mid_training(run)):
        os.kill(pid, signal.SIGKILL)
    status = run.wait()
    assert status.state == "crashed"
    assert {task.state for task in status.tasks} == {"crashed"}
    assert status.missing > 0

    shown = cli("status", cwd=tmp_path)
    assert shown.returncode == 1
    assert "its process exited without reporting; its log:" in shown.stdout.replace("\n", " ")

    resumed = cli("resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    xarray.testing.assert_identical(results(run), expected)


def test_ctrl_c_stops_the_workers_and_says_how_to_resume(
    undisturbed: tuple[bool, xarray.Dataset], tmp_path: Path
) -> None:
    online, expected = undisturbed
    spec = write_spec(tmp_path, online=online)
    attached = subprocess.Popen(
        # As from a terminal, also where these tests run in the background, which ignores Ctrl-C.
        ["env", "--default-signal=INT", *COMMAND, "launch", str(spec)],
        cwd=tmp_path,
        start_new_session=True,  # a terminal of its own, whose Ctrl-C reaches every process in it
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: list(tmp_path.glob("mlpruns/recovery/*/submissions/000/jobs.json")))
    run = open_run("recovery", tmp_path / "mlpruns")
    wait_for(lambda: saved_mid_training(run))
    os.killpg(attached.pid, signal.SIGINT)
    _, errors = attached.communicate(timeout=60)
    assert attached.returncode == 1
    assert "stopping: workers save their state" in errors
    assert f"continue with: mlpsubmit resume {run.id}" in errors
    status = run.status()
    assert not status.running
    assert {task.state for task in status.tasks} == {"interrupted"}
    wait_for(lambda: not living(attached.pid))

    # Launching the unchanged spec is the other way to go on: it makes no second run.
    again = cli("launch", spec, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(list(tmp_path.glob("mlpruns/recovery/[!.]*"))) == 1
    xarray.testing.assert_identical(results(run), expected)

    # Nothing is left to do, and nothing is done.
    before = sorted(run.path.rglob("*"))
    assert "all 4 configs are done" in cli("launch", spec, cwd=tmp_path).stdout
    assert sorted(run.path.rglob("*")) == before


def test_a_running_run_is_collected_cancelled_and_not_resumed_twice(tmp_path: Path) -> None:
    cli("launch", write_spec(tmp_path, online=True, steps=10**6), "--detach", cwd=tmp_path)
    run = open_run("recovery", tmp_path / "mlpruns")
    wait_for(lambda: saved_mid_training(run))

    partial = cli("collect", "--out", "partial.nc", "--no-table", cwd=tmp_path)
    assert partial.returncode == 1
    assert "(0 of 4 configs)" in partial.stdout
    assert f"the run is in progress; see: mlpsubmit status {run.id}" in partial.stderr
    assert (xarray.open_dataset(tmp_path / "partial.nc").status == "missing").all()

    twice = cli("resume", cwd=tmp_path)
    assert twice.returncode == 2
    assert f"run {run.id} is still running" in twice.stderr
    relaunched = cli("launch", tmp_path / "recovery.py", "--detach", cwd=tmp_path)
    assert relaunched.returncode == 0
    assert f"run {run.id} is running" in relaunched.stdout
    assert run.directory.submissions() == [0]

    shown = json.loads(cli("status", "--json", cwd=tmp_path).stdout)
    assert (shown["state"], shown["configs"], shown["missing"]) == ("running", 4, 4)
    assert {task["host"] for task in shown["tasks"]} == {socket.gethostname()}

    # Results are shared once they are finished: others are trained twice.
    grown = cli("launch", tmp_path / "recovery.py", "GAMMA=[1,2]", "--dry-run", cwd=tmp_path)
    assert grown.returncode == 0, grown.stderr
    assert grown.stderr.count("warning: ") == 1
    assert (
        f"warning: run {run.id} is running, and trains 2 configs of this launch: they are trained "
        "twice. A launch takes over what has finished; for the rest alone, cancel this one, and "
        "launch again when that has ended\n"
    ) in grown.stderr

    # A later run of the sweep, which has ended, does not hide the one that runs.
    other = cli("launch", tmp_path / "recovery.py", "MAX_ITER=10", cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    latest = open_run("recovery", tmp_path / "mlpruns").id
    said = f"run {latest} is not running; these are: {run.id}; stop one with: mlpsubmit cancel "
    assert cli("cancel", "recovery", cwd=tmp_path).stdout == f"{said}{run.id}\n"

    cancelled = cli("cancel", run.id, cwd=tmp_path)
    assert cancelled.returncode == 0
    assert "continue with: mlpsubmit resume" in cancelled.stdout
    stopped = run.status()
    assert stopped.state == "stopped"
    assert 0 < stopped.fraction < 1, "what is saved counts"
    assert "saved at step" in cli("status", run.id, cwd=tmp_path).stdout
    assert cli("cancel", run.id, cwd=tmp_path).stdout == f"run {run.id} is not running\n"
    assert cli("cancel", cwd=tmp_path).stdout == f"run {latest} is not running\n"

    logs = cli("logs", run.id, "1", cwd=tmp_path).stdout
    assert "interrupted, its state is saved" in logs
    missing = cli("logs", run.id, "7", cwd=tmp_path)
    assert missing.returncode == 2
    assert "task 7: run" in missing.stderr
    assert "has no such task; tasks with a log: 000-0000, 000-0001" in missing.stderr
