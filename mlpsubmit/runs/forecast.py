"""The duration of a launch, from the speeds of earlier runs or from a calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlpsubmit.errors import SpecError
from mlpsubmit.jobs.throughput.calibrate import choose_packs, write_order
from mlpsubmit.jobs.throughput.estimate import Estimate, estimate_tasks
from mlpsubmit.jobs.throughput.speeds import Speed, Speeds, earlier_speeds
from mlpsubmit.jobs.throughput.workload import Workload, Workloads, workloads_of
from mlpsubmit.runs.launch import PreparedLaunch
from mlpsubmit.runs.locate import newest_runs

__all__ = ["by_calibration", "by_earlier_runs"]


def by_earlier_runs(launch: PreparedLaunch, runs_dir: Path | None) -> list[Estimate]:
    """Return how long the tasks will take on each device of which comparable speeds are known.

    Args:
        launch: with at least one missing pack.
        runs_dir: the folder of all runs, of any sweep.
    """
    threads = launch.plan.threads
    device = launch.executor.device(threads)
    same_hardware = partial(launch.executor.same_hardware, threads)
    speeds = earlier_speeds(newest_runs(runs_dir), same_hardware, f"by earlier runs on {device}")
    return _estimates(launch, workloads_of(launch.plan, launch.sweep), speeds)


def by_calibration(launch: PreparedLaunch) -> list[Estimate]:
    """Return how long the tasks will take, after training some packs for a short while.

    Of processes on several devices, those of each device are an estimate of their own.

    Args:
        launch: with at least one missing pack.

    Raises:
        SpecError: if a pack cannot be trained.
        UserError: if the executor cannot calibrate, or a process has no result.
    """
    plan, executor = launch.plan, launch.executor
    workloads = workloads_of(plan, launch.sweep)
    packs = choose_packs(plan, workloads, launch.missing)
    answers = executor.calibrate(
        launch.submission, lambda folder: write_order(folder, launch.frozen, plan, packs)
    )
    by_device: dict[str, list[Mapping[str, Any]]] = {}
    for answer in answers:
        if "error" in answer:
            raise SpecError(
                f"--calibrate: a pack cannot be trained, here as in its task: {answer['error']}"
            )
        by_device.setdefault(str(answer["device"]), []).append(answer)
    where = executor.device(plan.threads)
    speeds = {device: _measured(own, where, device) for device, own in by_device.items()}
    return _estimates(launch, workloads, speeds)


def _measured(answers: Sequence[Mapping[str, Any]], where: str, device: str) -> Speeds:
    """Return the speeds that the processes of a calibration have measured on one device."""
    sums: dict[Workload, Speed] = {}
    for entry in (entry for answer in answers for entry in answer["speeds"]):
        speed = Speed.from_json(entry)
        total = sums.get(speed.workload)
        sums[speed.workload] = speed if total is None else total + speed
    startup = max(float(answer["startup"]) for answer in answers)
    got = "" if device.partition(" (")[0] in where else f"; it got {device}"
    return Speeds(sums.values(), startup, f"by a calibration on {where}{got}")


def _estimates(
    launch: PreparedLaunch, workloads: Workloads, speeds: Mapping[str, Speeds]
) -> list[Estimate]:
    most, each = (
        launch.executor.max_concurrent(launch.submission),
        launch.submission.workers_per_task,
    )
    found = [
        estimate_tasks(launch.plan, workloads, launch.slices, own, most, each, device)
        for device, own in speeds.items()
    ]
    return [estimate for estimate in found if estimate is not None]
