"""Temporary files of killed saves are removed by the next owner of what was to be saved."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlpsubmit import launch, open_run
from mlpsubmit.errors import BusyError
from mlpsubmit.files import locked, published, remove_folder, remove_leftovers, without_leftovers
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.runs.run import Run
from mlpsubmit.spec.load import load_spec

TAIL = ".0123456789ab"

KILLED = """
import os, sys
from pathlib import Path
from mlpsubmit.files import published
with published(Path(sys.argv[1])) as temporary:
    if sys.argv[2] == "folder":
        temporary.mkdir()
        (temporary / "part").write_text("half")
    else:
        temporary.write_text("half")
    os._exit(9)
"""


def hidden(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.rglob(".*") if entry.name != ".lock")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_leaves_is_recognized(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-c", KILLED, tmp_path / "out.nc", kind]
    assert subprocess.run(command, check=False).returncode == 9
    (tmp_path / ".out.nc.mine").touch()
    (tmp_path / f".other{TAIL}").touch()
    assert len(hidden(tmp_path)) == 3
    remove_leftovers(tmp_path, "out.nc".__eq__)
    assert hidden(tmp_path) == [f".other{TAIL}", ".out.nc.mine"]
    remove_leftovers(tmp_path)
    assert hidden(tmp_path) == [".out.nc.mine"]
    remove_leftovers(tmp_path / "none")


def test_a_folder_disappears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "plan.json").touch()
    with monkeypatch.context() as killed:
        killed.setattr("shutil.rmtree", lambda *_, **__: None)
        remove_folder(folder)
    assert not folder.exists()
    assert len(hidden(tmp_path)) == 1
    remove_leftovers(tmp_path, "run".__eq__)
    assert hidden(tmp_path) == []


def test_a_lock_that_its_owner_removed_meanwhile_is_taken_anew(tmp_path: Path) -> None:
    """Else two processes would hold the lock, each on a file of its own."""
    lock = tmp_path / "lock"
    owner = contextlib.ExitStack()
    owner.enter_context(locked(lock))
    removed: list[bool] = []

    def waiting() -> None:
        if not removed:
            lock.unlink()
            owner.close()
        removed.append(True)

    with locked(lock, waiting=waiting):
        assert removed == [True]
        with pytest.raises(BlockingIOError), locked(lock, wait=0):
            pass


def test_a_link_is_removed_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / f".out{TAIL}").symlink_to(tmp_path / "kept")
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["kept"]
    assert os.listdir(tmp_path / "kept") == ["file"]


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    yield
    os.close(descriptor)


def test_nothing_is_removed_while_another_process_writes(tmp_path: Path) -> None:
    path, leftover = tmp_path / "out", tmp_path / f".out{TAIL}"
    path.touch()
    leftover.touch()
    with locked_folder(tmp_path), without_leftovers(path):
        assert leftover.exists()
    with without_leftovers(path), published(path) as temporary:
        assert not leftover.exists()
        with without_leftovers(path):  # of another collect to the same path
            temporary.touch()
        assert temporary.exists()


def test_a_directory_moved_aside_stays_until_there_is_a_new_one(tmp_path: Path) -> None:
    path, aside = tmp_path / "out.zarr", tmp_path / f".out.zarr{TAIL}"
    aside.mkdir()
    with without_leftovers(path), published(path) as temporary:
        temporary.mkdir()
    assert aside.exists()
    with without_leftovers(path):
        assert not aside.exists()


def test_a_folder_that_cannot_be_listed_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refused)
    with without_leftovers(tmp_path / "out"):
        pass


@pytest.fixture
def run(workplace: Path) -> Run:
    """A run with leftovers of all kinds, and one pack that is missing."""
    run = launch(load_spec(workplace / "small.py").overridden({"MAX_ITER": 5}), executor="debug")
    (shard,) = run.directory.results.shards()
    shard.unlink()
    (data,) = [run.path / "data"]
    for file in (
        *("sweep.json", "launched.json", "plan.json", "checkpoints/0000000.pt"),
        *("checkpoints/0000099.pt", "checkpoints/0000000.ends.json", "heartbeats/000-0000.json"),
        *("heartbeats/001-0000.json", "results/001-0000.0.json", "submissions/000/jobs.json"),
        *("data/0123.pt", "data/0123.json", "heartbeats/clock"),
    ):
        path = run.path / file
        path.with_name(f".{path.name}{TAIL}").touch()
    (data / f".0124.pt{TAIL}").mkdir()
    return run


@pytest.mark.slow
def test_a_resume_removes_all_leftovers_of_its_run(run: Run) -> None:
    assert len(hidden(run.path)) == 14
    run.resume("debug")
    assert hidden(run.path) == []
    assert run.status().complete


@pytest.mark.slow
def test_a_task_removes_the_leftovers_of_its_earlier_attempts(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a requeue, which is no resume."""
    before = hidden(run.path)
    monkeypatch.setattr(RunDirectory, "remove_leftovers", lambda self: None)
    run.resume("debug")
    removed = set(before) - set(hidden(run.path))
    assert removed == {
        f".0000000.pt{TAIL}",
        f".0000000.ends.json{TAIL}",
        f".001-0000.json{TAIL}",
        f".001-0000.0.json{TAIL}",
    }


@pytest.mark.slow
def test_a_resume_that_is_refused_removes_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hidden(run.path)
    monkeypatch.setattr("mlpsubmit.runs.submit.LOCK_SECONDS", 0.0)
    with locked(run.path / "plan.json"), pytest.raises(BusyError, match="in progress"):
        run.resume("debug")
    assert hidden(run.path) == before


@pytest.mark.slow
def test_a_launch_removes_runs_that_were_never_published(run: Run, workplace: Path) -> None:
    begun = run.path.with_name(f".20260101-000000-abcdef{TAIL}")
    (begun / "data").mkdir(parents=True)
    launch(load_spec(workplace / "small.py").overridden({"MAX_ITER": 5}), executor="debug")
    assert not begun.exists()
    assert open_run().path == run.path


@pytest.mark.slow
def test_collect_removes_the_leftovers_of_an_earlier_one(
    run: Run, mlpsubmit: Callable[..., object], workplace: Path
) -> None:
    for name in ("out.csv", "out.png", "other.csv"):
        (workplace / f".{name}{TAIL}").touch()
    run.resume("debug")  # without a result there is no figure
    for _ in range(2):
        mlpsubmit("collect", "--out", "out.csv", "--plot", "out.png")
    left = [entry.name for entry in workplace.glob(".*")]
    assert left == [f".other.csv{TAIL}"]
