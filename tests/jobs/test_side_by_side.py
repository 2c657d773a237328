"""Packs that train side by side have the results of each alone.

A GPU has a task train several packs at a time. Their turns do not depend on the device, so that
they can be taken on a CPU.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from torch import Tensor, nn

from mlpsubmit import Sweep, launch, open_run
from mlpsubmit.jobs.executors import debug
from mlpsubmit.jobs.plan import PackRange, make_plan
from mlpsubmit.jobs.room import MOST_SIDE_BY_SIDE, Room
from mlpsubmit.jobs.task import run_task
from mlpsubmit.jobs.task_monitor import TaskMonitor
from mlpsubmit.jobs.turns import Turns
from mlpsubmit.training.monitor import Progress

CPU = torch.device("cpu")
BESIDE = 3

#: What a batch function is to do at some step, by the WIDTH and the step.
happens: dict[tuple[int, int], Callable[[], None]] = {}


@pytest.fixture(autouse=True)
def _nothing_left_over() -> None:
    happens.clear()


def drawn(bsz: int, gen: torch.Generator, WIDTH: int) -> Any:
    def batch_fn(step: int) -> tuple[Tensor, Tensor]:
        happens.pop((WIDTH, step), lambda: None)()
        X = torch.randn(bsz, 3, generator=gen)
        return X, X[:, 0] * X[:, 1]

    return batch_fn


def mean(model: nn.Module, X_tr: Tensor) -> Tensor:
    return model(X_tr).mean()


def swept(**settings: Any) -> Sweep:
    fixed = {"axes": {"WIDTH": [4, 5, 6, 7], "trial": range(2)}, "batchfn": drawn, "N_SAMPLES": 6}
    fixed |= {"N_TEST": 6, "MAX_ITER": 200, "EVAL_EVERY": 10, "ONLYTHRESHOLDS": False}
    fixed |= {"grabs": {"mean": mean}, "GRAB_EVERY": 50, "LOSS_CHECKPOINTS": []}
    return Sweep("beside", **{**fixed, **settings})


def results(run: Any) -> xarray.Dataset:
    dataset = run.collect().drop_vars("seconds")
    dataset.attrs = {}
    return dataset


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> xarray.Dataset:
    """The results of packs that trained one after the other."""
    folder = tmp_path_factory.mktemp("alone")
    return results(launch(swept(), executor="debug", runs_dir=folder))


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Any]:
    def trained(name: str, **settings: Any) -> Any:
        sweep = swept(**settings)
        return launch(sweep, executor="debug", keep_going=True, runs_dir=tmp_path / name)

    return trained


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make tasks train three packs side by side; return the packs at each of their read-backs."""
    seen: list[int] = []
    progress = TaskMonitor.progress

    def noted(self: TaskMonitor, made: Progress) -> None:
        assert self.shares_device
        seen.append(int(self.checkpoint.file.stem))
        progress(self, made)

    def fits(self: Room, pack: PackRange, others: list[PackRange]) -> bool:
        return len(others) < BESIDE

    monkeypatch.setattr(TaskMonitor, "progress", noted)
    monkeypatch.setattr(Room, "fits_beside", fits)
    return seen


def test_they_have_the_results_of_each_alone(
    train: Callable[..., Any], alone: xarray.Dataset, side_by_side: list[int]
) -> None:
    run = train("beside")
    assert side_by_side[:9] == [3, 2, 1] * 3  # the most expensive packs come first
    xarray.testing.assert_identical(results(run), alone)
    (task,) = run.status().tasks
    assert (task.heartbeat["packs_done"], task.heartbeat["pack"]) == (4, "0000000")
    assert task.heartbeat["model_steps"] == 4 * 2 * 200


def test_packs_of_different_precision_do_not_disturb_each_other(
    train: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    axes = {"PRECISION": ["fp64", "fp32"], "DETERMINISTIC": [True, False], "trial": [0]}
    alone = train("alone", axes=axes, WIDTH=5)
    request.getfixturevalue("side_by_side")
    beside = train("beside", axes=axes, WIDTH=5)
    xarray.testing.assert_identical(results(beside), results(alone))
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()


def test_all_are_saved_when_the_task_stops(
    train: Callable[..., Any],
    alone: xarray.Dataset,
    side_by_side: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    happens[5, 70] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train("beside")
    run = open_run("beside", tmp_path / "beside")
    output = capsys.readouterr().out
    saved = [f"pack 000000{n}: interrupted, its state is saved" in output for n in range(4)]
    assert saved == [False, True, True, True]
    assert len(list((run.path / "checkpoints").glob("*.pt"))) == BESIDE
    run.resume(executor="debug")
    xarray.testing.assert_identical(results(run), alone)


def test_one_that_fails_leaves_the_others_alone(
    train: Callable[..., Any], side_by_side: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise KeyError("an entry")

    happens[6, 70] = fail
    run = train("beside")
    assert run.status().done == 7
    assert "KeyError" in capsys.readouterr().out


@pytest.mark.slow
def test_one_that_finds_no_memory_waits_for_the_others(
    train: Callable[..., Any],
    alone: xarray.Dataset,
    side_by_side: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise torch.cuda.OutOfMemoryError("no room")

    happens[6, 140] = happens[5, 70] = fail
    run = train("beside")
    output = capsys.readouterr().out
    assert output.count("out of memory with 2 configs beside other packs") == 2
    assert "continuing with" not in output
    assert side_by_side[-12:] == [1] * 4 + [2] * 4 + [0] * 4
    xarray.testing.assert_identical(results(run), alone)


@pytest.mark.slow
def test_those_that_find_no_memory_even_alone_are_halved(
    train: Callable[..., Any],
    alone: xarray.Dataset,
    side_by_side: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise torch.cuda.OutOfMemoryError("no room")

    for width in (5, 6):
        happens[width, 70] = happens[width, 71] = fail  # beside others, and then without them
    run = train("beside")
    output = capsys.readouterr().out
    assert output.count("out of memory with 2 configs beside other packs") == 2
    assert output.count("out of memory with 2 configs; continuing with 1 at a time") == 2
    np.testing.assert_allclose(results(run).train_loss, alone.train_loss, rtol=1e-5)


def test_the_pack_whose_functions_run_is_the_one_that_is_noted(
    train: Callable[..., Any],
    side_by_side: list[int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    class Parent:
        pid, last = os.getpid(), None

        def begin_pack(self, number: int) -> None:
            os.environ["PYTEST_NOTED"] = str(number)

    def write(number: int) -> None:  # in a copy of this module, as the sweep is unpickled
        with (tmp_path / "noted").open("a") as file:
            file.write(f"{number} {os.environ['PYTEST_NOTED']}\n")

    monkeypatch.setenv("PYTEST_NOTED", "")
    monkeypatch.setattr(debug, "run_task", partial(run_task, supervision=Parent()))
    for width in (4, 5, 6, 7):
        for step in range(20, 200, 20):
            happens[width, step] = partial(write, width - 4)
    train("beside")
    noted = [line.split() for line in (tmp_path / "noted").read_text().splitlines()]
    assert len(noted) == 36
    assert all(own == number for own, number in noted)
    assert len({own for own, _ in noted[:9]}) == BESIDE


def test_what_fits_beside_others() -> None:
    def room(memory: float = 1e12, most: int = MOST_SIDE_BY_SIDE, **settings: Any) -> Any:
        sweep = swept(**settings)
        plan = make_plan(sweep, 1, 1, memory=80 << 30)
        return Room(sweep, plan, memory, most), list(plan)

    fits, (one, other, *_) = room()
    assert fits.fits_beside(other, [one])
    assert not fits.fits_beside(other, [one] * MOST_SIDE_BY_SIDE)
    assert not room(most=1)[0].fits_beside(other, [one])
    tight = float(fits.plan.pack_bytes[:2].sum())
    assert room(tight)[0].fits_beside(other, [one])
    assert not room(tight - 1)[0].fits_beside(other, [one])
    assert room(0.0)[0].fits_beside(other, [])
    assert not room(OPTIMIZER="Adagrad", PACK_SIZE=1)[0].fits_beside(other, [one])
    assert not room(COMPILE=False)[0].fits_beside(other, [one])
    assert Room.of(CPU, fits.sweep, fits.plan).most == 1
    np.testing.assert_array_less(fits.plan.pack_bytes[:-1], fits.plan.pack_bytes[1:])


def test_turns_are_taken_in_order_and_end_in_any() -> None:
    turns, done = Turns[str](CPU), []

    def counting(name: str, count: int) -> str:
        for i in range(count):
            done.append(f"{name}{i}")
            turns.pass_on()
        return name

    for name, count in (("a", 2), ("b", 1), ("c", 3)):
        turns.start(partial(counting, name, count), partial(done.append, f"->{name}"))
    ended = []
    while turns:
        ended += turns.take()
    assert done[:6] == ["->a", "a0", "->b", "b0", "->c", "c0"]
    assert ended == ["b", "a", "c"]
    turns.pass_on()  # outside of all turns: there is nobody to pass on to


def test_an_error_ends_its_own_turns_only() -> None:
    turns = Turns[int](CPU)
    turns.start(lambda: turns.pass_on() or 1, lambda: None)
    turns.start(lambda: 1 // 0, lambda: None)
    assert turns.take() == []
    with pytest.raises(ZeroDivisionError):
        turns.take()
    assert len(turns) == 1
    assert turns.take() == [1]
