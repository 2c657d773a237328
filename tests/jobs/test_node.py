"""A task with several workers: which devices they get, and how they start and end."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pynvml
import pytest

from mlpsubmit.files import publish_json
from mlpsubmit.jobs import node
from mlpsubmit.jobs.gpus import all_devices, listed_devices
from mlpsubmit.jobs.slurm.requeue import REQUEUE
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.workers import Workers, devices
from mlpsubmit.slurm_templates import Template

UUID = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
PARTS = ["MIG-63feeb45-94c6-5320-8c97-7fbc3a5a4b25", "MIG-f15c6b0f-3e83-58b3-9b4e-37e9ef1ac5a3"]


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("0,1", ["0", "1"]),
        (" 2 , 5", ["2", "5"]),
        (f"{UUID},GPU-1a", [UUID, "GPU-1a"]),
        (",".join(PARTS), PARTS),
        (f"MIG-{UUID}/1/0,MIG-{UUID}/2/0", [f"MIG-{UUID}/1/0", f"MIG-{UUID}/2/0"]),
        ("0,0,1", ["0", "1"]),
        ("0,-1,1", ["0"]),  # as CUDA reads it
        ("NoDevFiles", []),
        ("", []),
    ],
)
def test_the_devices_that_a_process_may_use(visible: str, found: list[str]) -> None:
    assert listed_devices(visible) == found
    assert devices({"CUDA_VISIBLE_DEVICES": visible}, whole_node=False) == found


class Driver:
    """A driver of two GPUs, of which the second is divided."""

    def __getattr__(self, name: str) -> Any:
        return getattr(pynvml, name)

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return (UUID, "GPU-divided")[index]

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:
        return 7 if handle == "GPU-divided" else 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, index: int) -> str:
        if index not in (0, 3):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return PARTS[index // 3]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpsubmit.jobs.gpus.pynvml", Driver())


def test_of_a_node_that_nobody_shares_every_device(driver: None) -> None:
    assert all_devices() == [UUID, *PARTS]
    for shown in ({}, {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}):
        assert devices(shown, whole_node=True) == [UUID, *PARTS]
    assert devices({"CUDA_VISIBLE_DEVICES": "1"}, whole_node=True) == ["1"]


def test_of_a_job_those_that_are_its_own(driver: None) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1"}
    assert devices({**job, "SLURM_STEP_GPUS": "0"}, whole_node=False) == [UUID]


def test_without_a_driver_there_are_none() -> None:
    if not all_devices():
        assert devices({}, whole_node=True) == []


# ---- the workers of a task -----------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, records: Any, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run whose first task has two workers with a GPU each, and whose second has one."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    run: RunDirectory = records.create(tmp_path / "run", packs=3)
    run.submission(0).mkdir()
    template = Template(gpus=2).to_json()
    slices = [[(0, 1)], [(1, 2)], [(2, 3)]]
    intent = records.intent(slices, executor="slurm", gpus=True, workers=2, template=template)
    publish_json(run.submission(0) / run_directory.INTENT, intent)
    return run


def test_tasks_share_the_slices_out(run: RunDirectory) -> None:
    assert [*run.workers_of(0, 0)] == [0, 1]
    assert [*run.workers_of(0, 1)] == [2]
    job: dict[str, Any] = {"host": "x", "pid": None, "process_start": None, "pid_namespace": None}
    job |= {"id": "7", "first": 0, "count": 2, "array": True}
    publish_json(run.submission(0) / run_directory.JOBS, {"jobs": [job]})
    found = {name: one["id"] for name, one in run.task_jobs(0).items()}
    assert found == {"000-0000": "7_0", "000-0001": "7_0", "000-0002": "7_1"}
    publish_json(run.submission(0) / run_directory.JOBS, {"jobs": [{**job, "count": 3}]})
    assert run.task_jobs(0) == {}
    assert "got jobs for more than its 2 tasks" in "".join(run.unreadable.values())


def test_a_worker_that_is_done_is_not_started_again(
    run: RunDirectory, records: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.unfinished(run, 0, 0) == [0, 1]
    publish_json(run.heartbeat("000-0000"), records.beat(task="000-0000", state="done"))
    publish_json(run.heartbeat("000-0001"), records.beat(task="000-0001", state="crashed"))
    assert node.unfinished(run, 0, 0) == [1]
    assert capsys.readouterr().out == "1 worker of 2 had trained everything before\n"


@pytest.mark.parametrize(
    ("visible", "places", "message"),
    [
        ("4,5", ["4", "5"], ""),
        ("4,5,6", ["4", "5"], "n7 has 3 GPUs, and this task 2 workers: 6 will be idle; to use"),
        (
            "4",
            ["4"],
            "no GPU is left for this worker: its task needs 2, and n7 has 1 for it "
            "(CUDA_VISIBLE_DEVICES is '4'); resume on nodes that have as many, or with --gpus 1",
        ),
        (
            None,
            [],
            "n7 shows 3 GPUs to a task that asked for 2, and nothing says which of them are its "
            "own: it trains on none; resume with whole nodes (--whole-node), or on CPUs (--gpus 0)",
        ),
    ],
)
def test_more_or_fewer_devices_than_workers(
    run: RunDirectory,
    driver: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    visible: str | None,
    places: list[str],
    message: str,
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found, missing = node._places(run, 0, 0, [0, 1])
    assert found == places
    assert bool(missing) == (len(places) < 2)
    assert capsys.readouterr().out.startswith(message)
    assert not missing or missing == message


@pytest.mark.parametrize(
    ("codes", "code"),
    [([0, 0], 0), ([], 0), ([0, 1], 1), ([-9, 0], 1), ([REQUEUE, 1, -9], REQUEUE)],
)
def test_the_exit_code_of_a_task(codes: list[int], code: int) -> None:
    assert node.exit_code(codes) == code


def test_what_a_worker_could_not_report_is_reported_for_it(
    run: RunDirectory, records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "ALONE_SECONDS", 0.0)
    said = records.beat(task="000-0002", state="crashed", error="OSError: gone")
    publish_json(run.heartbeat("000-0002"), said)
    for index, code in enumerate((-9, 3, 1)):
        node.record_end(run, f"000-{index:04d}", code)
    errors = [beat["error"] for beat in run.heartbeats(0).values()]
    assert errors == [
        "its process was killed by SIGKILL (usually out of memory)",
        "its process ended with exit code 3 (os._exit, or a library that ends it)",
        "OSError: gone",
    ]
    publish_json(run.heartbeat("000-0000"), records.beat(task="000-0000", state="interrupted"))
    node.record_end(run, "000-0000", REQUEUE)
    assert run.heartbeats(0)["000-0000"]["state"] == "interrupted"


#: A process that says what it was given, and ends as it is told by a signal.
PROCESS = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
print(os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"], flush=True)
time.sleep(60)
"""


def test_workers_get_a_device_each_and_the_signals_of_all(tmp_path: Path) -> None:
    ended: list[tuple[str, int]] = []

    def on_end(name: str, code: int) -> None:
        ended.append((name, code))
        if name == "killed":
            os.kill(os.getpid(), signal.SIGTERM)

    command = [sys.executable, "-c", PROCESS]
    with Workers.of_this_process() as workers:
        with workers.blocked():
            workers.start("one", command, UUID, 3, tmp_path / "one.log")
            workers.start("other", command, "", 3, tmp_path / "other.log")
            killed = "import os; os.kill(os.getpid(), 9)"
            workers.start("killed", [sys.executable, "-c", killed], "1", 1, None)
        while not all((tmp_path / f"{name}.log").read_text() for name in ("one", "other")):
            time.sleep(0.01)
        assert workers.wait(on_end) == {"one": 75, "other": 75, "killed": -9}
    assert ended[0] == ("killed", -9)
    assert workers.stopped
    assert (tmp_path / "one.log").read_text() == f"{UUID} 3\n"
    assert (tmp_path / "other.log").read_text() == " 3\n"
