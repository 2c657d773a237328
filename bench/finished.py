"""Runs on disk as if they had been trained, without the training.

The files of ``launch`` are written by launch itself, shards by the writer of tasks. Only the
numbers in them are made up.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit import files
from mlpsubmit.jobs.executors.local import LocalExecutor
from mlpsubmit.jobs.plan import Plan, Range, cut
from mlpsubmit.jobs.slurm.arrays import Array
from mlpsubmit.jobs.slurm.script import script
from mlpsubmit.jobs.store import run_directory, shards
from mlpsubmit.jobs.store.npz import npz_bytes
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.store.shards import Shard
from mlpsubmit.jobs.submission import Submission
from mlpsubmit.runs.launch import create, prepare
from mlpsubmit.runs.manifest import manifest
from mlpsubmit.slurm_templates import SlurmRequest
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.load import load_spec, pickle_sweep
from mlpsubmit.spec.sweep import Sweep

__all__ = ["TASKS", "created_run", "finish"]

#: Tasks that a run was trained by.
TASKS = 250


def created_run(spec: Path, runs: Path) -> Path:
    """Write what a launch of a spec writes before it submits anything; return the run's folder.

    The run is one of this machine, with as many tasks as a cluster would be given; the script that
    SLURM would get is written to its submission.
    """
    sweep = load_spec(spec)
    (runs / sweep.name).mkdir(parents=True, exist_ok=True)
    prepared = prepare(
        sweep, LocalExecutor(Hyperparameters(), None), runs, frozen=pickle_sweep(sweep), fresh=True
    )
    content = manifest(sweep, spec, ["mlpsubmit", "launch"], prepared.reused.count, prepared.path)
    run = create(content, prepared)
    slices = cut(prepared.missing, prepared.plan.pack_costs, min(TASKS, len(prepared.missing)))
    intent = {
        "executor": "local",
        "host": socket.gethostname(),
        "created": time.time(),
        "gpus": False,
        "slices": slices,
    }
    run.submission(0).mkdir()
    files.publish_json(run.submission(0) / run_directory.INTENT, intent)
    submission = Submission(run.path, sweep.name, 0, len(slices), prepared.plan.threads)
    text = script(SlurmRequest().resolve(), submission, Array(sweep.name, 0, len(slices)))
    (submission.folder / "array.0.sh").write_text(text)
    return run.path


def finish(spec: Path, path: Path, missing: int = 0) -> None:
    """Write the results of every pack of a run that was created, and its tasks' heartbeats.

    Args:
        missing: how many packs are to have no result: the last ones.
    """
    sweep, run = load_spec(spec), RunDirectory.open(path)
    plan = Plan.from_json(run.plan)
    for index, ranges in enumerate(run.intent(0)["slices"]):
        task = run_directory.task_name(0, index)
        with Shard.claim(run.results.folder, task) as shard:
            _write_slice(shard, sweep, plan, ranges, plan.packs - missing)
        process = {"host": socket.gethostname(), "pid": 1, "started": 0.0, "updated": 0.0}
        beat = {"state": "done", "task": task, "packs": 1, "packs_done": 1, **process}
        files.publish_json(run.heartbeat(task), beat, sync=False)


def _write_slice(
    shard: Shard, sweep: Sweep, plan: Plan, ranges: Sequence[Range], stop: int
) -> None:
    for first, last in ranges:
        for number in range(first, min(last, stop)):
            pack = plan.pack(number)
            arrays = _arrays(sweep, plan.indices(pack))
            shard.append(pack.name + shards.FINISHED_SUFFIX, npz_bytes(arrays), sync=False)


def _arrays(sweep: Sweep, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return the arrays of one pack, as a task that keeps final values writes them."""
    count = len(indices)
    draw = np.random.default_rng(int(indices[0]))
    return {
        "index": indices,
        "key": np.array([key.tobytes().hex() for key in sweep.keys(indices)], dtype="S32"),
        "status": np.ones(count, np.uint8),
        "steps": draw.integers(1, sweep.base.max_iter, count),
        "seconds": draw.random(count),
        "timekeys": draw.integers(-1, sweep.base.max_iter, (count, len(sweep.base.thresholds))),
        "train_loss": draw.random(count),
        "test_loss": draw.random(count),
    }
