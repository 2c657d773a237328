"""The results of data functions, computed once per run by the first task that needs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mlpsubmit import files
from mlpsubmit.arguments import call, function_name
from mlpsubmit.assembly.batch_streams import data_arguments
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.protocol import SUPPLIED
from mlpsubmit.spec.fingerprint import digest
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.precision import dtype_of, functions_dtype
from mlpsubmit.training.seeds import data_seed

__all__ = ["SharedData"]

_NONE: Mapping[str, Any] = {}


class SharedData:
    """The data entries of a run in one task."""

    def __init__(self, run: RunDirectory, sweep: Sweep, device: torch.device) -> None:
        self._run = run
        self._sweep = sweep
        self._device = device
        self._function = digest(sweep.data)
        self._loaded: dict[str, Mapping[str, Any] | Exception] = {}

    def entries(self, config: Config) -> Mapping[str, Any]:
        """Return the entries of the data function for a config, its tensors on the device.

        Equal arguments give the same object; if the function raised, the same error is raised.
        """
        if self._sweep.data is None:
            return _NONE
        arguments = data_arguments(self._sweep, config)
        if "gen" in arguments:
            arguments["gen"] = data_seed(config.hyperparameters.seed)
        precision = config.hyperparameters.precision
        key = digest(self._function, arguments, dtype_of(precision) == torch.float64).hex()
        if key not in self._loaded:
            try:
                self._loaded[key] = self._on_device(self._load(key, arguments, precision))
            except Exception as error:
                self._loaded[key] = error
        entries = self._loaded[key]
        if isinstance(entries, Exception):
            raise entries
        return entries

    def _load(self, key: str, arguments: Mapping[str, Any], precision: str) -> Mapping[str, Any]:
        """Load what another task computed, or compute it for all tasks."""
        file = self._run.data_file(key)
        with files.locked(file.with_suffix(".lock")):
            if not file.exists():
                with functions_dtype(precision):
                    entries = self._compute(arguments)
                files.publish(file, lambda stream: torch.save(entries, stream))
        loaded: Mapping[str, Any] = torch.load(file, weights_only=False, mmap=True)
        return loaded

    def _compute(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
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
            raise TypeError(
                f"the data function {name} returned {type(entries).__name__}; it should return a "
                "mapping of names to arrays"
            )
        if taken := sorted(SUPPLIED & set(entries)):
            raise ValueError(
                f"the data function {name} returned entries called {', '.join(taken)}, which mean "
                "something else to batch functions and grabs; give them other names, such as "
                "X_train and y_train"
            )
        return {name: _as_tensor(value) for name, value in entries.items()}

    def _on_device(self, entries: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            name: value.to(self._device) if isinstance(value, torch.Tensor) else value
            for name, value in entries.items()
        }


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
