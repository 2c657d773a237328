"""The results of data functions, computed once per run by the first task that needs them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import stat
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from mlpsubmit import files
from mlpsubmit.arguments import call, declared, function_name
from mlpsubmit.assembly.batch_streams import data_arguments
from mlpsubmit.checksums import sealed
from mlpsubmit.display.output import echo
from mlpsubmit.errors import RunError, SpecError
from mlpsubmit.jobs.environment import environment
from mlpsubmit.jobs.input_files import record
from mlpsubmit.jobs.signals import StopFlag
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.jobs.trust import untrusted, untrusted_status
from mlpsubmit.masked import is_masked
from mlpsubmit.protocol import SUPPLIED
from mlpsubmit.spec.fingerprint import digest
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.monitor import Interrupted
from mlpsubmit.training.oom import ran_out_of_memory
from mlpsubmit.training.precision import dtype_of, functions_dtype
from mlpsubmit.training.seeds import data_seed

__all__ = ["SharedData", "content_hash", "data_keys"]

_NONE: Mapping[str, Any] = {}


class SharedData:
    """The data entries of a run in one task.

    Args:
        packs: the indices of the configs of each pack that will train, in order: entries that none
            of the remaining packs needs are dropped.
        stop: set when the task is to stop; then it waits for no other task.
        trust: load files that other users could have written.
    """

    def __init__(
        self,
        run: RunDirectory,
        sweep: Sweep,
        device: torch.device,
        packs: Iterable[NDArray[np.int64]] = (),
        stop: StopFlag | None = None,
        *,
        trust: bool = False,
    ) -> None:
        self._run = run
        self._trust = trust
        self._stop = stop or StopFlag()
        self._sweep = sweep
        self._device = device
        self._loaded: dict[str, Mapping[str, Any]] = {}
        self._failed: dict[str, Exception] = {}
        #: By path, the content of every file that the compared data was read from.
        self._inputs: dict[str, str] = {}
        self._compared: set[str] = set()
        #: The number of packs that have ended, and by key after how many its entries are dropped.
        self._ended = 0
        self._last_use: dict[str, int] = {}
        #: The same by the points of the axes that the data depends on; keys are made when needed.
        self._last_use_of_point: dict[int, int] = {}
        if sweep.data is not None:
            for number, indices in enumerate(packs, start=1):
                points = np.unique(_data_points(sweep, indices)).tolist()
                self._last_use_of_point.update(dict.fromkeys(points, number))

    def entries(self, config: Config) -> Mapping[str, Any]:
        """Return the entries of the data function for a config, its tensors on the device.

        Equal arguments give the same object; if the function raised, the same error is raised.

        Raises:
            Interrupted: the task is to stop while another one computes the data.
            RunError: the data was lost, and is another one when it is computed again.
        """
        if self._sweep.data is None:
            return _NONE
        arguments = _arguments(self._sweep, config)
        precision = config.hyperparameters.precision
        key = _key(self._sweep, arguments, precision)
        if key in self._failed:
            raise self._failed[key]
        if key not in self._loaded:
            self._loaded[key] = self._on_device(self._load(key, arguments, precision))
        (point,) = _data_points(self._sweep, np.array([config.index])).tolist()
        last = self._last_use_of_point.get(point, self._ended + 1)
        self._last_use[key] = max(last, self._last_use.get(key, 0))
        return self._loaded[key]

    def end_pack(self) -> None:
        """Drop the entries that no pack after this one needs, and what errors hold in memory."""
        self._ended += 1
        for error in self._failed.values():
            cause: BaseException | None = error
            while cause is not None:
                traceback.clear_frames(cause.__traceback__)  # local variables, perhaps data sets
                cause = cause.__cause__ or cause.__context__
        for key in [key for key in self._loaded if self._last_use.get(key, 0) <= self._ended]:
            del self._loaded[key]

    def _load(self, key: str, arguments: Mapping[str, Any], precision: str) -> Mapping[str, Any]:
        """Load what another task computed, or compute it for all tasks."""
        file = self._run.data_file(key)
        lock = file.with_suffix(".lock")
        if not os.access(lock if lock.exists() else lock.parent, os.W_OK):
            return self._load_read_only(key)
        with files.locked(lock, waiting=self._waiting(key)):
            with self._opened(file) as stored:
                known: Mapping[str, Any] | None = self._run.data_record(key)
                if problem := self._run.unreadable.get(file.with_suffix(".json")):
                    warnings.warn(problem, stacklevel=2)
                if known is not None:
                    if (entries := stored.read(known["data_checksum"])) is not None:
                        return entries
                    echo(f"{file}: {stored.problem}; its data is computed again")
                elif file.with_suffix(".json").exists():  # the record is damaged
                    entries = stored.read()
                    known = None if entries is None else {"hash": content_hash(entries)}
            return self._compute(key, arguments, precision, known)

    def _load_read_only(self, key: str) -> Mapping[str, Any]:
        """Load what a task has computed from a run that this process cannot write to."""
        file = self._run.data_file(key)
        known = self._run.data_record(key)
        with self._opened(file) as stored:
            entries = None if known is None else stored.read(known["data_checksum"])
        if entries is not None:
            return entries
        raise RunError(
            f"{file}: {stored.problem}, and run {self._run.id} is not writable, so that its "
            "data cannot be computed again; do this as the user to whom the run belongs, or launch "
            "its spec with another --runs-dir"
        )

    @contextlib.contextmanager
    def _opened(self, file: Path) -> Iterator[_StoredData]:
        """Open a data file, whose content is loaded without executing any if others wrote it.

        Within a run that a group shares; in others, that of another user is not loaded.
        """
        try:
            stream = files.open_regular(file)
        except FileNotFoundError:
            yield _StoredData(None, "is missing")
            return
        except OSError as error:
            yield _StoredData(None, f"cannot be read ({error.strerror})")
            return
        with stream:
            status = os.fstat(stream.fileno())
            shared = files.is_shared(file.parent, writable=True)
            why = untrusted_status(status) or (None if shared else untrusted(file.parent))
            if self._trust or why is None:
                yield _StoredData(stream)
            elif shared and not status.st_mode & _OTHERS_WRITE:
                yield _StoredData(stream, executes=False)
            else:
                yield _StoredData(stream, why)

    def _waiting(self, key: str) -> Callable[[], None]:
        """Return what to call while another task has the lock of some entries."""
        reported = False

        def waiting() -> None:
            nonlocal reported
            if self._stop.is_set():
                raise Interrupted
            if not reported:
                echo(f"data {key}: another task is computing it; waiting for that")
            reported = True

        return waiting

    def _compute(
        self,
        key: str,
        arguments: Mapping[str, Any],
        precision: str,
        known: Mapping[str, Any] | None,
    ) -> Mapping[str, Any]:
        """Call the data function, and publish its entries with their hash and its inputs.

        Returns:
            What is stored, read from the file that was written, whatever is in its place by now.
        """
        try:
            with functions_dtype(precision):
                entries, read = record(lambda: self._called(arguments), self._run.path)
        except Exception as error:
            # A disk or a memory may do better for the next pack; a function will not.
            if not (isinstance(error, OSError) or ran_out_of_memory(error)):
                self._failed[key] = error
            raise
        if unseen := read.unseen:
            echo(
                f"data {key}: what {', '.join(sorted(unseen))} read is not recorded; name its "
                'files with sys.audit("mlpsubmit.input", path)',
            )
        file = self._run.data_file(key)
        record_file = file.with_suffix(".json")
        files.remove_leftovers(file.parent, (file.name, record_file.name).__contains__)
        with files.published(file) as temporary, temporary.open("x+b") as stream:
            checksum = sealed(partial(torch.save, entries))(stream)
            stream.flush()
            os.fchmod(stream.fileno(), 0o755 & os.fstat(stream.fileno()).st_mode)  # only I write
            stored = _read(stream)
            content = {
                "hash": content_hash(stored),
                "data_checksum": checksum,
                "arguments": {name: f"{value!r:.200}" for name, value in arguments.items()},
                **read.to_json(),
                "environment": environment(self._device),
            }
            self._check_inputs(content["files"])
            if known is not None and known["hash"] != content["hash"]:
                raise RunError(_recomputed(self._run, known["hash"], content["hash"]))
        # A process that dies before this leaves a pair that does not match: it is computed again.
        files.publish_json(record_file, {**content, **(known or {}), "data_checksum": checksum})
        return stored

    def _check_inputs(self, inputs: Iterable[Mapping[str, Any]]) -> None:
        """Raise a RunError if data of this run was read from another content of the same file."""
        for name, earlier in self._run.data_records(besides=self._compared).items():
            self._compared.add(name)
            self._inputs.update((file["path"], _identity(file)) for file in earlier["files"])
        for file in inputs:
            if self._inputs.get(file["path"], _identity(file)) != _identity(file):
                raise RunError(
                    f"{file['path']} has changed since other data of run {self._run.id} was read "
                    "from it; restore it and resume the run, or train everything on the file as it "
                    "is: launch with --fresh"
                )

    def _called(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        function = self._sweep.data
        assert function is not None
        # Functions of the user may draw from the global generators: in any task the same.
        if self._sweep.process is not None:
            self._sweep.process.seed_generators(data_seed(self._sweep.base.seed))
        if "gen" in arguments:
            generator = torch.Generator().manual_seed(arguments["gen"])
            arguments = {**arguments, "gen": generator}
        entries = call(function, arguments)
        name = function_name(function)
        if not isinstance(entries, Mapping):
            raise SpecError(
                f"the data function {name} returned {type(entries).__name__}; it should return a "
                "mapping of names to arrays"
            )
        if taken := sorted(SUPPLIED & set(entries)):
            raise SpecError(
                f"the data function {name} returned entries called {', '.join(taken)}, which mean "
                "something else to batch functions and grabs; give them other names, such as "
                "X_train and y_train"
            )
        if masked := [entry for entry, value in entries.items() if is_masked(value)]:
            raise SpecError(
                f"the data function {name} returned masked entries in {', '.join(masked)}; valid "
                "are arrays of numbers alone; try .filled(0), or leave these rows out"
            )
        return {name: _as_stored(value) for name, value in entries.items()}

    def _on_device(self, entries: Mapping[str, Any]) -> Mapping[str, Any]:
        on_device = {
            name: value.to(self._device) if isinstance(value, torch.Tensor) else value
            for name, value in entries.items()
        }
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # packs on other streams use it too
        return on_device


def _identity(file: Mapping[str, Any]) -> str:
    """Return the hash of a recorded file, or of a large one its size and time."""
    return file["hash"] or f"{file['size']} bytes of {file['mtime']}"


#: Modes with which others than the owner can write.
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass
class _StoredData:
    """A data file that is open: what is compared is what is loaded, whatever takes its place.

    Attributes:
        problem: why it is not loaded; empty if nothing is known against that.
        executes: whether loading it may execute what is in it.
    """

    stream: BinaryIO | None
    problem: str = ""
    executes: bool = True

    def read(self, checksum: str | None = None) -> Mapping[str, Any] | None:
        """Return the entries; None, with a problem, if they cannot be loaded.

        Args:
            checksum: that of the file; by default that in it.
        """
        if self.stream is None or self.problem:
            return None
        found = files.verify_open(self.stream)
        if found is None or checksum not in (None, found):
            self.problem = "is damaged"
            return None
        try:
            return _read(self.stream, executes=self.executes)
        except pickle.UnpicklingError:
            self.problem = "is another user's, and holds more than arrays and numbers"
            return None


def _read(stream: BinaryIO, *, executes: bool = True) -> Mapping[str, Any]:
    """Return the entries in an open file, whose tensors are mapped."""
    path = f"/proc/self/fd/{stream.fileno()}"
    file: str = path if os.path.exists(path) else stream.name
    loaded: Mapping[str, Any] = torch.load(file, weights_only=not executes, mmap=True)
    return loaded


def _recomputed(run: RunDirectory, before: str, now: str) -> str:
    return (
        f"run {run.id}: the data function returns other data (hash {now}) than that with which "
        f"results of this run were made (hash {before}), whose file is lost or damaged; a file "
        "that it reads has changed, it draws from another generator than gen, or it rounds "
        "differently here; to train everything on the new data, launch with --fresh"
    )


def _as_stored(value: Any) -> Any:
    """Return an array as a tensor in RAM: a task without a GPU may load it."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value, value.dtype.newbyteorder("=")))
    return value.cpu() if isinstance(value, torch.Tensor) else value


# ---- keys and hashes -----------------------------------------------------------------------------


def _arguments(sweep: Sweep, config: Config) -> dict[str, Any]:
    """Return the arguments of the data function for a config, its generator as a seed."""
    arguments = data_arguments(sweep, config)
    if "gen" in arguments:
        arguments["gen"] = data_seed(config.hyperparameters.seed)
    return arguments


def _key(sweep: Sweep, arguments: Mapping[str, Any], precision: str) -> str:
    return digest(sweep.data_digest, arguments, dtype_of(precision) == torch.float64).hex()


def _data_points(sweep: Sweep, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, for flat indices of configs (n,), those of the axes that the data depends on."""
    assert sweep.data is not None
    names = {*declared(sweep.data), "datasethps", "seed", "precision"}
    names |= {canonical for spelt, canonical in sweep.spellings.items() if spelt in names}
    return sweep.product.indices_along(names, indices)


def data_keys(sweep: Sweep, indices: NDArray[np.int64]) -> set[str]:
    """Return the keys of the data of the configs at flat indices (n,)."""
    if sweep.data is None:
        return set()
    _, first = np.unique(_data_points(sweep, indices), return_index=True)
    configs = (sweep.config(int(index)) for index in indices[first])
    return {
        _key(sweep, _arguments(sweep, config), config.hyperparameters.precision)
        for config in configs
    }


def content_hash(entries: Mapping[str, Any]) -> str:
    """Return the hex BLAKE2b hash of the names and contents of data entries.

    The device and the memory layout of a tensor do not matter; its type and its shape do.
    """
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(entries, key=str):
        whole.update(digest(name))
        value = entries[name]
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            whole.update(digest(str(value.dtype), list(value.shape)))
            flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            if flat.numel():  # read in place: digest() would copy it
                whole.update(flat.view(torch.uint8).numpy().data)
        else:
            whole.update(_object_hash(value))
    return whole.hexdigest()


def _object_hash(value: Any) -> bytes:
    try:
        return digest(value)
    except TypeError:  # it holds something that has no content for keys, but can be stored
        return digest(pickle.dumps(value))
