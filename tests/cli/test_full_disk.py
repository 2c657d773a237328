"""A full disk is named, with the file and what it needs; what is refused leaves nothing."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import files, open_run
from mlpsubmit.jobs.store.shards import Shard

Command = Callable[..., Any]

FULL = OSError(errno.ENOSPC, "No space left on device")
NEEDS = r"No space left on device: the file needs [\d,]+ bytes or more, and [\d,]+ are free; free"


def fill_disk(monkeypatch: pytest.MonkeyPatch, when: Callable[[str], bool]) -> None:
    """Make the flush of files fail whose name meets a condition, as on a full disk."""
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if when(os.readlink(f"/proc/self/fd/{descriptor}")):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("error", [FULL, OSError(errno.EDQUOT, "Disk quota exceeded")])
def test_a_full_disk_is_named_with_what_is_needed(tmp_path: Path, error: OSError) -> None:
    def write(file: Any) -> None:
        file.write(bytes(5000))
        file.flush()
        raise error

    with pytest.raises(OSError, match="the file needs 5,000 bytes or more, and") as raised:
        files.publish(tmp_path / "x.pt", write)
    assert raised.value.errno == error.errno
    assert raised.value.filename == str(tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_does_not_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch and HDF5 raise errors without a number."""

    def write(file: Any) -> None:
        raise RuntimeError("unexpected pos 64 vs 0")

    with pytest.raises(RuntimeError, match="unexpected pos"):
        files.publish(tmp_path / "x.pt", write)
    monkeypatch.setattr(files, "_free", lambda folder: 0)
    with pytest.raises(OSError, match="No space left on device: the file needs 0 bytes"):
        files.publish(tmp_path / "x.pt", write)


def test_a_shard_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Shard(tmp_path / "a.0.tar") as shard:
        with monkeypatch.context() as patched:
            fill_disk(patched, lambda name: name.endswith(".tar"))
            with pytest.raises(OSError, match=NEEDS) as raised:
                shard.append("0.npz", b"content")
        assert raised.value.filename == str(shard.path)


@pytest.mark.slow
def test_launch_train_and_collect_on_a_full_disk(
    mlpsubmit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        fill_disk(patched, lambda name: "plan.json" in name)
        refused = mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=2")
    assert refused.code == 2
    assert "the file needs" in refused.err
    assert "choose another folder for runs with --runs-dir" in refused.err
    assert not Path("mlpruns").exists(), "a refusal leaves nothing behind"

    with monkeypatch.context() as patched:
        fill_disk(patched, lambda name: name.endswith(".tar"))
        ended = mlpsubmit("launch", "small.py", "--executor", "debug", "MAX_ITER=2")
    assert ended.code == 1
    assert "No space left on device: the file needs" in ended.err
    (task,) = open_run("small").status().tasks
    assert task.state == "crashed"
    assert "000-0000.0.tar" in task.why
    assert mlpsubmit("resume").code == 0

    with monkeypatch.context() as patched:
        fill_disk(patched, lambda name: ".small.nc." in name)
        refused = mlpsubmit("collect")
    assert refused.code == 1
    assert "small.nc" in refused.err
    assert "the file needs" in refused.err
    assert not Path("small.nc").exists()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EPERM])
def test_folders_that_cannot_be_flushed_are_tolerated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    files.publish(tmp_path / "a", b"content")
    with files.published(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir(parents=True)
    Shard(tmp_path / "a.0.tar").close()
    assert (tmp_path / "folder" / "inner").is_dir()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_whose_entries_are_lost_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=os.strerror(number)):
        files.sync_folder(tmp_path)


# ---- paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [".", "..", "/", "there", "there/"])
def test_init_of_a_folder_is_refused(mlpsubmit: Command, path: str) -> None:
    Path("there").mkdir()
    refused = mlpsubmit("init", path)
    assert refused.code == 2
    name = path.rstrip("/") or "/"
    assert refused.err == f"error: {name}: is a folder; try {Path(path) / 'spec.py'}\n"


def test_init_on_a_full_disk_leaves_nothing(
    mlpsubmit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "x" * (1 << 20)
    monkeypatch.setattr(sys.modules["mlpsubmit.cli.init"], "starter_spec", lambda: text)
    write = open

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, _: str) -> None:
            raise FULL

    monkeypatch.setattr(Path, "open", lambda self, mode: Full(write(self, mode)))
    refused = mlpsubmit("init", "new.py")
    assert refused.code == 2
    assert refused.err == "error: new.py: cannot be written (No space left on device)\n"
    assert not Path("new.py").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("launch", "LONG.py"),
        ("launch", "small.py", "--runs-dir", "LONG"),
        ("status", "LONG"),
        ("collect", "--runs-dir", "LONG"),
        ("init", "LONG.py"),
    ],
)
def test_paths_that_are_too_long_are_refused(
    mlpsubmit: Command, arguments: tuple[str, ...]
) -> None:
    refused = mlpsubmit(*(word.replace("LONG", "n" * 5000) for word in arguments))
    assert refused.code == 2
    assert refused.err.startswith("error: ")
    assert refused.err.count("\n") == 1
    assert "Traceback" not in refused.err
