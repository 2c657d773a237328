"""The files behind an import statement, found without importing anything."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec, PathFinder
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
    names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    spec = None
    for module in names:
        spec = _found(module)
        yield from _file(module, spec)
    if spec is None or not spec.submodule_search_locations:
        return
    submodules = statement.names
    if "*" in submodules:  # __all__ of a package may list any of its modules
        folders = [Path(folder) for folder in spec.submodule_search_locations]
        submodules = tuple(sorted(file.stem for folder in folders for file in folder.glob("*.py")))
    for submodule in submodules:
        yield from _file(f"{name}.{submodule}", _found(f"{name}.{submodule}"))


def _absolute(statement: Import, package: str) -> str:
    if not statement.level:
        return statement.name
    parts = package.split(".")
    base = parts[: len(parts) - statement.level + 1]
    return ".".join([*base, *filter(None, [statement.name])])


def _file(name: str, spec: ModuleSpec | None) -> Iterator[tuple[str, Path]]:
    if spec is not None and spec.has_location and spec.origin:
        yield name, Path(spec.origin)


def _found(name: str) -> ModuleSpec | None:
    """Return the spec of a module, or None; no package is imported for it."""
    loaded: ModuleSpec | None = getattr(sys.modules.get(name), "__spec__", None)
    if loaded is not None:
        return loaded
    parent = name.rpartition(".")[0]
    try:
        if not parent:
            return importlib.util.find_spec(name)
        package = _found(parent)
        locations = package and package.submodule_search_locations
        return PathFinder.find_spec(name, locations) if locations else None
    except (ImportError, ValueError, AttributeError):  # a finder that fails, or a strange module
        return None
