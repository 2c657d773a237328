"""Which modules are libraries, and which are the user's own, wherever Python finds them.

The user's modules are hashed and pickled by their content, libraries by name. A library is

- a module of Python, mlpsubmit, torch or numpy, or in a ``site-packages`` or ``dist-packages``;
- a module that a ``.dist-info`` beside it lists, in whichever folder: one on PYTHONPATH, in a
  ``.pth`` file, of an environment module or added by a ``sitecustomize``;
- a package with compiled parts in such a folder, which an installation without metadata leaves.

All others are the user's: beside the spec, in a folder that the spec adds to ``sys.path``, in an
editable installation, or pure Python on PYTHONPATH without metadata.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.metadata
import os
import site
import sys
import sysconfig
import traceback
import types
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = [
    "in_library_folder",
    "in_site_packages",
    "is_compiled",
    "is_library",
    "is_library_file",
    "missing_file",
    "module_places",
    "user_frames",
    "user_traceback",
]

#: Libraries however they were installed, a source checkout included.
_ALWAYS = frozenset({"mlpsubmit", "torch", "numpy"})

_SITE = frozenset({"site-packages", "dist-packages"})


def _start_path() -> frozenset[Path]:
    """Return the entries of ``sys.path`` other than the folder of the script or of the process."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    own = {Path.cwd(), *([Path(script).resolve().parent] if script else [])}
    return frozenset(Path(entry).resolve() for entry in sys.path if entry) - own


#: Taken at import, before a spec adds folders of its own.
_AT_START = _start_path()


@functools.cache
def _library_folders() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [sysconfig.get_paths()[name] for name in names]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({str(Path(folder).resolve()) + os.sep for folder in folders})


@functools.cache
def is_library(module_name: str) -> bool:
    """Return whether a module is part of Python, of an installed package or of mlpsubmit."""
    top = module_name.partition(".")[0]
    if top in _ALWAYS:
        return True
    module = sys.modules.get(module_name)
    if module is None or module_name == "__main__":
        return False
    # A module without a file (of a namespace like torch.ops) belongs to its package.
    given = _given_places(module) or _given_places(sys.modules.get(top, module))
    if not given:
        return top in sys.builtin_module_names or top in sys.stdlib_module_names
    if all(map(_is_installed, given)):
        return True
    places = [Path(place).resolve() for place in given]
    return all(_in_library(top, place, _folders_of(top, place)) for place in places)


@functools.cache
def _is_installed(place: str) -> bool:
    """Return whether a module lies in a folder of libraries.

    Cached for the process, which is_library is not: another spec may have a module of the same
    name, but not at the same place. To resolve the paths of all modules at every launch would
    take as long as the rest of it.
    """
    return in_library_folder(Path(place).resolve())


def is_library_file(name: str, file: Path) -> bool:
    """Return whether the file of a module, which may not have been imported, is a library's."""
    top = name.partition(".")[0]
    if top in _ALWAYS or name in sys.modules:
        return is_library(name)
    above = name.count(".") + 2  # a package is a file in a folder of its name
    place = file.resolve()
    return _in_library(top, place, [*file.absolute().parents[:above], *place.parents[:above]])


def module_places(module: types.ModuleType) -> list[Path]:
    """Return the file of a module, or the folders of a namespace package."""
    return [Path(place).resolve() for place in _given_places(module)]


def _given_places(module: types.ModuleType) -> list[str]:
    file = getattr(module, "__file__", None)
    return [file] if file else list(getattr(module, "__path__", ()))


def is_compiled(module: types.ModuleType) -> bool:
    """Return whether a module is a compiled extension, which cannot be pickled by value."""
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    return str(getattr(module, "__file__", None)).endswith(suffixes)


def in_library_folder(path: Path) -> bool:
    """Return whether a path lies in Python's own folders, or in those that pip installs into."""
    return f"{path}{os.sep}".startswith(_library_folders()) or in_site_packages(path)


def in_site_packages(path: Path) -> bool:
    """Return whether a path lies in a folder that pip or a distribution installs into."""
    return not _SITE.isdisjoint(path.parts)


def _in_library(top: str, place: Path, folders: Iterable[Path]) -> bool:
    """Return whether a file of the top-level module ``top`` is a library's.

    Args:
        folders: those that may hold the module.
    """
    if in_library_folder(place):
        return True
    if any(parent.suffix == ".egg" for parent in place.parents):
        return True
    return any(
        top in _distributed(folder) or (folder in _AT_START and _has_compiled(folder, top))
        for folder in folders
    )


def _folders_of(top: str, place: Path) -> list[Path]:
    """Return the folder that holds the top-level module of a file, also behind a link."""
    module = sys.modules.get(top)
    if module is None:
        return []
    found = [Path(entry) for entry in getattr(module, "__path__", ())]
    found = found or [Path(file) for file in [getattr(module, "__file__", None)] if file]
    own = [path for path in found if path.resolve() in (place, *place.parents)]
    return [folder for path in own for folder in (path.parent, path.resolve().parent)]


@functools.cache
def _distributed(folder: Path) -> frozenset[str]:
    """Return the top-level modules that distributions in a folder have installed there.

    An ``.egg-info`` does not count: setuptools leaves one beside the sources that it builds.
    """
    names: set[str] = set()
    for info in folder.glob("*.dist-info"):
        found = importlib.metadata.PathDistribution(info)
        listed = (found.read_text("top_level.txt") or "").split()
        recorded = [file.parts[0].partition(".")[0] for file in found.files or ()]
        names.update(listed, recorded or [info.name.partition("-")[0]])
    return frozenset(names)


@functools.cache
def _has_compiled(folder: Path, top: str) -> bool:
    """Return whether a package has compiled extensions."""
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    if any((folder / f"{top}{suffix}").exists() for suffix in suffixes):
        return True
    return any(name.endswith(suffixes) for _, _, names in os.walk(folder / top) for name in names)


def user_traceback(trace: types.TracebackType | None) -> types.TracebackType | None:
    """Return a traceback from the first frame on whose code is no library's; None without any."""
    while trace is not None and is_library(str(trace.tb_frame.f_globals.get("__name__", ""))):
        trace = trace.tb_next
    return trace


def missing_file(error: BaseException) -> str:
    """Return where a file was looked for that a function of the user did not find.

    As the end of a message, for a relative path: it is one from the folder of the launch.
    """
    name = getattr(error, "filename", None)
    if not isinstance(error, FileNotFoundError) or not isinstance(name, str) or os.path.isabs(name):
        return ""
    text = f"; it was looked for in {os.getcwd()}"
    for frame in [*user_frames(error.__traceback__)][-1:]:
        own = Path(frame.filename)
        if not own.is_file():  # a cell of a notebook
            break
        if (own.parent / name).exists():
            text += f", and is beside {own.name}: write Path(__file__).parent / {name!r}"
        elif own.parent != Path.cwd():
            text += f", and is not beside {own.name} in {own.parent} either"
    return text


def user_frames(trace: types.TracebackType | None) -> Iterator[traceback.FrameSummary]:
    """Yield the frames of a traceback whose code is no library's, the outermost first."""
    summary = traceback.extract_tb(trace)
    for frame, (raw, _) in zip(summary, traceback.walk_tb(trace), strict=True):
        if not is_library(str(raw.f_globals.get("__name__", ""))):
            yield frame
