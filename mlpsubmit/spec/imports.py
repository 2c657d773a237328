"""The files behind an import statement, found without importing anything."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import all_suffixes
from pathlib import Path
from typing import Any

from mlpsubmit.spec.bytecode import Import

__all__ = ["modules_of", "package_of"]


def package_of(namespace: Mapping[str, Any]) -> str:
    """Return the package that relative imports in a namespace refer to."""
    package = namespace.get("__package__")
    if package is not None:
        return str(package)
    name = str(namespace.get("__name__", ""))
    return name if "__path__" in namespace else name.rpartition(".")[0]


def modules_of(statement: Import, package: str) -> Iterator[tuple[str, Path]]:
    """Yield the name and the file of each module that an import statement may run.

    Those are the module, its packages, and what it imports by name if that may be a module. Of a
    package, the file is that of its ``__init__``; modules that cannot be found are left out.
    """
    name = _absolute(statement, package)
    parts = name.split(".") if name else []
    found = None
    for end in range(1, len(parts) + 1):
        module = ".".join(parts[:end])
        found = _found(module, found)
        if found is None:
            return
        yield from _file(module, found)
    if found is None:
        return
    submodules = statement.names
    if "*" in submodules:  # __all__ of a package may list any of its modules
        files = (file for folder in found.folders for file in Path(folder).glob("*.py"))
        submodules = tuple(sorted(file.stem for file in files))
    for submodule in submodules:
        inner = _found(f"{name}.{submodule}", found)
        if inner is not None:
            yield from _file(f"{name}.{submodule}", inner)


@dataclass(frozen=True)
class _Found:
    """A module: its file, which a namespace package lacks, and the folders of a package."""

    file: str | None
    folders: tuple[str, ...]


def _absolute(statement: Import, package: str) -> str:
    if not statement.level:
        return statement.name
    parts = package.split(".")
    base = parts[: len(parts) - statement.level + 1]
    return ".".join([*base, *filter(None, [statement.name])])


def _file(name: str, found: _Found) -> Iterator[tuple[str, Path]]:
    if found.file:
        yield name, Path(found.file)


def _found(name: str, package: _Found | None) -> _Found | None:
    """Return the module of a name, in a package if it has one; None if there is none."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return _Found(getattr(loaded, "__file__", None), tuple(getattr(loaded, "__path__", ())))
    if package is not None:
        return _found_in(package.folders, name.rpartition(".")[2])
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # from a finder
        return None
    if spec is None:
        return None
    file = spec.origin if spec.has_location else None
    return _Found(file, tuple(spec.submodule_search_locations or ()))


def _found_in(parents: tuple[str, ...], name: str) -> _Found | None:
    """Return a module of a package that is not imported, which PathFinder needs."""
    namespace = []
    for folder in parents:
        inner = Path(folder, name)
        for place, folders in ((inner / "__init__", (str(inner),)), (inner, ())):
            for suffix in all_suffixes():
                if Path(f"{place}{suffix}").is_file():
                    return _Found(f"{place}{suffix}", folders)
        if inner.is_dir():
            namespace.append(str(inner))
    return _Found(None, tuple(namespace)) if namespace else None
