"""A plugin of pytest that runs the tests which need no torch, where torch cannot be imported.

A test module may import torch at its top, and use it in the parameters of tests. A test that uses
torch, or code that imports it, is counted as skipped.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]
PLAIN_IMPORT = builtins.__import__

NEEDED = "No module named 'torch"


class Part:
    """A part of torch while test modules are imported: whatever they make of it is one too."""

    usable = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not Part.usable:
            raise ModuleNotFoundError(f"{NEEDED}'", name="torch")
        return Part()

    def __reduce_ex__(self, protocol: Any) -> Any:  # for content hashes
        raise ModuleNotFoundError(f"{NEEDED}'", name="torch")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return Part()

    def __mro_entries__(self, bases: Sequence[Any]) -> tuple[type, ...]:
        return (object,)


class Blocked:
    """Finds no torch, although it may be installed."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"{NEEDED}'", name="torch")


sys.meta_path.insert(0, Blocked())  # now: files called conftest.py may import torch


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: Any) -> Generator[None, Any, Any]:
    Part.usable = True
    builtins.__import__ = _import
    try:
        report = yield
    finally:
        builtins.__import__ = PLAIN_IMPORT
        Part.usable = False
    return _without(report)


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] = (),
    level: int = 0,
) -> Any:
    """Import as Python does, but give test modules a torch of which nothing works."""
    file = Path(str((globals or {}).get("__file__")))
    if name.partition(".")[0] == "torch" and TESTS in file.parents:
        return Part()
    return PLAIN_IMPORT(name, globals, locals, fromlist, level)


def pytest_collection_modifyitems(items: list[Any]) -> None:
    parameters = [(item, getattr(vars(item).get("callspec"), "params", {})) for item in items]
    items[:] = [item for item, values in parameters if not _has_part(values)]


def _has_part(value: Any) -> bool:
    """Return whether a value holds something of torch."""
    if isinstance(value, Mapping):
        return any(map(_has_part, value.values()))
    if isinstance(value, (list, tuple, set)):
        return any(map(_has_part, value))
    return isinstance(value, Part)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Generator[None, Any, Any]:
    return _without((yield))


def _without(report: Any) -> Any:
    if report.failed and NEEDED in str(report.longrepr):
        report.outcome = "skipped"
        report.longrepr = ("", 0, "needs torch")
    return report
