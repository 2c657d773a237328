"""The speeds in heartbeats: recent, total, per workload, and as status shows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlpsubmit.jobs import task_monitor
from mlpsubmit.jobs.checkpoint import Checkpoint
from mlpsubmit.jobs.heartbeat import Heartbeat, process_age
from mlpsubmit.jobs.signals import StopFlag
from mlpsubmit.jobs.task_monitor import TaskMonitor
from mlpsubmit.jobs.task_status import TaskStatus
from mlpsubmit.jobs.throughput.meter import KEPT_WORKLOADS, PackMeter, ThroughputMeter
from mlpsubmit.jobs.throughput.workload import Workload
from mlpsubmit.native.cpu import cpu_name
from mlpsubmit.training.monitor import STATE_FORMAT, Progress

WORKLOAD = Workload("mlp", "products", "sgd", "fp32", True, "", 64, 2, 256, 0.0, 32, 1e7)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> ThroughputMeter:
    return ThroughputMeter(clock)


def test_the_speed_is_that_of_the_last_ten_seconds(meter: ThroughputMeter, clock: Clock) -> None:
    pack = meter.begin_pack()
    pack.start(step_ideal=0.002)
    for second in range(1, 31):
        clock.now += 1
        pack.update(100 * min(second, 15) + 300 * max(0, second - 15))
    said = meter.fields()
    assert said["speed"] == pytest.approx(300)
    assert said["matmul_utilization"] == pytest.approx(0.6)
    assert said["model_steps"] == 15 * 100 + 15 * 300
    assert said["ideal_seconds"] == pytest.approx(6000 * 0.002)


def test_one_step_that_takes_longer_has_its_speed_all_the_same(
    meter: ThroughputMeter, clock: Clock
) -> None:
    pack = meter.begin_pack()
    pack.start(None)
    clock.now += 50
    pack.update(10)
    clock.now += 50
    pack.update(30)
    assert meter.fields()["speed"] == pytest.approx(20 / 50)
    assert meter.fields()["matmul_utilization"] is None


def test_what_is_counted_anew_replaces_what_was_guessed(
    meter: ThroughputMeter, clock: Clock
) -> None:
    pack = meter.begin_pack()
    pack.start(0.1)
    pack.update(64)
    pack.update(60)
    assert (meter.model_steps, meter.ideal_seconds) == (60, pytest.approx(6.0))
    pack.start(0.2)
    pack.update(10)
    assert (meter.model_steps, meter.ideal_seconds) == (70, pytest.approx(8.0))


def trained(pack: PackMeter, clock: Clock, steps: int, seconds: float = 5) -> None:
    pack.start(None)
    clock.now += seconds
    pack.update(steps)
    pack.record(steps, full_size=True)
    pack.stop()


def test_the_time_of_a_task_is_that_of_its_packs(meter: ThroughputMeter, clock: Clock) -> None:
    for _ in range(2):
        clock.now += 1  # data, networks
        pack = meter.begin_pack()
        trained(pack, clock, 500)
        clock.now += 2  # another stack of the same pack
        trained(pack, clock, 300)
        clock.now += 1
        pack.finish(WORKLOAD)
    pack = meter.begin_pack()
    clock.now += 10
    pack.discard()  # a pack that failed
    (said,) = meter.speeds()
    assert {name: said[name] for name in ("packs", "model_steps", "training", "setup")} == {
        "packs": 2,
        "model_steps": 1600,
        "training": 20.0,
        "setup": 8.0,
    }


def test_packs_side_by_side_share_the_time(meter: ThroughputMeter, clock: Clock) -> None:
    packs = [meter.begin_pack(), meter.begin_pack()]
    for pack in packs:
        pack.start(0.5)
    for _ in range(3):
        clock.now += 2
        for pack in packs:
            pack.record(100, full_size=True)
    for width, pack in enumerate(packs):
        pack.update(300)
        pack.finish(replace(WORKLOAD, width=width))
    seconds = [said["training"] * 3 / 2 for said in meter.speeds()]  # of the later two blocks
    assert sum(seconds) == pytest.approx(clock.now - Clock().now)
    assert (meter.model_steps, meter.ideal_seconds) == (600, pytest.approx(300))


def test_no_speed_is_below_zero(meter: ThroughputMeter, clock: Clock) -> None:
    pack = meter.begin_pack()
    pack.start(0.1)
    clock.now += 1
    pack.update(64)
    clock.now += 20
    pack.update(60)  # read back: fewer than had been guessed
    assert (meter.fields()["speed"], meter.fields()["matmul_utilization"]) == (0.0, 0.0)


def test_a_heartbeat_stays_small(meter: ThroughputMeter) -> None:
    for width in range(1000):
        meter.begin_pack().finish(replace(WORKLOAD, width=width))
    assert len(meter.speeds()) == KEPT_WORKLOADS


# ---- what a pack in training says ----------------------------------------------------------------


def opened(folder: Path, meter: ThroughputMeter) -> TaskMonitor:
    heartbeat = Heartbeat(folder / "beat.json", 60)
    checkpoint = Checkpoint.load(folder / "pack.pt", "cpu", 4)
    monitor = TaskMonitor(checkpoint, StopFlag(), heartbeat.of_pack(), meter.begin_pack(), 60)
    monitor.begin_stack(4)
    return monitor


def read_back(step: int, made: int, active: int, rows: int = 4) -> Progress:
    return Progress(step, made, 1000, active, rows, 4 - active, np.ones(4))


def test_model_steps_are_those_that_were_made(tmp_path: Path, meter: ThroughputMeter) -> None:
    monitor = opened(tmp_path, meter)
    monitor.restore()
    monitor.progress(read_back(64, 4 * 64, 4))
    monitor.progress(read_back(128, 4 * 64 + 100, 1))  # three stopped in between
    assert (meter.model_steps, monitor.heartbeat["step"]) == (356, 128)


def test_wide_networks_say_how_far_they_are_between_two_read_backs(
    tmp_path: Path, meter: ThroughputMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_monitor, "HEARTBEAT_SECONDS", 0.0)
    monitor = opened(tmp_path, meter)
    monitor.restore()
    for step in range(3):
        assert not monitor.due(step)
    assert (monitor.heartbeat["step"], meter.model_steps) == (3, 12)
    monitor.progress(read_back(4, 14, 2))
    assert not monitor.due(3)  # of that very step
    assert (monitor.heartbeat["step"], meter.model_steps) == (4, 14)
    assert not monitor.due(12)  # nine more at once
    assert (monitor.heartbeat["step"], meter.model_steps) == (13, 32)


def test_the_speed_of_a_kind_is_that_of_whole_stacks(
    tmp_path: Path, meter: ThroughputMeter, clock: Clock
) -> None:
    monitor = opened(tmp_path, meter)
    monitor.restore()
    clock.now += 1
    monitor.progress(read_back(64, 64 + 3 * 10, 1))  # three stand still, but are computed
    clock.now += 50
    monitor.progress(read_back(1000, 1000 + 3 * 10, 0, rows=1))
    monitor.finish_stack({"row": np.arange(4)})
    monitor._meter.finish(WORKLOAD)
    (said,) = meter.speeds()
    assert (said["model_steps"], said["training"]) == (4 * 64, 1.0)


def test_first_steps_that_compile_are_not_taken_for_usual_ones(
    meter: ThroughputMeter, clock: Clock
) -> None:
    pack = meter.begin_pack()
    pack.start(None)
    for seconds in (30.5, 0.5, 0.5):
        clock.now += seconds
        pack.record(64, full_size=True)
    pack.finish(WORKLOAD)
    (said,) = meter.speeds()
    assert (said["model_steps"], said["training"], said["setup"]) == (128, 1.0, 30.0)


def test_a_stack_that_had_shrunk_goes_on_as_it_was(
    tmp_path: Path, meter: ThroughputMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_monitor, "HEARTBEAT_SECONDS", 0.0)
    parts = {"stack": {"configs": [2]}, "history": {"status": torch.tensor([1, 1, 0, 1])}}
    state = {"start": 100, "format": STATE_FORMAT, "parts": parts}
    opened(tmp_path, ThroughputMeter()).save(state)
    monitor = opened(tmp_path, meter)
    monitor.restore()
    assert (monitor.heartbeat["first_step"], monitor.heartbeat["step"]) == (100, 100)
    assert monitor.stopped == {0, 1, 3}
    monitor.due(100)
    assert (monitor.heartbeat["step"], meter.model_steps) == (101, 1)


def test_a_resumed_pack_counts_its_own_steps_alone(tmp_path: Path, meter: ThroughputMeter) -> None:
    first = opened(tmp_path, ThroughputMeter())
    first.save({"start": 100})
    second = opened(tmp_path, meter)
    assert second.restore() == {"start": 100}
    second.progress(read_back(128, 2 * 128 + 2 * 50, 2))  # two had stopped at 50
    assert (second.heartbeat["first_step"], meter.model_steps) == (100, 2 * 28)
    second.progress(read_back(192, 2 * 192 + 2 * 50, 2))
    assert meter.model_steps == 2 * 92


# ---- what is said of it --------------------------------------------------------------------------


def task(state: str, **beat: Any) -> TaskStatus:
    begun = {"packs": 4, "packs_done": 2, "started": 1000.0, "updated": 1010.0}
    return TaskStatus("000-0000", state, {**begun, **beat}, None)


def test_a_task_says_how_fast_it_is_and_what_it_makes_of_its_device() -> None:
    running = {"step": 5, "max_iter": 9, "speed": 1500.0}
    assert task("running", **running, matmul_utilization=0.654).summary.endswith(
        "step 5/9, 1.5k model-steps/s, 65% matmul utilization"
    )
    assert task("running", **running, matmul_utilization=None).summary.endswith(
        "1.5k model-steps/s"
    )
    done = {"speed": 1.0, "model_steps": 500, "ideal_seconds": 4.0}
    assert (
        task("done", **done).summary == "2/4 packs, mean 50 model-steps/s, 40% matmul utilization"
    )
    assert task("done", speed=1.0).summary == "2/4 packs"


def test_the_age_of_a_process() -> None:
    age = process_age()
    assert age is not None
    assert age > 0
    assert process_age() > age  # type: ignore[operator]
    assert cpu_name()


def test_a_step_of_some_configs_of_a_pack_says_so() -> None:
    some = {"step": 5, "max_iter": 9, "configs": 4, "stack": 1, "settled": 2}
    assert task("running", **some).summary == (
        "2/4 packs, step 5/9 with 1 of 4 configs after 2 others"
    )
    assert task("running", **some, loss=0.5).summary.endswith("after 2 others, loss 0.5")
    assert task("running", **some | {"settled": 0}).summary.endswith("step 5/9 with 1 of 4 configs")
    assert task("interrupted", **some | {"settled": 1}).summary == (
        "2/4 packs, saved at step 5 of 9 with 1 of 4 configs after 1 other"
    )
    between = some | {"step": 0, "stack": 0}
    assert task("interrupted", **between).summary == "2/4 packs, saved after 2 of 4 configs"
    whole = some | {"stack": 4, "settled": 0}
    assert task("interrupted", **whole).summary == "2/4 packs, saved at step 5 of 9"
    assert task("interrupted", **whole | {"step": 0}).summary == "2/4 packs"
