"""ls: all runs at a glance, those that are no use included."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import open_run
from mlpsubmit.files import publish_json, read_json
from mlpsubmit.jobs.slurm.queue import Queue
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.runs import overview

# The fixtures `mlpsubmit`, `workplace` and `records` come from conftest.py.
Command = Callable[..., Any]


@pytest.fixture(autouse=True)
def _own_cache(mlpsubmit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "cache_folder", lambda: tmp_path / "cache")


def small(mlpsubmit: Command, *overrides: str) -> str:
    done = mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=2", *overrides)
    assert done.code == 0, done.err
    return open_run().id


def rows(mlpsubmit: Command, *arguments: Any) -> list[dict[str, Any]]:
    shown = json.loads(mlpsubmit("ls", "--json", *arguments).out)
    assert shown["schema"] == "ls/1"
    found: list[dict[str, Any]] = shown["runs"]
    return found


def test_runs_are_listed_with_what_was_overridden(mlpsubmit: Command, workplace: Path) -> None:
    first, second = small(mlpsubmit), small(mlpsubmit, "noise+=1.0", "LR=0.2", "WIDTH=[4]")
    newest, oldest = rows(mlpsubmit)
    assert (newest["run"], oldest["run"]) == (second, first)
    assert newest["overrides"] == {"max_iter": "2", "noise+": "1.0", "lr": "0.2", "width": "[4]"}
    assert oldest["overrides"] == {"max_iter": "2"}
    assert (newest["state"], newest["configs"], newest["done"], newest["missing"]) == (
        "done",
        6,
        6,
        0,
    )
    assert newest["path"] == str(workplace / "mlpruns" / "small" / second)
    files = (workplace / "mlpruns" / "small" / second).rglob("*")
    assert newest["size_bytes"] == sum(f.stat().st_size for f in files if f.is_file())
    for name in ("created_at", "launched_at"):
        assert newest[name].startswith("20")
        assert newest[name].endswith("Z")
    shown = mlpsubmit("ls").out.splitlines()
    assert shown[0].split() == ["name", "run", "state", "done", "size", "age", "overridden"]
    assert shown[1].split()[:4] == ["small", second, "done", "6/6"]
    assert shown[1].endswith("max_iter=2, noise+=1.0, lr=0.2, width=[4]")
    # An older run that is resumed is the newest.
    assert mlpsubmit("resume", first).code == 0
    assert [row["run"] for row in rows(mlpsubmit)] == [first, second]
    assert [row["run"] for row in rows(mlpsubmit, "-n", "1")] == [first]
    assert mlpsubmit("ls", "-n", "1").out.splitlines()[-1] == "... and 1 older"


def test_a_name_a_folder_or_a_run_selects(mlpsubmit: Command, workplace: Path) -> None:
    run = small(mlpsubmit)
    shutil.copytree(workplace / "mlpruns", workplace / "copies")
    (workplace / "copies" / "small" / run).rename(workplace / "copies" / "small" / "mine")
    assert [row["run"] for row in rows(mlpsubmit, "small")] == [run]
    assert [row["run"] for row in rows(mlpsubmit, run[-6:])] == [run]
    for folder in ("copies", "copies/small"):
        assert [row["run"] for row in rows(mlpsubmit, folder)] == ["mine"]
    refused = mlpsubmit("ls", "smal")
    assert refused.code == 2
    assert (
        "smal: no run of that name or id in mlpruns (did you mean 'small'?); there are runs of "
        "small"
    ) in refused.err
    assert rows(mlpsubmit, "--runs-dir", "none") == []
    assert mlpsubmit("ls", "--runs-dir", "none").out == (
        "none: contains no runs; launch one (mlpsubmit launch spec.py)\n"
    )


def test_runs_of_no_use_are_rows_that_say_so(
    mlpsubmit: Command, workplace: Path, records: Any
) -> None:
    folder = workplace / "mlpruns" / "a"
    ids = [f"2026010{n}-000000-00000{n}" for n in range(5)]
    for run in ids:
        records.create(folder / run)
    old = read_json(folder / ids[0] / "sweep.json")
    publish_json(folder / ids[0] / "sweep.json", {**old, "format": 3})
    (folder / ids[1] / "sweep.json").write_text("{")
    (folder / ids[2] / "sweep.json").unlink()
    (folder / ids[3] / "plan.json").write_bytes(b"\xff")
    (folder / "no run").mkdir()
    found = {row["run"]: row for row in rows(mlpsubmit)}
    assert set(found) == set(ids)
    assert found[ids[0]]["state"] == "other_format"
    assert found[ids[0]]["error"] == (f"format 3; this mlpsubmit reads {run_directory.FORMAT}")
    assert [found[run]["state"] for run in ids[1:4]] == ["damaged"] * 3
    assert found[ids[1]]["error"].startswith("sweep.json: is damaged (")
    assert found[ids[2]]["error"] == "sweep.json missing"
    assert found[ids[3]]["error"].startswith("plan.json: is damaged (")
    assert found[ids[4]]["state"] == "stopped"
    shown = mlpsubmit("ls").out
    assert re.search(f"{ids[0]}  format 3 .*  this mlpsubmit reads {run_directory.FORMAT}\n", shown)
    assert str(workplace) not in shown
    assert mlpsubmit("ls").code == 0


def test_what_has_ended_is_read_once(
    mlpsubmit: Command, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small(mlpsubmit)
    before = rows(mlpsubmit)
    read: list[str] = []
    real = overview.read_status

    def noted(run: Any, scheduler: Any) -> Any:
        read.append(run.id)
        return real(run, scheduler)

    monkeypatch.setattr(overview, "read_status", noted)
    assert rows(mlpsubmit) == before
    assert read == []
    # Whatever a launch, a task or a reader that finds damage writes changes a folder.
    path = workplace / "mlpruns" / "small" / run
    (path / "results" / "000-0000.1.tar").touch()
    assert rows(mlpsubmit)[0]["done"] == 8
    assert read == [run]
    (cache,) = (workplace / "cache" / "runs").iterdir()
    cache.write_text("{}")
    assert rows(mlpsubmit)[0]["run"] == run

    # Nor does it need a home.
    def refused() -> Path:
        raise PermissionError("others can write to it")

    monkeypatch.setattr(overview, "cache_folder", refused)
    assert rows(mlpsubmit)[0]["run"] == run


def test_a_running_run_is_read_every_time(
    mlpsubmit: Command, workplace: Path, records: Any
) -> None:
    run = records.create(workplace / "mlpruns" / "a" / "20260101-000000-000000")
    publish_json(run.path / "submissions" / "x", {})
    folder = run.submission(0)
    folder.mkdir()
    publish_json(folder / "intent.json", records.intent())
    from mlpsubmit.jobs.heartbeat import process_start

    own = {"host": os.uname().nodename, "pid": os.getpid(), "state": "training", "pack": "0000000"}
    beat = records.beat(**own, max_iter=10, attempt=0, supervised=False, step=1, cost_done=0.0)
    beat["process_start"] = process_start(os.getpid())
    publish_json(run.heartbeat("000-0000"), beat)
    assert rows(mlpsubmit)[0]["state"] == "running"
    content = workplace / "cache" / "runs"
    assert not content.exists() or read_json(next(content.iterdir()))["runs"] == {}


def test_why_a_job_has_ended_may_be_known_later(
    mlpsubmit: Command, workplace: Path, records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = records.create(workplace / "mlpruns" / "a" / "20260101-000000-000000")
    run.submission(0).mkdir()
    publish_json(run.submission(0) / "intent.json", records.intent(executor="slurm"))
    monkeypatch.setattr(Queue, "query", lambda *_: Queue())

    def remembered() -> list[str]:
        assert rows(mlpsubmit)[0]["state"] == "crashed"
        return [p for file in workplace.glob("cache/runs/*") for p in read_json(file)["runs"]]

    assert remembered() == []
    for folder in (run.path, *(run.path / name for name in ("submissions", "results"))):
        os.utime(folder, (0, 0))
    assert remembered() == []  # its heartbeats are new
    os.utime(run.path / "heartbeats", (0, 0))
    assert remembered() == [str(run.path.absolute())]


def test_few_file_operations_per_run_that_has_ended(
    mlpsubmit: Command, workplace: Path, records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        records.create(workplace / "mlpruns" / "a" / f"20260101-000000-0000{number:02d}")
    before = rows(mlpsubmit)
    done: list[str] = []
    events = ("open", "os.scandir", "os.listdir")

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in events and str(arguments[0]).startswith("mlpruns"):
            done.append(f"{event} {arguments[0]}")

    real = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        done.append(f"stat {path}")
        return real(path, **options)

    hooks.append(note)
    monkeypatch.setattr(Path, "stat", stat)
    try:
        assert rows(mlpsubmit) == before
    finally:
        hooks.clear()
    of_runs = [one for one in done if "20260101" in one]
    assert len(of_runs) == 4 * 20
    assert {one.partition(" ")[0] for one in of_runs} == {"stat"}
    assert len([one for one in done if one.startswith("os.scandir")]) == 2


#: Functions that an audit hook, which cannot be removed, calls with every event.
hooks: list[Callable[[str, tuple[Any, ...]], None]] = []
sys.addaudithook(lambda event, arguments: [hook(event, arguments) for hook in hooks] and None)


def test_a_cluster_that_does_not_answer_is_asked_once(
    mlpsubmit: Command, workplace: Path, records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        run = records.create(workplace / "mlpruns" / "a" / f"20260101-000000-0000{number:02d}")
        run.submission(0).mkdir()
        publish_json(run.submission(0) / "intent.json", records.intent(executor="slurm"))
    asked: list[Any] = []

    def silent(*arguments: Any) -> Queue:
        asked.append(arguments)
        return Queue("squeue did not answer within 30 s")

    monkeypatch.setattr(Queue, "query", silent)
    assert {row["state"] for row in rows(mlpsubmit)} == {"unknown"}
    assert len(asked) == 1


@pytest.mark.parametrize("width", [80, 100, 160])
def test_lines_fit_into_a_terminal(
    mlpsubmit: Command, workplace: Path, records: Any, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        run = records.create(workplace / "mlpruns" / "a" / f"20260101-000000-00000{number}")
        content = read_json(run.path / "sweep.json")
        overrides = {f"setting_{n}": "x" * 12 for n in range(8)}
        overrides["evil"] = "\x1b[31m[bold]"
        publish_json(run.path / "sweep.json", {**content, "overrides": overrides})
    for variable, value in {"COLUMNS": width, "FORCE_COLOR": 1, "TERM": "xterm"}.items():
        monkeypatch.setenv(variable, str(value))
    monkeypatch.delenv("NO_COLOR", raising=False)
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in mlpsubmit("ls").out.splitlines()]
    assert len(lines) == 4
    assert max(map(len, lines)) <= width
    assert all(re.search(r", \+\d$", line) for line in lines[1:])
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR")
    whole = mlpsubmit("ls").out
    assert "\x1b" not in whole
    assert "setting_7" in whole
    assert "evil=\\u001b[31m[bold]" in whole


@pytest.mark.slow
def test_ls_imports_nothing_heavy(mlpsubmit: Command, workplace: Path) -> None:
    small(mlpsubmit)
    script = (
        "import sys\nfrom mlpsubmit.cli.main import main\nsys.argv = ['mlpsubmit', 'ls']\n"
        "try:\n    main()\nfinally:\n"
        "    print(sorted({'torch', 'submitit', 'xarray', 'pandas'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "XDG_CACHE_HOME": "/dev/null"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.endswith("[]\n")
