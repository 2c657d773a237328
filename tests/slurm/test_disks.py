"""A disk that fills up, or turns read-only, under a run."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xarray


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def remount(disk: Path, options: str) -> bool:
    """Mount the disk otherwise; return whether that could be done."""
    command = ["mount", "-o", f"remount,{options}", disk]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def finished(run: Any) -> list[str]:
    """Return the packs that were trained to their end, each as often as it was."""
    return [member.name for member in run.directory.results.members()]


def test_a_full_disk(
    study: Any, disk: Path, wait_for: Any, results: Any, undisturbed: xarray.Dataset
) -> None:
    """What is finished is kept, what cannot be kept is said, and nothing is half-read."""
    study.pace("full", 0.005)
    run = study.launch("full", runs_dir=disk)
    (kept,) = wait_for(lambda: finished(run))
    wait_for(lambda: in_second_pack(run))
    fill(disk / "ballast")
    study.pace("full", None)
    status = run.wait()
    assert (status.state, status.done, status.missing) == ("crashed", 2, 2)
    assert "No space left on device" in status.tasks[0].why + study.log(run)
    assert finished(run) == [kept]
    assert sorted(run.collect().status.values.flat) == ["done"] * 2 + ["missing"] * 2
    shown = study.cli("status", run.path)
    assert (shown.returncode, shown.stderr) == (1, "")
    assert "2/4 configs" in shown.stdout
    fill(disk / "ballast")  # what the task has left
    refused = study.cli("resume", run.path)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: [Errno 28] No space left on device")

    (disk / "ballast").unlink()
    assert run.resume() == 1
    assert run.wait().complete
    assert len(finished(run)) == 2
    assert finished(run).count(kept) == 1, "what was finished is not trained again"
    xarray.testing.assert_identical(results(run), undisturbed)


def in_second_pack(run: Any) -> bool:
    beat = run.directory.last_heartbeat("000-0000") or {}
    return beat.get("packs_done") == 1 and beat.get("step", 0) > 0


def fill(file: Path) -> None:
    """Write until not a byte more goes onto the disk."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with contextlib.suppress(OSError):
        while True:
            os.write(descriptor, bytes(4096))
    os.close(descriptor)


def test_a_disk_that_turns_read_only(
    study: Any,
    disk: Path,
    training: Any,
    wait_for: Any,
    results: Any,
    undisturbed: xarray.Dataset,
) -> None:
    """Between two lives of a task, as files that are open for writing keep it from turning."""
    study.pace("readonly", 0.01)
    run = study.launch("readonly", runs_dir=disk)
    training(run)
    study.cluster.run("scontrol", "requeue", study.job(run))
    wait_for(lambda: "PENDING" in study.queued(run))
    wait_for(lambda: remount(disk, "ro"))
    study.pace("readonly", None)
    status = run.wait()
    assert (status.state, status.done, status.missing) == ("crashed", 0, 4)
    shown = study.cli("status", run.path)
    assert (shown.returncode, shown.stderr) == (1, "")
    resumed = study.cli("resume", run.path)
    assert resumed.returncode == 2
    assert f"error: run {run.id}: {run.path} is not writable; status and collect" in resumed.stderr
    assert run.directory.submissions() == [0]
    assert remount(disk, "rw")
    assert run.resume() == 2
    assert run.wait().complete
    xarray.testing.assert_identical(results(run), undisturbed)
