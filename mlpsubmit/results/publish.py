"""Files and directories that appear complete or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlpsubmit.errors import UserError

__all__ = ["published"]

# What the root of a zarr store holds, in either version of its format.
ZARR_ROOT = (".zgroup", ".zmetadata", "zarr.json")


@contextmanager
def published(path: Path, *, directory: bool = False) -> Iterator[Path]:
    """Give a temporary sibling to write to; on success it is synced and takes the path's name.

    Args:
        path: what to publish; what stands there is replaced once the new one is complete.
        directory: whether it is a directory (a zarr store).

    Raises:
        UserError: the folder does not exist or is not writable, or something stands at the path
            that is not ours to replace.
    """
    _check_target(path, directory)
    temporary = _sibling(path)
    try:
        yield temporary
        _sync(temporary)
        _rename(temporary, path)
    except BaseException:
        _remove(temporary)
        raise
    _sync_folder(path.parent)


def _check_target(path: Path, directory: bool) -> None:
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: the folder {path.parent} is not writable")
    if not directory and path.is_dir():
        raise UserError(f"cannot write {path}: a directory has this name")
    if directory and path.exists():
        entries = os.listdir(path) if path.is_dir() else ["a file"]
        if entries and not any(name in entries for name in ZARR_ROOT):
            raise UserError(f"cannot write {path}: what has this name is no zarr store")


def _sibling(path: Path) -> Path:
    """Return a fresh hidden name in the same folder, so on the same file system; same suffix."""
    return path.with_name(f".mlpsubmit-{secrets.token_hex(6)}{path.suffix}")


def _rename(temporary: Path, path: Path) -> None:
    if not (temporary.is_dir() and path.exists()):
        os.replace(temporary, path)
        return
    # A directory that is not empty cannot be replaced in one step: move it aside and back again if
    # the new one does not get its place.
    aside = _sibling(path)
    os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except BaseException:
        os.rename(aside, path)
        raise
    shutil.rmtree(aside)


def _sync(path: Path) -> None:
    if not path.is_dir():
        _sync_entry(path)
        return
    for folder, _, files in os.walk(path):
        for name in files:
            _sync_entry(Path(folder, name))
        _sync_folder(Path(folder))


def _sync_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """Sync a directory's names, where the file system can."""
    try:
        _sync_entry(path)
    except OSError:
        return


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
