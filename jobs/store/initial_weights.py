"""The file with the networks that the configs of a run begin from: an ordinary npz."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from mlpsubmit.errors import DamageError
from mlpsubmit.jobs.store.stored_weights import weights_digest

__all__ = ["missing_networks", "read_network", "verify_networks", "write_networks"]


#: Which numpy gives no types.
_write: Any = npy.write_array
_read: Any = npy.read_array


def write_networks(
    networks: Iterable[tuple[str, Mapping[str, NDArray[Any]]]], file: BinaryIO
) -> None:
    """Write networks as arrays ``<hash>/<name>``, one network in memory at a time."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for key, weights in networks:
            for name, array in weights.items():
                with archive.open(f"{key}/{name}.npy", "w", force_zip64=True) as entry:
                    _write(entry, np.asarray(array), allow_pickle=False)


def missing_networks(file: Path, keys: Iterable[str]) -> list[str]:
    """Return the hashes that a file has no network of, or a damaged one."""

    def is_missing(key: str) -> bool:
        try:
            read_network(file, key)
        except DamageError:
            return True
        return False

    return [key for key in dict.fromkeys(keys) if is_missing(key)]


def verify_networks(file: Path) -> None:
    """Read every network of a file, one in memory at a time.

    Raises:
        FileNotFoundError: there is no file.
        DamageError: any of them is not as it was written.
    """
    try:
        keys = _keys(file)
    except zipfile.BadZipFile as error:
        raise DamageError(f"{file}: {error}; {_ADVICE}") from error
    for key in keys:
        read_network(file, key)


def _keys(file: Path) -> list[str]:
    with zipfile.ZipFile(file) as archive:
        return list(dict.fromkeys(name.partition("/")[0] for name in archive.namelist()))


def read_network(file: Path, key: str) -> dict[str, NDArray[Any]]:
    """Return the weights with a hash, by the names of parameters and buffers.

    Raises:
        DamageError: they are not in the file, or others than were written.
    """
    found: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.namelist():
                if entry.startswith(f"{key}/"):
                    with archive.open(entry) as stored:
                        name = entry.removeprefix(f"{key}/").removesuffix(".npy")
                        found[name] = _read(stored, allow_pickle=False)
    except Exception as error:  # zipfile and numpy raise half a dozen kinds for damaged bytes
        raise DamageError(f"{file}: {error}; {_ADVICE}") from error
    if weights_digest(found) != key:
        raise DamageError(f"{file}: the weights {key} are missing or damaged; {_ADVICE}")
    return found


_ADVICE = "launch its spec again, which writes the initial weights again while their run exists"
