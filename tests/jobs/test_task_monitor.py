"""How often a pack in training is saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlpsubmit.jobs import task_monitor
from mlpsubmit.jobs.checkpoint import Checkpoint
from mlpsubmit.jobs.heartbeat import Heartbeat
from mlpsubmit.jobs.signals import StopFlag
from mlpsubmit.jobs.task_monitor import TaskMonitor
from mlpsubmit.jobs.throughput.meter import ThroughputMeter


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the only clock there is."""
    now = [1000.0]
    monkeypatch.setattr(task_monitor.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def monitor(now: list[float], tmp_path: Path) -> TaskMonitor:
    """Three configs in training, to be saved every five minutes."""
    heartbeat = Heartbeat(tmp_path / "beat.json", 2.0, progressed=False)
    checkpoint = Checkpoint.load(tmp_path / "pack.pt", "cpu", 3)
    monitor = TaskMonitor(
        checkpoint, StopFlag(), heartbeat.of_pack(), ThroughputMeter().begin_pack(), 300
    )
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
