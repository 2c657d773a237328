"""From a spec file to its sweep, and from a sweep to bytes that any worker can load."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import linecache
import pickle
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cloudpickle

from mlpsubmit import batchfns
from mlpsubmit.arguments import declared
from mlpsubmit.display.progress import doing
from mlpsubmit.errors import (
    RunError,
    SpecError,
    UserError,
    did_you_mean,
    error_message,
    error_text,
)
from mlpsubmit.grabs.lookup import grab_names
from mlpsubmit.spec.guard import EndOfSpec, reading_spec
from mlpsubmit.spec.libraries import is_compiled, is_library, missing_file, module_places
from mlpsubmit.spec.notebook_source import IgnoredMagics, statements
from mlpsubmit.spec.process import ProcessSettings, Surroundings, reading_process
from mlpsubmit.spec.sweep import Sweep

__all__ = [
    "THIS_RELEASE",
    "load_spec",
    "noting_imports",
    "pickle_sweep",
    "unpickle_surroundings",
    "unpickle_sweep",
]

#: The release of this Python, such as 3.11: its bytecode, and so functions by value, are its own.
THIS_RELEASE = "{}.{}".format(*sys.version_info)

#: The user's modules that the spec read last has imported: the next one may have others.
_imported: set[str] = set()


@doing("loading the spec")
def load_spec(path: Path, pick: str | None = None) -> Sweep:
    """Run a spec file and return its sweep, which carries what the spec sets in its process.

    The settings of this process are restored afterwards.

    Args:
        path: a Python file or a notebook with one :class:`Sweep`, or with several of which
            ``pick`` names one. It is run up to its first launch of a sweep or opening of a run, a
            notebook without its magics.
        pick: the variable that holds the sweep, or the sweep's own name.

    Raises:
        SpecError: if the file is missing, does not parse, raises, holds no such sweep, or sets
            something of its process that belongs elsewhere.
    """
    path = path.expanduser()
    if path.is_dir():
        raise SpecError(
            f"{path}: is a folder; give the path of a spec, a .py file or a notebook (.ipynb); a "
            "run is continued with mlpsubmit resume"
        )
    if not path.is_file():
        raise SpecError(
            f"{path}: no such file; give the path of a spec, or make one: mlpsubmit init"
        )
    if path.suffix not in (".py", ".ipynb"):
        raise SpecError(
            f"{path}: got a {path.suffix or 'nameless'} file; a spec is a .py file or a notebook "
            "(.ipynb)"
        )
    _forget_modules()
    with reading_process(path) as settings, noting_imports():
        sweep = _picked(_run(path.resolve()), pick, path)
        try:
            return sweep.in_process(settings())
        except SpecError as error:
            raise SpecError(error.errors, where=str(path)) from error


@contextlib.contextmanager
def noting_imports() -> Iterator[None]:
    """Let the next spec import its own modules, and not those of the user imported within."""
    known = set(sys.modules)
    try:
        yield
    finally:
        _imported.update(name for name in sys.modules.keys() - known if not is_library(name))


def _forget_modules() -> None:
    """Let modules of one name beside two specs be two modules."""
    for name in _imported:
        sys.modules.pop(name, None)
    _imported.clear()
    is_library.cache_clear()


def _run(path: Path) -> dict[str, Sweep]:
    """Execute a spec as a module, with its folder on the path as for a script.

    Returns:
        {variable: sweep}; a sweep that it was about to launch and that no variable holds is under
        its own name.
    """
    module = types.ModuleType(f"mlpsubmit_spec_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    launched: Sweep | None = None
    try:
        with reading_spec():
            _execute(path, vars(module))
    except EndOfSpec as end:
        launched = end.sweep
    except SyntaxError as error:
        where = str(error.filename or path)  # may be a module that the spec imports
        line = (error.text or linecache.getline(where, error.lineno or 0)).strip()
        raise SpecError(f"line {error.lineno}: {error.msg}: {line}", where=where) from error
    except UserError as error:
        errors = error.errors if isinstance(error, SpecError) else str(error)
        raise SpecError(errors, where=str(path)) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of any kind: the classes of a spec's errors are its own
        hints = _call_hint(error) + missing_file(error)
        text = f"{_place(error, path)}raised {error_text(error)}{hints}"
        raise SpecError(text, where=str(path)) from error
    sweeps = {name: value for name, value in vars(module).items() if isinstance(value, Sweep)}
    if launched is not None and not any(sweep is launched for sweep in sweeps.values()):
        sweeps[launched.name] = launched
    return sweeps


def _execute(path: Path, namespace: dict[str, Any]) -> None:
    """Run the user's code: a file, or the cells of a notebook."""
    if path.suffix == ".py":
        exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), namespace)
        return
    namespace["get_ipython"] = IgnoredMagics
    for code in statements(path):
        exec(code, namespace)


def _place(error: BaseException, path: Path) -> str:
    """Return the cell and the line of the spec that raised an error, as the start of a message."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(str(path))]
    if not own:
        return ""
    cell = own[-1].filename.removeprefix(str(path)).removeprefix(", ")
    shown = f"{own[-1].line}: " if own[-1].line else ""
    return f"{cell}{cell and ', '}line {own[-1].lineno}: {shown}"


def _call_hint(error: BaseException) -> str:
    """Return how a grab or batch function of the library is given, where it was called instead."""
    missing = re.match(r"(\w+)\(\) missing \d+ required", error_message(error))
    if not (isinstance(error, TypeError) and missing):
        return ""
    name = missing[1]
    if name in grab_names():
        return (
            f"; a grab is given without parentheses, {name}, and with arguments as "
            f"functools.partial({name}, ...)"
        )
    if name in dir(batchfns) and "bsz" in declared(getattr(batchfns, name)):
        return (
            f"; a batch function is given without parentheses, batchfn={name}, and its arguments "
            "to the Sweep"
        )
    return ""


def _picked(sweeps: dict[str, Sweep], pick: str | None, path: Path) -> Sweep:
    """Return the only sweep; else that of the variable ``pick``; else the one with this name."""
    if pick in sweeps:
        return sweeps[pick]
    found = {id(sweep): sweep for sweep in sweeps.values() if pick in (None, sweep.name)}
    if len(found) == 1:
        return next(iter(found.values()))
    variables = ", ".join(sorted(sweeps))
    if not sweeps:
        error = "holds no Sweep; write sweep = Sweep(...) at its top level, before it opens any run"
        if "__main__" in path.read_text(errors="replace"):
            error += ", and not under if __name__ == '__main__', which is not run"
    elif pick is None:
        error = f"holds several sweeps ({variables}); pick one: --sweep NAME"
    elif found:
        error = (
            f"--sweep {pick}: {len(found)} sweeps have that name; give the variable that holds "
            f"it: {variables}"
        )
    else:
        known = {*sweeps, *(sweep.name for sweep in sweeps.values())}
        error = (
            f"--sweep {pick}: no such sweep{did_you_mean(pick, known)}; it holds "
            f"{', '.join(sorted(known))}"
        )
    raise SpecError(error, where=str(path))


@contextlib.contextmanager
def _by_value() -> Iterator[None]:
    """Pickle the user's modules by value, so that later edits do not reach queued tasks."""
    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name == "__main__" or is_library(name):
                continue
            if module_places(module) and not is_compiled(module):
                cloudpickle.register_pickle_by_value(module)
                stack.callback(cloudpickle.unregister_pickle_by_value, module)
        yield


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Pickles cached functions and properties by value too, which cloudpickle pickles by name.

    And by name those libraries' modules that are of a class of their own, as torch.backends.cudnn.
    Code keeps the name of its file, which cloudpickle drops since 3.1.3: errors are shown with it.
    """

    def reducer_override(self, value: Any) -> Any:
        special = isinstance(value, types.ModuleType) and type(value) is not types.ModuleType
        if special and is_library(value.__name__):
            return importlib.import_module, (value.__name__,)
        wrapped = getattr(value, "__wrapped__", None)
        if isinstance(value, functools._lru_cache_wrapper) and not is_library(wrapped.__module__):
            return _cached, (wrapped, value.cache_parameters())
        if isinstance(value, functools.cached_property):  # it holds a lock before Python 3.12
            return _cached_property, (value.func, value.attrname)
        if isinstance(value, types.CodeType):
            return _code, (value.co_filename, *self.dispatch_table[types.CodeType](value))
        return super().reducer_override(value)


def _cached(function: Callable[..., Any], parameters: Mapping[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _cached_property(function: Callable[..., Any], name: str | None) -> Any:
    made: functools.cached_property[Any] = functools.cached_property(function)
    made.attrname = name
    return made


def _code(file: str, make: Callable[..., types.CodeType], arguments: Any) -> types.CodeType:
    return make(*arguments).replace(co_filename=file)


def pickle_sweep(sweep: Sweep) -> bytes:
    """Return the pickle of a sweep with its functions, and the user's modules they use, by value.

    It is a pickle of three parts: the surroundings, which a worker needs before it imports torch;
    the pickled sweep; and the release of Python, as no other can load functions by value.

    Raises:
        SpecError: if a function holds something that cannot be pickled.
    """
    if sweep.process is None:
        sweep = sweep.in_process(ProcessSettings.of_this_process())
    assert sweep.process is not None
    try:
        with _by_value():
            buffer = io.BytesIO()
            _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(sweep)
    except SpecError:  # of the keys, which are pickled too
        raise
    except Exception as error:  # of any kind, as classes of the user pickle themselves
        raise SpecError(
            f"the sweep cannot be sent to workers: {error_message(error)}; functions may hold "
            "arrays, numbers and functions, but no open files, locks or generators: make those "
            "inside the function"
        ) from error
    parts = sweep.process.surroundings, buffer.getvalue(), THIS_RELEASE
    return pickle.dumps(parts, pickle.HIGHEST_PROTOCOL)


def unpickle_surroundings(content: bytes) -> Surroundings:
    """Return what a worker sets before it loads the sweep of a pickle; does not import torch."""
    surroundings: Surroundings = pickle.loads(content)[0]
    return surroundings


def unpickle_sweep(content: bytes) -> Sweep:
    """Return the sweep of a pickle. This runs code: only workers and launch call it.

    Raises:
        RunError: if another release of Python has pickled it.
        SpecError: if it is not the pickle of a sweep.
    """
    _, pickled, release = pickle.loads(content)
    if release != THIS_RELEASE:
        raise RunError(
            f"the sweep was launched with Python {release}, and this is Python {THIS_RELEASE} "
            f"({sys.executable}), which cannot load its functions: use Python {release} here (on a "
            f"cluster: --python or --container), or launch with {THIS_RELEASE}"
        )
    sweep = pickle.loads(pickled)
    if not isinstance(sweep, Sweep):
        raise SpecError(f"sweep.pkl holds a {type(sweep).__name__}, not a Sweep")
    return sweep
