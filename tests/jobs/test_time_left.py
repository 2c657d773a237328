"""How long a run still takes: as long as the slice that ends last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpsubmit import files
from mlpsubmit.jobs.status import _costs_ahead, _remaining
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.records import Intent
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.task_status import TaskStatus


def task(number: int, state: str, pack: int | None = None) -> TaskStatus:
    beat = {} if pack is None else {"pack": str(pack)}
    return TaskStatus(f"000-{number:04d}", state, beat, None, "")


@pytest.fixture
def run(tmp_path: Path, records: Any) -> RunDirectory:
    """Three slices of two packs each."""
    run: RunDirectory = records.create(tmp_path)
    run.submission(0).mkdir()
    intent = records.intent(slices=[[[0, 2]], [[2, 4]], [[4, 6]]])
    files.publish_json(run.submission(0) / run_directory.INTENT, intent)
    return run


def remaining(
    run: RunDirectory, tasks: Sequence[TaskStatus], rates: Mapping[str, float]
) -> float | None:
    return _remaining(_costs_ahead(run, LEFT, tasks), rates)


LEFT = np.array([0.0, 10.0, 30.0, 30.0, 50.0, 50.0])


def test_the_slice_that_ends_last_counts(run: RunDirectory) -> None:
    tasks = [task(0, "running", 1), task(1, "running", 2)]
    rates = {"000-0000": 10.0, "000-0001": 2.0}
    assert remaining(run, tasks, rates) == 60 / 2


def test_what_a_task_has_gone_past_is_left_to_a_resume(run: RunDirectory) -> None:
    tasks = [task(1, "running", 3)]  # pack 2 has failed
    assert remaining(run, tasks, {"000-0001": 2.0}) == 30 / 2


def test_tasks_that_wait_take_their_turn(run: RunDirectory) -> None:
    tasks = [task(0, "running", 1), task(1, "waiting"), task(2, "waiting")]
    assert remaining(run, tasks, {"000-0000": 10.0}) == 170 / 10


def test_without_a_rate_nothing_is_said(run: RunDirectory) -> None:
    tasks = [task(0, "running", 1), task(1, "running", 2)]
    assert remaining(run, tasks, {"000-0000": 10.0, "000-0001": 0.0}) is None
    assert remaining(run, tasks, {}) is None


def test_slices_are_read_once_for_all_tasks(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    original = RunDirectory.intent

    def intent(self: RunDirectory, number: int) -> Intent:
        read.append(number)
        return original(self, number)

    monkeypatch.setattr(RunDirectory, "intent", intent)
    tasks = [task(number, "running", 2 * number) for number in range(3)]
    remaining(run, tasks, {one.name: 1.0 for one in tasks})
    assert read == [0]
