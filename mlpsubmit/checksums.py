"""Checksums of files, which are part of them: any change of any byte is detected.

All are BLAKE2b of 128 bits. A JSON object has its own as first entry. Other files end in a line
with it, which readers of zip files (so of ``.pt``) and pickles ignore.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

__all__ = ["SEAL_SIZE", "Verifier", "parsed_json", "sealed", "summed_json"]

_MARK = b"\nmlpsubmit BLAKE2b "
_DIGITS = 32

#: The length of the last line of a file with its mark and its checksum.
SEAL_SIZE = len(_MARK) + _DIGITS + 1

_JSON_START = b'{\n "checksum": "'
_JSON_SUM = slice(len(_JSON_START), len(_JSON_START) + _DIGITS)


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


class Verifier:
    """Compares the checksum of content that comes in parts.

    Args:
        size: the bytes of the whole, with its checksum.
    """

    def __init__(self, size: int) -> None:
        self._left, self._hash, self._seal = size - SEAL_SIZE, _hash(), b""

    def add(self, part: bytes) -> None:
        """Add the next bytes."""
        content = part[: max(0, self._left)]
        self._hash.update(content)
        self._left -= len(content)
        self._seal = (self._seal + part[len(content) :])[: SEAL_SIZE + 1]

    def checksum(self) -> str | None:
        """Return the checksum, in hex; None if it is not that of the content."""
        found = self._hash.hexdigest()
        return found if self._seal == _MARK + found.encode() + b"\n" else None


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
