"""Which files a function reads, and whether they have changed since."""

from __future__ import annotations

import gzip
import importlib
import json
import mmap
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlpsubmit.batchfns.image_files import cifar_records
from mlpsubmit.jobs import input_files
from mlpsubmit.jobs.input_files import changes, record
from mlpsubmit.native.library import library


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one file of each kind."""
    monkeypatch.chdir(tmp_path)
    array = np.arange(6.0)
    np.save("a.npy", array)
    np.savez("a.npz", a=array)
    array.tofile("a.bin")
    torch.save(torch.ones(3), "a.pt")
    Path("a.csv").write_text("x,y\n1,2\n")
    with gzip.open("a.gz", "wb") as file:
        file.write(b"text")
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("inside", "text")
    with sqlite3.connect("a.db") as database:
        database.execute("create table t (x)")
    database.close()
    np.zeros(4 * 3073, np.uint8).tofile("cifar.bin")
    (tmp_path / "run").mkdir()
    return tmp_path


def _mapped() -> None:
    with open("a.bin", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        view.read()


def _descriptor() -> None:
    descriptor = os.open("a.bin", os.O_RDONLY)
    os.read(descriptor, 1)
    os.close(descriptor)


def _threaded() -> None:
    thread = threading.Thread(target=lambda: Path("a.csv").read_text())
    thread.start()
    thread.join()


def _frame() -> None:
    import pandas

    pandas.read_csv("a.csv")


def _compressed() -> None:
    with gzip.open("a.gz") as file:
        file.read()


def _database() -> None:
    sqlite3.connect("a.db").close()


READERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "open": ("a.csv", lambda: open("a.csv").close()),
    "bytes": ("a.csv", lambda: open(b"a.csv").close()),
    "update": ("a.csv", lambda: open("a.csv", "r+").close()),
    "pathlib": ("a.csv", lambda: Path("a.csv").read_bytes()),
    "pandas": ("a.csv", _frame),
    "np.load": ("a.npy", lambda: np.load("a.npy")),
    "np.load npz": ("a.npz", lambda: np.load("a.npz").close()),
    "np.memmap": ("a.npy", lambda: np.load("a.npy", mmap_mode="r")),
    "np.fromfile": ("a.bin", lambda: np.fromfile("a.bin")),
    "np.loadtxt": ("a.csv", lambda: np.loadtxt("a.csv", str)),
    "torch.load": ("a.pt", lambda: torch.load("a.pt")),
    "torch mapped": ("a.pt", lambda: torch.load("a.pt", mmap=True)),
    "gzip": ("a.gz", _compressed),
    "zipfile": ("a.zip", lambda: zipfile.ZipFile("a.zip").close()),
    "sqlite3": ("a.db", _database),
    "mmap": ("a.bin", _mapped),
    "os.open": ("a.bin", _descriptor),
    "a thread": ("a.csv", _threaded),
    "by name": ("a.bin", lambda: sys.audit("mlpsubmit.input", Path("a.bin"))),
    "a recipe": ("cifar.bin", lambda: cifar_records(Path("cifar.bin"), range(10))),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("reader", READERS)
def test_a_file_is_recorded_however_it_is_read(reader: str, folder: Path) -> None:
    name, read = READERS[reader]
    read()  # what a library loads at its first use is no input
    _, found = record(read, folder / "run")
    assert found.paths() == [str(folder / name)]
    (entry,) = found.to_json()["files"]
    status = os.stat(name)
    assert (entry["size"], entry["mtime"]) == (status.st_size, status.st_mtime_ns)


def test_code_and_what_is_written_are_no_inputs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "table.csv").write_text("1")
    (folder / "a_helper_of_mine.py").write_text(
        "import pathlib\nTABLE = pathlib.Path('table.csv').read_text()"
    )
    monkeypatch.syspath_prepend(str(folder))

    def function() -> int:
        importlib.import_module("a_helper_of_mine")  # reads an input when it is imported
        importlib.import_module("wave")
        Path("log.txt").write_text("begun")
        Path("log.txt").read_text()
        with open("a.csv", "a") as file:
            file.write("3,4\n")
        with tempfile.NamedTemporaryFile("w+") as file:
            file.write("x")
            Path(file.name).read_text()
        (folder / "run" / "state").touch()
        (folder / "run" / "state").read_text()
        Path("/proc/self/status").read_text()
        (Path(torch.__file__).parent / "version.py").read_text()
        (Path(np.__file__).parent / "py.typed").read_text()
        return 3

    result, found = record(function, folder / "run")
    assert result == 3
    assert found.paths() == [str(folder / "table.csv")]


@pytest.mark.slow
def test_compiling_the_functions_in_c_reads_no_inputs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    compiled, recording = record(lambda: library.__wrapped__(torch.float32), folder / "run")
    assert compiled is not None
    assert list((folder / "mlpsubmit").iterdir())
    assert recording.paths() == []
    # Libraries that another test has imported are among them.
    assert not [source for source in recording.unseen if source.startswith("process")]


def test_what_reads_without_a_report_is_known_by_name(folder: Path) -> None:
    def function() -> None:
        import h5py

        subprocess.run(["cat", "a.csv"], check=True, capture_output=True)
        with h5py.File("a.h5", "w"):
            pass
        with socket.socket() as there, pytest.raises(OSError, match="refused"):
            there.connect(("127.0.0.1", 9))

    _, found = record(function, folder / "run")
    assert {"process cat", "h5py", "127.0.0.1:9"} <= set(found.to_json()["unseen"])
    assert found.paths() == []


def test_nothing_is_recorded_outside_and_an_error_passes(folder: Path) -> None:
    def fails() -> None:
        Path("a.csv").read_text()
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        record(fails, folder / "run")
    _, found = record(lambda: None, folder / "run")
    Path("a.csv").read_text()
    assert found.paths() == []


def recorded(folder: Path, function: Callable[[], Any]) -> dict[str, Any]:
    _, found = record(function, folder / "run")
    content: dict[str, Any] = json.loads(json.dumps(found.to_json()))
    return content


def test_a_touched_file_has_not_changed_and_any_other_content_has(folder: Path) -> None:
    before = recorded(folder, lambda: Path("a.csv").read_text())
    assert changes(before) == ([], [])
    os.utime("a.csv", ns=(1, 1))
    assert changes(before) == ([], [])
    content, status = Path("a.csv").read_text(), os.stat("a.csv")
    Path("a.csv").write_text(content.replace("1", "7"))
    os.utime("a.csv", ns=(status.st_atime_ns, status.st_mtime_ns))  # as a tool that copies times
    path = folder / "a.csv"
    assert changes(before) == ([f"{path} has changed (another content of the same size)"], [])
    Path("a.csv").write_text(content + "5,6\n")
    assert changes(before) == ([f"{path} has changed (8 bytes then, 12 now)"], [])
    path.unlink()
    assert changes(before) == ([], [str(path)])
    path.mkdir()
    assert changes(before) == ([f"{path} has become something else than a file"], [])
    path.rmdir()
    (folder / "elsewhere").write_text(content)
    path.symlink_to("elsewhere")
    assert changes(before) == ([], [])


def test_files_that_are_new_in_a_listed_folder_are_a_change(folder: Path) -> None:
    parts = folder / "parts"
    parts.mkdir()
    for number in range(2):
        (parts / f"{number}.txt").write_text(str(number))
    before = recorded(folder, lambda: [p.read_text() for p in sorted(parts.glob("*.txt"))])
    (parts / "notes.md").write_text("not of the kind that was read")
    assert changes(before) == ([], [])
    (parts / "2.txt").write_text("2")
    assert changes(before) == ([f"{parts}, which it listed, has new files (2.txt)"], [])


def test_large_files_and_those_edited_meanwhile_are_compared_by_size_and_times(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_files, "LARGEST_HASHED", 7)
    before = recorded(folder, lambda: Path("a.csv").read_text())
    assert before["files"][0]["hash"] is None
    assert changes(before) == ([], [])
    os.utime("a.csv", ns=(1, 1))
    (message,), _ = changes(before)
    assert message.endswith("a.csv has been modified (its content at that time was not hashed)")

    def reads_slowly() -> None:
        Path("a.bin").read_bytes()
        Path("a.bin").with_suffix(".tmp").write_bytes(b"edited meanwhile")
        os.replace("a.tmp", "a.bin")

    monkeypatch.undo()
    monkeypatch.chdir(folder)
    before = recorded(folder, reads_slowly)
    (message,), _ = changes(before)
    assert message.endswith("a.bin has changed (48 bytes then, 16 now)")
