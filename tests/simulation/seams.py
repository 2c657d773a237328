"""Where the simulation meets the product: clock, scheduler, disk, and a stub for the training.

Modules of the product call ``time``, ``os`` and ``open`` by these names, and SLURM through one
function of ``jobs.slurm.commands``; nothing in them knows of a simulation.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import xarray.backends  # noqa: F401  (it draws random bytes when it is loaded)
from shared_disk import GROUP, ROOT, patch_files
from stub_training import stub_assemble
from virtual_time import THREADING, current, patch_time
from virtual_workers import VirtualWorkers

from mlpsubmit.jobs import as_launched, heartbeat, node, task, train_pack, worker
from mlpsubmit.jobs.signals import StopFlag
from mlpsubmit.jobs.slurm import commands
from mlpsubmit.jobs.store import shards
from mlpsubmit.native.library import library
from mlpsubmit.runs import launch, manifest
from mlpsubmit.spec import load
from mlpsubmit.spec.process import ProcessSettings, Surroundings

__all__ = ["patch_product"]

#: Heartbeats per second of all tasks: so few that every task writes one every half minute, which is
#: what a run of hundreds of tasks does.
_BEATS = 0.01


def patch_product() -> None:
    """Put the simulated clock, scheduler, disk and training below the product, for good."""
    # Kept by this process: compiling takes real seconds, and simulated users have no cache.
    library(torch.float32)
    patch_time()
    patch_files(lambda: _schedule().disk)
    heartbeat.threading = THREADING
    commands.subprocess = SimpleNamespace(
        run=lambda command, **options: _schedule().cluster.run(list(command), **options),
        DEVNULL=subprocess.DEVNULL,
        TimeoutExpired=subprocess.TimeoutExpired,
        CompletedProcess=subprocess.CompletedProcess,
    )
    commands.shutil = SimpleNamespace(which=lambda name: f"/usr/bin/{name}")
    worker.stop_on_signals = _stop_on_signals
    node.Workers = VirtualWorkers
    task.BEATS_PER_SECOND = _BEATS
    _patch_machines()
    _patch_training()


def _schedule() -> Any:
    process = current()
    assert process is not None
    return process.world.schedule


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[StopFlag]:
    process, stop = current(), StopFlag()
    assert process is not None
    process.on_signal = stop.set
    yield stop
    process.on_signal = None


def _patch_machines() -> None:
    """Give every machine its name, and every schedule its own random names of files."""
    hostname, urandom, hexadecimal = socket.gethostname, os.urandom, secrets.token_hex

    def random_bytes(count: int) -> bytes:
        process = current()
        return urandom(count) if process is None else process.world.random.randbytes(count)

    socket.gethostname = lambda: hostname() if current() is None else current().machine.name
    os.urandom = random_bytes
    secrets.token_hex = lambda n=None: (
        hexadecimal(n) if current() is None else random_bytes(n or 32).hex()
    )
    sys.stdout = _Output(sys.stdout)
    for name in ("getuid", "geteuid", "getgid", "getegid"):
        setattr(os, name, _of_process(getattr(os, name), lambda process: process.user))
    real_umask = os.umask
    os.umask = lambda mask: real_umask(mask) if current() is None else _set_umask(mask)
    os.getgroups = _of_process(os.getgroups, lambda process: [process.user, GROUP])


def _set_umask(mask: int) -> int:
    process = current()
    assert process is not None
    before = process.umask
    if before is None:
        before = _schedule().disk.umasks.get(process.user, 0o022)
    process.umask = mask
    return before


def _of_process(real: Callable[[], Any], simulated: Callable[[Any], Any]) -> Callable[[], Any]:
    """Return a function about the current process, simulated or real."""
    return lambda: real() if current() is None else simulated(current())


class _Output(io.TextIOBase):
    """Standard output, of each simulated process its own."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def write(self, text: str) -> int:
        process = current()
        if process is None:
            self._real.write(text)
        else:
            process.output(text)
        return len(text)

    def flush(self) -> None:
        self._real.flush()


def _patch_training() -> None:
    """Leave out what trains, and what changes this whole Python process."""
    train_pack.assemble = stub_assemble(lambda: _schedule().registry)
    train_pack.smoke_test = lambda *_: None
    task.sharing_compiled = contextlib.nullcontext
    launch.tried = lambda sweep, _: sweep
    manifest._git = lambda *_: b""
    load.pickle_sweep = functools.cache(load.pickle_sweep)
    as_launched.unpickle_surroundings = functools.cache(as_launched.unpickle_surroundings)
    as_launched.unpickle_sweep = functools.cache(as_launched.unpickle_sweep)
    Surroundings.applied = ProcessSettings.applied = lambda *_, **__: contextlib.nullcontext()
    ProcessSettings.seed_generators = lambda *_: None
    save, read, append = torch.save, torch.load, shards.Shard.append

    # torch opens paths itself, below Python.
    def saved(content: Any, file: Any, **options: Any) -> None:
        if hasattr(file, "write") or not os.fspath(file).startswith(ROOT):
            save(content, file, **options)
            return
        with open(file, "wb") as stream:
            save(content, stream, **options)

    def loaded(file: Any, **options: Any) -> Any:
        if not hasattr(file, "read") and os.fspath(file).startswith(ROOT):
            options.pop("mmap", None)
            with open(file, "rb") as stream:
                return read(io.BytesIO(stream.read()), **options)
        return read(file, **options)

    def appended(shard: shards.Shard, name: str, content: bytes, **options: Any) -> None:
        append(shard, name, content, **options)
        _schedule().appended(shard.path.parents[1], name)

    torch.save, torch.load, shards.Shard.append = saved, loaded, appended
