"""Boolean masks as text, for JSON files."""

from __future__ import annotations

import base64
import zlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode_mask", "encode_mask"]


def encode_mask(mask: NDArray[np.bool_]) -> str:
    """Return a mask as text: its bits, compressed, so that a regular mask is short."""
    return base64.b64encode(zlib.compress(np.packbits(mask).tobytes())).decode()


def decode_mask(text: str, size: int) -> NDArray[np.bool_]:
    """Return the (size,) mask that :func:`encode_mask` wrote.

    Raises:
        ValueError: the text is no mask of that size.
    """
    most = -(-size // 8)
    try:
        # A kilobyte of text may decompress to a megabyte of zeros.
        content = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), most + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(content) != most:
        raise ValueError(f"it should have {size} bits")
    return np.unpackbits(np.frombuffer(content, dtype=np.uint8), count=size).astype(bool)
