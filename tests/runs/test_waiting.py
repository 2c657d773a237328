"""Whatever has become of a run: what waits for it ends once nothing will happen any more."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import Run, launch
from mlpsubmit.errors import BusyError, DamageError
from mlpsubmit.files import publish_json
from mlpsubmit.jobs.executors.debug import DebugExecutor
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.run_directory import task_name
from mlpsubmit.jobs.submission import Job, Submission
from mlpsubmit.jobs.trust import sweep_hash
from mlpsubmit.runs.run import POLL_SECONDS
from mlpsubmit.runs.submit import start
from mlpsubmit.spec.load import load_spec

#: Each test launches a run or two.
pytestmark = pytest.mark.slow

Command = Callable[..., Any]


@pytest.fixture
def run(workplace: Path) -> Run:
    """A run of which all results but one pack's were lost."""
    launched = launch(load_spec(workplace / "small.py"), executor="debug")
    (shard,) = launched.directory.results.shards()
    second = list(launched.directory.results.members())[1]
    shard.write_bytes(shard.read_bytes()[: second.offset - 512])
    assert launched.status().missing == 4
    return launched


@pytest.fixture
def _no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = time.sleep

    def checked(seconds: float) -> None:
        assert seconds < POLL_SECONDS, "it waits"  # subprocess sleeps for milliseconds
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", checked)


class OtherExecutor(DebugExecutor):
    """An executor of another name, whose task ends in this process without a heartbeat."""

    name = "other-1"

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__(None, pdb=False, keep_going=False)
        self.error = error

    def submit(self, submission: Submission) -> Iterator[Job]:
        yield Job.of_process(task_name(submission.number, 0), 0, os.getpid())
        if self.error is not None:
            raise self.error


@pytest.mark.usefixtures("_no_wait")
def test_a_task_that_ended_in_this_process_without_a_report(run: Run) -> None:
    start(run.directory, OtherExecutor(), sweep_hash(run.directory))
    status = run.wait()
    assert (status.state, status.tasks[0].why) == ("crashed", "it ended without reporting")
    with pytest.raises(KeyError):
        start(run.directory, OtherExecutor(KeyError("x")), sweep_hash(run.directory))
    status = run.wait()
    assert (status.state, status.tasks[0].why) == ("crashed", "KeyError: 'x'")
    assert run.resume("debug") == 1
    assert run.wait().complete


def test_a_process_elsewhere_may_have_the_id_of_this_one(run: Run, records: Any) -> None:
    beat = records.beat(host="far", pid=os.getpid())

    class Scheduled(OtherExecutor):
        def submit(self, submission: Submission) -> Iterator[Job]:
            yield Job("7", 0, 1, array=False)
            publish_json(submission.run.heartbeat("001-0000"), beat)

    start(run.directory, Scheduled(), sweep_hash(run.directory))
    assert run.directory.last_heartbeat("001-0000") == beat


@pytest.mark.usefixtures("_no_wait")
@pytest.mark.parametrize("lost", [run_directory.INTENT, run_directory.JOBS])
def test_tasks_of_which_no_record_is_left(run: Run, mlpsubmit: Command, lost: str) -> None:
    file = run.directory.submission(0) / lost
    publish_json(file, {})
    run.directory.heartbeat("000-0000").unlink()
    assert run.wait().state == "unknown"
    assert f"{lost}: is damaged" in run.wait().tasks[0].why
    with pytest.raises(BusyError, match="its tasks may still be running"):
        run.resume("debug")
    why = f"cannot tell whether run {run.id} is still running: {run.wait().tasks[0].why}"
    assert (mlpsubmit("status", "--watch").code, mlpsubmit("logs", "--follow").code) == (1, 0)
    assert why in mlpsubmit("collect").err
    assert mlpsubmit("cancel").code == 2


@pytest.mark.usefixtures("_no_wait")
def test_an_intent_that_could_not_be_read_again_is_not_submitted(run: Run) -> None:
    class Misnamed(OtherExecutor):
        name = "Other executor"

    with pytest.raises(DamageError, match=r"executor: got 'Other executor'"):
        start(run.directory, Misnamed(), sweep_hash(run.directory))
    assert run.directory.submissions() == [0]
    assert run.resume("debug") == 1
