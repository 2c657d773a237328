"""What a launch will take: by earlier runs, by a calibrate, and where neither can be had."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpsubmit import Sweep, files, open_run
from mlpsubmit.checksums import sealed
from mlpsubmit.jobs.executors.debug import DebugExecutor
from mlpsubmit.jobs.heartbeat import Heartbeat
from mlpsubmit.jobs.plan import Plan
from mlpsubmit.jobs.status import _progress
from mlpsubmit.jobs.status import _speed as current_speed
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.task_status import TaskStatus
from mlpsubmit.jobs.throughput import calibrate
from mlpsubmit.spec.load import pickle_sweep
from mlpsubmit.training.loop import BLOCK

Command = Callable[..., Any]

UNKNOWN = "duration unknown: no earlier run has trained similar packs on "


def test_without_an_earlier_run_a_dry_run_says_how_to_find_out(mlpsubmit: Command) -> None:
    dry = mlpsubmit("launch", "small.py", "--dry-run")
    assert dry.code == 0
    (line,) = (line for line in dry.out.splitlines() if line.startswith(UNKNOWN))
    assert line.endswith("; to measure it: --calibrate")
    assert "at most" not in dry.out.replace(", at most", "", 1)
    debug = mlpsubmit("launch", "small.py", "--dry-run", "--executor", "debug")
    assert UNKNOWN in debug.out
    assert "--calibrate" not in debug.out, "it has nothing to calibrate with"


def test_speeds_of_two_types_of_gpu_are_two_estimates(
    mlpsubmit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never one mean of both: a line for each, and the tasks take as long as on the slower one."""
    debug = ("--executor", "debug")
    for device, seconds, steps in (("NVIDIA A100-SXM4-40GB", 1.0, 2), ("Tesla V100", 30.0, 3)):
        assert mlpsubmit("launch", "small.py", *debug, f"MAX_ITER={steps}").code == 0
        run = open_run("small").directory
        (beat,) = run.heartbeats().values()
        speeds = [{**own, "training": seconds, "model_steps": 10} for own in beat["speeds"]]
        content = {**beat, "device": device, "speeds": speeds, "startup": 1.0}
        files.publish_json(run.heartbeat("000-0000"), content)
    monkeypatch.setattr(DebugExecutor, "same_hardware", lambda *_: True)
    monkeypatch.setattr(DebugExecutor, "unmeasured", lambda _, devices: ["k80", *devices][:1])
    dry = mlpsubmit("launch", "small.py", *debug, "--dry-run", "MAX_ITER=10")
    assert dry.code == 0, dry.err
    lines = dry.out.splitlines()
    fast, slow = (
        next(line for line in lines if line.startswith(f"on {device}: at most "))
        for device in ("NVIDIA A100-SXM4-40GB", "Tesla V100")
    )
    assert "on k80: unknown, no such task has trained similar packs" in lines
    assert (fast.split()[5:7], slow.split()[5:7]) == (["9", "s"], ["4", "min"])
    assert any(line.endswith("% of the FLOPs, at most 4 min") for line in lines)
    found = json.loads(mlpsubmit("launch", "small.py", *debug, "--dry-run", "--json").out)
    devices = [own["device"] for own in found["estimates"]]
    assert sorted(devices) == ["NVIDIA A100-SXM4-40GB", "Tesla V100"]
    assert found["estimate"]["device"] == "Tesla V100"


@pytest.mark.slow
def test_an_earlier_run_tells_whatever_its_sweep(mlpsubmit: Command, workplace: Path) -> None:
    debug = ("--executor", "debug")
    mlpsubmit("launch", "small.py", *debug, "MAX_ITER=2000", "LOSS_CHECKPOINTS=[]")
    text = (workplace / "small.py").read_text().replace('"small"', '"other"')
    (workplace / "other.py").write_text(text)
    command = ("launch", "other.py", *debug, "--dry-run", "LOSS_CHECKPOINTS=[]")
    quick = mlpsubmit(*command, "MAX_ITER=2000")
    assert quick.code == 0
    assert " in total (by earlier runs on " in quick.out
    assert "scaled" not in quick.out
    assert UNKNOWN not in quick.out
    long = json.loads(mlpsubmit(*command, "MAX_ITER=2000000", "--json").out)
    short = json.loads(mlpsubmit(*command, "MAX_ITER=2000", "--json").out)
    (task,) = long["tasks"]
    assert (task["packs"], task["configs"]) == (2, 8)
    assert long["estimate"]["measured_workloads"] == long["estimate"]["workloads"] == 2
    # A thousand times the steps, and as long beside them.
    ratio = long["estimate"]["wall_seconds"] / short["estimate"]["wall_seconds"]
    assert 100 < ratio <= 1000
    hours = long["estimate"]["core_hours"]
    assert hours == pytest.approx(long["threads"] * task["seconds"] / 3600, rel=0.01)
    # Of the earlier run itself nothing is missing, so that nothing is to be estimated.
    done = json.loads(
        mlpsubmit(
            "launch",
            "small.py",
            *debug,
            "MAX_ITER=2000",
            "LOSS_CHECKPOINTS=[]",
            "--dry-run",
            "--json",
        ).out
    )
    assert (done["packs"], done["done"], done["estimate"]) == (0, 8, None)
    assert done["run"] == open_run("small").id


@pytest.mark.slow
def test_packs_of_other_sizes_are_scaled(mlpsubmit: Command) -> None:
    debug = ("--executor", "debug", "LOSS_CHECKPOINTS=[]")
    mlpsubmit("launch", "small.py", *debug, "MAX_ITER=2000")
    dry = mlpsubmit("launch", "small.py", *debug, "WIDTH=[8,1024]", "--dry-run", "--fresh")
    assert "; 1 of 2 workloads scaled from others)" in dry.out


def test_a_task_says_what_it_has_measured(mlpsubmit: Command) -> None:
    mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=300", "LOSS_CHECKPOINTS=[]")
    run = open_run("small")
    (beat,) = run.directory.heartbeats().values()
    assert beat["model_steps"] == 8 * 300
    assert beat["startup"] is None, "this process has done other things before"
    assert [speed["workload"]["width"] for speed in beat["speeds"]] == [8, 4]
    assert all(speed["model_steps"] == 4 * (300 - BLOCK) for speed in beat["speeds"])
    assert beat["matmul_utilization"] is None, "not worth a second of measuring"
    status = run.status()
    assert status.speed == pytest.approx(8 * 300 / (beat["updated"] - beat["started"]))
    assert "model-steps/s" in mlpsubmit("status").out
    assert json.loads(mlpsubmit("status", "--json").out)["matmul_utilization"] is None


def test_steps_of_configs_that_stopped_are_not_counted(mlpsubmit: Command) -> None:
    mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=300")
    run = open_run("small")
    (beat,) = run.directory.heartbeats().values()
    assert beat["model_steps"] == run.collect().steps.sum() < 8 * 300


@pytest.mark.slow
def test_a_task_says_what_it_makes_of_its_device(mlpsubmit: Command) -> None:
    command = ("MAX_ITER=600", "WIDTH=256", "N_SAMPLES=512", "LOSS_CHECKPOINTS=[]", "noise=0")
    mlpsubmit("launch", "small.py", "--executor", "debug", *command)
    status = open_run("small").status()
    assert status.matmul_utilization is not None
    assert 0 < status.matmul_utilization < 1.5
    shown = " ".join(mlpsubmit("status").out.split())
    assert f", {100 * status.matmul_utilization:.0f}% matmul utilization" in shown


# ---- calibration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--calibrate"], "--calibrate: only valid with --dry-run, which starts nothing"),
        (["--json"], "--json: only valid with --dry-run, which starts nothing; add --dry-run"),
        (
            ["--dry-run", "--calibrate", "--executor", "debug"],
            "--calibrate: the debug executor starts no processes to measure; leave one of "
            "the two out",
        ),
    ],
)
def test_a_calibration_that_cannot_be(
    mlpsubmit: Command, workplace: Path, arguments: list[str], message: str
) -> None:
    refused = mlpsubmit("launch", "small.py", *arguments)
    assert refused.err.startswith(f"error: {message}")
    assert refused.code == 2
    assert not (workplace / "mlpruns").exists()


#: Fails only where it trains: the probe of a launch makes one step.
FAILING = (
    "inputs = torch.randn(bsz, 3, generator=gen)",
    "inputs = torch.randn(bsz, 3 - (step > 5), generator=gen)",
)


@pytest.mark.slow
def test_a_spec_that_fails_says_what_its_training_would(
    mlpsubmit: Command, workplace: Path
) -> None:
    text = (workplace / "small.py").read_text()
    (workplace / "small.py").write_text(text.replace(*FAILING))
    refused = mlpsubmit("launch", "small.py", "--dry-run", "--calibrate", "--tasks", "1")
    assert refused.code == 2
    expected = "error: --calibrate: a pack cannot be trained, here as in its task: "
    assert refused.err.startswith(expected)
    mlpsubmit("launch", "small.py", "--executor", "debug")
    (failure, *_) = open_run("small").status().failures
    assert refused.err.removeprefix(expected).strip() == failure.error
    assert failure.error.startswith("BatchError: ")


@pytest.mark.slow
def test_a_calibration_times_every_kind_and_leaves_nothing(
    mlpsubmit: Command, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    command = ("launch", "small.py", "--dry-run", "--calibrate", "MAX_ITER=100000", "--json")
    found = json.loads(mlpsubmit(*command).out)
    estimate = found["estimate"]
    assert estimate["measured_workloads"] == estimate["workloads"] == 2
    assert estimate["source"].startswith("by a calibration on ")
    assert estimate["startup_seconds"] > 0.1, "a process of Python imports torch"
    assert all(task["seconds"] > estimate["startup_seconds"] for task in found["tasks"])
    assert list(scratch.iterdir()) == []
    assert not (workplace / "mlpruns").exists()


def test_what_a_calibration_compiles_goes_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)

    def measure(folder: Path, sweep: Sweep) -> dict[str, str]:
        return {"cache": os.environ["TORCHINDUCTOR_CACHE_DIR"]}

    monkeypatch.setattr(calibrate, "_measure", measure)
    frozen = sealed(pickle_sweep(Sweep(batchfn=measure)))
    files.publish(tmp_path / run_directory.SWEEP_PICKLE, frozen)
    calibrate.main(tmp_path, 0)
    cache = Path(files.read_json(calibrate.answer_file(tmp_path, 0))["cache"])
    assert cache.is_relative_to(tmp_path)


def test_a_process_answers_also_where_it_fails(tmp_path: Path) -> None:
    files.publish_json(tmp_path / calibrate.ORDER, {"packs": [0]})
    calibrate.main(tmp_path, 3)
    answer = files.read_json(calibrate.answer_file(tmp_path, 3))
    assert answer["error"].startswith("FileNotFoundError: ")


# ---- the speed of a run --------------------------------------------------------------------------


def test_a_run_that_has_ended_tells_its_mean_speed(mlpsubmit: Command) -> None:
    mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=2")
    run = open_run("small")
    beat = run.directory.last_heartbeat("000-0000")

    def trained(task: str, started: float, updated: float, steps: int, ideal: float | None) -> None:
        own = {"started": started, "updated": updated, "model_steps": steps}
        files.publish_json(run.directory.heartbeat(task), {**beat, **own, "ideal_seconds": ideal})

    intent = {**run.directory.intent(0), "slices": [[[0, 1]], [[1, 2]]]}
    files.publish_json(run.directory.submission(0) / run_directory.INTENT, intent)
    run.directory.submission(1).mkdir()
    files.publish_json(run.directory.submission(1) / run_directory.INTENT, intent)

    trained("000-0000", 0.0, 10.0, 1000, 5.0)
    trained("000-0001", 5.0, 20.0, 1000, 5.0)  # beside the first
    trained("001-0000", 900.0, 910.0, 1000, 4.0)  # what was missing, later
    status = run.status()
    assert status.speed == pytest.approx(3000 / (20 + 10))
    assert status.matmul_utilization == pytest.approx(14 / (10 + 15 + 10))
    trained("001-0000", 900.0, 910.0, 1000, None)
    assert run.status().matmul_utilization is None
    assert f"  mean {3000 / 30:.0f} model-steps/s" in mlpsubmit("status").out


def test_a_pack_that_has_just_begun_is_at_its_beginning(
    mlpsubmit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Any]] = []
    monkeypatch.setattr(Heartbeat, "publish_soon", lambda self: begun.append(self._fields | {}))
    mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=70")
    assert len(begun) >= 2
    for fields in begun:
        expected = {name: fields[name] for name in ("step", "first_step", "max_iter", "loss")}
        assert expected == {"step": 0, "first_step": 0, "max_iter": 70, "loss": None}


def test_the_time_left_is_that_of_the_task_that_ends_last(mlpsubmit: Command) -> None:
    mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=2")
    run = open_run("small").directory
    plan = Plan.from_json(run.plan)
    intent = run.intent(0)
    files.publish_json(
        run.submission(0) / run_directory.INTENT, {**intent, "slices": [[[0, 1]], [[1, 2]]]}
    )
    costs = plan.pack_costs

    def task(number: int, step: int, in_pack: float, cost_done: float = 0.0) -> TaskStatus:
        beat = {"pack": f"{number}", "max_iter": 1000, "step": step, "first_step": 0}
        times = {"started": 0.0, "pack_started": 100.0 - in_pack, "updated": 100.0}
        own = {**beat, **times, "cost_done": cost_done}
        return TaskStatus(f"000-000{number}", "running", own, None)

    def progress(*tasks: TaskStatus) -> tuple[float, dict[str, float], float | None]:
        beats = {task.name: task.heartbeat for task in tasks}
        return _progress(run, plan, np.zeros(0, np.int64), [], tasks, beats)

    fraction, own, left = progress(task(0, 500, 50.0), task(1, 100, 50.0))
    assert own == pytest.approx({"000-0000": 50, "000-0001": 450})
    assert left == pytest.approx(450)
    assert fraction == pytest.approx((0.5 * costs[0] + 0.1 * costs[1]) / costs.sum())
    # What counts as done at once, for thresholds ended it early, makes no later pack faster.
    assert progress(task(0, 500, 50.0, cost_done=1e30))[2] == pytest.approx(50)
    assert progress(task(0, 0, 1.0), task(1, 100, 50.0))[1:] == ({"000-0001": 450.0}, None)
    waiting = TaskStatus("000-0001", "waiting", {}, None)
    expected = 50 + costs[1] / (0.5 * costs[0] / 50)
    assert progress(task(0, 500, 50.0), waiting)[2] == pytest.approx(expected)
    # Of a pack of four stacks 2.5 are done, half of one by this task.
    resumed = task(0, 500, 50.0)
    stacks = {"configs": 4, "settled": 2, "stack": 1, "first_share": 0.5}
    resumed = replace(resumed, heartbeat={**resumed.heartbeat, **stacks})
    fraction, own, _ = progress(resumed)
    assert fraction == pytest.approx(2.5 / 4 * costs[0] / costs.sum())
    assert own == pytest.approx({"000-0000": 50 * 1.5 / 0.5})
    # Before the first sign of life of a pack nothing of it is done.
    assert progress(task(0, 0, 1.0))[0] == 0.0


def test_running_tasks_add_up() -> None:
    def running(**beat: Any) -> TaskStatus:
        return TaskStatus("000-0000", "running", beat, None)

    fast, slow = (
        running(speed=30.0, matmul_utilization=0.6),
        running(speed=10.0, matmul_utilization=0.2),
    )
    waiting = TaskStatus("000-0002", "waiting", {}, None)
    assert current_speed([fast, slow, waiting], {}) == (40.0, pytest.approx(0.4))
    assert current_speed([fast, running(speed=10.0)], {}) == (40.0, None)
    assert current_speed([waiting], {}) == (0.0, None)
