"""Checksums of files, which are part of them: any change of any byte is detected.

All are BLAKE2b of 128 bits. A JSON object has its own as first entry. Other files end in a line
with it, which readers of zip files (so of ``.pt``) and pickles ignore.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mlpsubmit.errors import DamageError

__all__ = ["checked", "parsed_json", "sealed", "summed_json", "verify"]

_MARK = b"\nmlpsubmit BLAKE2b "
_DIGITS = 32

#: The length of the last line of a file with its mark and its checksum.
_SEAL = len(_MARK) + _DIGITS + 1

_JSON_START = b'{\n "checksum": "'
_JSON_SUM = slice(len(_JSON_START), len(_JSON_START) + _DIGITS)

_CHUNK = 1 << 20


def _hash(content: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(content, digest_size=_DIGITS // 2)


# ---- any file ------------------------------------------------------------------------------------


class _HashingStream:
    """Passes on what is written, and hashes it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.hash = _hash()

    def write(self, content: Any) -> int:
        self.hash.update(content)
        return self._stream.write(content)

    def flush(self) -> None:
        self._stream.flush()


def sealed(content: Callable[[Any], Any] | bytes) -> Callable[[BinaryIO], str]:
    """Return a function that writes content and its checksum to an open file.

    Args:
        content: the bytes, or a function that writes them to an object with ``write``.

    Returns:
        The function; it returns the checksum, in hex.
    """

    def write(stream: BinaryIO) -> str:
        hashing = _HashingStream(stream)
        if callable(content):
            content(hashing)
        else:
            hashing.write(content)
        checksum = hashing.hash.hexdigest()
        stream.write(_MARK + checksum.encode() + b"\n")
        return checksum

    return write


def verify(path: Path) -> str:
    """Return the checksum of a file that :func:`sealed` wrote, after comparing it.

    Raises:
        DamageError: it is not that of the content.
    """
    found = _hash()
    with path.open("rb") as file:
        left = file.seek(0, 2) - _SEAL
        file.seek(0)
        while left > 0 and (chunk := file.read(min(left, _CHUNK))):
            found.update(chunk)
            left -= len(chunk)
        _compare(path, file.read(_SEAL + 1), found)
    return found.hexdigest()


def checked(path: Path) -> bytes:
    """Return the content of a file that :func:`sealed` wrote, without its checksum.

    Raises:
        DamageError: the checksum is not that of the content.
    """
    content = path.read_bytes()
    _compare(path, content[-_SEAL:], _hash(content[:-_SEAL]))
    return content[:-_SEAL]


def _compare(path: Path, seal: bytes, found: hashlib.blake2b) -> None:
    if seal != _MARK + found.hexdigest().encode() + b"\n":
        raise DamageError(f"{path}: is damaged (its checksum differs from that of its content)")


# ---- JSON ----------------------------------------------------------------------------------------


def summed_json(content: Mapping[str, Any]) -> bytes:
    """Return a JSON object with its checksum as first entry; an earlier one is replaced."""
    text = json.dumps({"checksum": "0" * _DIGITS, **_without_sum(content)}, indent=1).encode()
    return text[: _JSON_SUM.start] + _json_sum(text) + text[_JSON_SUM.stop :]


def parsed_json(text: bytes) -> dict[str, Any]:
    """Return the object of :func:`summed_json`, without the checksum.

    Raises:
        ValueError: it is not valid JSON, or its checksum is another.
    """
    content = json.loads(text)
    if not text.startswith(_JSON_START) or text[_JSON_SUM] != _json_sum(text):
        raise ValueError("its checksum differs from that of its content")
    return _without_sum(content)


def _without_sum(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != "checksum"}


def _json_sum(text: bytes) -> bytes:
    """Return the checksum of all but the checksum."""
    return _hash(text[: _JSON_SUM.start] + text[_JSON_SUM.stop :]).hexdigest().encode()
