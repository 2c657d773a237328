"""How many files a launch makes, and how many bytes of results, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.jobs.shared_data import data_keys
from mlpsubmit.runs.launch import PreparedLaunch
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.sweep import Sweep
from mlpsubmit.training.schedules import Schedule
from mlpsubmit.training.weight_history import weight_schedule

__all__ = ["Footprint", "footprint"]

#: Of a new run: sweep.json, sweep.pkl, plan.json, ingredients.json, launched.json.
_RUN_FILES = 5
#: Of a submission: intent.json, jobs.json.
_SUBMISSION_FILES = 2
#: Of a worker: its shard and what describes that, its heartbeat.
_WORKER_FILES = 3
#: Of the entries of data: they, what describes them, their lock.
_DATA_FILES = 3

#: Bytes of a config, whatever is recorded: its index, key, status, steps and seconds.
_CONFIG_BYTES = 8 + 32 + 1 + 8 + 8
#: Bytes of a tar, of a pack in it, and of each array in an npz, without what they hold.
_SHARD_BYTES, _PACK_BYTES, _ARRAY_BYTES = 1024, 1100, 270
#: The arrays of every pack: those of each config, timekeys, and the train loss.
_ARRAYS = 7

#: Settings that decide how much is recorded.
_RECORDED = frozenset(
    {"max_iter", "record_every", "eval_every", "online", "onlythresholds"}
    | {"grab_every", "loss_checkpoints", "percent_thresholds", "metrics", "metric_thresholds"}
)


@dataclass(frozen=True)
class Footprint:
    """What a launch will have written once its packs are trained.

    Attributes:
        files: without those of tasks that start again.
        result_bytes: without what grabs measure; of settings that differ, at most.
        weight_bytes: of weights that SAVE_WEIGHTS keeps besides; 0 for models of unknown size.
        checkpoints: files more while packs are in training.
    """

    files: int
    result_bytes: int
    weight_bytes: int
    checkpoints: int


def footprint(launch: PreparedLaunch) -> Footprint:
    """Return how many files and bytes a launch makes; it has at least one missing pack."""
    sweep, plan, workers = launch.sweep, launch.plan, launch.submission.workers
    packs, configs = len(launch.missing), int(plan.pack_sizes[launch.missing].sum())
    files = _SUBMISSION_FILES + launch.executor.own_files(launch.submission)
    files += _WORKER_FILES * workers
    indices = plan.indices_of(launch.missing)
    files += _DATA_FILES * len(data_keys(sweep, indices))
    if sweep.base.keep_state:
        files += packs
    bound = launch.run is not None and launch.run.directory.device is not None
    files += bool(launch.executor.same_device and not bound)
    if launch.run is None:
        files += _RUN_FILES + (sweep.initial is not None) + 2 * bool(launch.reused.count)
    grabs = bool(sweep.grab_names)
    each = [_result_bytes(settings, grabs) for settings in _recorded_settings(sweep, indices)]
    of_pack, of_config = (max(sizes) for sizes in zip(*each, strict=True))
    return Footprint(
        files=files,
        result_bytes=_SHARD_BYTES * workers + packs * of_pack + configs * of_config,
        weight_bytes=_weight_bytes(sweep.base, plan.weights),
        checkpoints=workers,
    )


def _result_bytes(settings: Hyperparameters, grabs: bool) -> tuple[int, int]:
    """Return the bytes of a pack, and those of each of its configs besides."""
    tested = settings.test_every is not None
    lengths = {"train": 1, "test": int(tested)}
    shared = 0
    if not settings.onlythresholds:
        lengths["train"] = Schedule(settings.record_every, settings.max_iter).count
        lengths["test"] = Schedule(settings.test_every, settings.max_iter).count if tested else 0
        shared = sum(lengths.values())
        shared += Schedule(settings.grab_every, settings.max_iter).count if grabs else 0
    kinds = [kind for kind, length in lengths.items() if length]
    metrics = len(settings.measured)
    numbers = sum(lengths[kind] for kind in kinds) * (1 + metrics) + len(settings.thresholds)
    numbers += sum(map(len, settings.metric_thresholds.values()))
    arrays = _ARRAYS + len(kinds) * (1 + metrics) + len(settings.metric_thresholds)
    return _PACK_BYTES + _ARRAY_BYTES * arrays + 8 * shared, _CONFIG_BYTES + 8 * numbers


def _recorded_settings(sweep: Sweep, indices: NDArray[np.int64]) -> list[Hyperparameters]:
    """Return settings of configs of which none of those at indices (n,) records more than all."""
    _, first = np.unique(sweep.product.indices_along(_RECORDED, indices), return_index=True)
    return [sweep.config(int(index)).hyperparameters for index in indices[first]]


def _weight_bytes(settings: Hyperparameters, weights: float) -> int:
    """Return the bytes of the weights that SAVE_WEIGHTS keeps.

    Args:
        weights: of all configs, if they are MLPs.
    """
    if settings.save_weights is None or settings.model != "mlp":
        return 0
    schedule = weight_schedule(settings.save_weights, settings.max_iter)
    copies = 1 if schedule is None else schedule.count
    return int(weights * copies * (8 if settings.precision == "fp64" else 4))
