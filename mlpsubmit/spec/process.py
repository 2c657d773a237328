"""What a spec sets in its process: recorded where the spec is read, applied where it trains.

| a spec may set | when a worker sets it |
|---|---|
| working directory, ``sys.path``, ``sys.argv``, environment variables | before it imports torch |
| default dtype, flags of ``torch.backends``, ``numpy.seterr``, warning filters | for its task |
| seeds of the global generators | before each training, and before data is computed |

What belongs to a hyperparameter, to the plan (threads) or to the cluster is refused.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import random
import re
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlpsubmit.errors import SpecError
from mlpsubmit.spec.libraries import in_library_folder, in_site_packages

__all__ = ["ProcessSettings", "Surroundings", "reading_process"]

#: Environment variables that a spec must not set, and what to do instead.
_REFUSED = {
    r"(OMP|GOMP)_.*|.*_(NUM|MAX)_THREADS|KMP_(AFFINITY|HW_SUBSET|SETTINGS)|MKL_DYNAMIC": (
        "the threads of a task come from the plan (the cores of --tasks or of the template)"
    ),
    r"(CUDA|HIP|ROCR)_VISIBLE_DEVICES": "choose GPUs by DEVICES=[0, 1], or by the template",
    r"(SLURM|SBATCH|SRUN|SALLOC)_.*": "use the keys of a template, or options such as --account",
    r"MLPSUBMIT_.*": "give it on the command line, as in --runs-dir",
    r"NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32_.*": "set PRECISION in the Sweep",
    (
        r"ATEN_CPU_CAPABILITY|MKL_(CBWR|ENABLE_INSTRUCTIONS|DEBUG_CPU_TYPE)|OPENBLAS_CORETYPE"
        r"|(ONEDNN|DNNL)_MAX_CPU_ISA|NPY_(EN|DIS)ABLE_CPU_FEATURES"
    ): "it is read when torch and numpy are loaded, before the spec: export it in the shell",
}

#: Variables that a process gets from the tools around it, not from the user's code. No result
#: depends on them.
_OF_TOOLS = re.compile(
    r"PYTEST_.*|JPY_.*|PYDEVD_.*|KMP_(INIT_AT_FORK|DUPLICATE_LIB_OK)|COLUMNS|LINES|TERM|COLORTERM"
    r"|CLICOLOR.*|FORCE_COLOR|NO_COLOR|(GIT_)?PAGER|MPLBACKEND|QT_API"
    r"|_RJEM_.*"  # of an allocator, set by import polars
    r"|_TORCHINDUCTOR_.*"  # an address, set by the compiler of torch
    r"|WANDB_.*"  # some set by wandb itself, others secrets
)

#: Set by training itself, or by torch's compiler.
_OF_TRAINING = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TORCHINDUCTOR_CACHE_DIR": None}


def _why_refused(variable: str) -> str | None:
    return next((why for names, why in _REFUSED.items() if re.fullmatch(names, variable)), None)


# ---- what is set before torch is imported --------------------------------------------------------


@dataclass(frozen=True)
class Surroundings:
    """What a process has before it imports anything; plain values, so that no pickle imports torch.

    Attributes:
        folder: the working directory.
        path: the folders in ``sys.path`` before and after those of Python itself, absolute.
        environment: variables that were set, or removed (None).
        argv: ``sys.argv``.
    """

    folder: str
    path: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    environment: Mapping[str, str | None] = field(default_factory=dict)
    argv: tuple[str, ...] = ("",)

    @classmethod
    def of_this_process(cls, environment: Mapping[str, str]) -> Surroundings:
        """Return those of this process.

        Args:
            environment: the variables before the user changed them.
        """
        entries = [os.path.abspath(entry) for entry in sys.path if entry]
        pythons = [number for number, entry in enumerate(entries) if _of_python(entry)]
        first = pythons[0] if pythons else len(entries)
        before, after = (
            tuple(dict.fromkeys(entry for entry in part if not _of_python(entry)))
            for part in (entries[:first], entries[first:])
        )
        names = {*environment, *os.environ}
        changed = {
            name: os.environ.get(name)
            for name in sorted(names)
            if environment.get(name) != os.environ.get(name)
        }
        return cls(os.getcwd(), (before, after), changed, tuple(sys.argv))

    def moved(self, here: Callable[[str], str]) -> Surroundings:
        """Return these with every folder replaced by where it is now."""
        before, after = (tuple(map(here, part)) for part in self.path)
        return replace(self, folder=here(self.folder), path=(before, after))

    @contextlib.contextmanager
    def applied(self, otherwise: Path | None = None) -> Iterator[None]:
        """Set them within the context, and restore all of them afterwards.

        Args:
            otherwise: the working directory if the recorded one does not exist; by default this
                one.
        """
        with _restored():
            for name, value in self.environment.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            self._extend_path()
            sys.argv[:] = self.argv
            os.chdir(self.folder if os.path.isdir(self.folder) else otherwise or os.curdir)
            yield

    def _extend_path(self) -> None:
        """Add the folders to ``sys.path``, behind Python's standard library.

        A ``random.py`` beside the spec must not be found where torch imports Python's.
        """
        before, after = self.path
        standard = str(Path(os.__file__).parent)
        own = (n for n, entry in enumerate(sys.path, 1) if entry.startswith(standard))
        place = max((n for n in own if not in_site_packages(Path(sys.path[n - 1]))), default=0)
        sys.path[place:place] = [entry for entry in before if entry not in sys.path]
        sys.path += [entry for entry in after if entry not in sys.path]


@functools.cache
def _of_python(entry: str) -> bool:
    """Return whether an entry of ``sys.path`` is one of this Python, which any worker has."""
    scripts = (sysconfig.get_path("scripts"), os.path.dirname(sys.executable))
    zipped = re.fullmatch(r"python3\d+\.zip", os.path.basename(entry))
    return bool(zipped) or entry in scripts or in_library_folder(Path(entry))


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Restore the working directory, ``sys.path``, ``sys.argv`` and the environment afterwards."""
    folder, path, argv, environment = os.getcwd(), sys.path[:], sys.argv[:], dict(os.environ)
    try:
        yield
    finally:
        os.chdir(folder)
        sys.path[:], sys.argv[:] = path, argv
        for name in {*os.environ, *environment}:
            if name not in environment:
                del os.environ[name]
            elif os.environ.get(name) != environment[name]:
                os.environ[name] = environment[name]


def _at_start() -> dict[str, str]:
    """Return the environment with which this process was started."""
    try:
        entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return dict(os.environ)
    pairs = (os.fsdecode(entry).partition("=") for entry in entries if b"=" in entry)
    return {name: value for name, _, value in pairs}


_ENVIRONMENT, _FILTERS = _at_start(), list(warnings.filters)


# ---- switches of torch and numpy -----------------------------------------------------------------


@dataclass(frozen=True)
class _Switch:
    """How one setting is read and set, and its default.

    Attributes:
        instead: the hyperparameter that it belongs to, if any.
    """

    read: Callable[[], Any]
    set: Callable[[Any], Any]
    default: Any
    instead: str = ""

    @property
    def value(self) -> Any:
        try:
            value = self.read()
        except RuntimeError:  # torch refuses to read what was set by two of its interfaces
            return "mixed"
        return "none" if value == "ieee" else value  # both mean fp32


def _attribute(owner: Any, name: str, default: Any, instead: str = "") -> _Switch:
    return _Switch(
        lambda: getattr(owner, name), lambda value: setattr(owner, name, value), default, instead
    )


_MATMUL = "torch.set_float32_matmul_precision"

#: Flags of torch.backends: their defaults, and the hyperparameter that sets them.
_FLAGS = {
    "fp32_precision": ("none", "PRECISION"),
    "cuda.matmul.fp32_precision": ("none", "PRECISION"),
    "cudnn.fp32_precision": ("none", "PRECISION"),
    "mkldnn.fp32_precision": ("none", "PRECISION"),
    "cudnn.allow_tf32": (True, "PRECISION"),
    "cudnn.benchmark": (False, "DETERMINISTIC"),
    "cudnn.deterministic": (False, ""),
    "cudnn.enabled": (True, ""),
    "mkldnn.enabled": (True, ""),
    "mkldnn.deterministic": (False, ""),
    "cuda.matmul.allow_fp16_reduced_precision_reduction": (True, ""),
    "cuda.matmul.allow_bf16_reduced_precision_reduction": (True, ""),
    "cuda.matmul.allow_fp16_accumulation": (False, ""),
}


def _loaded_torch() -> Any:
    """Return torch; None where it is not installed, where a spec can be read all the same."""
    with contextlib.suppress(ModuleNotFoundError):
        import torch  # noqa: F401
    return sys.modules.get("torch")


@functools.cache
def _switches() -> dict[str, _Switch]:
    """Return the switches by the name that a user writes."""
    errors = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
    found = {"numpy.seterr": _Switch(np.geterr, lambda errors: np.seterr(**errors), errors)}
    torch = _loaded_torch()
    if torch is None:
        return found
    filling = importlib.import_module("torch.utils.deterministic")
    found |= {
        "torch.set_default_dtype": _Switch(
            torch.get_default_dtype, torch.set_default_dtype, torch.float32
        ),
        "torch.set_default_device": _Switch(
            lambda: torch.get_default_device().type,
            lambda device: torch.set_default_device(None if device == "cpu" else device),
            "cpu",
            "the argument device of functions",
        ),
        _MATMUL: _Switch(
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
            "highest",
            "PRECISION",
        ),
        "torch.use_deterministic_algorithms": _Switch(
            torch.get_deterministic_debug_mode,
            torch.set_deterministic_debug_mode,
            0,
            "DETERMINISTIC",
        ),
        "torch.set_grad_enabled": _Switch(torch.is_grad_enabled, torch.set_grad_enabled, True),
        "torch.autograd.set_detect_anomaly": _Switch(
            torch.is_anomaly_enabled, torch.set_anomaly_enabled, False
        ),
        "torch.set_flush_denormal": _Switch(_flushes, torch.set_flush_denormal, False),
        "torch.utils.deterministic.fill_uninitialized_memory": _attribute(
            filling, "fill_uninitialized_memory", True
        ),
    }
    for name, (default, instead) in _FLAGS.items():
        *modules, flag = name.split(".")
        owner = functools.reduce(lambda o, part: getattr(o, part, None), modules, torch.backends)
        if hasattr(owner, flag):
            found[f"torch.backends.{name}"] = _attribute(owner, flag, default, instead)
    for kind in ("flash", "mem_efficient", "math", "cudnn"):
        read = getattr(torch.backends.cuda, f"{kind}_sdp_enabled", None)
        if read is not None:
            name = f"enable_{kind}_sdp"
            switch = _Switch(read, getattr(torch.backends.cuda, name), True)
            found[f"torch.backends.cuda.{name}"] = switch
    return found


def _flushes() -> bool:
    return float(np.finfo(np.float64).tiny) / 2 == 0.0


def _set_switches(values: Mapping[str, Any]) -> None:
    for name, switch in _switches().items():
        if switch.value != values.get(name, switch.default):
            switch.set(values.get(name, switch.default))


def _switched() -> dict[str, Any]:
    """Return the values of the switches that are not at their default."""
    values = {name: switch.value for name, switch in _switches().items()}
    return {name: value for name, value in values.items() if value != _switches()[name].default}


@contextlib.contextmanager
def _switches_restored() -> Iterator[None]:
    before = _switched()
    try:
        yield
    finally:
        _set_switches(before)


def _agrees(name: str, value: Any, precision: str, deterministic: bool) -> bool:
    """Return whether a switch of a hyperparameter has the value that training gives it anyway."""
    tf32 = precision == "tf32"
    if name.endswith("fp32_precision"):
        return bool(tf32 and value == "tf32")
    if name == _MATMUL:
        return bool(value == ("high" if tf32 else "highest"))
    if name == "torch.use_deterministic_algorithms":
        return bool(value) == deterministic and value != 1
    if name == "torch.backends.cudnn.benchmark":
        return not deterministic
    return name == "torch.backends.cudnn.allow_tf32" and value == tf32


# ---- global generators ---------------------------------------------------------------------------

#: The seed of the global generators where a spec starts, which differs from any that one may set.
_UNSEEDED = 0x6D6C707375626D69


def _generator_states() -> dict[str, Any]:
    """Return the states of the global generators, as values that can be hashed and pickled."""
    state: Any = np.random.get_state()
    kind, key, *rest = state
    states = {"numpy": (kind, key.tobytes(), *rest), "random": random.getstate()}
    torch = _loaded_torch()
    if torch is not None:
        states["torch"] = (torch.initial_seed(), torch.get_rng_state().numpy().tobytes())
    return states


def _set_generators(states: Mapping[str, Any], seed: int) -> None:
    """Set the states of the global generators; seed those that have none."""
    torch = _loaded_torch()
    if torch is not None:
        initial, state = states.get("torch", (seed, None))
        _seed_torch(torch, initial)
        if state is not None:
            torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    if "numpy" in states:
        kind, key, *rest = states["numpy"]
        np.random.set_state((kind, np.frombuffer(key, np.uint32), *rest))
    else:
        np.random.seed(seed % 2**32)
    if "random" in states:
        random.setstate(states["random"])
    else:
        random.seed(seed)


def _seed_torch(torch: Any, seed: int) -> None:
    """Seed torch's generators of every device, as ``torch.manual_seed`` does.

    That keeps the call, with its stack, for each kind of device that is not in use, in case it will
    be: half a millisecond and some memory, every time. A machine has one kind at most.
    """
    accelerator = getattr(torch, "accelerator", None)  # since torch 2.6
    if accelerator is not None and not accelerator.is_available():
        torch.default_generator.manual_seed(seed)
    elif accelerator is not None and accelerator.current_accelerator().type == "cuda":
        torch.default_generator.manual_seed(seed)
        torch.cuda.manual_seed_all(seed)
    else:
        torch.manual_seed(seed)


# ---- all of them ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProcessSettings:
    """All that a spec, or the process that launches a sweep, has set.

    Attributes:
        surroundings: what is set before torch is imported.
        switches: {name: value} of the switches that are not at their default.
        filters: the warning filters that were added, the first one first.
        generators: the states of the global generators that the spec seeded or drew from.
    """

    surroundings: Surroundings
    switches: Mapping[str, Any] = field(default_factory=dict)
    filters: tuple[Any, ...] = ()
    generators: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_this_process(cls) -> ProcessSettings:
        """Return the settings of a script or a notebook that calls mlpsubmit itself.

        Seeds are not among them, as it has drawn from its generators since: a launch warns of
        functions that draw from these.
        """
        surroundings = Surroundings.of_this_process(_ENVIRONMENT)
        environment = {
            name: value
            for name, value in surroundings.environment.items()
            if not (_why_refused(name) or _OF_TOOLS.fullmatch(name))
        }
        surroundings = replace(surroundings, environment=environment)
        return cls(surroundings, _switched(), _added_filters(_FILTERS))

    def check(self, precision: str, deterministic: bool) -> None:
        """Refuse switches that belong to a hyperparameter, and differ from what it sets.

        Raises:
            SpecError: listing them.
        """
        refused = {
            name: value
            for name, value in self.switches.items()
            if _switches()[name].instead and not _agrees(name, value, precision, deterministic)
        }
        follows = [name for name in refused if name.endswith("fp32_precision")]
        for name in follows if refused.get(_MATMUL, "mixed") != "mixed" else follows[1:]:
            del refused[name]  # these flags follow each other
        if errors := [
            f"{name}: set to {value!r} by the spec, but training sets it itself; leave it out, and "
            f"use {_switches()[name].instead}{_example(name, value)} instead"
            for name, value in refused.items()
        ]:
            raise SpecError(errors)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Set all but the seeds within the context, and restore everything afterwards."""
        with self.surroundings.applied(), _switches_restored(), warnings.catch_warnings():
            names = {name for name, switch in _switches().items() if not switch.instead}
            _set_switches({n: value for n, value in self.switches.items() if n in names})
            for action, message, category, module, line in reversed(self.filters):
                texts = (
                    getattr(pattern, "pattern", pattern) or "" for pattern in (message, module)
                )
                warnings.filterwarnings(action, next(texts), category, next(texts), line)
            yield

    def seed_generators(self, seed: int) -> None:
        """Set the global generators of torch, numpy and random: as the spec left them, or seeded.

        Args:
            seed: of those that the spec did not touch.
        """
        _set_generators(self.generators, seed)

    @property
    def determining(self) -> dict[str, Any]:
        """What of the settings may change a result, to be hashed into keys; often nothing."""
        environment = {
            name: value
            for name, value in self.surroundings.environment.items()
            if not (_OF_TOOLS.fullmatch(name) or _OF_TRAINING.get(name, "") in (None, value))
        }
        switches = {
            name: value if isinstance(value, dict) else str(value)
            for name, value in self.switches.items()
            if not _switches()[name].instead  # its hyperparameter is hashed
        }
        parts = {
            "environment": environment,
            "switches": switches,
            "generators": dict(self.generators),
        }
        return {name: part for name, part in parts.items() if part}


def _example(name: str, value: Any) -> str:
    if name == _MATMUL and value == "high":
        return "='tf32'"
    return f"={bool(value)}" if name.endswith("deterministic_algorithms") else ""


def _added_filters(before: list[Any]) -> tuple[Any, ...]:
    return tuple(entry for entry in warnings.filters if entry not in before)


@contextlib.contextmanager
def reading_process(path: Path) -> Iterator[Callable[[], ProcessSettings]]:
    """Let a spec set what it likes within the context, and restore everything afterwards.

    ``sys.argv`` is then that of a script without arguments. The global generators start from a
    fixed seed, so that what a spec draws without one, and so its keys, do not change.

    Yields:
        A function that returns the settings made so far. It raises a SpecError that lists all
        settings that must not be made, except for those that depend on hyperparameters.
    """
    states, filters, environment = _generator_states(), list(warnings.filters), dict(os.environ)
    threads = _threads()
    with _restored(), _switches_restored(), warnings.catch_warnings():
        sys.argv[:] = [str(path)]
        _set_generators({}, _UNSEEDED)
        at_start = _generator_states()

        def settings() -> ProcessSettings:
            surroundings = Surroundings.of_this_process(environment)
            errors = [
                f"os.environ[{name!r}]: set by the spec; leave it out: {why}"
                for name in surroundings.environment
                if (why := _why_refused(name))
            ]
            errors += [
                f"{name}: the spec sets the threads to {now}; leave it out: the threads of a task "
                "come from the plan (the cores of --tasks or of the template)"
                for (name, was), now in zip(threads.items(), _threads().values(), strict=True)
                if now != was
            ]
            if errors:
                raise SpecError(errors)
            generators = {
                name: state
                for name, state in _generator_states().items()
                if state != at_start[name]
            }
            return ProcessSettings(surroundings, _switched(), _added_filters(filters), generators)

        try:
            yield settings
        finally:
            _set_generators(states, 0)
            if (torch := _loaded_torch()) is not None:
                torch.set_num_threads(next(iter(threads.values())))


def _threads() -> dict[str, int]:
    torch = _loaded_torch()
    if torch is None:
        return {}
    return {
        "torch.set_num_threads": torch.get_num_threads(),
        "torch.set_num_interop_threads": torch.get_num_interop_threads(),
    }
