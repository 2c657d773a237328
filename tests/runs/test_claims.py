"""Nothing trains twice: not if a run is resumed elsewhere, and not if two resume it at once."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import files, open_run
from mlpsubmit.errors import BusyError
from mlpsubmit.files import publish_json
from mlpsubmit.jobs import task as jobs_task
from mlpsubmit.jobs.executors.debug import DebugExecutor
from mlpsubmit.jobs.heartbeat import Heartbeat
from mlpsubmit.jobs.signals import StopFlag
from mlpsubmit.jobs.status import read_status
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.store.shards import Shard
from mlpsubmit.jobs.trust import sweep_hash
from mlpsubmit.runs.run import Run
from mlpsubmit.runs.submit import start

#: Each test launches a run or two.
pytestmark = pytest.mark.slow

Command = Callable[..., Any]


@pytest.fixture
def run(mlpsubmit: Command) -> Run:
    """A finished run of the debug executor, whose results are lost."""
    mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=2")
    run = open_run("small")
    for file in run.directory.results.shards():
        file.unlink()
    return run


@pytest.fixture
def far(run: Run) -> Run:
    """A run that seems to be in training on another machine, whose clock is an hour ahead."""
    submission = run.directory.submission(0)
    intent = {**run.directory.intent(0), "executor": "local", "host": "far"}
    publish_json(submission / run_directory.INTENT, intent)
    publish_beat(run)
    return run


def publish_beat(run: Run) -> None:
    beat = run.directory.last_heartbeat("000-0000") or {}
    changed = {"state": "training", "host": "far", "updated": time.time() + 3600}
    publish_json(run.directory.heartbeat("000-0000"), {**beat, **changed})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], object]]]:
    """Let time pass only in ``time.sleep``, which calls the functions of the list it yields."""
    now, called = [1000.0], []

    def sleep(seconds: float) -> None:
        now[0] += seconds
        for function in called:
            function()

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    return called


WAITS = "was started on far: waiting for up to 30 s for a sign of its tasks"


def test_a_live_run_of_another_machine_is_not_resumed(
    far: Run, clock: list[Callable[[], object]]
) -> None:
    (task,) = far.status().tasks
    assert task.state == "running", "its heartbeat is new, whatever the clock of its machine"
    os.utime(far.directory.heartbeat("000-0000"), (0, 0))  # as if "far" stamped its files itself
    clock.append(lambda: publish_beat(far))
    with pytest.warns(UserWarning, match=WAITS), pytest.raises(BusyError, match="still running"):
        far.resume("debug")
    assert far.directory.submissions() == [0]


def test_a_dead_run_of_another_machine_is_resumed_after_a_while(
    far: Run, clock: list[Callable[[], object]]
) -> None:
    """Although its last heartbeat is new, and its machine's clock is ahead."""
    with pytest.warns(UserWarning, match=WAITS):
        assert far.resume("debug") == 2
    assert far.status().complete


def test_a_run_elsewhere_that_gave_no_sign_for_long_is_shown_as_crashed(far: Run) -> None:
    os.utime(far.directory.heartbeat("000-0000"), (time.time() - 60,) * 2)
    (task,) = far.status().tasks
    assert (task.state, task.why) == ("crashed", "no sign of it from far for 30 s")


def test_the_state_of_a_run_elsewhere_may_be_unknown(
    far: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that this user may not write to, the file system gives no time."""
    monkeypatch.setattr("mlpsubmit.jobs.liveness._probe", lambda folder: None)
    (task,) = read_status(far.directory).tasks
    assert task.state == "unknown"
    assert task.why == "it runs on far, and whether it still does is not known yet"


def test_of_two_resumes_without_locks_one_submits(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one submits between the check of the first and its intent."""
    monkeypatch.setattr(files, "locked", lambda *_, **__: contextlib.nullcontext())

    class Late(DebugExecutor):
        def check(self, _: object) -> None:
            assert run.resume("debug") == 2

    late = Late(None, pdb=False, keep_going=False)
    with pytest.raises(BusyError, match="another launch or resume has just submitted it"):
        start(run.directory, late, sweep_hash(run.directory))
    assert run.directory.submissions() == [0, 1]
    assert run.status().complete


def test_a_resume_that_is_overtaken_withdraws(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(directory: RunDirectory, number: int) -> str:
        return "submission 002 has taken its place"

    monkeypatch.setattr(RunDirectory, "overtaken", overtaken)
    with pytest.raises(BusyError, match="another launch or resume has just submitted it"):
        run.resume("debug")
    assert run.directory.submissions() == [0]
    assert not run.directory.submission(1).exists()


@pytest.mark.parametrize("by", ["submission", "attempt"])
def test_a_task_that_was_overtaken_leaves_no_result(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], by: str
) -> None:
    """While it trained its second pack; the first one's result stays."""
    train, packs = jobs_task.train_pack, []

    def overtake(context: Any, pack: Any, *reported: Any) -> Any:
        outcome = train(context, pack, *reported)
        packs.append(pack)
        if len(packs) == 2 and by == "submission":
            folder = run.directory.submission(2)
            folder.mkdir()
            publish_json(folder / run_directory.INTENT, run.directory.intent(1))
        if len(packs) == 2 and by == "attempt":
            Shard.claim(run.directory.results.folder, "001-0000").close()
            (run.directory.results.folder / "001-0000.1.json").write_text("[]")
            beat = run.directory.last_heartbeat("001-0000") or {}
            publish_json(run.directory.heartbeat("001-0000"), {**beat, "pid": 2**22 + 1})
        return outcome

    monkeypatch.setattr(jobs_task, "train_pack", overtake)
    run.resume("debug")
    assert len(packs) == 2, "it trains no further pack"
    assert len(RunDirectory(run.path).results.finished()) == 1
    beat = run.directory.last_heartbeat("001-0000") or {}
    assert beat["state"] == "training", "the heartbeat is the other attempt's now"
    number = {"submission": "submission 002", "attempt": "attempt 1"}[by]
    said = f"stopping, nothing more is saved: {number} has taken its place"
    shown = capfd.readouterr().out
    assert shown.count(said) == 1
    assert "its state is saved" not in shown


def test_a_heartbeat_stops_the_task_that_was_overtaken(tmp_path: Path) -> None:
    stop, why = StopFlag(), [""]
    heartbeat = Heartbeat(
        tmp_path / "beat.json", 100.0, overtaken=lambda: why[0], on_overtaken=stop.set
    )
    heartbeat.publish()
    assert not stop.is_set()
    (tmp_path / "beat.json").unlink()
    why[0] = "attempt 1 has taken its place"
    heartbeat.publish()
    assert stop.is_set()
    assert not (tmp_path / "beat.json").exists()


def test_a_disk_that_is_away_does_not_stop_a_task(tmp_path: Path) -> None:
    def away() -> str:
        raise OSError("stale file handle")

    assert not Heartbeat(tmp_path / "beat.json", 100.0, overtaken=away).is_overtaken()


def test_numbers_of_attempts_are_not_used_again(tmp_path: Path) -> None:
    with Shard.claim(tmp_path, "000-0000") as first:
        assert not first.overtaken()
        (tmp_path / "000-0000.0.json").write_text("[]")
        with Shard.claim(tmp_path, "000-0000") as second:
            assert second.attempt == 1
            assert first.overtaken() == "attempt 1 has taken its place"
            assert not second.overtaken()
            (tmp_path / "000-0000.1.json").write_text("[]")
        assert not second.path.exists(), "it is empty"
        assert first.overtaken()
    with Shard.claim(tmp_path, "000-0000") as third:
        assert third.attempt == 2
