"""Readers of the file formats of image data sets: labels at once, pixels of chosen rows later.

Nothing is unpickled. Pixels are returned as stored, uint8, in the shape (rows, channels, height,
width), with the channels in the order red, green, blue.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Part", "UnreadableFile", "cifar5m", "cifar_records", "idx", "imagenet32", "svhn"]

#: Rows of an npz archive that are in memory at a time, however many are selected.
_BLOCK = 4096

_NPY: Any = np.lib.format  # whose functions have no types


class Part(NamedTuple):
    """The images of one file.

    Attributes:
        labels: (n,).
        pixels: function of m ascending row indices, to uint8 (m, channels, height, width).
    """

    labels: NDArray[np.int64]
    pixels: Callable[[NDArray[np.intp]], NDArray[np.uint8]]


class UnreadableFile(Exception):
    """A file that is damaged or not in the expected format; args are its path and the reason."""


def idx(images: Path, labels: Path) -> Part:
    """Read the two files of MNIST: a magic number, big-endian sizes, and unsigned bytes.

    Source: http://yann.lecun.com/exdb/mnist, "File formats for the MNIST database".
    """
    with _reading(images):
        planes = _idx_array(images, dimensions=3)[:, None]
    with _reading(labels):
        numbers = _valid(_idx_array(labels, dimensions=1), range(10))
        if len(numbers) != len(planes):
            raise ValueError(f"it has {len(numbers)} labels for {len(planes)} images")
    return Part(numbers, lambda rows: planes[rows])


def cifar_records(path: Path, valid: range, label_bytes: int = 1, label: int = 0) -> Part:
    """Read the binary version of CIFAR: records of labels and 3 planes of 32 x 32 pixels.

    Source: https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".

    Args:
        valid: the valid labels.
        label_bytes: number of labels in a record: CIFAR-100 has a coarse and a fine one.
        label: index of the label to use.
    """
    with _reading(path):
        content = np.fromfile(path, np.uint8)
        size = label_bytes + 3 * 32 * 32
        if not len(content) or len(content) % size:
            raise ValueError(
                f"it has {len(content)} bytes, not a multiple of {size}, the record size"
            )
        records = content.reshape(-1, size)
        numbers = _valid(records[:, label], valid)
    planes = records[:, label_bytes:].reshape(-1, 3, 32, 32)
    return Part(numbers, lambda rows: planes[rows])


def svhn(path: Path) -> Part:
    """Read the cropped digits of SVHN: X (32, 32, 3, n) and y (n, 1), where 10 is the digit 0.

    Source: http://ufldl.stanford.edu/housenumbers, "Format 2".
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    with _reading(path):
        try:
            arrays = loadmat(path, variable_names=["X", "y"])
        except MatReadError as error:
            raise ValueError(str(error)) from error
        if absent := {"X", "y"} - set(arrays):
            raise ValueError(f"it has no variable {', '.join(sorted(absent))}")
        X, y = arrays["X"], arrays["y"]
        _check_pixels("X", X.dtype, X.shape[:-1], (32, 32, 3))
        numbers = _valid(y.reshape(-1), range(1, 11)) % 10
        _check_lengths("X", X.shape[-1], "y", len(numbers))
    return Part(numbers, lambda rows: X[..., rows].transpose(3, 2, 0, 1))


def imagenet32(path: Path) -> Part:
    """Read downsampled ImageNet: data (n, 3072) as 3 planes, and labels from 1, shifted to 0.

    Source: Chrabaszcz, Loshchilov, Hutter, arXiv 1707.08819.
    """
    labels, pixels = _npz(path, "data", (3 * 32 * 32,), "labels", range(1, 1001))
    return Part(labels - 1, lambda rows: pixels(rows).reshape(-1, 3, 32, 32))


def cifar5m(path: Path) -> Part:
    """Read CIFAR-5m: X (n, 32, 32, 3) and Y.

    Source: https://github.com/preetum/cifar5m.
    """
    labels, pixels = _npz(path, "X", (32, 32, 3), "Y", range(10))
    return Part(labels, lambda rows: pixels(rows).transpose(0, 3, 1, 2))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file as an input, and convert a decoder's errors for bad data to UnreadableFile."""
    sys.audit("mlpsubmit.input", path)  # however it is opened: C code reports nothing
    try:
        yield
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        NotImplementedError,  # scipy's for a .mat file of another version
        struct.error,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        raise UnreadableFile(path, str(error) or type(error).__name__) from error


def _idx_array(path: Path, dimensions: int) -> NDArray[np.uint8]:
    with open(path, "rb") as stream:
        content = stream.read()
    # By content, since some programs unpack a download and keep the ending of its name.
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    magic, *shape = struct.unpack_from(f">{1 + dimensions}I", content)
    if magic != 0x0800 + dimensions:
        raise ValueError(
            f"its magic number is {magic:#010x} instead of {0x0800 + dimensions:#010x}"
        )
    start = 4 + 4 * dimensions
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"it has {len(content) - start} bytes of data, but {math.prod(shape)} by its header"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _npz(path: Path, pixels: str, shape: tuple[int, ...], labels: str, valid: range) -> Part:
    """Read the labels of an npz archive, and check the header of its pixels, (n, *shape)."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        with _member(archive, labels) as (stream, _, _, dtype):
            if dtype.kind not in "iu":
                raise ValueError(f"its array {labels!r} has the dtype {dtype}")
            numbers = _valid(np.frombuffer(stream.read(), dtype), valid)
        with _member(archive, pixels) as (_, (n, *image), _, dtype):
            _check_pixels(pixels, dtype, tuple(image), shape)
            _check_lengths(pixels, n, labels, len(numbers))

    def chosen(rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        with _reading(path), zipfile.ZipFile(path) as archive, _member(archive, pixels) as member:
            return _rows(member, rows)

    return Part(numbers, chosen)


#: An array of an npz archive: a stream of its data, shape, whether it is in Fortran order, dtype.
_Member: TypeAlias = tuple[IO[bytes], tuple[int, ...], bool, np.dtype[Any]]


@contextlib.contextmanager
def _member(archive: zipfile.ZipFile, key: str) -> Iterator[_Member]:
    # np.load would read a whole array, 3 GB in a part of CIFAR-5m, for a few thousand rows.
    if f"{key}.npy" not in archive.namelist():
        raise ValueError(f"it has no array {key!r}; it has {', '.join(archive.namelist())}")
    with archive.open(f"{key}.npy") as stream:
        first = _NPY.read_magic(stream) == (1, 0)
        header = _NPY.read_array_header_1_0 if first else _NPY.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        if dtype.hasobject:
            raise ValueError(f"its array {key!r} is pickled, and nothing is unpickled here")
        yield stream, shape, fortran, dtype


def _rows(member: _Member, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Return some rows of an array of bytes, without reading beyond the last of them."""
    stream, shape, fortran, _ = member
    if fortran:
        return np.frombuffer(stream.read(), np.uint8).reshape(shape, order="F")[rows]
    chosen = np.empty((len(rows), *shape[1:]), np.uint8)
    stop = int(rows[-1]) + 1
    for start in range(0, stop, _BLOCK):
        end = min(start + _BLOCK, stop)
        content = stream.read((end - start) * math.prod(shape[1:]))
        block = np.frombuffer(content, np.uint8).reshape(end - start, *shape[1:])
        first, last = np.searchsorted(rows, (start, end))
        chosen[first:last] = block[rows[first:last] - start]
    return chosen


def _valid(numbers: NDArray[Any], valid: range) -> NDArray[np.int64]:
    outside = numbers[~((numbers >= valid[0]) & (numbers <= valid[-1]))]
    if len(outside):
        raise ValueError(
            f"it has the label {outside[0]}; valid labels are {valid[0]} to {valid[-1]}"
        )
    return numbers.astype(np.int64)


def _check_pixels(
    key: str, dtype: np.dtype[Any], image: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    if dtype != np.uint8 or image != shape:
        raise ValueError(
            f"the images of its array {key!r} are {dtype} of shape {image}; valid is uint8 of "
            f"shape {shape}"
        )


def _check_lengths(pixels: str, images: int, labels: str, numbers: int) -> None:
    if images != numbers:
        raise ValueError(
            f"its array {pixels!r} has {images} images, and {labels!r} has {numbers} labels"
        )
