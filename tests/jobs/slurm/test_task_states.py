"""How a task on SLURM is doing, by its files and by what the scheduler says."""

from __future__ import annotations

import math
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import files
from mlpsubmit.files import publish_json
from mlpsubmit.jobs.slurm import task_states
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable
from mlpsubmit.jobs.slurm.task_states import (
    Scheduler,
    in_queue,
    live_jobs,
    slurm_retry,
    slurm_tasks,
)
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.run_directory import RunDirectory

NAME = "s.run.000"
FRESH = {"state": "training", "interval": 2.0}


@pytest.fixture
def run(tmp_path: Path, records: Any) -> RunDirectory:
    """A run with one submission of one task, whose job is 7_0."""
    run: RunDirectory = records.create(tmp_path / "run")
    run.submission(0).mkdir()
    arrays = [{"name": NAME, "first": 0, "count": 1, "limit": None, "after": None}]
    intent = records.intent(executor="slurm", created=time.time(), arrays=arrays)
    publish_json(run.submission(0) / run_directory.INTENT, intent)
    return run


def answer(run: RunDirectory) -> None:
    here = {"host": "x", "pid": None, "process_start": None, "pid_namespace": None}
    job = {"id": "7", "first": 0, "count": 1, "array": True, **here}
    retry = {"id": "8", "first": 1, "count": 0, "array": False, **here}
    publish_json(run.submission(0) / run_directory.JOBS, {"jobs": [job, retry]})


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Say what squeue and sacct answer; a list of the questions is kept."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    asked = tmp_path / "asked"

    def say(squeue: str | None = "", sacct: str | None = None, cluster: str | None = "mlp") -> Path:
        config = None if cluster is None else f"ClusterName = {cluster}"
        for name, text in (("squeue", squeue), ("sacct", sacct), ("scontrol", config)):
            told = "exit 1" if text is None else f"cat <<'END'\n{text}\nEND"
            (folder / name).write_text(f"#!/bin/sh\necho {name} >> {asked}\n{told}\n")
            (folder / name).chmod(stat.S_IRWXU)
        return asked

    return say


def state(run: RunDirectory, beat: dict[str, Any] | None = None, **how: Any) -> tuple[str, str]:
    """Return the state of a task whose heartbeat is so many seconds old (``age``).

    The clock of its machine is some hours wrong, which must not matter.
    """
    heartbeats = {} if beat is None else {"000-0000": {**beat, "updated": time.time() + 1e4}}
    if beat is not None:
        publish_json(run.heartbeat("000-0000"), heartbeats["000-0000"])
        written = time.time() - beat.get("age", 0.0)  # this machine stamps its own files
        os.utime(run.heartbeat("000-0000"), (written, written))
    (task,) = slurm_tasks(run, 0, heartbeats, Scheduler(**how))
    return task.state, task.why


def row(word: str, reason: str = "None", node: str = "n1") -> str:
    return f"7|0|{os.getuid()}|{word}|{node}|a|500|{reason}|{NAME}"


@pytest.mark.parametrize(
    ("beat", "expected"),
    [
        ({"state": "done"}, ("done", "")),
        ({"state": "crashed", "error": "OSError: gone"}, ("crashed", "OSError: gone")),
        (FRESH, ("running", "")),
        ({"state": "starting", "interval": 30.0, "age": 40.0}, ("running", "")),
    ],
)
def test_the_files_tell_by_themselves(
    run: RunDirectory, slurm: Any, beat: dict[str, Any], expected: tuple[str, str]
) -> None:
    answer(run)
    asked = slurm(None, None)
    assert state(run, beat) == expected
    assert not asked.exists(), "the scheduler is not asked"


def test_who_waits_hears_how_many_jobs_come_first(run: RunDirectory, slurm: Any) -> None:
    answer(run)
    others = [("1", "a", 900), ("2", "a", 700), ("3", "a", 500), ("4", "a", 100), ("5", "b", 900)]
    others.append(("6", "a", "N/A"))
    rows = [f"{id}|N/A|0|PENDING||{place}|{number}|None|x" for id, place, number in others]
    running = "9|N/A|0|RUNNING|n1|a|900|None|x"
    everyone = "\n".join([*rows, running, row("PENDING", "Priority"), "no"])
    asked = slurm(everyone)
    assert state(run) == ("waiting", "queued: Priority")
    behind = "queued: Priority, behind 2 jobs of higher priority"
    assert state(run, watches=True) == ("waiting", behind)
    assert asked.read_text().split() == ["squeue"] * 2, "each has asked once"
    slurm(row("PENDING", "Dependency"))
    assert state(run, watches=True) == ("waiting", "queued: Dependency")


def test_all_users_are_asked_for_only_while_a_job_waits_for_others(
    run: RunDirectory, slurm: Any
) -> None:
    answer(run)
    asked = slurm(row("PENDING", "Priority"))
    program = asked.parent / "bin" / "squeue"

    def questions(scheduler: Scheduler, times: int) -> list[bool]:
        """Whether the jobs of one user were asked for, each time."""
        asked.unlink(missing_ok=True)
        program.write_text(program.read_text().replace("echo squeue", 'echo "$*"'))
        for _ in range(times):
            scheduler._cache.clear()
            slurm_tasks(run, 0, {}, scheduler)
        return [f"--user={os.getuid()}" in line for line in asked.read_text().splitlines()]

    watching = Scheduler(watches=True)
    assert questions(watching, 2) == [False, False]
    slurm(row("RUNNING"))
    assert questions(watching, 3) == [False, True, True]
    slurm(row("PENDING", "Resources"))  # it was requeued
    assert questions(watching, 2) == [True, False]
    assert questions(Scheduler(), 2) == [True, True]


FORGOTTEN = "its job has left the queue, and the cluster has no accounting record of why"
FAILED = "SLURM reports FAILED on n1"
LATE = "its final heartbeat is not visible yet"
STALE = {**FRESH, "age": 1e6}
STOPPED = {"state": "interrupted"}


@pytest.mark.parametrize(
    ("beat", "queue", "accounts", "expected"),
    [
        (None, row("PENDING", "Priority"), None, ("waiting", "queued: Priority")),
        (STOPPED, row("PENDING", "BeginTime"), None, ("waiting", "queued again: BeginTime")),
        (STALE, row("RUNNING"), None, ("running", "")),
        (STALE, row("COMPLETING"), None, ("running", "")),
        (STOPPED, row("COMPLETED"), None, ("interrupted", "")),
        (STOPPED, "", None, ("interrupted", "")),
        (STOPPED, row("FAILED"), None, ("crashed", FAILED)),  # in a life that said nothing
        (STALE, row("CANCELLED"), None, ("interrupted", "cancelled")),
        (STALE, row("NODE_FAIL"), None, ("crashed", "SLURM reports NODE_FAIL on n1")),
        (
            STALE,
            "",
            "7_0|TIMEOUT|0:0||1G|01:00:00|n1",
            ("crashed", "SLURM reports TIMEOUT (its time limit was 01:00:00) on n1"),
        ),
        (
            STALE,
            "",
            "7_0|OUT_OF_MEMORY|0:125||1G|01:00:00|n1\n7_0.0|OUT_OF_MEMORY|0:125|900M||n1|",
            (
                "crashed",
                "SLURM killed it for its memory: it used 900M at least and had requested 1G; "
                "resume with more: --mem",
            ),
        ),
        (
            STALE,
            "",
            None,
            ("crashed", FORGOTTEN),
        ),
        (STALE, "", "7_0|RUNNING|0:0||1G|01:00:00|n1", ("crashed", FORGOTTEN)),
        ({**FRESH, "age": -3600.0}, row("FAILED"), None, ("crashed", FAILED)),
        ({**FRESH, "age": 30.0}, row("COMPLETED"), None, ("running", LATE)),
        (STALE, row("COMPLETED"), None, ("crashed", "SLURM reports COMPLETED on n1")),
        (STALE, None, None, ("unknown", "the scheduler does not answer: squeue: exit code 1")),
    ],
)
def test_the_scheduler_tells_what_the_files_leave_open(
    run: RunDirectory,
    slurm: Any,
    beat: dict[str, Any] | None,
    queue: str | None,
    accounts: str | None,
    expected: tuple[str, str],
) -> None:
    answer(run)
    run.log(0, "7_0").write_text("hello\n")
    slurm(queue, accounts)
    assert state(run, beat) == expected


def test_before_a_submission_the_scheduler_is_asked_whatever_the_files_say(
    run: RunDirectory, slurm: Any
) -> None:
    answer(run)
    slurm(row("FAILED", "NonZeroExitCode"))
    assert state(run, FRESH) == ("running", "")
    assert state(run, FRESH, exact=True)[0] == "crashed"
    slurm(None)
    assert state(run, FRESH, exact=True)[0] == "running", "a silent scheduler is no sign of death"


def test_a_job_that_its_launch_did_not_write_down_is_found_by_its_name(
    run: RunDirectory, slurm: Any
) -> None:
    slurm(row("RUNNING").replace("7|", "9|", 1))
    assert state(run) == ("running", "")
    assert run.task_jobs(0)["000-0000"]["id"] == "9_0"


def test_a_launch_at_work_is_not_taken_for_dead(run: RunDirectory, slurm: Any) -> None:
    slurm("")
    with files.locked(run.path / run_directory.PLAN):
        assert state(run) == ("waiting", "it is being submitted")
    assert state(run) == ("crashed", "its launch ended before the cluster had its job")
    run.end_submission(0, "sbatch did not answer")
    assert state(run) == ("interrupted", "sbatch did not answer")


def test_a_scheduler_that_need_not_know_of_a_job_is_not_believed(
    run: RunDirectory, slurm: Any
) -> None:
    answer(run)
    slurm("", cluster="other")
    assert state(run, STALE) == (
        "unknown",
        "the scheduler does not answer: the run is on the cluster mlp, and this machine belongs to "
        "other",
    )
    with pytest.raises(SlurmUnavailable, match="the run is on the cluster mlp"):
        live_jobs(run, 0)
    slurm("", cluster=None)
    assert state(run, STALE)[0] == "unknown"
    intent = run.intent(0)
    publish_json(run.submission(0) / run_directory.INTENT, {**intent, "user": os.getuid() + 1})
    for hidden in ("", "\nPrivateData = all", "\nPrivateData = accounts,jobs"):
        slurm("", cluster=f"mlp{hidden}")
        assert "and this cluster hides other users' jobs (PrivateData)" in state(run, STALE)[1]
    assert lasting(run)
    slurm("", cluster="mlp\nPrivateData = accounts,usage")
    assert state(run, STALE)[0] == "crashed", "the queue shows the jobs of all users"


def test_jobs_of_another_user_that_are_neither_recorded_nor_shown_may_run(
    run: RunDirectory, slurm: Any
) -> None:
    """Its launch was killed, or this machine does not see yet what it has recorded."""
    publish_json(
        run.submission(0) / run_directory.INTENT, {**run.intent(0), "user": os.getuid() + 1}
    )
    slurm("", cluster="mlp\nPrivateData = jobs")
    assert state(run)[0] == "unknown"
    slurm("", cluster="mlp\nPrivateData = none")
    assert state(run)[0] == "crashed"


def lasting(run: RunDirectory) -> bool:
    """Return whether the state of the task is unknown for good."""
    (task,) = slurm_tasks(run, 0, {}, Scheduler())
    assert task.state == "unknown"
    return task.lasting


def test_what_no_later_query_can_find_out_is_not_waited_for(
    run: RunDirectory, slurm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(run)
    slurm(None)
    assert not lasting(run), "the controller may come back"
    slurm("", cluster=None)
    assert not lasting(run)
    slurm("", cluster="other")
    assert lasting(run), "another cluster will never have its jobs"
    monkeypatch.setenv("PATH", "/nowhere")
    assert lasting(run), "a machine without SLURM"


def test_a_cancelled_task_that_saved_needs_no_scheduler(run: RunDirectory, slurm: Any) -> None:
    answer(run)
    slurm(None)
    assert state(run, STOPPED)[0] == "unknown"
    run.end_submission(0, "cancelled")
    assert state(run, STOPPED) == ("interrupted", "cancelled")


def test_one_question_for_many_looks(run: RunDirectory, slurm: Any) -> None:
    answer(run)
    asked = slurm(row("PENDING", "Priority"))
    scheduler = Scheduler()
    for _ in range(20):
        slurm_tasks(run, 0, {}, scheduler)
    assert asked.read_text().split() == ["squeue"]


@pytest.mark.slow
def test_one_question_where_its_answer_takes_longer_than_the_rest_between_two(
    run: RunDirectory, slurm: Any
) -> None:
    answer(run)
    asked = slurm(row("PENDING", "Priority"))
    script = asked.parent / "bin" / "squeue"
    script.write_text(script.read_text().replace("cat", "sleep 2.2; cat"))
    scheduler = Scheduler()
    for _ in range(3):
        slurm_tasks(run, 0, {}, scheduler)
    assert asked.read_text().split() == ["squeue"]


def test_jobs_that_were_submitted_after_a_question_are_asked_for(
    run: RunDirectory, slurm: Any
) -> None:
    asked, scheduler = slurm(""), Scheduler(interval=math.inf)
    slurm_tasks(run, 0, {}, scheduler)
    answer(run)
    slurm(row("PENDING", "Priority"))
    for _ in range(3):
        (task,) = slurm_tasks(run, 0, {}, scheduler)
        assert task.state == "waiting"
    assert asked.read_text().split() == ["squeue", "squeue"]


def test_jobs_in_the_queue_count_whatever_the_heartbeats_say(
    run: RunDirectory, slurm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_states, "configured", lambda: True)
    intent = run.intent(0)
    publish_json(run.submission(0) / run_directory.INTENT, {**intent, "retry": f"{NAME}.retry"})
    answer(run)
    publish_json(run.heartbeat("000-0000"), {"state": "done"})
    for queue, expected in {
        "": "",
        row("COMPLETED"): "",
        row("RUNNING").replace(NAME, "other"): "",  # the id has been given again
        row("COMPLETING"): "has job 7_0 in the queue (COMPLETING)",
        f"8|N/A|{os.getuid()}|PENDING||a|1|Dependency|{NAME}.retry": (
            "has job 8 in the queue (PENDING)"
        ),
    }.items():
        slurm(queue)
        assert in_queue(run, Scheduler()) == expected
    asked, scheduler = slurm(None), Scheduler(interval=math.inf)
    asked.unlink()
    for _ in range(3):
        assert in_queue(run, scheduler).startswith("may have jobs in the queue (the scheduler do")
    assert asked.read_text().split() == ["squeue"]
    monkeypatch.setattr(task_states, "configured", lambda: False)  # a machine of no cluster
    assert in_queue(run, Scheduler()) == ""


def test_an_id_that_the_cluster_has_given_to_another_job(run: RunDirectory, slurm: Any) -> None:
    answer(run)
    slurm(row("RUNNING").replace(NAME, "other"))
    lost = "its job has left the queue, and the cluster has no accounting record of why"
    assert state(run) == ("crashed", lost)
    assert live_jobs(run, 0) == ([], 0)


def test_the_job_that_retries_and_all_that_there_are(run: RunDirectory, slurm: Any) -> None:
    intent = run.intent(0)
    publish_json(run.submission(0) / run_directory.INTENT, {**intent, "retry": f"{NAME}.retry"})
    answer(run)
    slurm(f"{row('COMPLETED')}\n8|N/A|{os.getuid()}|PENDING||a|1|Dependency|{NAME}.retry")
    retry = slurm_retry(run, 0, Scheduler())
    assert retry is not None
    assert (retry.id, retry.pending) == ("8", True)
    assert live_jobs(run, 0) == (["7", "8"], 0)
    slurm(row("RUNNING"))
    assert live_jobs(run, 0) == (["7"], 1)  # what is 8 by now may be another job
    slurm(f"8|N/A|{os.getuid()}|COMPLETED|n1|a|1|None|{NAME}.retry")
    failed = slurm_retry(run, 0, Scheduler())
    assert failed is not None
    assert not failed.alive
    slurm("", "8|FAILED|2:0||2G|00:15:00|n1")
    assert str(slurm_retry(run, 0, Scheduler())) == "FAILED (exit code 2:0) on n1"
    slurm("", None)
    assert slurm_retry(run, 0, Scheduler()) is None


@pytest.mark.parametrize(
    ("beat", "squeue", "expected"),
    [
        (
            {"state": "interrupted"},
            row("RUNNING"),
            ("waiting", "saved; it goes on when its task is started again"),
        ),
        (
            {"state": "interrupted"},
            row("PENDING", "BeginTime"),
            ("waiting", "queued again: BeginT"),
        ),
        ({"state": "interrupted"}, row("FAILED"), ("interrupted", "SLURM reports FAILED on n1")),
        ({"state": "crashed", "error": "killed"}, row("RUNNING"), ("crashed", "killed")),
        ({**FRESH, "age": 999.0}, row("FAILED"), ("crashed", "SLURM reports FAILED on n1")),
    ],
)
def test_workers_of_one_task_have_states_of_their_own(
    run: RunDirectory, slurm: Any, records: Any, beat: Any, squeue: str, expected: Any
) -> None:
    file = run.submission(0) / run_directory.INTENT
    slices = [[[0, 1]], [[1, 2]]]
    publish_json(file, {**files.read_json(file), "slices": slices, "workers": 2})
    answer(run)
    slurm(squeue)
    publish_json(run.heartbeat("000-0000"), {**beat, "updated": time.time()})
    written = time.time() - beat.get("age", 0.0)
    os.utime(run.heartbeat("000-0000"), (written, written))
    done = {"state": "done"}
    first, second = slurm_tasks(run, 0, {"000-0000": beat, "000-0001": done}, Scheduler())
    assert first.state == expected[0]
    assert first.why.startswith(expected[1])
    assert (first.label, first.job) == ("000-0000 of task 0", "7_0")
    assert second.state == "done"
