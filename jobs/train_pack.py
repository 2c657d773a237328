"""What one array task does: train the packs of its slice, one after another."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlpsubmit import files
from mlpsubmit.assembly.assemble import assemble
from mlpsubmit.assembly.probe import smoke_test_grabs
from mlpsubmit.errors import UserError
from mlpsubmit.jobs.checkpoint import Checkpoint
from mlpsubmit.jobs.gpus import device_name
from mlpsubmit.jobs.heartbeat import (
    HEARTBEAT_SECONDS,
    SLOWEST_BEAT,
    Heartbeat,
    process_age,
)
from mlpsubmit.jobs.plan import Pack, Plan, Range
from mlpsubmit.jobs.shared_data import SharedData
from mlpsubmit.jobs.signals import stop_on_signals
from mlpsubmit.jobs.store import run_directory, shards
from mlpsubmit.jobs.store.npz import npz_bytes
from mlpsubmit.jobs.store.run_directory import RunDirectory, task_name
from mlpsubmit.jobs.store.shards import Shard
from mlpsubmit.jobs.throughput.meter import ThroughputMeter
from mlpsubmit.jobs.throughput.roofline import Roofline
from mlpsubmit.jobs.throughput.workload import Workload
from mlpsubmit.protocol import DIVERGED
from mlpsubmit.spec.load import thaw
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.accel.compile import sharing_compiled
from mlpsubmit.training.accel.cpu import cpu_name
from mlpsubmit.training.monitor import Interrupted, StateError
from mlpsubmit.training.oom import free_memory, is_crowded, ran_out_of_memory
from mlpsubmit.training.result import Trained
from mlpsubmit.training.seeds import data_seed

__all__ = ["run_task"]

#: Attempts in a row that may end before anything is trained.
MAX_WITHOUT_PROGRESS = 3

#: Floating-point operations from which on a slice is worth a second for finding out what its device
#: could do at best: some seconds of one core.
WORTH_A_LIMIT = 3e11

#: Heartbeats per second that all tasks together write at most: their file system is shared.
BEATS_PER_SECOND = 20


def run_task(
    path: str,
    submission: int,
    index: int,
    on_failure: Callable[[BaseException], None] | None = None,
    stop: threading.Event | None = None,
) -> str:
    """Train every pack of a slice that has no result yet.

    Args:
        path: the run directory.
        submission: which submission the task belongs to.
        index: which of its slices to train.
        on_failure: called with the exception of a pack that failed; the task then stops.
        stop: set where the task is to save its pack and stop; else signals are waited for here.

    Returns:
        ``done``; ``interrupted`` where it was to stop: then the state of the pack is saved;
        ``stopped`` at a failure; or ``stuck`` where this and the attempts before it were all ended
        before they had trained anything.
    """
    directory = RunDirectory.open(Path(path))
    with contextlib.nullcontext(stop) if stop else stop_on_signals() as event:
        return _Task(directory, submission, index, event, on_failure).run()


@dataclass
class _Task:
    """One life of a task's process."""

    run_directory: RunDirectory
    submission: int
    index: int
    stop: threading.Event
    on_failure: Callable[[BaseException], None] | None

    def run(self) -> str:
        # Before anything loads torch's compiler, which then asks where to put its files.
        with sharing_compiled(self.run_directory.path / run_directory.COMPILED):
            return self._run()

    def _run(self) -> str:
        self.name = task_name(self.submission, self.index)
        self.sweep = thaw((self.run_directory.path / run_directory.SWEEP_PICKLE).read_bytes())
        self.plan = Plan.from_json(self.run_directory.plan)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(self.plan.threads)
        self.data = SharedData(self.run_directory, self.sweep, self.device)
        intent = self.run_directory.intent(self.submission)
        slices = intent["slices"]
        packs = self._packs(slices[self.index])
        without_progress = self._attempts_without_progress()
        self.limit = self._limit(packs)
        # The process of the debug executor has done other things before.
        self.startup = None if intent["executor"] == "debug" else process_age()
        self.meter = ThroughputMeter()
        with (
            Shard.claim(self.run_directory.results, self.name) as shard,
            self._heartbeat(shard, len(packs), len(slices), without_progress) as heartbeat,
        ):
            if without_progress >= MAX_WITHOUT_PROGRESS:
                return _give_up(heartbeat)
            for pack in packs:
                try:
                    self._train_or_record(pack, shard, heartbeat)
                except Interrupted:
                    print(f"pack {pack.name}: interrupted, its state is saved", flush=True)
                    if not heartbeat["progressed"] and without_progress + 1 >= MAX_WITHOUT_PROGRESS:
                        return _give_up(heartbeat)
                    heartbeat.update(state="interrupted")
                    return "interrupted"
                except _StoppedAtFailure:
                    heartbeat.update(state="interrupted")
                    return "stopped"
            heartbeat.update(state="done")
        return "done"

    def _packs(self, ranges: Sequence[Range]) -> list[Pack]:
        """Return the packs of the slice that have no result; an earlier attempt made the others."""
        packs = [self.plan.pack(number) for low, high in ranges for number in range(low, high)]
        finished = self.run_directory.finished({pack.name for pack in packs}, self.name)
        return [pack for pack in packs if pack.name not in finished]

    def _limit(self, packs: Sequence[Pack]) -> Roofline | None:
        """Measure the device where that takes a small part of the task's time."""
        worth = sum(pack.cost for pack in packs) >= WORTH_A_LIMIT
        base = self.sweep.base
        return Roofline(self.device, base.precision, base.model != "mlp") if worth else None

    def _attempts_without_progress(self) -> int:
        """Return how many attempts in a row before this one trained nothing."""
        last = self.run_directory.last_heartbeat(self.name)
        return 0 if last is None or last["progressed"] else int(last["without_progress"]) + 1

    def _heartbeat(self, shard: Shard, packs: int, tasks: int, without_progress: int) -> Heartbeat:
        return Heartbeat(
            self.run_directory.heartbeat(self.name),
            max(HEARTBEAT_SECONDS, min(tasks / BEATS_PER_SECOND, SLOWEST_BEAT)),
            task=self.name,
            attempt=shard.attempt,
            device=device_name(self.device),
            cpu_name=cpu_name(),
            threads=self.plan.threads,
            startup=self.startup,
            packs=packs,
            packs_done=0,
            packs_failed=0,
            halved=0,
            cost_done=0.0,
            without_progress=without_progress,
            progressed=False,
            speeds=[],
            **self.meter.fields(),
        )

    def _train_or_record(self, pack: Pack, shard: Shard, heartbeat: Heartbeat) -> None:
        """Train a pack and append its result, or append why it could not be trained."""
        if self.stop.is_set():
            raise Interrupted
        started = time.monotonic()
        indices = self.plan.indices(pack)
        first = self.sweep.config(int(indices[0]))
        heartbeat.update(
            state="training",
            pack=pack.name,
            pack_started=time.time(),
            configs=len(indices),
            step=0,
            first_step=0,
            max_iter=first.hyperparameters.max_iter,
            loss=None,
        )
        heartbeat.publish()
        try:
            workload = Workload.of(self.sweep, first, len(indices), pack.cost)
            arrays = self._train(pack, indices, heartbeat)
        except Interrupted:
            raise
        except Exception as error:
            self._record_failure(pack, indices, error, shard, heartbeat)
        else:
            shard.append(pack.name + shards.FINISHED_SUFFIX, npz_bytes(arrays))
            self.meter.finish_pack(workload)
            speeds = self.meter.speeds()
            heartbeat.update(packs_done=heartbeat["packs_done"] + 1, speeds=speeds)
            _note_progress(heartbeat, pack)
            self.run_directory.checkpoint(pack.name).unlink(missing_ok=True)
            seconds = time.monotonic() - started
            print(f"pack {pack.name}: {len(indices)} configs in {seconds:.1f} s", flush=True)

    def _record_failure(
        self,
        pack: Pack,
        indices: NDArray[np.int64],
        error: Exception,
        shard: Shard,
        heartbeat: Heartbeat,
    ) -> None:
        failure = {
            "indices": indices.tolist(),
            "error": f"{type(error).__name__}: {error}",
            "traceback": "".join(traceback.format_exception(error)),
        }
        shard.append(pack.name + shards.FAILED_SUFFIX, files.json_bytes(failure))
        self.meter.discard_pack()
        heartbeat.update(packs_failed=heartbeat["packs_failed"] + 1)
        _note_progress(heartbeat, pack)
        print(f"pack {pack.name}: failed\n{failure['traceback']}", flush=True)
        if self.on_failure is not None:
            self.on_failure(error)
            raise _StoppedAtFailure from error

    def _train(
        self, pack: Pack, indices: NDArray[np.int64], heartbeat: Heartbeat
    ) -> dict[str, NDArray[Any]]:
        """Train a pack, half as many at a time where it runs out of memory; return its arrays.

        Raises:
            OutOfMemory: where not even one config fits.
        """
        configs = [self.sweep.config(int(index)) for index in indices]
        entries = [self.data.entries(config) for config in configs]
        checkpoint = self._checkpoint(pack, heartbeat)
        self._smoke_test_grabs(configs[0], entries[0])
        while checkpoint.parts:
            if not self._fits(pack, configs, entries, checkpoint):
                # Out here, where no traceback holds the dead tensors any more.
                self._halve(pack, checkpoint, heartbeat)
        return {
            "index": indices,
            "key": _hex_keys(self.sweep, indices),
            **_joined(checkpoint.finished, len(indices), checkpoint.halved),
        }

    def _smoke_test_grabs(self, config: Config, entry: Mapping[str, Any]) -> None:
        """Call the grabs of a long training once before it, lest it be lost to an error in one."""
        try:
            smoke_test_grabs(self.sweep, config, entry, self.device)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            free_memory()  # the training will say so, or go on with less

    def _checkpoint(self, pack: Pack, heartbeat: Heartbeat) -> Checkpoint:
        return Checkpoint(
            self.run_directory.checkpoint(pack.name),
            pack.stop - pack.start,
            self.device,
            self.stop,
            heartbeat,
            60 * self.sweep.base.checkpoint_minutes,
            self.sweep.base.verbose,
            self.meter,
        )

    def _fits(
        self,
        pack: Pack,
        configs: Sequence[Config],
        entries: Sequence[Mapping[str, Any]],
        checkpoint: Checkpoint,
    ) -> bool:
        """Train a checkpoint's first part; return whether there was memory enough."""
        try:
            self._train_part(configs, entries, checkpoint)
        except StateError as error:
            print(f"pack {pack.name}: starting anew: {error}", flush=True)
            checkpoint.discard()
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            if len(checkpoint.together) == 1:
                checkpoint.rejoin()
                alone = configs[checkpoint.together[0]]
                raise _does_not_fit(alone, self.device, error) from error
            return False
        return True

    def _train_part(
        self,
        configs: Sequence[Config],
        entries: Sequence[Mapping[str, Any]],
        checkpoint: Checkpoint,
    ) -> None:
        """Assemble the configs of a checkpoint's first part and train those that are not done."""
        if checkpoint.halved or is_crowded(self.device):
            # What trained before stands in cycles, whose size Python's collector does not see.
            free_memory()
        part, done = checkpoint.parts[0], checkpoint.done
        checkpoint.together = [place for place in part if place not in done]
        # What draws from torch's global generator, against the advice, repeats all the same.
        torch.manual_seed(data_seed(configs[part[0]].hyperparameters.seed))
        own = [configs[place] for place in part]
        for stack in assemble(self.sweep, own, [entries[place] for place in part], self.device):
            places = [part[position] for position in stack.positions]
            if done.issuperset(places):
                continue
            checkpoint.together = places
            if self.limit is not None:
                checkpoint.step_ideal = self.limit.ideal_seconds(stack)
            torch.manual_seed(data_seed(stack.hyperparameters[0].seed))
            trained = stack.train(checkpoint)
            checkpoint.finish(_result(places, trained, checkpoint.seconds))
        checkpoint.leave_part()

    def _halve(self, pack: Pack, checkpoint: Checkpoint, heartbeat: Heartbeat) -> None:
        """Let a pack that ran out of memory go on with half as many, also in its next life."""
        free_memory()
        halved = heartbeat["halved"] + (0 if checkpoint.halved else 1)
        heartbeat.update(halved=halved, progressed=True)
        count, size = len(checkpoint.together), checkpoint.halve()
        print(
            f"pack {pack.name}: out of memory with {count} configs; going on with {size} at a time",
            flush=True,
        )
        checkpoint.save(None)


def _note_progress(heartbeat: Heartbeat, pack: Pack) -> None:
    """Say that this attempt has come to the end of a pack."""
    heartbeat.update(progressed=True, cost_done=heartbeat["cost_done"] + pack.cost)


def _give_up(heartbeat: Heartbeat) -> str:
    """Say that going on as before leads nowhere."""
    error = (
        f"{MAX_WITHOUT_PROGRESS} attempts in a row were ended before they had trained anything; "
        "give the tasks more time or memory when you resume (--time, --mem), or smaller packs "
        "(PACK_SIZE) or more frequent saves (CHECKPOINT_MINUTES) in a new launch"
    )
    print(error, flush=True)
    heartbeat.update(state="crashed", error=error)
    return "stuck"


class _StoppedAtFailure(Exception):
    """Ends a task at its first failing pack, whose failure is on disk by then."""


class OutOfMemory(UserError):
    """A config that does not fit into the memory even where it trains alone."""


def _does_not_fit(config: Config, device: torch.device, error: Exception) -> OutOfMemory:
    settings = config.hyperparameters
    sets = "N_SAMPLES" if settings.online else "N_SAMPLES or N_TEST"
    more = "a GPU with more memory" if device.type == "cuda" else "more memory for each task"
    return OutOfMemory(
        f"a config with WIDTH={settings.width}, DEPTH={settings.depth}, N_SAMPLES="
        f"{settings.n_samples} does not fit into the memory of its task ({device_name(device)}), "
        f"not even alone; try a smaller {sets}, or {more}. It ended in {type(error).__name__}: "
        + (str(error).splitlines() or [""])[0]
    )


def _result(places: Sequence[int], trained: Trained, seconds: float) -> dict[str, NDArray[Any]]:
    """Return the arrays of one stack; ``seconds`` is each config's share of the time."""
    count = len(places)
    arrays: dict[str, NDArray[Any]] = {
        "position": np.array(places),
        "trained_together": np.full(count, count),
        "status": trained.status,
        "steps": trained.steps,
        "seconds": np.full(count, seconds / count),
        "timekeys": trained.timekeys,
        "train_loss": trained.train_loss,
        "test_loss": trained.test_loss,
    }
    schedules = {
        "step": trained.step,
        "eval_step": trained.eval_step,
        "grab_step": trained.grab_step,
    }
    arrays |= {name: steps for name, steps in schedules.items() if len(steps)}
    # Where every config diverged, grabs that were never called have no shape to tell.
    called = not (trained.status == DIVERGED).all()
    grabs = {name: v for name, v in trained.grabs.items() if called or not np.isnan(v).all()}
    return arrays | {f"grab.{name}": values for name, values in grabs.items()}


def _joined(
    parts: Sequence[dict[str, NDArray[Any]]], count: int, halved: bool
) -> dict[str, NDArray[Any]]:
    """Put the results of a pack's stacks together, in the order of its configs.

    Grabs whose shapes differ between stacks are padded with NaN to the largest. How many configs
    trained together is said of a pack that was halved.
    """
    left_out = {"position"} if halved else {"position", "trained_together"}
    if len(parts) == 1:
        return {name: array for name, array in parts[0].items() if name not in left_out}
    joined: dict[str, NDArray[Any]] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        holders = [part for part in parts if name in part]
        if name in ("step", "eval_step", "grab_step"):
            joined[name] = holders[0][name]
        elif name not in left_out:
            places = [part["position"] for part in holders]
            joined[name] = _scattered([part[name] for part in holders], places, count)
    return joined


def _scattered(
    arrays: Sequence[NDArray[Any]], positions: Sequence[NDArray[np.int64]], count: int
) -> NDArray[Any]:
    shapes = {array.shape[1:] for array in arrays}
    shape = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    holes = len(shapes) > 1 or sum(map(len, positions)) < count
    kind = np.result_type(*arrays, *([np.float64] if holes else []))
    whole = np.full((count, *shape), np.nan if holes else 0, dtype=kind)
    for array, places in zip(arrays, positions, strict=True):
        inner = tuple(slice(size) for size in array.shape[1:])
        whole[(places,) + inner] = array  # noqa: RUF005  # Python 3.10 unpacks no stars here
    return whole


def _hex_keys(sweep: Sweep, indices: NDArray[np.int64]) -> NDArray[np.bytes_]:
    return np.array([key.tobytes().hex() for key in sweep.keys(indices)], dtype="S32")
