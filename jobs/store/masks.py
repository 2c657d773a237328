"""Boolean masks and small numbers as text, for JSON files."""

from __future__ import annotations

import base64
import zlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode_classes", "decode_mask", "encode_classes", "encode_mask"]


def encode_mask(mask: NDArray[np.bool_]) -> str:
    """Return a mask as text: its bits, compressed, so that a regular mask is short."""
    return _compressed(np.packbits(mask).tobytes())


def decode_mask(text: str, size: int) -> NDArray[np.bool_]:
    """Return the (size,) mask that :func:`encode_mask` wrote.

    Raises:
        ValueError: the text is no mask of that size.
    """
    most = -(-size // 8)
    content = _decompressed(text, most)
    if len(content) != most:
        raise ValueError(f"it should have {size} bits")
    return np.unpackbits(np.frombuffer(content, dtype=np.uint8), count=size).astype(bool)


def encode_classes(classes: NDArray[np.int64]) -> str:
    """Return class numbers (size,) as text, in as few bytes as they need, compressed."""
    width = np.min_scalar_type(int(classes.max()))
    return _compressed(classes.astype(width.newbyteorder("<")).tobytes())


def decode_classes(text: str, size: int) -> NDArray[np.int64]:
    """Return the (size,) class numbers that :func:`encode_classes` wrote.

    Raises:
        ValueError: the text is not that of size numbers, or a number from 0 to the largest is
            missing.
    """
    content = _decompressed(text, 4 * size)
    width, rest = divmod(len(content), size)
    if rest or width not in (1, 2, 4):
        raise ValueError(f"it should have {size} numbers")
    classes = np.frombuffer(content, dtype=f"<u{width}").astype(np.int64)
    if classes.max() >= size or not np.bincount(classes).all():
        raise ValueError("its numbers should be all from 0 to the largest")
    return classes


def _compressed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode()


def _decompressed(text: str, most: int) -> bytes:
    """Return what a text holds, at most one byte more than the most it should.

    A kilobyte of text may decompress to a megabyte of zeros.
    """
    try:
        return zlib.decompressobj().decompress(base64.b64decode(text, validate=True), most + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
