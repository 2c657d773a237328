"""What one array task does: train the packs of its slice, one after another."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlpsubmit.jobs import store
from mlpsubmit.jobs.checkpoint import Checkpoint
from mlpsubmit.jobs.data import SharedData
from mlpsubmit.jobs.heartbeat import Heartbeat
from mlpsubmit.jobs.plan import Pack, Plan
from mlpsubmit.jobs.store import RunDirectory, Shard
from mlpsubmit.loading import thaw
from mlpsubmit.sweep import Sweep
from mlpsubmit.training.assemble import Stack, assemble
from mlpsubmit.training.loop import Trained
from mlpsubmit.training.monitor import Interrupted, StateError
from mlpsubmit.training.seeds import data_seed
from mlpsubmit.training.trained import DIVERGED

__all__ = ["run_task", "task_name"]

#: Signals on which a task saves its pack and stops: the end of its time, preemption, Ctrl-C.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


def task_name(submission: int, index: int) -> str:
    """Return what a task is called in files."""
    return f"{submission:03d}-{index:04d}"


def run_task(
    path: str,
    submission: int,
    index: int,
    on_failure: Callable[[BaseException], None] | None = None,
) -> str:
    """Train every pack of a slice that has no result yet.

    Args:
        path: the run directory.
        submission: which submission the task belongs to.
        index: which of its slices to train.
        on_failure: called with the exception of a pack that failed; the task then stops.

    Returns:
        ``done``; ``interrupted`` where a signal came: then the state of the pack is saved; or
        ``stopped`` at a failure.
    """
    with _stop_on_signals() as stop:
        task = _Task(RunDirectory.open(Path(path)), submission, index, stop, on_failure)
        return task.run()


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Turn the signals that end a task into an event that the train loop looks at every step."""
    stop = threading.Event()

    def ask(number: int, _: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C: the user's function does not come back
        stop.set()

    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            previous[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass
class _Task:
    """One life of a task's process."""

    run_directory: RunDirectory
    submission: int
    index: int
    stop: threading.Event
    on_failure: Callable[[BaseException], None] | None

    def run(self) -> str:
        self.name = task_name(self.submission, self.index)
        self.sweep = thaw((self.run_directory.path / store.SWEEP_PICKLE).read_bytes())
        self.plan = Plan.from_json(self.run_directory.plan)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(self.plan.threads)
        self.data = SharedData(self.run_directory, self.sweep, self.device)
        packs = self._packs()
        with (
            Shard.claim(self.run_directory.results, self.name) as shard,
            self._heartbeat(shard, packs) as heartbeat,
        ):
            for pack in packs:
                try:
                    self._train_or_record(pack, shard, heartbeat)
                except Interrupted:
                    print(f"pack {pack.name}: interrupted, its state is saved", flush=True)
                    heartbeat.update(state="interrupted")
                    return "interrupted"
                except _StoppedAtFailure:
                    heartbeat.update(state="interrupted")
                    return "stopped"
            heartbeat.update(state="done")
        return "done"

    def _packs(self) -> list[Pack]:
        """Return the packs of the slice that have no result; an earlier attempt made the others."""
        ranges = self.run_directory.intent(self.submission)["slices"][self.index]
        packs = [self.plan.pack(number) for low, high in ranges for number in range(low, high)]
        finished = self.run_directory.finished(among={pack.name for pack in packs})
        return [pack for pack in packs if pack.name not in finished]

    def _heartbeat(self, shard: Shard, packs: Sequence[Pack]) -> Heartbeat:
        return Heartbeat(
            self.run_directory.heartbeat(self.name),
            task=self.name,
            attempt=shard.attempt,
            device=_device_name(self.device),
            threads=self.plan.threads,
            packs=len(packs),
            packs_done=0,
            packs_failed=0,
        )

    def _train_or_record(self, pack: Pack, shard: Shard, heartbeat: Heartbeat) -> None:
        """Train a pack and append its result, or append why it could not be trained."""
        if self.stop.is_set():
            raise Interrupted
        started = time.monotonic()
        indices = self.plan.indices(pack)
        heartbeat.update(state="training", pack=pack.name, configs=len(indices), step=0)
        heartbeat.publish()
        try:
            arrays = self._train(pack, indices, heartbeat)
        except Interrupted:
            raise
        except Exception as error:
            self._record_failure(pack, indices, error, shard, heartbeat)
        else:
            shard.append(pack.name + store.FINISHED_SUFFIX, store.npz_bytes(arrays))
            heartbeat.update(packs_done=heartbeat["packs_done"] + 1)
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
        shard.append(pack.name + store.FAILED_SUFFIX, store.json_bytes(failure))
        heartbeat.update(packs_failed=heartbeat["packs_failed"] + 1)
        print(f"pack {pack.name}: failed\n{failure['traceback']}", flush=True)
        if self.on_failure is not None:
            self.on_failure(error)
            raise _StoppedAtFailure from error

    def _train(
        self, pack: Pack, indices: NDArray[np.int64], heartbeat: Heartbeat
    ) -> dict[str, NDArray[Any]]:
        configs = [self.sweep.config(int(index)) for index in indices]
        entries = [self.data.entries(config) for config in configs]
        # What draws from torch's global generator, against the advice, repeats all the same.
        torch.manual_seed(data_seed(configs[0].hyperparameters.seed))
        stacks = assemble(self.sweep, configs, entries, self.device)
        checkpoint = Checkpoint(
            self.run_directory.checkpoint(pack.name),
            self.device,
            self.stop,
            heartbeat,
            60 * self.sweep.base.checkpoint_minutes,
            self.sweep.base.verbose,
        )
        for stack in stacks[len(checkpoint.finished) :]:
            torch.manual_seed(data_seed(stack.hyperparameters[0].seed))
            try:
                trained = stack.train(checkpoint)
            except StateError as error:
                print(f"pack {pack.name}: starting anew: {error}", flush=True)
                checkpoint.discard()
                return self._train(pack, indices, heartbeat)
            checkpoint.finish(_result(stack, trained, checkpoint.seconds))
        return {
            "index": indices,
            "key": _hex_keys(self.sweep, indices),
            **_joined(checkpoint.finished, len(indices)),
        }


class _StoppedAtFailure(Exception):
    """Ends a task at its first failing pack, whose failure is on disk by then."""


def _result(stack: Stack, trained: Trained, seconds: float) -> dict[str, NDArray[Any]]:
    """Return the arrays of one stack; ``seconds`` is each config's share of the time."""
    count = len(stack.positions)
    arrays: dict[str, NDArray[Any]] = {
        "position": np.array(stack.positions),
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


def _joined(parts: Sequence[dict[str, NDArray[Any]]], count: int) -> dict[str, NDArray[Any]]:
    """Put the results of a pack's stacks together, in the order of its configs.

    Grabs whose shapes differ between stacks are padded with NaN to the largest.
    """
    if len(parts) == 1:
        return {name: array for name, array in parts[0].items() if name != "position"}
    joined: dict[str, NDArray[Any]] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        holders = [part for part in parts if name in part]
        if name in ("step", "eval_step", "grab_step"):
            joined[name] = holders[0][name]
        elif name != "position":
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


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
