"""Which run a command takes: the one that was last launched or resumed, by its record."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlpsubmit import RunError, Sweep, UserError, launch, open_run
from mlpsubmit.files import publish_json
from mlpsubmit.runs import submit
from mlpsubmit.runs.locate import all_runs, find_run, next_launch, runs_of

Command = Callable[..., Any]


def batches(bsz: int, gen: Any) -> Any:
    import torch

    def batch_fn(step: int) -> Any:
        X = torch.randn(bsz, 2, generator=gen)
        return X, X[:, 0]

    return batch_fn


def sweep(name: str = "study", **settings: Any) -> Sweep:
    fixed = {"MAX_ITER": 3, "N_SAMPLES": 4, "WIDTH": 4, "LOSS_CHECKPOINTS": [], **settings}
    return Sweep(name, {"trial": [0, 1]}, batchfn=batches, **fixed)


def launched(name: str = "study", **settings: Any) -> str:
    return launch(sweep(name, **settings), executor="debug").id


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes what is looked at of a run."""

    def make(run: str, record: str | dict[str, Any] | None, name: str = "study") -> Path:
        path = tmp_path / name / run
        path.mkdir(parents=True)
        (path / "sweep.json").write_text("{}")
        if isinstance(record, dict):
            publish_json(path / "launched.json", record)
        elif record is not None:
            (path / "launched.json").write_text(record)
        return path

    return make


def test_the_latest_run_is_the_one_last_launched(mlpsubmit: Command, workplace: Path) -> None:
    first, second = launched(), launched(WIDTH=6)
    assert open_run("study").id == second
    assert launched() == first  # nothing was missing, so nothing was submitted
    assert (open_run("study").id, open_run().id) == (first, first)
    # What copies and version control do to times.
    for number, run in enumerate([first, second]):
        for file in (workplace / "mlpruns" / "study" / run).glob("**/*"):
            os.utime(file, (number, number))
    shutil.copytree(workplace / "mlpruns", workplace / "copy")
    assert open_run("study").id == open_run("study", "copy").id == first
    other = launched("other")
    assert (open_run().id, open_run("study").id) == (other, first)
    open_run(second).resume("debug")  # nothing is missing here either
    assert (open_run().id, open_run("study").id) == (second, second)
    shutil.rmtree(workplace / "mlpruns" / "study" / second)
    assert (open_run().id, open_run("study").id) == (other, first)


def test_a_fresh_run_of_the_same_sweep_is_the_one_that_goes_on(workplace: Path) -> None:
    first = launched()
    fresh = launch(sweep(), executor="debug", fresh=True).id
    assert fresh != first
    assert launched() == fresh


def test_launches_are_in_order_whatever_the_clock_does(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = time.time_ns() + 10**18
    for now in (ahead, ahead, 5, 0):  # within one tick of the clock, and after it was set back
        with monkeypatch.context() as patch:
            patch.setattr(time, "time_ns", lambda now=now: now)
            run = launched(LR=0.1 + now / 10**19 if now else 0.3)
            assert open_run().id == run


def test_damaged_or_missing_records_are_before_all_others(made: Callable[..., Path]) -> None:
    records = [None, "", "{", "[]", "null", '{"number": 3}', {"number": "x"}, {}]
    records.append({"number": math.inf})
    unreadable = [made(f"b{i}", record) for i, record in enumerate(records)]
    two = made("a", {"number": 2})
    one = made("c", {"number": 1})
    also_two = made("b", {"number": 2}, "other")
    folder = two.parent.parent
    assert runs_of(two.parent) == [*unreadable, one, two]
    assert all_runs(folder) == [*unreadable, one, two, also_two]
    assert find_run("study", folder).path == two
    assert find_run(None, folder).path == also_two


def test_the_next_launch_is_after_all_others_in_the_folder(made: Callable[..., Path]) -> None:
    future = made("a", {"number": 10**20}, "other")
    assert next_launch(future.parent.parent / "study" / "new") == 10**20 + 1
    shutil.rmtree(future)
    assert 0 < next_launch(made("b", None)) <= time.time_ns()


def test_a_refused_launch_and_an_automatic_resume_are_no_launches(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlpsubmit.errors import BusyError

    first = launched(MAX_ITER=4)
    second = launched(MAX_ITER=5)
    run = open_run(first)
    run.resume("debug", after=0)  # as the job of --retries does
    assert open_run().id == second

    shutil.rmtree(run.path / "results")  # so that there is something to submit
    (run.path / "results").mkdir()

    def refused(*_: Any, **__: Any) -> None:
        assert open_run().id == first  # while it is submitted, and the debug executor trains
        raise BusyError("no")

    with monkeypatch.context() as patch:
        patch.setattr(submit, "submit", refused)
        with pytest.raises(BusyError):
            open_run(first).resume("debug")
    assert open_run().id == second


def test_a_run_that_cannot_be_written_is_read_only(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(launched())
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != run.path and real(path, mode))
    with pytest.raises(RunError, match=r"is not writable; status and collect read it, but launch"):
        run.resume("debug")
    assert run.status().complete
    assert run.collect("mine.nc").status.values.tolist() == ["done"] * 2


@pytest.mark.slow
def test_commands_print_which_run_they_take(mlpsubmit: Command, workplace: Path) -> None:
    first = launched()
    assert f"run {first} is the only one of study\n" in mlpsubmit("collect", "study").out
    assert mlpsubmit("status", "study").err == ""
    second = launched(WIDTH=6)
    text = f"run {second} is the last launched or resumed of 2 runs of study (others: {first})\n"
    assert mlpsubmit("collect", "study", "--out", "second.csv").out.startswith(text)
    for command in ("status", "resume", "cancel", "logs"):
        assert mlpsubmit(command, "study").err.startswith(text), command
    assert json.loads(mlpsubmit("status", "study", "--json").out)["run"] == second
    assert str(open_run("study").selected) == text.strip()
    assert text.replace(" of study", "") in mlpsubmit("status").err
    for selector in (first, first[-6:], workplace / "mlpruns" / "study" / first):
        assert str(open_run(selector).selected) == ""
        assert mlpsubmit("status", selector).err == ""
    for width in range(7, 10):
        launched(WIDTH=width)
    assert str(open_run("study").selected).endswith(", ...)")


@pytest.mark.slow
def test_collect_replaces_the_files_of_its_own_run_only(
    mlpsubmit: Command, workplace: Path
) -> None:
    first, second = launched(), launched(WIDTH=6)
    assert mlpsubmit("collect", first, "--plot", "study.png").code == 0
    assert mlpsubmit("collect", first, "--plot", "study.png").code == 0
    refused = mlpsubmit("collect", "study")
    assert refused.code == 2
    assert (
        f"cannot write study.nc: it exists and has results of run {first}, not of run {second}; "
        "choose another name, or replace it with --force (in Python, force=True)"
    ) in refused.err
    assert mlpsubmit("collect", "study", "--out", "b.nc", "--plot", "study.png").code == 2
    assert not Path("b.nc").exists()
    with pytest.raises(UserError, match="of run"):
        open_run(second).collect("study.nc")
    assert open_run(first).collect("study.nc").attrs["run"] == first
    assert open_run(second).collect("study.nc", force=True).attrs["run"] == second
    assert mlpsubmit("collect", first, "--plot", "study.png", "--force").code == 0
    assert open_run(first).collect("study.nc").attrs["run"] == first


@pytest.fixture(autouse=True)
def _quiet(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    capfd.readouterr()
