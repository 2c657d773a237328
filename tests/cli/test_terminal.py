"""A run in the terminal: its live status, Ctrl-C, a second launch, logs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pkgutil
import pty
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from mlpsubmit import UserError, open_run
from mlpsubmit.cli import terminal
from mlpsubmit.errors import SpecError
from mlpsubmit.files import publish_json
from mlpsubmit.jobs.failures import RowsFailure
from mlpsubmit.jobs.heartbeat import process_start
from mlpsubmit.jobs.status import Status, TaskStatus
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.task_status import STARTING
from mlpsubmit.results.source import Failure
from mlpsubmit.runs.run import Run, poll_seconds

# The fixtures `mlpsubmit` and `workplace` come from conftest.py.
Command = Callable[..., Any]

SILENT = "the scheduler does not answer: squeue: no such luck"


def status_of(state: str, *tasks: TaskStatus, done: int = 0) -> Status:
    return Status(
        run="20260101-000000-abcdef",
        name="staircase",
        path="/runs",
        state=state,
        configs=4,
        done=done,
        failed=0,
        missing=4 - done,
        reused=0,
        fraction=done / 4,
        speed=0.0,
        remaining_seconds=None,
        tasks=tasks,
        failures=[],
    )


UNKNOWN = status_of(
    "unknown",
    TaskStatus("000-0000", "done", {}, None),
    TaskStatus("000-0001", "unknown", {}, None, SILENT),
)


def rendered(status: Status) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(terminal.render(status))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


# ---- the status -------------------------------------------------------------------------------


def test_the_state_of_the_job_that_resumes_is_shown() -> None:
    waiting = replace(status_of("running"), retry="PENDING (Dependency)")
    assert "a job will resume the missing configs: PENDING (Dependency)\n" in rendered(waiting)
    failed = replace(status_of("stopped"), retry_failure="FAILED (exit code 1:0) on n1")
    printed = "the job that should resume the missing configs failed: FAILED (exit code 1:0) on n1"
    assert printed in rendered(failed)


def test_tasks_that_are_not_submitted_yet_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    limit = "MaxSubmitJobs=3 of ann in the account lab"
    awaits = f"when job 12 has ended ({limit})"
    waiting = replace(status_of("running"), later=4, awaits=awaits)
    line = f"4 more tasks to be submitted {awaits}"
    assert f"{line}\n" in rendered(waiting)
    assert terminal.report(waiting) == 0
    assert f"; {line}; see: mlpsubmit status" in capsys.readouterr().out
    lost = replace(status_of("stopped"), later=1, retry_failure="CANCELLED")
    line = "1 more task not submitted, and no job that will do it"
    assert f"{line}\n" in rendered(lost)
    assert "the job that should submit 1 more task failed: CANCELLED\n" in rendered(lost)
    assert terminal.report(lost) == 1
    assert line in capsys.readouterr().err
    assert not replace(lost, done=lost.configs).outstanding


def training(name: str, **fields: Any) -> TaskStatus:
    beat = {
        "packs": 12,
        "packs_done": 3,
        "step": 5120,
        "max_iter": 10_000,
        "loss": 0.0123,
        "losses": [(64 * n, 10.0**-n) for n in range(1, 9)],
        "speed": 11_432.1,
        "matmul_utilization": 0.54,
        **fields,
    }
    return TaskStatus(name, "running", beat, None, remaining_seconds=720.0)


def lines_of(*tasks: TaskStatus, width: int, **options: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(terminal.render(status_of("running", *tasks)))
    shown: str = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in shown.splitlines()[3:]]


def test_a_task_in_training_shows_its_loss_speed_and_time_left() -> None:
    head, line = lines_of(training("000-0000"), width=100)
    assert head.split() == ["packs", "pack", "loss", "speed", "matmul", "left"]
    assert line.split() == [
        *("000-0000", "running", "3/12", "51%", "█▇▆▅▄▃▂▁▇", "0.0123"),
        *("11.4k/s", "54%", "12", "min"),
    ]
    assert line.index("54%") + 3 == head.index("matmul") + 6, "columns are below their heads"


@pytest.mark.parametrize("width", [50, 60, 80, 100, 160])
def test_tasks_take_a_line_each_and_curves_what_room_there_is(width: int) -> None:
    many = [(64 * n, 1.0 / n) for n in range(1, 65)]
    tasks = [
        training("000-0000", losses=many),
        training("000-0001", losses=many, packs=128, packs_done=100, loss=None),
        TaskStatus("000-0002", "waiting", {}, None, "queued: Priority"),
        TaskStatus("000-0003", "running", {"packs": 4, "doing": "building networks"}, None),
    ]
    _, *lines = lines_of(*tasks, width=width)
    assert len(lines) == 4
    assert max(map(len, lines)) <= width
    curves = [sum(c in "▁▂▃▄▅▆▇█" for c in line) for line in lines[:2]]
    assert curves == {50: [15, 14], 60: [8, 7], 80: [11, 10], 100: [31, 30], 160: [40, 39]}[width]
    assert "xNaN" in lines[1].replace(" ", "")
    assert ("54%" in lines[0]) is (width >= 80), "the first column that is left out"
    assert lines[2].split(maxsplit=2) == ["000-0003", "running", "0/4 packs, building networks"]
    assert lines[3].split(maxsplit=2) == ["000-0002", "waiting", "queued: Priority"]


def test_a_pack_of_several_stacks_shows_how_much_of_all_of_them_is_trained() -> None:
    several = {"configs": 4, "stack": 1, "settled": 2}
    _, line = lines_of(training("000-0000", **several), width=100)
    assert line.split()[3] == "63%"


def test_the_narrowest_terminals_have_no_curves() -> None:
    many = [(64 * n, 1.0 / n) for n in range(1, 65)]
    tasks = [training(f"000-000{n}", losses=many) for n in range(3)]
    head, *lines = lines_of(*tasks, width=36)[-4:]
    assert head.split() == ["pack", "loss"]
    assert [line.split() for line in lines] == [
        [f"000-000{n}", "running", "51%", "0.0123"] for n in range(3)
    ]


@pytest.mark.parametrize(
    ("speed", "text"),
    [(0.0354, "0.035"), (3.51, "3.5"), (980, "980"), (11_432.1, "11.4k"), (2.57e6, "2.57M")],
)
def test_speeds_have_their_digits(speed: float, text: str) -> None:
    _, line = lines_of(training("000-0000", speed=speed), width=100)
    assert f"  {text}/s  " in line


def test_a_terminal_without_unicode_gets_bars_of_ascii() -> None:
    class Latin(io.StringIO):
        encoding = "latin-1"

    console = Console(file=Latin(), width=80)
    console.print(terminal.render(status_of("running", training("000-0000"))))
    line = console.file.getvalue().splitlines()[-1]  # type: ignore[attr-defined]
    assert line.split()[4] == "#*+=~-._*"


def test_what_a_task_waits_for_is_never_nothing() -> None:
    states = {
        "importing torch": TaskStatus("t", "waiting", {}, None, STARTING),
        "torch": TaskStatus("t", "running", {}, None),
        "packs, starting": TaskStatus("t", "running", {"state": "starting", "packs": 2}, None),
        "loading data": TaskStatus("t", "running", {"packs": 2, "doing": "loading data"}, None),
    }
    for expected, task in states.items():
        assert task.awaited
        assert expected in task.summary
        assert expected in rendered(status_of("running", task))
    assert training("t").awaited == TaskStatus("t", "done", {}, None).awaited == ""


@pytest.mark.parametrize("term", ["dumb", "pipe"])
def test_without_a_cursor_there_are_lines(
    term: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", term)
    console = Console(file=io.StringIO(), force_terminal=term == "dumb")
    starting = TaskStatus("000-0000", "waiting", {}, None, STARTING)
    with terminal.status_display(console) as show:  # type: ignore[arg-type]
        for _ in range(3):
            show(status_of("running", starting))
    line = "staircase running: 0/4 configs  0%  000-0000: starting: importing torch\n"
    assert capsys.readouterr().out == line
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    with terminal.status_display(console) as show:  # type: ignore[arg-type]
        show(status_of("running", starting))
        show(status_of("running", training("000-0000")))
        show(status_of("running", training("000-0000")))
        show(status_of("done", done=4))
    assert capsys.readouterr().out == (
        line + "staircase running: 0/4 configs  0%\nstaircase done: 4/4 configs  100%\n"
    )


def test_a_thousand_crashed_tasks_are_shown_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("x" * 10_000 + "\nRuntimeError: all the same\n")
    read: list[str] = []

    class Counted(TaskStatus):
        def last_lines(self) -> list[str]:
            read.append(self.name)
            return super().last_lines()

    tasks = [
        Counted(f"000-{n:04d}", "crashed", {}, log, "SLURM reports FAILED") for n in range(1000)
    ]
    shown = rendered(status_of("crashed", *tasks))
    assert len(read) == 24, "the listed tasks"
    assert "... and 976 more tasks" in shown
    assert "976 crashed" in shown
    assert shown.count("RuntimeError: all the same") == 1


def test_the_status_of_many_tasks_is_read_less_often() -> None:
    one = TaskStatus("000-0000", "running", {}, None)
    assert poll_seconds(status_of("running", one)) == 0.5
    assert poll_seconds(status_of("running", *[one] * 1000)) == 5


def test_a_run_reports_its_losses(mlpsubmit: Command) -> None:
    mlpsubmit(
        "launch", "small.py", "--executor", "debug", "MAX_ITER=200", "LOSS_CHECKPOINTS=[1e-9]"
    )
    (task,) = open_run("small").status().tasks
    assert [step for step, _ in task.losses] == [64, 128, 192, 200]
    assert all(loss is not None and loss > 0 for _, loss in task.losses)
    (shown,) = json.loads(mlpsubmit("status", "small", "--json").out)["tasks"]
    assert [tuple(point) for point in shown["losses"]] == list(task.losses)
    assert (shown["awaited"], shown["remaining_seconds"], shown["doing"]) == (None, None, "")


@pytest.mark.slow
def test_a_launch_at_a_terminal_says_what_it_does_from_the_beginning(workplace: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mlpsubmit", "launch", "small.py", "MAX_ITER=2"]
    environment = {**os.environ, "TERM": "dumb"}
    with subprocess.Popen(
        command, cwd=workplace, env=environment, stdout=theirs, stderr=theirs, stdin=theirs
    ) as launch:
        os.close(theirs)
        shown = ""
        with contextlib.suppress(OSError):  # its end, on Linux
            while part := os.read(ours, 4096).decode():
                shown += part
    os.close(ours)
    assert launch.returncode == 0
    lines = shown.splitlines()
    expected = [
        "loading the spec ...",
        "trying the functions ...",
        "planning, and looking for results to reuse ...",
        "writing the run directory ...",
    ]
    assert [line for line in lines if line in expected] == expected
    assert lines[0] == expected[0], "before everything else"
    assert "\x1b" not in shown
    running = [line for line in lines if line.startswith("small running: ")]
    assert "000-0000: starting: importing torch" in running[0]
    assert lines[-1].startswith("all 8 configs are done")


# ---- the report ---------------------------------------------------------------------------------


def test_a_run_whose_state_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal.report(UNKNOWN) == 0
    run = UNKNOWN.run
    assert capsys.readouterr().out == (
        f"cannot tell whether run {run} is still running: {SILENT}; see: mlpsubmit status {run}\n"
    )
    # If all is done, the answer of the scheduler does not matter.
    assert terminal.report(replace(UNKNOWN, state="done", done=4)) == 0
    assert capsys.readouterr().out.startswith("all 4 configs are done; next: mlpsubmit collect")


@pytest.mark.parametrize(
    ("states", "queued"),
    [
        (("waiting", "running"), " (1 of 2 tasks queued)"),
        (("waiting", "waiting"), " (2 of 2 tasks queued)"),
        (("running", "running"), ""),
    ],
)
def test_how_many_tasks_are_queued(
    capsys: pytest.CaptureFixture[str], states: tuple[str, ...], queued: str
) -> None:
    tasks = [TaskStatus(f"000-{i:04d}", state, {}, None) for i, state in enumerate(states)]
    assert terminal.report(status_of("running", *tasks)) == 0
    run = "20260101-000000-abcdef"
    assert capsys.readouterr().out == f"run {run} is running{queued}; see: mlpsubmit status {run}\n"


def test_workers_of_one_task_are_counted_as_workers(capsys: pytest.CaptureFixture[str]) -> None:
    workers = [TaskStatus(f"000-{i:04d}", "waiting", {}, None, array_task=0) for i in range(2)]
    assert terminal.report(status_of("running", *workers)) == 0
    assert " is running (2 of 2 workers queued); " in capsys.readouterr().out


def test_a_failed_resume_job_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal.report(replace(status_of("stopped"), retry_failure="TIMEOUT on n1")) == 1
    assert "resume the missing configs failed: TIMEOUT on n1\n" in capsys.readouterr().err


def test_the_traceback_of_a_failure_ends_in_the_users_function(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def grab() -> None:
        raise ValueError("boom")

    try:
        try:
            grab()
        except ValueError as error:
            raise UserError("grab 'w' failed") from error
    except UserError as error:
        text = "".join(traceback.format_exception(error))
    failure = Failure(np.array([0]), "UserError: grab 'w' failed", text)
    assert terminal.report(replace(status_of("failed"), failed=1, failures=[failure])) == 1
    shown = capsys.readouterr().err
    assert "failed: UserError: grab 'w' failed (1 config)" in shown
    assert 'raise ValueError("boom")' in shown
    assert "from error" not in shown


def test_an_error_of_ours_is_shown_without_our_lines(capsys: pytest.CaptureFixture[str]) -> None:
    found = RowsFailure.of(SpecError("batchfn f: got\n6 samples"), [0])
    assert found.traceback == ""  # as it is in the log of the task
    failure = Failure(np.array([0]), found.error, found.traceback)
    assert terminal.report(replace(status_of("failed"), failed=1, failures=[failure])) == 1
    shown = capsys.readouterr().err
    assert shown.splitlines()[:3] == [
        "  failed: SpecError: batchfn f: got",
        "    6 samples (1 config)",
        "0 of 4 configs done, 4 missing (1 failed); continue with: mlpsubmit resume "
        "20260101-000000-abcdef",
    ]


def test_equal_failures_are_shown_once_with_the_line_of_the_user(
    capsys: pytest.CaptureFixture[str],
) -> None:
    trace = "Traceback ...\n  File torch/nn/functional.py, line 1, in linear\nValueError: no\n"
    failures = [
        Failure(np.array([n]), f"ValueError: no {n}", trace, f"{n:07d}", "spec.py:3 in f", "f(x)")
        for n in range(3)
    ]
    assert terminal.report(replace(status_of("failed"), failed=3, failures=failures)) == 1
    shown = capsys.readouterr().err
    other = "others with other numbers: mlpsubmit show 20260101-000000-abcdef --config 1"
    assert f"  failed: ValueError: no 0 (3 configs; {other})\n    spec.py:3 in f: f(x)\n" in shown
    assert "torch" not in shown


class Stub(Run):
    """A run whose waiting Ctrl-C ends."""

    def __init__(
        self, directory: RunDirectory, intent: dict[str, Any], now: Status, after: Status
    ) -> None:
        super().__init__(directory)
        folder = self.directory.submission(0)
        folder.mkdir(parents=True)
        publish_json(folder / run_directory.INTENT, intent)
        self.now, self.after, self.cancelled = now, after, False

    def status(self) -> Status:
        return self.after if self.cancelled else self.now

    def wait(self, on_status: Any = None) -> Status:
        if not self.cancelled:
            raise KeyboardInterrupt
        return self.status()

    def cancel(self) -> int:
        self.cancelled = True
        return 1


def test_ctrl_c_leaves_a_run_on_a_cluster_alone(
    tmp_path: Path, records: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    going = status_of("running", TaskStatus("000-0000", "running", {}, None))
    intent = records.intent(executor="slurm")
    run = Stub(records.create(tmp_path / "run"), intent, going, status_of("stopped"))
    assert terminal.follow_or_report(run, True) == 0
    assert not run.cancelled
    assert capsys.readouterr() == (
        "the run continues on the cluster; see: mlpsubmit status run; "
        "stop it with: mlpsubmit cancel run\n",
        "",
    )
    run.now = UNKNOWN
    assert terminal.follow(run) == 0
    assert "is still running: the scheduler does not" in capsys.readouterr().out
    run.now = status_of("stopped")
    assert terminal.follow(run) == 1
    assert "continue with: mlpsubmit resume" in capsys.readouterr().err
    assert not run.cancelled


def test_ctrl_c_stops_the_workers_of_this_machine(
    tmp_path: Path, records: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    going = status_of("running", TaskStatus("000-0000", "running", {}, None))
    intent = records.intent(executor="local")
    run = Stub(records.create(tmp_path / "run"), intent, going, status_of("stopped"))
    assert terminal.follow_or_report(run, None) == 1
    assert run.cancelled
    printed = capsys.readouterr().err
    assert printed.startswith("stopping: workers save their state (Ctrl-C again")
    assert "0 of 4 configs done, 4 missing; continue with: mlpsubmit resume" in printed


def interrupted(*_: Any) -> Status:
    raise KeyboardInterrupt


def test_a_cancel_that_is_not_waited_for_does_not_say_that_all_have_stopped(
    mlpsubmit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=2")
    going = status_of("running", TaskStatus("000-0000", "running", {}, None))
    monkeypatch.setattr(Run, "status", lambda _: going)
    monkeypatch.setattr(Run, "cancel", lambda _: 1)
    monkeypatch.setattr(Run, "wait", interrupted)
    printed = mlpsubmit("cancel", "small")
    run = open_run("small").id
    assert (printed.code, printed.out) == (
        0,
        f"run {run} is stopping; see: mlpsubmit status {run}\n",
    )


# ---- launched twice ----------------------------------------------------------------------------


def revived(run: Run) -> None:
    """Make a finished run look as if this process trained it on this machine."""
    for file in run.directory.results.shards():
        file.unlink()
    intent = run.directory.intent(0)
    publish_json(
        run.directory.submission(0) / run_directory.INTENT, {**intent, "executor": "local"}
    )
    beat = {
        **(run.directory.last_heartbeat("000-0000") or {}),
        "state": "training",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_start": process_start(os.getpid()),
        "updated": time.time(),
    }
    publish_json(run.directory.heartbeat("000-0000"), beat)


def test_a_launch_of_a_running_run_submits_nothing(mlpsubmit: Command) -> None:
    mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=2")
    run = open_run("small")
    again = mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=2")
    assert "already running" not in again.out
    assert "all 8 configs are done" in again.out

    revived(run)
    dry = mlpsubmit("launch", "small.py", "--dry-run", "MAX_ITER=2")
    assert dry.code == 0
    assert dry.out.endswith(f"run {run.id} is already running; a launch would submit nothing\n")
    assert "packs to train" not in dry.out
    again = mlpsubmit("launch", "small.py", "--detach", "MAX_ITER=2")
    assert again.code == 0
    assert (
        f"run {run.id} was already running, with the options of that launch; nothing new was "
        "submitted\n" in again.out
    )
    assert f"run {run.id} is running; see: mlpsubmit status {run.id}\n" in again.out
    assert run.directory.submissions() == [0]


# ---- logs --------------------------------------------------------------------------------------


@pytest.fixture
def begun(mlpsubmit: Command, records: Any) -> Run:
    """A run whose second submission has two tasks, of which the first has a job."""
    mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=2")
    run = open_run("small")
    folder = run.directory.submission(1)
    folder.mkdir()
    intent = {**run.directory.intent(0), "executor": "local", "slices": [[[0, 1]], [[1, 2]]]}
    publish_json(folder / run_directory.INTENT, intent)
    job = records.job("7", host="far")
    publish_json(folder / run_directory.JOBS, {"jobs": [job]})
    os.utime(folder / run_directory.JOBS, (0, 0))  # no task of it will report any more
    return run


@pytest.mark.parametrize("task", ["0", "1", "001-0000", "001-0001"])
def test_a_task_that_has_no_log_yet_is_no_error(mlpsubmit: Command, begun: Run, task: str) -> None:
    assert begun.logs(task) == {}
    for options in ([], ["--follow"]):
        printed = mlpsubmit("logs", "small", task, *options)
        assert printed.err == f"task {task} of run {begun.id} has no log yet\n"
        assert (printed.code, printed.out) == (0, "")


@pytest.mark.parametrize("task", ["2", "001-0002", "002-0000", "x"])
def test_a_task_that_there_is_not(mlpsubmit: Command, begun: Run, task: str) -> None:
    begun.directory.log(1, "7").write_text("something\n")
    refused = mlpsubmit("logs", "small", task)
    assert refused.code == 2
    assert refused.err.startswith(
        f"error: task {task}: run {begun.id} has no such task; tasks with a log: "
    )
    assert "001-0000" in refused.err


def test_a_log_is_waited_for_and_followed(
    mlpsubmit: Command, begun: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a later submission numbers its tasks anew."""
    going = status_of("running", TaskStatus("001-0000", "running", {}, None))
    log = begun.directory.log(1, "7")
    looks: list[int] = []

    def status(self: Run) -> Status:
        looks.append(len(looks))
        if looks[-1] == 2:
            log.write_text("first\nsec")
        if looks[-1] == 3:
            later = self.directory.submission(2)
            later.mkdir()
            publish_json(later / run_directory.INTENT, self.directory.intent(1))
            with log.open("a") as file:
                file.write("ond\n")
        return going if looks[-1] < 5 else status_of("stopped")

    monkeypatch.setattr(Run, "status", status)
    monkeypatch.setattr("mlpsubmit.runs.run.POLL_SECONDS", 0.01)
    followed = mlpsubmit("logs", "small", "0", "--follow")
    assert (followed.code, followed.out, followed.err) == (0, "first\nsecond\n", "")
    assert len(looks) == 6


def test_a_log_is_printed_in_blocks_however_long_its_lines_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mlpsubmit.cli.logs._BLOCK", 8)
    log = tmp_path / "log"
    log.write_bytes(b"ab\ncd\n" + b"x" * 20 + b"\nend\ntail")
    print_new = pkgutil.resolve_name("mlpsubmit.cli.logs:_print_new")
    assert print_new("t", log, 3) == 31
    assert capsys.readouterr().out == "t: cd\nt: xxxxxxxx\nt: xxxxxxxx\nt: xxxx\nt: end\n"
