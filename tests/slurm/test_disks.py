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


def test_a_full_disk(
    study: Any, disk: Path, training: Any, results: Any, undisturbed: xarray.Dataset
) -> None:
    """What is finished is kept, what cannot be kept is said, and nothing is half-read."""
    study.pace("full", 0.01)
    run = study.launch("full", runs_dir=disk)
    training(run)
    fill(disk / "ballast")
    study.pace("full", None)
    status = run.wait()
    assert status.state == "crashed"
    assert not status.complete
    assert run.collect().status.isin(["done", "missing"]).all()
    (disk / "ballast").unlink()
    assert run.resume() > 0
    assert run.wait().complete
    xarray.testing.assert_identical(results(run), undisturbed)


def fill(file: Path) -> None:
    """Write until not a byte more goes onto the disk."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
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
    assert status.state in ("crashed", "stopped")
    assert status.done < status.configs
    shown = study.cli("status", run.path)
    assert shown.returncode == 1
    resumed = study.cli("resume", run.path)
    assert resumed.returncode in (1, 2)
    assert "Read-only file system" in resumed.stderr
    for told in (shown, resumed):
        assert "Traceback" not in told.stderr
    assert remount(disk, "rw")
    assert run.resume() > 0
    assert run.wait().complete
    xarray.testing.assert_identical(results(run), undisturbed)
