"""Kinds of packs, their measured speeds, and what these say of the tasks of a launch."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlpsubmit import Sweep, files
from mlpsubmit.cli.dry_run import cost_line, limit_warning
from mlpsubmit.jobs.executors import base
from mlpsubmit.jobs.executors.local import LocalExecutor
from mlpsubmit.jobs.executors.slurm import SlurmExecutor
from mlpsubmit.jobs.plan import cut, make_plan
from mlpsubmit.jobs.slurm.nodes import Node
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.throughput.calibrate import MOST_WORKLOADS, choose_packs
from mlpsubmit.jobs.throughput.estimate import Estimate, estimate_tasks
from mlpsubmit.jobs.throughput.speeds import Speed, Speeds, earlier_speeds
from mlpsubmit.jobs.throughput.workload import Workload, workloads_of
from mlpsubmit.slurm_templates import Template
from mlpsubmit.spec.hyperparameters import validate

BASE = Workload("mlp", "products", "sgd", "fp32", True, "", 64, 2, 256, 0.0, 32, 1e7)


def products(bsz, gen):
    raise NotImplementedError


def swept(axes: dict[Any, Any], **settings: Any) -> Sweep:
    return Sweep("kinds", axes, batchfn=products, **settings)


def speed(workload: Workload, step: float, setup: float = 0.0) -> Speed:
    return Speed(workload, packs=1, model_steps=1000, training=1000 * step, setup=setup)


# ---- workloads -----------------------------------------------------------------------------------


def test_packs_of_one_workload_differ_in_nothing_that_speed_depends_on() -> None:
    axes = {"WIDTH": [16, 64], "LR": [0.1, 0.2], "MAX_ITER": [10, 20], "trial": range(3)}
    sweep = swept(axes, N_SAMPLES=32)
    plan = make_plan(sweep, max_tasks=1, threads=1)
    workloads = workloads_of(plan, sweep)
    assert sorted(
        (k.width, steps) for k, steps in zip(workloads.workloads, workloads.steps, strict=True)
    ) == [
        *((16, 10), (16, 20)),
        *((64, 10), (64, 20)),
    ]
    for pack in plan:
        # What a task says of its pack is what the launch says of it.
        config = sweep.config(int(plan.indices(pack)[-1]))
        size = pack.stop - pack.start
        workload = workloads.workloads[workloads.of_pack[pack.number]]
        assert Workload.of(sweep, config, size, pack.cost) == workload
        assert workloads.steps[workloads.of_pack[pack.number]] == config.hyperparameters.max_iter
    # The cost of a model-step does not depend on how many there are.
    assert len(set(workloads.workloads)) == 2


def test_workloads_differ_in_how_they_train() -> None:
    def grab(model):
        raise NotImplementedError

    def workload(**settings: Any) -> Workload:
        grabs = {"norm": grab} if "GRAB_EVERY" in settings else {}
        sweep = swept({}, grabs=grabs, **{"WIDTH": 16, "MAX_ITER": 1001, **settings})
        return workloads_of(make_plan(sweep, 1, 1), sweep).workloads[0]

    assert workload() == workload(LR=0.3, SEED=7, MAX_ITER=5000, LOSS_CHECKPOINTS=[])
    assert workload(OPTIMIZER="adam").optimizer == "adam"
    assert workload(PRECISION="bf16").precision == "bf16"
    offline = workload(ONLINE=False, EVAL_EVERY=100, N_TEST=1001)
    assert offline.tests == 11, "steps 0, 100, ..., 1000"
    assert workload(N_TEST=1001).tests == 0
    assert workload(EVAL_EVERY=100, N_TEST=1001).tests == 11
    traced = workload(GRAB_EVERY=5, ONLYTHRESHOLDS=False)
    assert traced.grabs == "norm every 5"
    assert workload(GRAB_EVERY=5, ONLYTHRESHOLDS=True).grabs == "norm at the end"


def test_every_pack_of_a_plan_with_holes_has_its_workload() -> None:
    axes = {"WIDTH": [16, 32, 64], "DEPTH": [1, 2], "trial": range(4)}
    sweep = swept(axes, where=lambda c: c.width > 16 or c.depth == 1)
    plan = make_plan(sweep, 1, 1, finished=np.array([0, 1, 8]))
    workloads = workloads_of(plan, sweep)
    for pack in plan:
        point = sweep.config(int(plan.indices(pack)[0]))
        workload = workloads.workloads[workloads.of_pack[pack.number]]
        assert (workload.width, workload.depth, workload.configs) == (
            point.width,
            point.depth,
            pack.stop - pack.start,
        )


# ---- speeds --------------------------------------------------------------------------------------


def test_the_newest_measurement_of_the_same_workload_is_used() -> None:
    speeds = Speeds([speed(BASE, 2.0, 5.0), speed(BASE, 7.0)], startup=3.0, source="")
    found = speeds.predict(BASE)
    assert found is not None
    assert (found.step, found.setup, found.exact) == (2.0, 5.0, True)


def test_other_sizes_lie_between_those_that_were_measured() -> None:
    small, large = replace(BASE, cost=1e7), replace(BASE, cost=4e7, width=128)
    speeds = Speeds([speed(small, 1.0), speed(large, 2.0)], 0.0, "")
    middle = replace(BASE, cost=2e7, width=90)
    assert 1.0 < speeds.predict(middle).step < 2.0  # type: ignore[union-attr]
    # Beyond them the time grows with the work of a model-step.
    for workload, nearest, step in (
        (replace(BASE, cost=1e9), large, 2.0),
        (replace(BASE, cost=1e6), small, 1.0),
    ):
        found = speeds.predict(workload)
        assert found is not None
        assert found.step == pytest.approx(step * workload.work / nearest.work)
        assert not found.exact
    # One config at a time bears all calls of a step by itself.
    alone = replace(BASE, configs=1)
    assert speeds.predict(alone).step > speeds.predict(BASE).step  # type: ignore[union-attr]


def test_times_that_are_linear_in_the_work_are_found() -> None:
    works = [1e7, 3e7, 1e8, 5e8]
    sizes = [replace(BASE, cost=work, configs=10**9) for work in works]
    speeds = Speeds([speed(one, 0.5 + 1e-8 * one.work) for one in sizes], 0.0, "")
    for work in (1e7 + 1, 2e7, 2e8, 4.9e8):
        found = speeds.predict(replace(BASE, cost=work, configs=10**9))
        assert found is not None
        assert found.step == pytest.approx(0.5 + 1e-8 * work)
    # Measurements that no increasing line fits still give times between them.
    falling = Speeds([speed(sizes[0], 2.0), speed(sizes[1], 1.0)], 0.0, "")
    noisy = Speeds([speed(sizes[0], 1.0), speed(sizes[1], 9.0)], 0.0, "")
    for speeds in (falling, noisy):
        found = speeds.predict(replace(BASE, cost=2e7, configs=10**9))
        assert found is not None
        assert 1.0 < found.step < 9.0


def test_what_differs_least_is_taken() -> None:
    adam, other = replace(BASE, optimizer="adam"), replace(BASE, optimizer="adam", batchfn="x")
    speeds = Speeds([speed(other, 9.0), speed(adam, 2.0)], 0.0, "")
    assert speeds.predict(BASE).step == 2.0  # type: ignore[union-attr]
    # Nothing is said by networks or precisions of another kind.
    assert speeds.predict(replace(BASE, model="conv")) is None
    assert speeds.predict(replace(BASE, precision="bf16")) is None
    assert Speeds([], 0.0, "").predict(BASE) is None


def test_speeds_go_through_json() -> None:
    written = json.loads(json.dumps(speed(BASE, 0.25, 1.5).to_json()))
    assert Speed.from_json(written) == speed(BASE, 0.25, 1.5)


def earlier(records: Any, path: Path, beat: dict[str, Any]) -> RunDirectory:
    run: RunDirectory = records.create(path)
    run.submission(0).mkdir()
    files.publish_json(run.submission(0) / run_directory.INTENT, records.intent())
    files.publish_json(run.heartbeat("000-0000"), records.beat(**beat))
    return run


def test_speeds_of_earlier_runs_are_those_on_the_same_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: Any
) -> None:
    monkeypatch.setattr(base, "task_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(base, "cpu_name", lambda: "Fast 9000")
    executor = LocalExecutor(validate({}), None)
    assert executor.device(2) == "Fast 9000, 2 threads per task"
    same_hardware = partial(executor.same_hardware, 2)
    beat = {"device": "cpu", "cpu_name": "Fast 9000", "threads": 2, "startup": 3.0}

    def with_step(step: float, **changes: Any) -> dict[str, Any]:
        return {**beat, **changes, "speeds": [speed(BASE, step).to_json()]}

    runs = [
        earlier(records, tmp_path / "other", with_step(1.0, cpu_name="Slow 1")),
        earlier(records, tmp_path / "alone", with_step(2.0, threads=4)),
        earlier(records, tmp_path / "gpu", with_step(3.0, device="H100")),
        earlier(records, tmp_path / "new", with_step(4.0)),
        earlier(records, tmp_path / "old", with_step(5.0, startup=99.0)),
        earlier(records, tmp_path / "version", dict(beat)),
    ]
    (speeds,) = earlier_speeds(runs, same_hardware, "here").values()
    found = speeds.predict(BASE)
    assert found is not None
    assert (found.step, speeds.startup, speeds.source) == (4.0, 3.0, "here")
    assert earlier_speeds(runs[:1], same_hardware, "") == {}
    monkeypatch.setattr(base, "device_name", lambda _: "H100")
    (on_gpu,) = [own.predict(BASE) for own in earlier_speeds(runs, same_hardware, "").values()]
    assert on_gpu is not None
    assert (on_gpu.step, executor.device(2)) == (3.0, "H100")


def test_on_a_cluster_a_task_trained_alike_that_was_asked_for_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    executor = SlurmExecutor.__new__(SlurmExecutor)
    executor.template = Template(partition="gpu", gpus="a100:1", cpus=4)
    intent = {"executor": "slurm", "template": executor.template.to_json()}
    beat = {"device": "NVIDIA A100", "threads": 4}
    assert executor.same_hardware(4, intent, beat)
    assert not executor.same_hardware(2, intent, beat)
    assert not executor.same_hardware(4, {"executor": "local"}, beat)
    more = {**intent["template"], "gpus": 2}  # type: ignore[dict-item]
    assert not executor.same_hardware(4, {**intent, "template": more}, beat)
    longer = {**intent["template"], "time": "5:00:00"}  # type: ignore[dict-item]
    assert executor.same_hardware(4, {**intent, "template": longer}, beat)
    assert executor.device(4) == "partition gpu, 1 GPU a100 and 4 cores per task"
    # One that left the type open, and has got that type.
    monkeypatch.setattr(SlurmExecutor, "_nodes", [Node("n1", 8, 8, (("a100", 1),), None)])
    executor._recorded = {}
    untyped = {**intent, "template": {**intent["template"], "gpus": 1, "constraint": "ib"}}  # type: ignore[dict-item]
    assert executor.same_hardware(4, untyped, beat)
    assert not executor.same_hardware(4, untyped, {**beat, "device": "Tesla V100"})
    assert executor.unmeasured(["Tesla V100"]) == ["a100"]
    assert executor.unmeasured(["Tesla V100", "NVIDIA A100"]) == []


# ---- the tasks of a launch -----------------------------------------------------------------------


def test_a_task_takes_its_start_and_the_steps_of_its_packs() -> None:
    sweep = swept({"WIDTH": [16, 64], "trial": range(6)}, MAX_ITER=100, PACK_SIZE=2)
    plan = make_plan(sweep, max_tasks=2, threads=1)
    workloads = workloads_of(plan, sweep)
    steps = {16: 0.001, 64: 0.01}
    speeds = Speeds([speed(k, steps[k.width], 0.5) for k in workloads.workloads], 3.0, "by hand")
    slices = cut(np.arange(plan.packs), plan.pack_costs, 2)
    found = estimate_tasks(plan, workloads, slices, speeds, max_concurrent=2)
    assert found is not None
    for seconds, ranges in zip(found.seconds, slices, strict=True):
        expected = 3.0
        for number in (n for low, high in ranges for n in range(low, high)):
            width = workloads.workloads[workloads.of_pack[number]].width
            expected += 0.5 + 2 * 100 * steps[width]
        assert seconds == pytest.approx(expected)
    assert (found.workloads, found.measured) == (2, 2)
    assert estimate_tasks(plan, workloads, slices, Speeds([], 3.0, ""), 2) is None
    together = estimate_tasks(plan, workloads, slices, speeds, max_concurrent=2, workers=2)
    assert together is not None
    assert together.seconds.tolist() == [found.seconds.max()], "a task ends with its last worker"
    assert together.max_concurrent == 1


def estimate(*seconds: float, max_concurrent: int = 2, measured: int = 1) -> Estimate:
    return Estimate(np.array(seconds), 3.0, max_concurrent, 4, measured, "by hand")


def test_places_that_are_free_take_the_next_task() -> None:
    assert estimate(5.0, 1.0, 1.0, 1.0).wall_seconds == 5.0
    assert estimate(1.0, 1.0, 5.0).wall_seconds == 6.0
    assert estimate(1.0, 1.0, 5.0, max_concurrent=1).wall_seconds == 7.0


def test_what_is_said_of_an_estimate() -> None:
    assert cost_line(estimate(3600.0, 1800.0, 1800.0), "core-hours", 4) == (
        "at most 60 min with 2 tasks at once, 8 core-hours in total "
        "(by hand; 3 of 4 workloads scaled from others)"
    )
    assert cost_line(estimate(36.0, measured=4), "GPU-hours", 1) == (
        "at most 36 s with 2 tasks at once, 0.01 GPU-hours in total (by hand)"
    )


def test_a_time_limit_that_may_not_do_is_told_of() -> None:
    long = estimate(3000.0, 4000.0)
    assert limit_warning(long, Template()) == ""
    assert limit_warning(long, Template(time="2:00:00")) == ""
    assert limit_warning(long, Template(time="1:00:00")) == (
        "1 of 2 tasks may exceed the time limit 01:00:00 (67 min): each then saves its state, is "
        "requeued and continues; to avoid that, use more tasks (--tasks) or a longer limit "
        "(--time 82); --retries N resumes what is still missing in the end"
    )
    # The notice before the end is time in which it does not train.
    assert "1 of 1 task " in limit_warning(estimate(3550.0), Template(time="1:00:00"))


def test_packs_to_calibrate_with_are_few_and_span_all_sizes() -> None:
    sweep = swept({"WIDTH": [2**n for n in range(3, 13)], "DEPTH": [2, 3]}, MAX_ITER=10)
    plan = make_plan(sweep, max_tasks=1, threads=1)
    workloads = workloads_of(plan, sweep)
    missing = np.arange(2, plan.packs)
    chosen = choose_packs(plan, workloads, missing)
    assert 4 <= len(chosen) <= MOST_WORKLOADS
    assert set(chosen) <= set(missing.tolist())
    work = [workloads.workloads[workloads.of_pack[number]].work for number in missing]
    picked = [workloads.workloads[workloads.of_pack[number]].work for number in chosen]
    assert {min(work), max(work)} <= set(picked)
    assert picked[0] == max(work), "the most expensive first, in case time runs out"
    few = swept({"WIDTH": [16, 64], "trial": range(100)})
    plan = make_plan(few, max_tasks=1, threads=1)
    assert len(choose_packs(plan, workloads_of(plan, few), np.arange(plan.packs))) == 2
