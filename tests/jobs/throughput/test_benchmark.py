"""What a short training tells of a long one: by rows of a watch, and by what trains in it."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from mlpsubmit import Sweep
from mlpsubmit.assembly.assemble import assemble
from mlpsubmit.jobs.throughput import benchmark
from mlpsubmit.training.schedules import Schedule

CPU = torch.device("cpu")


def flat(bsz, gen, split, level=0.0):
    def batch_fn(step):
        return torch.full((bsz, 3), 1.0 + (split == "test")), torch.full((bsz,), level)

    return batch_fn


def swept(grabs: Any = None, **settings: Any) -> Sweep:
    settings = {"WIDTH": 4, "N_SAMPLES": 4, "MAX_ITER": 1000, **settings}
    return Sweep("timing", {"trial": range(4)}, batchfn=flat, grabs=grabs, **settings)


class Clock:
    """Goes on by what each step costs."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(benchmark, "time", clock)
    return clock


def watched(clock: Clock, sweep: Sweep, seconds: float, cost: Any) -> Any:
    """Let a watch see steps that take a known time, until it has had enough."""
    configs = list(map(benchmark._frequent, sweep))
    (stack,) = assemble(sweep, configs, [{}] * len(configs), CPU)
    watch = benchmark._Stopwatch(stack, CPU, seconds)
    watch.restore()
    h = configs[0].hyperparameters
    with contextlib.suppress(benchmark._Enough):
        for step in range(h.max_iter):
            clock.now += cost(step, h)
            watch.due(step)
        raise AssertionError("it went on to the end")
    return watch


def mean(model):
    return 1.0


def test_rare_steps_are_told_from_plain_ones(clock: Clock) -> None:
    def cost(step: int, h: Any) -> float:
        setup = 5.0 if step == 0 else 0.0
        evaluation = 0.5 * (step in Schedule(h.eval_every, h.max_iter))
        return setup + 0.01 + evaluation + 0.2 * (step in Schedule(h.grab_every, h.max_iter))

    sweep = swept(
        {"mean": mean}, ONLINE=False, EVAL_EVERY=100, GRAB_EVERY="log:50", ONLYTHRESHOLDS=False
    )
    watch = watched(clock, sweep, 3.0, cost)
    assert watch.costs() == pytest.approx((0.01, 0.5, 0.2))
    assert watch.until_first == pytest.approx(5.71)
    assert clock.now < 10


def test_the_first_steps_are_not_counted(clock: Clock) -> None:
    watch = watched(clock, swept(), 1.0, lambda step, h: 0.001 if step > 40 else 0.002)
    assert watch.costs()[0] == pytest.approx(0.001)


def test_one_slow_step_after_the_first_is_enough(clock: Clock) -> None:
    watch = watched(clock, swept(), 1.0, lambda step, h: 30.0)
    assert clock.now == 60
    assert watch.costs() == pytest.approx((30, 0, 0))


def test_a_compilation_in_the_first_step_is_no_step(clock: Clock) -> None:
    watch = watched(clock, swept(), 1.0, lambda step, h: 30.0 if step == 0 else 0.01)
    assert watch.costs() == pytest.approx((0.01, 0, 0))
    assert watch.until_first == 30
    slow = watched(clock, swept(), 1.0, lambda step, h: 30.0 if step == 0 else 0.9)
    assert slow.costs() == pytest.approx((0.9, 0, 0))


def test_what_only_the_first_step_had_is_waited_for(clock: Clock) -> None:
    def cost(step: int, h: Any) -> float:
        evaluation = 0.3 * (step in Schedule(h.eval_every, h.max_iter))
        return 0.6 + evaluation + (30.0 if step == 0 else 0.0)

    watch = watched(clock, swept(ONLINE=False, EVAL_EVERY=100), 1.0, cost)
    assert watch.costs() == pytest.approx((0.6, 0.3, 0))


@pytest.mark.parametrize("max_iter", [1, 3, 200])
def test_a_short_training_is_timed_to_its_end(clock: Clock, max_iter: int) -> None:
    draws = 0

    def ticking(bsz, gen, split):
        def batch_fn(step):
            nonlocal draws
            draws += 1
            clock.now += 0.05
            return torch.ones(bsz, 3), torch.zeros(bsz)

        return batch_fn

    def entries(config: Any) -> dict[str, Any]:
        clock.now += 2.0
        return {}

    sweep = Sweep("timing", {"trial": range(4)}, batchfn=ticking, WIDTH=4, MAX_ITER=max_iter)
    step, setup = benchmark.time_pack(sweep, list(sweep), entries, CPU, 60.0)
    assert draws == 4 * max_iter
    # The first batches are drawn, once, when the stack is assembled; the first step has them.
    assert step == pytest.approx(0.05 if max_iter > 1 else 0.0)
    assert setup == pytest.approx(4 * 2.0 + 4 * 0.05)


def test_what_is_timed_stops_at_no_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    monkeypatch.setattr(
        benchmark._Stopwatch,
        "progress",
        lambda self, progress: steps.append(progress),
        raising=True,
    )
    sweep = swept(LOSS_CHECKPOINTS=[1e9], MAX_ITER=200)
    benchmark.time_pack(sweep, list(sweep), lambda config: {}, CPU, 10.0)
    assert [progress.step for progress in steps] == [64, 128, 192, 200]
    assert steps[-1].made == 4 * 200


@pytest.mark.slow
def test_packs_that_do_not_fit_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fitting(sweep: Any, configs: Any, *further: Any) -> tuple[float, float]:
        tried.append(len(configs))
        if len(configs) > 1:
            raise MemoryError
        return 1.0, 2.0

    monkeypatch.setattr(benchmark, "_time_pack", fitting)
    sweep = swept()
    assert benchmark.time_pack(sweep, list(sweep), lambda config: {}, CPU, 1.0) == (1.0, 2.0)
    assert tried == [4, 2, 1]
    monkeypatch.setattr(benchmark, "_time_pack", lambda *_: fitting(sweep, [1, 2]))
    with pytest.raises(MemoryError):
        benchmark.time_pack(sweep, list(sweep)[:1], lambda config: {}, CPU, 1.0)


@pytest.mark.parametrize("every", [1, 2, 7, 100, 1000, "log:2", "log:50"])
@pytest.mark.parametrize("max_iter", [1, 2, 99, 100, 101])
def test_the_steps_of_a_schedule_are_counted(every: Any, max_iter: int) -> None:
    schedule = Schedule(every, max_iter)
    assert schedule.count == len(schedule.steps)
