"""Worker processes on this machine, through submitit's local executor."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import submitit

from mlpsubmit import files
from mlpsubmit.errors import UserError
from mlpsubmit.jobs.executors.base import Executor
from mlpsubmit.jobs.gpus import free_memory
from mlpsubmit.jobs.heartbeat import process_start
from mlpsubmit.jobs.slurm.helper_job import exit_on_signals
from mlpsubmit.jobs.submission import Job, Submission
from mlpsubmit.jobs.throughput import calibrate
from mlpsubmit.jobs.train_pack import run_task
from mlpsubmit.spec.hyperparameters import Hyperparameters

__all__ = ["LocalExecutor", "driver_indices", "gpus", "usable_cores"]

#: submitit ends a local job after two minutes unless told otherwise: ten years stand for never.
TEN_YEARS_IN_MINUTES = 10 * 365 * 24 * 60

#: More worker processes than this pay for their memory with nothing on a large server.
LARGEST_SHARE = 16


#: Jobs of this process that may still run: their handles must outlive them, or Python complains.
_started: list[submitit.Job[str]] = []


@atexit.register
def _forget_ended() -> None:
    _started[:] = [job for job in _started if not job.done()]


class LocalExecutor(Executor):
    """One task per slot; a slot is a GPU of DEVICES, or a share of the processor's cores."""

    name = "local"

    def __init__(self, hyperparameters: Hyperparameters, tasks: int | None) -> None:
        self.cores = usable_cores()
        self.devices = gpus(hyperparameters)
        available = len(self.devices) or self.cores
        if tasks is not None and tasks > available:
            what = f"{available} GPUs in DEVICES" if self.devices else f"{self.cores} cores"
            raise UserError(
                f"--tasks {tasks}: this machine has {what}, and a task of its own needs one; "
                f"try --tasks {available}"
            )
        self._max_tasks = tasks or (available if self.devices else min(available, LARGEST_SHARE))
        self.threads = self.threads_per_task(self._max_tasks)

    def max_tasks(self, cost: float) -> int:
        """Return how many tasks the GPUs, or the cores, have room for."""
        return self._max_tasks

    def memory(self) -> int | None:
        """Return what is free on the fullest of the GPUs."""
        return free_memory(self.devices) if self.devices else None

    def threads_per_task(self, tasks: int) -> int:
        """Return a task's share of the cores."""
        return max(1, self.cores // tasks)

    def tasks(self, threads: int, packs: int, cost: float) -> int:
        """Return how many tasks the max_tasks and, without GPUs, the cores have room for."""
        room = (
            self._max_tasks if self.devices else min(self._max_tasks, max(1, self.cores // threads))
        )
        return min(room, packs)

    def units(self, threads: int) -> tuple[str, int]:
        """Return GPU-hours where tasks have a GPU each."""
        return ("GPU-hours", 1) if self.devices else ("core-hours", threads)

    def calibrate(
        self, submission: Submission, write_order: Callable[[Path], None]
    ) -> list[Mapping[str, Any]]:
        """Train in as many processes as there would be tasks."""
        with exit_on_signals(), tempfile.TemporaryDirectory(prefix="mlpsubmit-") as name:
            folder = Path(name)
            write_order(folder)
            with _environment(self.threads), contextlib.ExitStack() as started:
                processes = [
                    started.enter_context(self._calibrating(folder, number))
                    for number in range(submission.tasks)
                ]
                for process in processes:
                    process.wait()
            return [_answer(folder, number) for number in range(submission.tasks)]

    @contextlib.contextmanager
    def _calibrating(self, folder: Path, number: int) -> Iterator[subprocess.Popen[bytes]]:
        """Start one process, and see that it ends."""
        visible = self.devices[number : number + 1]
        gpu = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, visible))} if visible else {}
        command = [sys.executable, "-m", calibrate.__name__, str(folder), str(number)]
        with (folder / f"{number}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, **gpu}
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def submit(self, submission: Submission) -> Iterator[Job]:
        """Start one process per task; there are at most as many tasks as max_tasks."""
        _forget_ended()
        path, host = str(submission.path.resolve()), socket.gethostname()
        for task in range(submission.tasks):
            executor = submitit.LocalExecutor(folder=submission.folder)
            executor.update_parameters(
                timeout_min=TEN_YEARS_IN_MINUTES,
                gpus_per_node=1 if self.devices else 0,
                visible_gpus=self.devices[task : task + 1],
                stderr_to_stdout=True,
            )
            with _detached(self.threads):
                job = executor.submit(run_task, path, submission.number, task)
            _started.append(job)
            pid, now = int(job.job_id), time.time()
            yield Job(job.job_id, task, 1, False, host, pid, process_start(pid), now)


def _answer(folder: Path, number: int) -> Mapping[str, Any]:
    """Return what a process answered.

    Raises:
        UserError: with the end of its log, where it did not.
    """
    try:
        answer: Mapping[str, Any] = files.read_json(calibrate.answer_file(folder, number))
    except FileNotFoundError:
        lines = (folder / f"{number}.log").read_text(errors="replace").splitlines()
        last = "\n".join(lines[-3:]) or "nothing"
        raise UserError(
            f"--calibrate: a process ended without an answer; it said:\n{last}"
        ) from None
    return answer


def usable_cores() -> int:
    """Return how many cores this process may use, which taskset or a cpuset may limit."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def gpus(hyperparameters: Hyperparameters) -> list[int]:
    """Return the indices of the GPUs that DEVICES names; empty on a machine without any.

    Raises:
        UserError: where DEVICES names one that the machine does not have.
    """
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if hyperparameters.devices == "all":
        return driver_indices(list(range(count)), visible)
    beyond = [index for index in hyperparameters.devices if index >= count]
    if beyond:
        valid = f"0 to {count - 1}" if count else "none: leave DEVICES out to train on the cores"
        raise UserError(f"DEVICES: got {beyond}; this machine's GPUs are {valid}")
    return driver_indices(list(hyperparameters.devices), visible)


def driver_indices(devices: list[int], visible: str) -> list[int]:
    """Return GPUs by the driver's indices, where this process counts only the visible ones.

    Args:
        devices: indices among the visible GPUs.
        visible: the value of CUDA_VISIBLE_DEVICES; empty where all are visible.

    Raises:
        UserError: where CUDA_VISIBLE_DEVICES names GPUs otherwise than by index.
    """
    if not visible or not devices:
        return devices
    names = visible.split(",")
    if not all(name.strip().isdigit() for name in names):
        raise UserError(
            f"CUDA_VISIBLE_DEVICES: got {visible!r}; the local executor takes indices only, as in "
            "CUDA_VISIBLE_DEVICES=0,1"
        )
    return [int(names[index]) for index in devices]


@contextlib.contextmanager
def _detached(threads: int) -> Iterator[None]:
    """Let processes started within share the cores, and outlive this terminal and its Ctrl-C.

    submitit leaves all three of these to the process that submits.
    """
    with _environment(threads), _ignored(signal.SIGINT, signal.SIGHUP), _no_standard_streams():
        yield


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[None]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    previous = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _ignored(*numbers: signal.Signals) -> Iterator[None]:
    """Ignore signals; a child goes on ignoring what was ignored when it was started.

    Ctrl-C must reach the launch alone, which then asks the workers to save and stop: submitit's
    controllers would kill them first.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets handlers in the main thread only
        return
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _no_standard_streams() -> Iterator[None]:
    """Point the standard streams at nothing, so that no pipe waits for the workers to end."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(descriptor) for descriptor in range(3)]
    with open(os.devnull, "r+b") as nothing:
        for descriptor in range(3):
            os.dup2(nothing.fileno(), descriptor)
    try:
        yield
    finally:
        for descriptor, copy in enumerate(kept):
            os.dup2(copy, descriptor)
            os.close(copy)
