"""The results of data functions: computed once, hashed, and in memory while packs need them."""

from __future__ import annotations

import json
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlpsubmit import RunError, SpecError, Sweep, files
from mlpsubmit.jobs import shared_data
from mlpsubmit.jobs.shared_data import SharedData, content_hash, data_keys
from mlpsubmit.jobs.signals import StopFlag
from mlpsubmit.jobs.store.run_directory import FOLDERS, RunDirectory
from mlpsubmit.training.monitor import Interrupted

CPU = torch.device("cpu")


def batches(bsz: int, A: Any) -> Any:
    return lambda step: (A[:bsz], A[:bsz, 0])


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    for name in FOLDERS:
        (tmp_path / "run" / name).mkdir(parents=True)
    return RunDirectory(tmp_path / "run")


def sweep(axes: dict[Any, Any], data: Callable[..., Any]) -> Sweep:
    return Sweep("shares", axes, batchfn=batches, data=data, N_SAMPLES=2)


def scaled(scale: float = 1.0, n: int = 3) -> dict[str, Any]:
    return {"A": scale * np.ones((n, 2)), "scale": scale}


def held(data: SharedData) -> int:
    return len(data._loaded)


def test_data_is_dropped_after_the_last_pack_that_needs_it(run: RunDirectory) -> None:
    """Twelve data sets of an axis, a pack for each, and one more pack that needs the first two."""
    made = sweep({"scale": [float(i) for i in range(12)], "trial": range(2)}, scaled)
    packs = [np.array([0, 1]), *(np.array([2 * i, 2 * i + 1]) for i in range(1, 12))]
    packs += [np.array([0, 2])]
    data = SharedData(run, made, CPU, packs)
    counts = []
    for indices in packs:
        entries = [data.entries(made.config(int(index))) for index in indices]
        assert [entry["scale"] for entry in entries] == [index // 2 for index in indices]
        data.end_pack()
        counts.append(held(data))
    assert counts == [1, *[2] * 11, 0]  # the first two are kept for the last pack


def test_one_data_set_under_two_points_of_an_axis_is_kept_for_both(run: RunDirectory) -> None:
    made = sweep({("scale", "LR"): [(1.0, 0.1), (1.0, 0.2), (2.0, 0.1)]}, scaled)
    data = SharedData(run, made, CPU, [np.array([index]) for index in range(3)])
    for index in range(3):
        data.entries(made.config(index))
        data.end_pack()
    assert held(data) == 0
    assert len(data_keys(made, np.arange(3))) == 2


def test_arrays_of_any_byte_order_and_stride_become_tensors(run: RunDirectory) -> None:
    def arrays() -> dict[str, Any]:
        big = np.arange(6, dtype=">f4").reshape(3, 2)
        return {"A": big, "backwards": np.arange(3)[::-1], "transposed": big.T}

    entries = SharedData(run, sweep({}, arrays), CPU).entries(sweep({}, arrays).config(0))
    for name, array in arrays().items():
        assert entries[name].tolist() == array.tolist()


def test_an_error_in_loading_is_not_kept_but_one_of_the_function_is(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def fails(scale: float) -> Any:
        calls.append("called")
        error = OSError("the disk is away") if scale == 1.0 else ValueError("wrong")
        raise error

    made = sweep({"scale": [1.0, 2.0]}, fails)
    data = SharedData(run, made, CPU)
    for index, error in ((0, OSError), (0, OSError), (1, ValueError), (1, ValueError)):
        with pytest.raises(error):
            data.entries(made.config(index))
    assert len(calls) == 3

    good = sweep({"scale": [1.0]}, scaled)
    data = SharedData(run, good, CPU)
    with monkeypatch.context() as patch:
        patch.setattr(shared_data.torch, "load", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            data.entries(good.config(0))
    assert data.entries(good.config(0))["scale"] == 1.0


def test_an_error_that_is_kept_holds_no_data_after_its_pack(run: RunDirectory) -> None:
    loaded: list[weakref.ref[Any]] = []

    def fails() -> Any:
        A = np.ones(3)
        loaded.append(weakref.ref(A))
        try:
            return {"A": A.reshape(2)}
        except ValueError as error:
            raise RuntimeError("wrong") from error

    made = sweep({}, fails)
    data = SharedData(run, made, CPU)
    with pytest.raises(RuntimeError, match="wrong"):
        data.entries(made.config(0))
    assert loaded[0]() is not None
    data.end_pack()
    assert loaded[0]() is None
    with pytest.raises(RuntimeError, match="wrong"):
        data.entries(made.config(0))
    assert len(loaded) == 1


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(6).reshape(2, 3),
        torch.arange(6).reshape(3, 2).T,
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(2, dtype=torch.complex64),
        torch.tensor(3.0),
        torch.zeros(0, 4),
        torch.eye(3).to_sparse(),
        {"nested": [1, 2.0, "text"]},
        None,
    ],
)
def test_the_hash_of_data_is_that_of_its_content(value: Any) -> None:
    first = content_hash({"a": value, "b": 1})
    copy = value.clone() if isinstance(value, torch.Tensor) else value
    assert content_hash({"b": 1, "a": copy}) == first
    others = [{"b": value, "a": 1}, {"a": value}, {"a": value, "b": 2}]
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        assert content_hash({"a": value.contiguous(), "b": 1}) == first
        others += [{"a": value[None], "b": 1}, {"a": value.to(torch.complex128), "b": 1}]
    assert first not in {content_hash(other) for other in others}
    assert len({content_hash(other) for other in others}) == len(others)


def record(run: RunDirectory) -> dict[str, Any]:
    (file,) = (run.path / "data").glob("*.json")
    content: dict[str, Any] = json.loads(file.read_bytes())
    return content


def test_the_hash_and_the_inputs_are_on_disk(run: RunDirectory, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    made = sweep({}, lambda n=2: {"A": np.load(tmp_path / "x.npy")[:n], "n": n})
    entries = SharedData(run, made, CPU).entries(made.config(0))
    content = record(run)
    assert content["hash"] == content_hash({"A": torch.ones(2, 2, dtype=torch.float64), "n": 2})
    assert content["hash"] == content_hash(entries)
    assert [file["path"] for file in content["files"]] == [str(tmp_path / "x.npy")]
    assert content["environment"]["torch"] == torch.__version__
    assert content["environment"]["threads"] == torch.get_num_threads()


def test_lost_or_damaged_data_is_computed_again_and_must_be_the_same(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    factor = [1.0]
    made = sweep({}, lambda: {"A": factor[0] * np.ones((3, 2))})
    config = made.config(0)
    before = SharedData(run, made, CPU).entries(config)["A"].clone()
    (file,) = (run.path / "data").glob("*.pt")
    content = record(run)
    damaged = bytearray(file.read_bytes())
    place = damaged.index(np.ones(6).tobytes())
    damaged[place + 3] ^= 1
    for lose in (lambda: file.write_bytes(damaged), file.unlink):
        lose()
        again = SharedData(run, made, CPU).entries(config)["A"]
        assert torch.equal(again, before)
        assert record(run) == content
    assert "is damaged; its data is computed again" in capsys.readouterr().out

    file.unlink()
    factor[0] = 2.0
    with pytest.raises(RunError, match=r"the data function returns other data \(hash \w{32}\)"):
        SharedData(run, made, CPU).entries(config)
    assert not file.exists()


def test_a_task_that_is_to_stop_does_not_wait_for_the_data_of_another(
    run: RunDirectory, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, stop = sweep({}, lambda: {"A": np.ones((3, 1))}), StopFlag()
    pauses: list[float] = []
    data = SharedData(run, made, CPU, stop=stop)
    assert data.entries(made.config(0))["A"].sum() == 3
    (lock,) = (run.path / "data").glob("*.lock")

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 20:
            stop.set()

    monkeypatch.setattr(time, "sleep", sleep)
    with files.locked(lock), pytest.raises(Interrupted):
        SharedData(run, made, CPU, stop=stop).entries(made.config(0))
    assert (pauses[0], pauses[-1]) == (0.1, 2.0)
    shown = capfd.readouterr().out
    assert shown.count("another task is computing it; waiting for that") == 1


def test_data_of_one_run_is_read_from_one_content_of_a_file(
    run: RunDirectory, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.ones((3, 2)))

    def data(scale: float) -> dict[str, Any]:
        return {"A": scale * np.load(tmp_path / "x.npy")}

    made = sweep({"scale": [1.0, 2.0, 3.0]}, data)
    one, two = SharedData(run, made, CPU), SharedData(run, made, CPU)
    one.entries(made.config(0))
    two.entries(made.config(1))
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    with pytest.raises(RunError, match=r"x.npy has changed since other data of run run was read"):
        one.entries(made.config(2))
    assert len(list((run.path / "data").glob("*.pt"))) == 2
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    assert one.entries(made.config(2))["A"].sum() == 18


def test_data_of_a_run_that_cannot_be_written_is_read_without_a_lock(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another user, or on a read-only disk: its networks may still be measured."""
    made = sweep({"scale": [2.0, 3.0]}, scaled)
    expected = SharedData(run, made, CPU).entries(made.config(0))
    (file,) = (run.path / "data").glob("*.pt")

    def read_only(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(files, "locked", read_only)
    data = SharedData(run, made, CPU)
    assert data.entries(made.config(0))["A"].equal(expected["A"])
    text = r"\.pt: is missing, and run .* is not writable, so that its data cannot be computed"
    with pytest.raises(RunError, match=text):
        data.entries(made.config(1))
    file.chmod(0o666)
    with pytest.raises(RunError, match=r"can be written by anyone, and run .* is not writable"):
        SharedData(run, made, CPU).entries(made.config(0))
    trusting = SharedData(run, made, CPU, trust=True)
    assert trusting.entries(made.config(0))["A"].equal(expected["A"])
    file.chmod(0o644)
    content = file.read_bytes()
    file.write_bytes(content[:-40] + bytes(40))
    with pytest.raises(RunError, match=r"is damaged, and run .* is not writable"):
        SharedData(run, made, CPU).entries(made.config(0))


def test_masked_entries_are_refused(run: RunDirectory) -> None:
    def gappy() -> dict[str, Any]:
        return {"A": np.ma.masked_less(np.array([[1.0, -1.0]]), 0), "b": np.ma.array([1.0])}

    made = sweep({"trial": [0]}, gappy)
    with pytest.raises(SpecError, match="gappy returned masked entries in A; valid are arrays of"):
        SharedData(run, made, CPU, [np.array([0])]).entries(made.config(0))
