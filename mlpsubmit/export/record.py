"""What was exported into a folder, as a file in it says: nothing is exported twice.

The first line says what the export is of, each further one that a config is in the tracker. A line
is written once that is so. Whatever a killed process has left of the next config is replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlpsubmit.errors import BusyError, RunError, UserError
from mlpsubmit.export.configs import ExportedConfig
from mlpsubmit.files import locked, open_regular, publish, remove_leftovers

__all__ = ["RECORD", "Record", "check_folder", "opened", "state_of"]

RECORD = "mlpsubmit-export.jsonl"
LOCK = ".mlpsubmit-export.lock"


def check_folder(folder: Path) -> None:
    """Check that a folder can be made, or written to.

    Raises:
        UserError: it cannot.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"cannot export into {folder}: {existing} is a file; give another --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"cannot export into {folder}: the folder {existing} is not writable; give another "
            "--out"
        )


def state_of(config: ExportedConfig) -> str:
    """Return what is recorded of a config: one that fails in another way is exported again."""
    return f"failed: {config.error[:200]}" if config.status == "failed" else config.status


class Record:
    """What was exported into a folder.

    Args:
        folder: of the export; it exists.
        about: what the export is of, by name; all of it must be as it was before.

    Attributes:
        states: of each config that was exported, by its index.
        names: of all that their runs show.

    Raises:
        UserError: the folder has an export of something else, or the file is none of ours.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.path = folder / RECORD
        self.states: dict[int, str] = {}
        self.names: dict[str, None] = {}
        if self.path.exists() or self.path.is_symlink():
            self._read(folder, about)
        else:
            publish(self.path, _line(about))
        self._file = self.path.open("ab")

    def _read(self, folder: Path, about: Mapping[str, Any]) -> None:
        with open_regular(self.path) as file:
            content = file.read()
        first, *lines = [_parsed(line) for line in content.split(b"\n")]
        if first is None:
            raise UserError(f"{self.path}: is not a record of an export; give another --out")
        for name, value in about.items():
            if first.get(name) != value:
                raise UserError(
                    f"{folder}: has an export with {name} {first.get(name)!r}, not {value!r}; give "
                    "another --out"
                )
        for line in lines:
            if line is not None and isinstance(line.get("index"), int):
                self.states[line["index"]] = str(line.get("state"))
            if line is not None and isinstance(line.get("names"), list):
                self.names.update(dict.fromkeys(map(str, line["names"])))
        if not content.endswith(b"\n"):  # a process or a machine died within a line
            with open(self.path, "ab") as end:
                end.write(b"\n")

    def has(self, config: ExportedConfig) -> bool:
        """Return whether a config was exported in the state in which it is."""
        return self.states.get(config.index) == state_of(config)

    def add(self, config: ExportedConfig) -> None:
        """Record that a config was exported."""
        self.states[config.index] = state_of(config)
        self._write({"index": config.index, "key": config.key, "state": state_of(config)})

    def add_names(self, names: Iterable[str]) -> None:
        """Record names that runs show."""
        new = [name for name in dict.fromkeys(names) if name not in self.names]
        if new:
            self.names.update(dict.fromkeys(new))
            self._write({"names": new})

    def _write(self, line: Mapping[str, Any]) -> None:
        # To the system at once, for the case that this process dies; to the disk at the end: what
        # a power cut takes is exported again.
        self._file.write(_line(line))
        self._file.flush()

    def sync(self) -> None:
        """Flush it to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush it to the disk, and close it."""
        with self._file:
            self.sync()


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return the object of a line; None if it is none, or was not written whole."""
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(line)
        return content if isinstance(content, dict) else None
    return None


@contextlib.contextmanager
def opened(folder: Path, about: Mapping[str, Any]) -> Iterator[Record]:
    """Open the record of a folder, which is made; no other process exports into it meanwhile.

    Raises:
        UserError: as :class:`Record`; or the folder cannot be made.
        BusyError: another process exports into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # what its permissions do not tell
        raise UserError(
            f"cannot export into {folder}: {error.strerror}; give another --out"
        ) from error
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LOCK, wait=0))
        except BlockingIOError:
            raise BusyError(
                f"{folder}: another mlpsubmit export writes into it; wait for its end, or give "
                "another --out"
            ) from None
        except RunError as error:
            raise UserError(str(error).replace("--runs-dir", "--out")) from None
        remove_leftovers(folder, RECORD.__eq__)
        record = Record(folder, about)
        stack.callback(record.close)
        yield record
