"""Which functions a sweep has: the name of each, the file that it comes from, and its hash."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mlpsubmit.arguments import function_name
from mlpsubmit.errors import SpecError, shown
from mlpsubmit.spec.fingerprint import setting_digest
from mlpsubmit.spec.libraries import is_library
from mlpsubmit.spec.sweep import Sweep

__all__ = ["function_sources"]

#: The most characters of a hash: as many as of git's short ones, and more than anybody compares.
_HASH = 12


def function_sources(sweep: Sweep) -> list[dict[str, Any]]:
    """Return a record of each function of a sweep, as sweep.json holds it.

    ``file`` is empty for functions of libraries, which ``module`` names. The hash is of all that
    the function does, as in keys; empty where there is none.
    """
    process = contextlib.nullcontext() if sweep.process is None else sweep.process.applied()
    with process:  # modules that functions import later are found on its path
        return [_source(place, function) for place, function in _functions(sweep)]


def _functions(sweep: Sweep) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the functions of a sweep and where they stand in it."""
    yield "batchfn", sweep.batchfn
    if sweep.data is not None:
        yield "data", sweep.data
    yield from ((f"grab {name}", grab) for name, grab in sweep.grabs.items())
    if sweep.where is not None:
        yield "where", sweep.where
    varied = sweep.product.names
    fixed = {name: value for name, value in sweep.fixed.items() if name not in varied}
    for name, value in fixed.items():
        yield from _within(name, value)
    for axis in sweep.product.axes:
        for name in axis.names:
            for number, value in enumerate(axis.values(name)):
                yield from _within(f"axis {name}[{number}]", value)


def _within(place: str, value: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield a function, or those in a collection, as METRICS is one."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _within(f"{place}[{key}]", entry)
    elif isinstance(value, (list, tuple)):
        for number, entry in enumerate(value):
            yield from _within(f"{place}[{number}]", entry)
    elif callable(value):
        yield place, value


def _source(place: str, function: Callable[..., Any]) -> dict[str, Any]:
    inner, bound = _unwrapped(function)
    module = str(getattr(inner, "__module__", "") or "")
    library = bool(module) and is_library(module)
    file, line = ("", 0) if library else _place(inner)
    return {
        "place": place,
        "name": function_name(function),
        "arguments": {name: shown(value) for name, value in bound.items()},
        "module": module if library else "",
        "file": file,
        "line": line,
        "hash": _hash(function),
    }


def _unwrapped(function: Any) -> tuple[Any, dict[str, Any]]:
    """Return the function within partials and recipes, and the arguments that they bind."""
    bound: dict[str, Any] = {}
    while (inner := getattr(function, "func", None)) is not None:
        bound = {**getattr(function, "keywords", {}), **bound}
        function = inner
    return inspect.unwrap(function) if callable(function) else function, bound


def _place(function: Any) -> tuple[str, int]:
    """Return the file in which a function or a class is defined, and the line; empty if unknown."""
    code = getattr(function, "__code__", None)
    if code is not None:
        return _absolute(code.co_filename), int(code.co_firstlineno)
    with contextlib.suppress(OSError, TypeError):
        owner = function if inspect.isclass(function) else type(function)
        return _absolute(inspect.getfile(owner)), 0
    return "", 0


def _absolute(file: str) -> str:
    """Return a path; that of a cell is no file, and stays as it is."""
    return os.path.abspath(file) if os.path.exists(file) else file


def _hash(function: Any) -> str:
    try:
        return setting_digest(function).hex()[:_HASH]
    except (TypeError, SpecError):  # of where=, which is no part of keys
        return ""
