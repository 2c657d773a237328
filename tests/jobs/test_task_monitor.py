"""How often a pack in training is saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlpsubmit.jobs import task_monitor
from mlpsubmit.jobs.checkpoint import Checkpoint
from mlpsubmit.jobs.failures import RowsFailure
from mlpsubmit.jobs.heartbeat import Heartbeat
from mlpsubmit.jobs.signals import StopFlag
from mlpsubmit.jobs.task_monitor import TaskMonitor
from mlpsubmit.jobs.throughput.meter import ThroughputMeter
from mlpsubmit.training.monitor import Progress


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the only clock there is."""
    now = [1000.0]
    monkeypatch.setattr(task_monitor.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def monitor(now: list[float], tmp_path: Path) -> TaskMonitor:
    """Three configs in training, to be saved every five minutes."""
    return monitored(tmp_path)


def monitored(folder: Path, file: str = "pack.pt") -> TaskMonitor:
    """Return the monitor of an attempt that goes on from what is saved."""
    heartbeat = Heartbeat(folder / "beat.json", 2.0, progressed=False).of_pack()
    heartbeat.update(configs=3, max_iter=1000)
    checkpoint = Checkpoint.load(folder / file, "cpu", 3)
    monitor = TaskMonitor(checkpoint, StopFlag(), heartbeat, ThroughputMeter().begin_pack(), 300)
    monitor.begin_stack(3)
    monitor.restore()
    return monitor


@pytest.mark.parametrize(("saving", "wait"), [(0.5, 300), (8, 800), (100, 3000)])
def test_what_takes_long_to_save_is_saved_less_often(
    saving: float, wait: float, monitor: TaskMonitor, now: list[float]
) -> None:
    now[0] += 299
    assert not monitor.due(0)
    now[0] += 1
    assert monitor.due(0)
    now[0] += saving  # the state is copied from the device, then written
    monitor.save({"start": 1})
    now[0] += wait - 1
    assert not monitor.due(0)
    now[0] += 1
    assert monitor.due(0)
    monitor.stop.set()
    now[0] -= wait
    assert monitor.due(0)


def test_what_passes_before_a_part_begins_anew_is_no_saving(
    monitor: TaskMonitor, now: list[float]
) -> None:
    now[0] += 50  # a step that runs out of memory
    monitor.restart()
    monitor.save(None)
    monitor.restore()
    now[0] += 300
    assert monitor.due(0)


def read_back(monitor: TaskMonitor, step: int, loss: float) -> None:
    losses = np.full(3, loss)
    monitor.progress(Progress(step, 3 * step, 1000, 3, 3, 0, losses))


def test_the_curve_of_a_resumed_pack_has_its_earlier_steps(
    monitor: TaskMonitor, tmp_path: Path
) -> None:
    for step, loss in ((64, 1.0), (128, 0.5), (192, 0.25)):
        read_back(monitor, step, loss)
    monitor.save({"start": 128})
    read_back(monitor, 256, 0.125)
    resumed = monitored(tmp_path)
    assert resumed.heartbeat["losses"] == [(64, 1.0), (128, 0.5)]  # before any step of its own
    assert resumed.heartbeat["loss"] == 0.5
    read_back(resumed, 192, 0.2)
    assert resumed.heartbeat["losses"] == [(64, 1.0), (128, 0.5), (192, 0.2)]
    resumed.save({"start": 192})
    third = monitored(tmp_path)
    assert third.heartbeat["losses"] == [(64, 1.0), (128, 0.5), (192, 0.2)]
    third.restart()  # from step 0, after an error
    third.save(None)
    third.restore()
    read_back(third, 64, 0.9)
    assert third.heartbeat["losses"] == [(64, 0.9)]


def test_a_longer_training_goes_on_with_the_curve_of_the_shorter_one(
    monitor: TaskMonitor, tmp_path: Path
) -> None:
    read_back(monitor, 64, 1.0)
    monitor.save({"start": 64})
    monitor.checkpoint.rows = [0, 1, 2]
    monitor.checkpoint.keep(tmp_path / "kept.pt", {"start": 64}, 1.0)
    assert monitored(tmp_path, "kept.pt").heartbeat["losses"] == [(64, 1.0)]


def test_a_checkpoint_without_a_curve_is_continued_from(
    monitor: TaskMonitor, tmp_path: Path
) -> None:
    monitor.checkpoint.curve = {"points": "damaged"}
    monitor.checkpoint.save({"start": 64}, 1.0)
    resumed = monitored(tmp_path)
    assert resumed.checkpoint.progress == (0, 64)
    read_back(resumed, 128, 0.5)
    assert resumed.heartbeat["losses"] == [(128, 0.5)]


def finish(monitor: TaskMonitor, rows: list[int]) -> None:
    monitor.finish_stack({"row": np.array(rows)})


def test_the_share_of_a_pack_grows_over_all_its_stacks(
    monitor: TaskMonitor, tmp_path: Path
) -> None:
    shares = []

    def trained(step: int) -> None:
        read_back(monitor, step, 0.5)
        shares.append(monitor.heartbeat.share)

    for rows in ([0], [1, 2]):
        monitor.begin_stack(len(rows))
        monitor.restore()
        monitor.checkpoint.check_stack(rows)
        for step in (300, 900):
            trained(step)
        finish(monitor, rows)
        shares.append(monitor.heartbeat.share)
    assert shares == pytest.approx([0.1, 0.3, 1 / 3, 1 / 3 + 0.2, 1 / 3 + 0.6, 1.0])


def test_a_resumed_pack_of_several_stacks_has_the_share_that_it_had(
    monitor: TaskMonitor, tmp_path: Path
) -> None:
    monitor.begin_stack(1)
    monitor.restore()
    monitor.checkpoint.check_stack([0])
    finish(monitor, [0])
    monitor.begin_stack(2)
    monitor.restore()
    monitor.checkpoint.check_stack([1, 2])
    read_back(monitor, 500, 0.5)
    monitor.save({"start": 500})
    heartbeat = Heartbeat(tmp_path / "beat.json", 2.0, progressed=False).of_pack()
    heartbeat.update(configs=3, max_iter=1000)
    checkpoint = Checkpoint.load(tmp_path / "pack.pt", "cpu", 3)
    resumed = TaskMonitor(checkpoint, StopFlag(), heartbeat, ThroughputMeter().begin_pack(), 300)
    assert heartbeat.share == heartbeat["first_share"] == pytest.approx(2 / 3)
    resumed.begin_stack(2)
    resumed.restore()
    read_back(resumed, 750, 0.5)
    assert heartbeat.share == pytest.approx(1 / 3 + 0.5)
    assert heartbeat["first_share"] == pytest.approx(2 / 3)
    checkpoint.parts.halve([1, 2], checkpoint.done)  # out of memory: both begin anew, one by one
    resumed.restart()
    assert heartbeat.share == pytest.approx(1 / 3)
    resumed.begin_stack(1)
    resumed.restore()
    assert heartbeat["first_share"] == pytest.approx(1 / 3)
    read_back(resumed, 600, 0.5)
    assert heartbeat.share == pytest.approx(1 / 3 + 0.2)


def test_configs_that_have_failed_are_no_work_that_is_left(monitor: TaskMonitor) -> None:
    monitor.checkpoint.set_aside([RowsFailure([1], "ValueError: no")], [])
    monitor.restart()
    assert monitor.heartbeat.share == pytest.approx(1 / 3)


def test_packs_side_by_side_have_a_share_each(tmp_path: Path) -> None:
    task = Heartbeat(tmp_path / "beat.json", 2.0, progressed=False)
    first, second = task.of_pack(), task.of_pack()
    first.update(configs=4, settled=2, stack=1, step=50, max_iter=100)
    second.update(configs=2, settled=0, stack=2, step=30, max_iter=100)
    assert (first.share, second.share) == (0.625, 0.3)
    assert (task["settled"], task["stack"]) == (2, 1)  # the one that began first is shown
    first.end()
    assert (task["settled"], task["stack"], task["step"]) == (0, 2, 30)
