"""Runs on disk as if they had been trained, without the training.

The files of ``launch`` are written by launch itself, shards by the writer of tasks, or by a task in
which only the training is left out. Only the numbers in them are made up.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit import files
from mlpsubmit.jobs import train_pack
from mlpsubmit.jobs.as_launched import as_launched
from mlpsubmit.jobs.executors.local import LocalExecutor
from mlpsubmit.jobs.plan import Plan, Range, cut
from mlpsubmit.jobs.signals import StopFlag
from mlpsubmit.jobs.slurm.arrays import Array
from mlpsubmit.jobs.slurm.script import script
from mlpsubmit.jobs.store import run_directory, shards
from mlpsubmit.jobs.store.npz import npz_bytes
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.store.shards import Shard
from mlpsubmit.jobs.submission import Submission
from mlpsubmit.jobs.task import run_task
from mlpsubmit.jobs.trust import sweep_hash
from mlpsubmit.protocol import DONE
from mlpsubmit.runs.launch import create, prepare
from mlpsubmit.runs.manifest import manifest
from mlpsubmit.slurm_templates import SlurmRequest
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.load import load_spec, pickle_sweep
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.monitor import Monitor
from mlpsubmit.training.result import Trained

__all__ = ["TASKS", "created_run", "finish", "trained"]

#: Tasks that a run was trained by.
TASKS = 250


def created_run(spec: Path, runs: Path, tasks: int = TASKS) -> Path:
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
    slices = cut(prepared.missing, prepared.plan.pack_costs, min(tasks, len(prepared.missing)))
    intent = {
        "executor": "local",
        "host": socket.gethostname(),
        "created": time.time(),
        "gpus": False,
        "same_device": False,
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


def trained(path: Path) -> float:
    """Run the task of a run as its worker does, but for the training; return the seconds it took.

    Models are not built either. Flushes to the disk are left out of the time.
    """
    run, flushing, flush = RunDirectory.open(path), 0.0, os.fsync

    def timed_flush(file: int) -> None:
        nonlocal flushing
        start = time.perf_counter()
        flush(file)
        flushing += time.perf_counter() - start

    train_pack.assemble = lambda _, configs, *__: [_Untrained(configs)]
    os.fsync = timed_flush
    with (
        run.log(0, "task").open("w") as log,
        contextlib.redirect_stdout(log),
        as_launched(run, sweep_hash(run)) as sweep,
    ):
        start, flushing = time.perf_counter(), 0.0
        outcome = run_task(run, sweep, 0, 0, StopFlag())
        seconds = time.perf_counter() - start - flushing
    if outcome != "done":
        raise RuntimeError(f"the task is {outcome}")
    return seconds


@dataclass
class _Untrained:
    """In the place of the inputs of a stack's training."""

    configs: Sequence[Config]
    reason: str = ""

    @property
    def rows(self) -> list[int]:
        return list(range(len(self.configs)))

    @property
    def hyperparameters(self) -> list[Hyperparameters]:
        return [config.hyperparameters for config in self.configs]

    def train(self, monitor: Monitor) -> Trained:
        """Return made-up results."""
        monitor.restore()
        h, count, none = self.hyperparameters[0], len(self.configs), np.zeros(0, np.int64)
        never = np.full((count, len(h.thresholds)), -1)
        losses = np.ones(count)
        steps = np.full(count, h.max_iter)
        status = np.full(count, DONE, np.uint8)
        return Trained(status, steps, never, losses, losses, none, none, none)


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
