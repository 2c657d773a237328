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
#: The same with all fields, to write them.
_NEW_END = struct.Struct("<4s4H2IH")
_NEW_ENTRY = struct.Struct("<4s6H3I5H2I")
_NEW_HEADER = struct.Struct("<4s5H3I2H")
#: The start of a npy file, and the length of its header.
_NPY = struct.Struct("<8sH")
_VERSION_1 = npy.MAGIC_PREFIX + b"\1\0"

#: The most bytes of arrays that are written here: zip's sizes of 32 bits are enough for them.
_SMALL = 1 << 20


def npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the arrays as an ordinary, uncompressed npz file."""
    if sum(array.nbytes for array in arrays.values()) <= _SMALL:
        return _small_npz(arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes no **Mapping
    return buffer.getvalue()


def _small_npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the npz file of arrays that need none of zip's extensions."""
    whole, directory = bytearray(), bytearray()
    for array_name, array in arrays.items():
        name, content = f"{array_name}.npy".encode(), _npy(array)
        # UTF-8 or ASCII, stored, at the first time that a zip can name, as zipfile writes them.
        flags, size = 0 if name.isascii() else 0x800, len(content)
        fields = 20, flags, 0, 0, 33, zlib.crc32(content), size, size, len(name), 0
        directory += _NEW_ENTRY.pack(b"PK\1\2", 0x314, *fields, 0, 0, 0, 0o600 << 16, len(whole))
        directory += name
        whole += _NEW_HEADER.pack(b"PK\3\4", *fields) + name + content
    count = len(arrays)
    return bytes(whole + directory) + _NEW_END.pack(
        b"PK\5\6", 0, 0, count, count, len(directory), len(whole), 0
    )


def _npy(array: NDArray[Any]) -> bytes:
    """Return the npy file of an array."""
    is_fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    content = array.tobytes("F" if is_fortran else "C")
    return _npy_header(array.shape, array.dtype, is_fortran) + content


@functools.lru_cache(maxsize=1024)
def _npy_header(shape: tuple[int, ...], dtype: np.dtype[Any], is_fortran: bool) -> bytes:
    """Return the header of a npy file; most packs of a run have the same."""
    if dtype.hasobject:
        raise ValueError(f"arrays of {dtype} cannot be read back without unpickling")
    buffer = io.BytesIO()
    untyped: Any = npy  # which has functions without types
    descr = untyped.dtype_to_descr(dtype)
    described = {"descr": descr, "fortran_order": is_fortran, "shape": shape}
    untyped.write_array_header_1_0(buffer, described)
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
