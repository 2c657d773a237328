"""What one array task does: train the packs of its slice, one after another."""

from __future__ import annotations

import contextlib
import io
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlpsubmit.calling import call
from mlpsubmit.fingerprint import digest
from mlpsubmit.jobs import store
from mlpsubmit.jobs.heartbeat import Heartbeat
from mlpsubmit.jobs.plan import Pack, Plan
from mlpsubmit.jobs.store import RunDirectory, Shard
from mlpsubmit.loading import thaw
from mlpsubmit.sweep import Config, Sweep
from mlpsubmit.training.assemble import Stack, assemble, data_arguments
from mlpsubmit.training.loop import Trained
from mlpsubmit.training.monitor import Interrupted, Progress, StateError
from mlpsubmit.training.seeds import data_seed

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
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            previous[number] = signal.signal(number, lambda *_: stop.set())
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
    data: dict[str, Mapping[str, Any] | Exception] = field(default_factory=dict)

    def run(self) -> str:
        self.name = task_name(self.submission, self.index)
        self.sweep = thaw((self.run_directory.path / store.SWEEP_PICKLE).read_bytes())
        self.plan = Plan.from_json(self.run_directory.plan)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(self.plan.threads)
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
        finished = self.run_directory.finished(verify=True)
        packs = (self.plan.pack(number) for low, high in ranges for number in range(low, high))
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
            seconds = time.monotonic() - started
            print(f"pack {pack.name}: {len(indices)} configs in {seconds:.1f} s", flush=True)
        self.run_directory.checkpoint(pack.name).unlink(missing_ok=True)

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
        entries = [self._entries(config) for config in configs]
        stacks = assemble(self.sweep, configs, entries, self.device)
        monitor = _PackMonitor(
            self.run_directory.checkpoint(pack.name),
            self.stop,
            heartbeat,
            60 * self.sweep.base.checkpoint_minutes,
            self.sweep.base.verbose,
        )
        finished = monitor.finished
        for stack in stacks[len(finished) :]:
            started = time.monotonic()
            try:
                trained = stack.train(monitor)
            except StateError as error:
                print(f"pack {pack.name}: starting anew: {error}", flush=True)
                monitor.file.unlink()
                return self._train(pack, indices, heartbeat)
            finished.append(_result(stack, trained, time.monotonic() - started))
            monitor.state = None
        return {
            "index": indices,
            "key": _hex_keys(self.sweep, indices),
            **_joined(finished, len(indices)),
        }

    # ---- data

    def _entries(self, config: Config) -> Mapping[str, Any]:
        """Return what the data function gives for a config, its tensors on the device.

        Equal arguments give the same object; a function that raised raises again at once.
        """
        if self.sweep.data is None:
            return _NO_ENTRIES
        arguments = data_arguments(self.sweep, config)
        seed = data_seed(config.hyperparameters.seed) if "gen" in arguments else None
        key = digest(self.sweep.data, {**arguments, "gen": seed}).hex()
        if key not in self.data:
            try:
                self.data[key] = _on_device(self._shared_data(key, arguments, seed), self.device)
            except Exception as error:
                self.data[key] = error
        entries = self.data[key]
        if isinstance(entries, Exception):
            raise entries
        return entries

    def _shared_data(
        self, key: str, arguments: Mapping[str, Any], seed: int | None
    ) -> Mapping[str, Any]:
        """Load what another task computed, or compute it for all tasks."""
        file = self.run_directory.data_file(key)
        with store.locked(file.with_suffix(".lock")):
            if not file.exists():
                generator = {} if seed is None else {"gen": torch.Generator().manual_seed(seed)}
                entries = call(self.sweep.data, {**arguments, **generator})  # type: ignore[arg-type]
                if not isinstance(entries, Mapping):
                    raise TypeError(
                        f"the data function returned {type(entries).__name__}; it should return a "
                        "mapping of names to arrays"
                    )
                tensors = {name: _as_tensor(value) for name, value in entries.items()}
                store.publish(file, lambda stream: torch.save(tensors, stream))
        loaded: Mapping[str, Any] = torch.load(file, weights_only=False, mmap=True)
        return loaded


class _StoppedAtFailure(Exception):
    """Ends a task at its first failing pack, whose failure is on disk by then."""


_NO_ENTRIES: Mapping[str, Any] = {}


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value


def _on_device(entries: Mapping[str, Any], device: torch.device) -> Mapping[str, Any]:
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in entries.items()
    }


class _PackMonitor:
    """Saves the state of a pack, and says in the heartbeat how far it is.

    The file holds the results of the pack's finished stacks and the state of the one that trains.
    """

    def __init__(
        self,
        file: Path,
        stop: threading.Event,
        heartbeat: Heartbeat,
        interval: float,
        verbose: bool,
    ) -> None:
        self.file = file
        self.stop = stop
        self.heartbeat = heartbeat
        self.interval = interval
        self.verbose = verbose
        self.finished, self.state = self._load()
        self.saved = self.seen = time.monotonic()
        self.step, self.active = 0, 0

    def _load(self) -> tuple[list[dict[str, NDArray[Any]]], dict[str, Any] | None]:
        if not self.file.exists():
            return [], None
        try:
            content = torch.load(self.file, weights_only=True)
        except Exception as error:
            print(f"checkpoint {self.file.name} is unusable, starting anew: {error}", flush=True)
            return [], None
        finished = [
            {name: tensor.numpy() for name, tensor in arrays.items()}
            for arrays in content["finished"]
        ]
        return finished, content["state"]

    def restore(self) -> dict[str, Any] | None:
        return self.state

    def due(self) -> bool:
        return self.stop.is_set() or time.monotonic() - self.saved >= self.interval

    def save(self, state: dict[str, Any]) -> None:
        finished = [
            {name: torch.from_numpy(array) for name, array in arrays.items()}
            for arrays in self.finished
        ]
        buffer = io.BytesIO()
        torch.save({"finished": finished, "state": state}, buffer)
        store.publish(self.file, buffer.getvalue())
        self.saved = time.monotonic()
        if self.stop.is_set():
            raise Interrupted

    def progress(self, progress: Progress) -> None:
        now = time.monotonic()
        finite = progress.losses[np.isfinite(progress.losses)]
        loss = float(np.median(finite)) if len(finite) else None
        made = max(0, progress.step - self.step) * max(self.active, progress.active)
        self.heartbeat.update(
            step=progress.step,
            max_iter=progress.max_iter,
            active=progress.active,
            loss=loss,
            speed=made / max(now - self.seen, 1e-9),
        )
        self.step, self.active, self.seen = progress.step, progress.active, now
        if self.verbose:
            shown = "not finite" if loss is None else f"{loss:.4g}"
            print(f"step {progress.step}: {progress.active} train, loss {shown}", flush=True)


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
    return arrays | {f"grab.{name}": values for name, values in trained.grabs.items()}


def _joined(parts: Sequence[dict[str, NDArray[Any]]], count: int) -> dict[str, NDArray[Any]]:
    """Put the results of a pack's stacks together, in the order of its configs.

    Grabs whose shapes differ between stacks are padded with NaN to the largest.
    """
    if len(parts) == 1:
        return {name: array for name, array in parts[0].items() if name != "position"}
    joined: dict[str, NDArray[Any]] = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if name in ("step", "eval_step", "grab_step"):
            joined[name] = arrays[0]
        elif name != "position":
            joined[name] = _scattered(arrays, [part["position"] for part in parts], count)
    return joined


def _scattered(
    arrays: Sequence[NDArray[Any]], positions: Sequence[NDArray[np.int64]], count: int
) -> NDArray[Any]:
    shapes = {array.shape[1:] for array in arrays}
    shape = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    kind = np.result_type(*arrays) if len(shapes) == 1 else np.result_type(*arrays, np.float64)
    whole = np.full((count, *shape), np.nan if len(shapes) > 1 else 0, dtype=kind)
    for array, places in zip(arrays, positions, strict=True):
        inner = tuple(slice(size) for size in array.shape[1:])
        whole[(places,) + inner] = array  # noqa: RUF005  # Python 3.10 unpacks no stars here
    return whole


def _hex_keys(sweep: Sweep, indices: NDArray[np.int64]) -> NDArray[np.bytes_]:
    return np.array([key.tobytes().hex() for key in sweep.keys(indices)], dtype="S32")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
