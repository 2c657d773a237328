"""Calibration: training some packs of a sweep for a short while, to estimate how long all take.

Run as ``python -m mlpsubmit.jobs.throughput.calibrate FOLDER NUMBER``, one process for each task
that will run concurrently: each trains the same packs, as a task does.

| file in FOLDER                    | written by                          |
|-----------------------------------|-------------------------------------|
| sweep.pkl, plan.json, order.json  | the process that starts the others  |
| data/                             | the first process that needs it     |
| answer.NUMBER.json                | the process of that number          |
| answers.json                      | the parent of all, in a job         |
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpsubmit import files
from mlpsubmit.checksums import sealed
from mlpsubmit.jobs.garbage import postpone_collection, resume_collection
from mlpsubmit.jobs.heartbeat import process_age
from mlpsubmit.jobs.plan import Plan
from mlpsubmit.jobs.store import run_directory
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.throughput.speeds import Speed
from mlpsubmit.jobs.throughput.workload import Workload, Workloads
from mlpsubmit.results.names import device_kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlpsubmit.spec.sweep import Sweep

__all__ = ["answer_file", "answers_file", "choose_packs", "main", "write_order"]

ORDER = "order.json"

#: Workloads that are trained at most, and seconds of training for each, and for all of them.
MOST_WORKLOADS = 8
WORKLOAD_SECONDS = 1.5
ALL_SECONDS = 20.0


# ---- for the process that starts the others -----------------------------------------------------


def choose_packs(plan: Plan, workloads: Workloads, missing: NDArray[np.int64]) -> list[int]:
    """Return the numbers of the packs to train: one of each workload, if there are few.

    Of many workloads, some are chosen evenly by the work of a model-step, including the least and
    the most. The most expensive ones in total come first, in case time runs out.
    """
    of_pack, count = workloads.of_pack, len(workloads.workloads)
    costs = np.bincount(of_pack[missing], plan.pack_costs[missing], count)
    needed = np.flatnonzero(costs)
    if len(needed) > MOST_WORKLOADS:
        work = np.log([workloads.workloads[index].work for index in needed])
        wanted = np.linspace(work.min(), work.max(), MOST_WORKLOADS)
        needed = needed[np.unique(np.abs(work[:, None] - wanted).argmin(axis=0))]
    first = {int(of_pack[number]): number for number in missing[::-1].tolist()}
    return [first[index] for index in needed[np.argsort(-costs[needed])].tolist()]


def write_order(folder: Path, frozen: bytes, plan: Plan, packs: Sequence[int]) -> None:
    """Write the input of the processes.

    Args:
        folder: an empty one.
        frozen: the pickled sweep, as in a run directory.
        packs: the numbers of the packs to train.
    """
    (folder / run_directory.DATA).mkdir()
    files.publish(folder / run_directory.SWEEP_PICKLE, sealed(frozen), private=True)
    files.publish_json(folder / run_directory.PLAN, plan.to_json())
    files.publish_json(folder / ORDER, {"packs": list(packs)})


def answer_file(folder: Path, number: int) -> Path:
    """Return the file in which the process of a number writes its result."""
    return folder / f"answer.{number}.json"


def answers_file(folder: Path) -> Path:
    """Return the file in which a parent of several processes writes all of their answers."""
    return folder / "answers.json"


# ---- in the processes ----------------------------------------------------------------------------


def main(folder: Path, number: int) -> None:
    """Train the packs of an order, and write their speeds, or the error of one that fails."""
    try:
        from mlpsubmit.jobs.as_launched import launched_sweep

        folder = folder.absolute()
        with launched_sweep(folder) as sweep:
            from mlpsubmit.training.accel.compile import sharing_compiled

            with sharing_compiled(folder / run_directory.COMPILED):  # is removed with the folder
                # No speed depends on the weights that a training begins from.
                answer = _measure(folder, sweep.reading_initial(lambda _: {}))
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    files.publish_json(answer_file(folder, number), answer)


def _measure(folder: Path, sweep: Sweep) -> Mapping[str, Any]:
    import torch

    from mlpsubmit.jobs.environment import environment
    from mlpsubmit.jobs.gpus import task_device
    from mlpsubmit.jobs.shared_data import SharedData
    from mlpsubmit.jobs.throughput.roofline import Roofline

    resume_collection()
    begun = time.monotonic()
    run = RunDirectory(folder)
    plan = Plan.from_json(run.plan)
    device = task_device()
    torch.set_num_threads(plan.threads)
    Roofline(device, sweep.base.precision)  # a task measures it too
    data = SharedData(run, sweep, device)
    packs = files.read_json(folder / ORDER)["packs"]
    data.entries(sweep.config(int(plan.indices(plan.pack(packs[0]))[0])))
    startup = process_age() or time.monotonic() - begun
    return {
        "startup": startup,
        "device": device_kind(environment(device)),
        "speeds": [speed.to_json() for speed in _speeds(sweep, plan, data, device, packs)],
    }


def _speeds(sweep: Sweep, plan: Plan, data: Any, device: Any, packs: Sequence[int]) -> list[Speed]:
    """Train one pack after another while there is time; return the speeds of whole packs."""
    from mlpsubmit.jobs.throughput.benchmark import time_pack

    speeds: list[Speed] = []
    seconds = min(WORKLOAD_SECONDS, ALL_SECONDS / len(packs) / 2)
    end = time.monotonic() + ALL_SECONDS
    for number in packs:
        if speeds and time.monotonic() > end - 2 * seconds:
            break
        pack = plan.pack(number)
        configs = [sweep.config(int(index)) for index in plan.indices(pack)]
        step, setup = time_pack(sweep, configs, data.entries, device, seconds)
        workload = Workload.of(sweep, configs[0], len(configs), pack.cost)
        steps = len(configs) * configs[0].hyperparameters.max_iter
        speeds.append(Speed(workload, 1, steps, steps * step, setup))
    return speeds


if __name__ == "__main__":
    postpone_collection()
    main(Path(sys.argv[1]), int(sys.argv[2]))
