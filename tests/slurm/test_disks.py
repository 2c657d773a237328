"""A disk that fills up, or turns read-only, under a run."""

from __future__ import annotations

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


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def test_a_full_disk(
    study: Any, disk: Path, training: Any, results: Any, undisturbed: xarray.Dataset
) -> None:
    """What is finished is kept, what cannot be kept is said, and nothing is half-read."""
    study.pace("full", 0.01)
    run = study.launch("full", runs_dir=disk)
    training(run)
    with (disk / "ballast").open("wb") as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
            file.flush()
    study.pace("full", None)
    status = run.wait()
    assert status.state == "crashed"
    assert not status.complete
    assert run.collect().status.isin(["done", "missing"]).all()
    (disk / "ballast").unlink()
    assert run.resume() > 0
    assert run.wait().complete
    xarray.testing.assert_identical(results(run), undisturbed)


def test_a_disk_that_turns_read_only(
    study: Any, disk: Path, training: Any, results: Any, undisturbed: xarray.Dataset
) -> None:
    remount(disk, "size=4m")
    study.pace("readonly", 0.01)
    run = study.launch("readonly", runs_dir=disk)
    training(run)
    subprocess.run(["mount", "-o", "remount,ro", "--force", disk], check=False)
    remount_failed = not _is_read_only(disk)
    assert not remount_failed
    study.pace("readonly", None)
    status = run.wait()
    assert status.state == "crashed"
    shown = study.cli("status", run.path)
    assert shown.returncode == 1
    assert "Traceback" not in shown.stderr
    remount(disk, "rw")
    assert run.resume() > 0
    assert run.wait().complete
    xarray.testing.assert_identical(results(run), undisturbed)


def _is_read_only(disk: Path) -> bool:
    try:
        (disk / "probe").write_text("")
    except OSError:
        return True
    return False
