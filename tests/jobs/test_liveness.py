"""Whether tasks on other machines are alive, whatever the clocks of those machines show."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from mlpsubmit.jobs import heartbeat, liveness
from mlpsubmit.jobs.liveness import Watch, patience


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic time of this process, which only ``time.sleep`` advances."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.append(clock.pop() + seconds))
    return clock


def published(file: Path, age: float = 0.0) -> None:
    """Replace a file as if its file system had stamped it some seconds ago."""
    new = file.with_name(f"{file.name}.new")
    new.write_text("{}")
    os.utime(new, (time.time() - age, time.time() - age))
    new.replace(file)


@pytest.mark.parametrize(("age", "moving"), [(0.0, True), (20.0, True), (40.0, False)])
def test_the_age_of_a_file_is_that_of_its_file_system(
    tmp_path: Path, age: float, moving: bool
) -> None:
    published(tmp_path / "beat", age)
    assert Watch().is_moving(tmp_path / "beat", 30.0) is moving
    assert os.listdir(tmp_path) == ["beat"], "no probe is left"


def test_this_machines_clock_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path / "beat")
    right = time.time()
    monkeypatch.setattr(time, "time", lambda: right + 1e6)
    assert Watch().is_moving(tmp_path / "beat", 30.0) is True


@pytest.mark.parametrize("reason", ["future", "unwritable", "missing"])
def test_a_file_of_unknown_age_is_watched(
    tmp_path: Path, now: list[float], monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """One from the future was stamped by a machine, not by its file system."""
    file, watch = tmp_path / "beat", Watch()
    if reason != "missing":
        published(file, age=-3600.0 if reason == "future" else 3600.0)
    if reason == "unwritable":
        monkeypatch.setattr(liveness, "_probe", lambda folder: None)
    assert watch.is_moving(file, 30.0) is None
    now[0] += 29.0
    assert watch.is_moving(file, 30.0) is None
    published(file, age=-3600.0)
    assert watch.is_moving(file, 30.0) is True
    now[0] += 29.0
    assert watch.is_moving(file, 30.0) is True
    now[0] += 1.0
    assert watch.is_moving(file, 30.0) is False


def test_what_does_not_move_is_watched_to_the_end(tmp_path: Path, now: list[float]) -> None:
    """Also a file that seems to be old: the file system may not be what stamped it."""
    published(tmp_path / "beat", age=1e6)
    watch = Watch()
    watch.settle({tmp_path / "beat": 30.0, tmp_path / "none": 90.0})
    assert now[0] == pytest.approx(1090.0, abs=1.0)
    assert watch.is_moving(tmp_path / "beat", 30.0) is False
    assert watch.is_moving(tmp_path / "none", 90.0) is False


def test_what_moves_is_watched_no_longer(
    tmp_path: Path, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, watch = tmp_path / "beat", Watch()
    published(file, age=90.0)  # by a machine whose clock is late, which stamps its files

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] == 1002.0:
            published(file, age=89.0)

    monkeypatch.setattr(time, "sleep", sleep)
    watch.settle({file: 30.0})
    assert now[0] == 1002.0
    assert watch.is_moving(file, 30.0) is True


def test_a_task_with_rare_heartbeats_gets_more_time() -> None:
    assert patience({}) == liveness.DEAD_SECONDS
    assert patience({"interval": 30.0}) == 90.0


def test_a_process_that_the_machine_hides_is_judged_by_its_heartbeats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As another user's with hidepid: there is one of that id, and nothing else is known."""
    here = {"host": socket.gethostname(), "pid": 2**30, "pid_namespace": None}

    def kill(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    assert not heartbeat.is_elsewhere(here), "it has ended"
    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert heartbeat.is_elsewhere(here)
