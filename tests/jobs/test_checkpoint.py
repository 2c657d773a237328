"""How often a pack in training is saved."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from mlpsubmit.jobs import checkpoint as module
from mlpsubmit.jobs.checkpoint import Checkpoint
from mlpsubmit.jobs.heartbeat import Heartbeat


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the only clock there is."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def saver(now: list[float], tmp_path: Path) -> Checkpoint:
    """Three configs in training, to be saved every five minutes."""
    heartbeat = Heartbeat(tmp_path / "beat.json", 2.0, progressed=False)
    file, stop = tmp_path / "pack.pt", threading.Event()
    saver = Checkpoint(file, 3, torch.device("cpu"), stop, heartbeat, 300, verbose=False)
    saver.together = [0, 1, 2]
    saver.restore()
    return saver


@pytest.mark.parametrize(("saving", "wait"), [(0.5, 300), (8, 800), (100, 3000)])
def test_what_takes_long_to_save_is_saved_less_often(
    saving: float, wait: float, saver: Checkpoint, now: list[float]
) -> None:
    now[0] += 299
    assert not saver.due()
    now[0] += 1
    assert saver.due()
    now[0] += saving  # the state is copied from the device, then written
    saver.save({"start": 1})
    now[0] += wait - 1
    assert not saver.due()
    now[0] += 1
    assert saver.due()
    saver.stop.set()
    now[0] -= wait
    assert saver.due()


def test_what_passes_before_a_part_begins_anew_is_no_saving(
    saver: Checkpoint, now: list[float]
) -> None:
    now[0] += 50  # a step that runs out of memory
    saver.halve()
    saver.save(None)
    saver.restore()
    now[0] += 300
    assert saver.due()
