"""Worker processes on this machine."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlpsubmit import files
from mlpsubmit.display.progress import doing
from mlpsubmit.display.text import counted
from mlpsubmit.errors import UserError
from mlpsubmit.jobs.command_line import WORKER, module_command
from mlpsubmit.jobs.executors.base import Executor
from mlpsubmit.jobs.gpus import (
    all_devices,
    free_memory,
    gpu_names,
    listed_devices,
    uuids,
    visible_entries,
)
from mlpsubmit.jobs.shares import LARGEST_SHARE, WORKER_MEMORY, workers_in_memory
from mlpsubmit.jobs.slurm.allocation import Allocation, allocation
from mlpsubmit.jobs.slurm.helper_job import exit_on_signals
from mlpsubmit.jobs.store.run_directory import RunDirectory, task_name
from mlpsubmit.jobs.submission import Job, Submission
from mlpsubmit.jobs.throughput import calibrate
from mlpsubmit.spec.hyperparameters import Hyperparameters

__all__ = ["LocalExecutor", "gpus", "usable_cores"]


class LocalExecutor(Executor):
    """One task per GPU of DEVICES or, without GPUs, per share of the cores.

    Within a job of SLURM, of those that the job has.
    """

    name = "local"

    def __init__(self, hyperparameters: Hyperparameters, tasks: int | None) -> None:
        own = allocation()
        self.cores = usable_cores(own)
        self.devices = gpus(hyperparameters, own)
        available = len(self.devices) or int(min(self.cores, _workers_in_memory(own)))
        if tasks is not None and tasks > available:
            whose = "this machine" if own is None else f"job {own.job}, in which this is launched,"
            raise UserError(
                f"--tasks {tasks}: {whose} has {self._found(own)}; try --tasks {available}"
            )
        self._max_tasks = tasks or (available if self.devices else min(available, LARGEST_SHARE))

    def _found(self, own: Allocation | None) -> str:
        """Return what bounds the number of tasks, for a message."""
        if self.devices:
            return f"{counted(len(self.devices), 'GPU')} in DEVICES, and each task needs one"
        if _workers_in_memory(own) < self.cores:
            assert own is not None
            return f"{own.megabytes} MiB of memory, and each task needs {WORKER_MEMORY} at least"
        return f"{counted(self.cores, 'core')}, and each task needs one"

    def max_tasks(self, cost: float) -> int:
        """Return how many tasks the GPUs, or the cores, have room for."""
        return self._max_tasks

    @property
    def has_gpus(self) -> bool:
        """Whether there are GPUs: then each task has one."""
        return bool(self.devices)

    def memory(self, earlier: Iterable[RunDirectory] = ()) -> int | None:
        """Return the free bytes on the fullest of the GPUs."""
        return free_memory(self.devices) if self.devices else None

    def device_names(self) -> Sequence[str]:
        """Return the names of the GPUs of DEVICES, of which the driver may know more than torch."""
        return gpu_names(self.devices) or super().device_names()

    def device_error(self, device: str) -> str:
        """Return why the GPUs of DEVICES are not one kind, as far as the driver names them."""
        if not self.devices:
            return super().device_error(device)
        named: dict[str, list[str]] = {}
        for number, name in enumerate(gpu_names(self.devices)):
            named.setdefault(name, []).append(str(number))
        if len(named) < 2:
            return ""
        listed = "; ".join(f"{name} ({', '.join(own)})" for name, own in named.items())
        return f"the GPUs are of several kinds: {listed}; choose some of one kind with DEVICES"

    def threads_per_worker(self, workers: int) -> int:
        """Return a worker's share of the cores."""
        return max(1, self.cores // workers)

    def tasks(self, threads: int, packs: int, cost: float, retries: int = 0) -> int:
        """Return how many tasks the GPUs or, without them, the cores have room for."""
        most = min(self._max_tasks, packs)
        return most if self.devices else min(most, max(1, self.cores // threads))

    def units(self, threads: int) -> tuple[str, int]:
        """Return GPU-hours if tasks have a GPU each, else core-hours."""
        return ("GPU-hours", 1) if self.devices else ("core-hours", threads)

    @doing("calibrating: training some packs for a few seconds")
    def calibrate(
        self, submission: Submission, write_order: Callable[[Path], None]
    ) -> list[Mapping[str, Any]]:
        """Train in as many processes as there would be tasks."""
        with exit_on_signals(), tempfile.TemporaryDirectory(prefix="mlpsubmit-") as name:
            folder = Path(name)
            write_order(folder)
            processes: list[subprocess.Popen[bytes]] = []
            try:
                for number in range(submission.tasks):
                    command = module_command(calibrate.__name__, folder, number)
                    log = folder / f"{number}.log"
                    processes.append(self._start(command, log, number, submission.threads))
                for process in processes:
                    process.wait()
            finally:
                for process in processes:
                    process.kill()
                    process.wait()
            return [_answer(folder, number) for number in range(submission.tasks)]

    def submit(self, submission: Submission) -> Iterator[Job]:
        """Start one process per task; there are at most as many tasks as max_tasks."""
        path = submission.path.resolve()
        for task in range(submission.tasks):
            name = task_name(submission.number, task)
            arguments = path, submission.number, submission.sweep_hash, task
            command = module_command(WORKER, *arguments)
            log = submission.run.log(submission.number, name)
            process = self._start(command, log, task, submission.threads)
            # Reaps the process when it ends, and holds its handle until then.
            threading.Thread(target=process.wait, daemon=True).start()
            yield Job.of_process(name, task, process.pid)

    def _start(
        self, command: Sequence[str], log: Path, number: int, threads: int
    ) -> subprocess.Popen[bytes]:
        """Start a process that has its own GPU, or its share of the cores.

        It has its own session and none of this process's pipes, so it outlives the terminal. Ctrl-C
        there reaches the launch alone, which then has its workers save and stop.
        """
        environment = {
            "CUDA_VISIBLE_DEVICES": ",".join(self.devices[number : number + 1]),
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }
        with log.open("ab") as output:
            files.share_file(log)
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )


def _answer(folder: Path, number: int) -> Mapping[str, Any]:
    """Return the answer of a process.

    Raises:
        UserError: with the end of its log, if it gave none.
    """
    try:
        answer: Mapping[str, Any] = files.read_json(calibrate.answer_file(folder, number))
    except FileNotFoundError:
        lines = (folder / f"{number}.log").read_text(errors="replace").splitlines()
        last = "\n".join(lines[-3:]) or "nothing"
        raise UserError(
            f"--calibrate: a process exited without an answer; its log ends:\n{last}"
        ) from None
    return answer


def _parts(visible: str) -> list[str]:
    """Return the devices of this process if MIG instances are among them; else none.

    A process of CUDA sees one instance alone, and torch counts one.

    Args:
        visible: the value of CUDA_VISIBLE_DEVICES; empty if all are visible.
    """
    found = listed_devices(visible) if visible else all_devices()
    return found if any(entry.startswith("MIG-") for entry in found) else []


def usable_cores(own: Allocation | None) -> int:
    """Return how many cores this process may use, which taskset, a cpuset or a job may limit."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return cores if own is None or own.cores is None else min(cores, own.cores)


def _workers_in_memory(own: Allocation | None) -> float:
    """Return how many workers on the cores the memory of a job holds; one at least."""
    return workers_in_memory(None if own is None else own.megabytes)


def gpus(hyperparameters: Hyperparameters, own: Allocation | None) -> list[str]:
    """Return the GPUs of DEVICES as entries of CUDA_VISIBLE_DEVICES; none on a machine without any.

    Raises:
        UserError: if DEVICES names a GPU that the machine, or the job, does not have.
    """
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    count = torch.cuda.device_count()
    if own is not None and own.gpus is not None and count:
        visible = ",".join(uuids(own.gpus))
        count = len(own.gpus)
    elif count and (parts := _parts(visible)):
        visible, count = ",".join(parts), len(parts)
    if hyperparameters.devices == "all":
        return visible_entries(list(range(count)), visible)
    beyond = [index for index in hyperparameters.devices if index >= count]
    if beyond:
        valid = f"0 to {count - 1}" if count else "none: leave DEVICES out to train on the cores"
        whose = "this machine's GPUs" if own is None else f"the GPUs of job {own.job}"
        raise UserError(f"DEVICES: got {beyond}; {whose} are {valid}")
    return visible_entries(list(hyperparameters.devices), visible)
