"""Arrays in npz files: written, and read back without unpickling.

A shard holds an npz file per pack, and a run may have a hundred thousand packs of a few configs.
Python's zipfile and numpy take about a millisecond to read one that small, nearly all of it for
features that zip files of other origin may use. So files in the exact layout of :func:`npz_bytes`
are read here directly. Large ones are read array by array with zipfile, of the same layout: arrays
that are compressed, or that claim more bytes than they have, are damaged.
"""

from __future__ import annotations

import functools
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

__all__ = ["ArrayHeader", "npz_bytes", "stored_arrays", "stored_headers"]

#: The record that ends a zip: entries, and the size and offset of their directory.
_END = struct.Struct("<4s6xH2I2x")
#: An entry of the directory: compression, checksum, sizes, lengths of what follows, offset.
_ENTRY = struct.Struct("<4s6xH4x3I3H8xI")
#: The header of an entry, before its content.
_HEADER = struct.Struct("<4s22x2H")
#: The start of a npy file, and the length of its header.
_NPY = struct.Struct("<8sH")
_VERSION_1 = npy.MAGIC_PREFIX + b"\1\0"


def npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the arrays as an ordinary, uncompressed npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes no **Mapping
    return buffer.getvalue()


def stored_arrays(content: bytes) -> dict[str, NDArray[Any]] | None:
    """Return the arrays of an npz file that is whole and as :func:`npz_bytes` writes it.

    Returns:
        None for any other content.
    """
    try:
        return dict(_arrays(content))
    except Exception:  # numpy raises half a dozen kinds for damaged bytes
        return None


class ArrayHeader(NamedTuple):
    """The shape and the type of a stored array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def stored_headers(archive: zipfile.ZipFile) -> dict[str, ArrayHeader]:
    """Return the header of each array of an npz file, without reading the arrays.

    Raises:
        ValueError: an array does not have the bytes that its header claims.
    """
    headers = {}
    for entry in archive.infolist():
        _expect(entry.compress_type == zipfile.ZIP_STORED)
        with archive.open(entry) as file:
            magic, length = _NPY.unpack(file.read(_NPY.size))
            _expect(magic == _VERSION_1)
            shape, _, dtype = _described(file.read(length))
        size = _NPY.size + length + math.prod(shape) * dtype.itemsize
        _expect(entry.file_size == entry.compress_size == size)
        headers[entry.filename.removesuffix(".npy")] = ArrayHeader(shape, dtype)
    return headers


def _arrays(content: bytes) -> Iterator[tuple[str, NDArray[Any]]]:
    mark, entries, size, offset = _END.unpack_from(content, len(content) - _END.size)
    _expect(mark == b"PK\5\6" and offset + size == len(content) - _END.size)
    for _ in range(entries):
        mark, method, crc, packed, size, *lengths, start = _ENTRY.unpack_from(content, offset)
        _expect(mark == b"PK\1\2" and method == 0 and packed == size and not any(lengths[1:]))
        name_offset = offset + _ENTRY.size
        offset = name_offset + lengths[0]
        name = content[name_offset:offset]
        stored = _stored(content, start, name, size)
        _expect(zlib.crc32(stored) == crc)
        yield name.decode().removesuffix(".npy"), _array(stored)
    _expect(offset == len(content) - _END.size)


def _stored(content: bytes, start: int, name: bytes, size: int) -> bytes:
    """Return the content of an entry, given the offset of its header."""
    mark, name_length, extra_length = _HEADER.unpack_from(content, start)
    begin = start + _HEADER.size
    _expect(mark == b"PK\3\4" and content[begin : begin + name_length] == name)
    begin += name_length + extra_length
    return content[begin : begin + size]


def _array(stored: bytes) -> NDArray[Any]:
    """Return the array of a npy file."""
    magic, length = _NPY.unpack_from(stored)
    _expect(magic == _VERSION_1)
    shape, is_fortran, dtype = _described(stored[_NPY.size : _NPY.size + length])
    array = np.frombuffer(stored, dtype, offset=_NPY.size + length)
    return array.copy().reshape(shape, order="F" if is_fortran else "C")


@functools.lru_cache(maxsize=1024)
def _described(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order and type of an array; most packs of a run have the same."""
    read, start = npy.read_array_header_1_0, struct.pack("<H", len(header))
    shape, is_fortran, dtype = read(io.BytesIO(start + header))  # type: ignore[no-untyped-call]
    _expect(not dtype.hasobject and all(size >= 0 for size in shape))
    return shape, is_fortran, dtype


def _expect(holds: bool) -> None:
    if not holds:
        raise ValueError("not as written here")
