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
    """Return the (size,) mask that :func:`encode_mask` wrote."""
    content = zlib.decompress(base64.b64decode(text))
    return np.unpackbits(np.frombuffer(content, dtype=np.uint8), count=size).astype(bool)
