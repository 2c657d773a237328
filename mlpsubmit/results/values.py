"""Values of axes and settings in a form that every file format can hold, and which are equal.

A label is what a dataset shows of a value: a number, or a text. Two values may have one label (two
functions of one name, ``None`` and ``"None"``), so values are identified by a hash: that of the
label, or one of the content, which is kept beside the label wherever it is another one.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlpsubmit.results.names import clean_text
from mlpsubmit.results.source import Array, Scalar

__all__ = [
    "HASH_BYTES",
    "coordinate_values",
    "identity",
    "is_text",
    "plain_value",
    "read_label",
    "scalar_hash",
    "shared_texts",
    "text_of",
    "without_suffix",
]

#: Of a value's hash; in hex it has twice as many characters.
HASH_BYTES = 8

#: Texts that mean another value, unless a hash says that they are texts.
_MEANING: dict[str, Any] = {
    "True": True,
    "False": False,
    "None": None,
    "()": (),
    "[]": [],
    "{}": {},
}

#: What tells the label of a value from an equal one: its number on an axis, or a hash.
_SUFFIX = re.compile(r" (#\d+|\([0-9a-f]+\))$")


def coordinate_values(values: Sequence[Scalar]) -> Array:
    """Return an array of one plain type; what mixes numbers with text or booleans becomes text."""
    if is_text(values):
        return np.array([text_of(value) for value in values], dtype=np.str_)
    plain = [plain_value(value) for value in values]
    kinds = {type(value) for value in plain}
    if kinds == {bool}:
        return np.array(plain, dtype=np.bool_)
    return np.array(plain, dtype=np.int64 if kinds == {int} else np.float64)


def is_text(values: Sequence[Scalar]) -> bool:
    """Return whether values together are texts: neither all numbers nor all booleans.

    So are integers beside floats if no float equals one of them.
    """
    plain = [plain_value(value) for value in values]
    kinds = {type(value) for value in plain}
    if kinds == {int, float}:
        return any(float(value) != value for value in plain if type(value) is int)
    return not (kinds <= {int, float} or kinds == {bool})


def text_of(value: Scalar) -> str:
    """Return a value as text that every file format can hold."""
    return clean_text(str(plain_value(value)))


def plain_value(value: Scalar) -> Scalar:
    """Return the value as a builtin that every file format can hold."""
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, (int, float)):
        return clean_text(str(value))
    return value if abs(value) < 2**63 or isinstance(value, float) else str(value)


# ---- which values are equal ----------------------------------------------------------------------


def scalar_hash(value: Any) -> str:
    """Return the hash of a number, a text, a boolean, None, or an empty tuple, list or dictionary.

    Numbers are compared as Python does, exactly and whatever their type; True is not 1.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    content = f"{type(value).__name__} {value!r}".encode()
    return hashlib.blake2b(content, digest_size=HASH_BYTES).hexdigest()


def read_label(label: Scalar) -> Any:
    """Return the value that a label without a hash stands for."""
    return _MEANING.get(label, label) if isinstance(label, str) else label


def identity(label: Scalar, value_hash: str = "") -> str:
    """Return the hash of a value, given its label and the hash beside that, if any."""
    return value_hash or scalar_hash(read_label(label))


def shared_texts(labels: Sequence[Scalar], identities: Sequence[str]) -> set[str]:
    """Return the texts that several different values have as their labels."""
    known: dict[str, set[str]] = defaultdict(set)
    for label, own in zip(labels, identities, strict=True):
        known[text_of(label)].add(own)
    return {text for text, own in known.items() if len(own) > 1}


def without_suffix(label: Scalar, value_hash: str) -> Scalar:
    """Return the label of a value without what told it from others on its axis."""
    return _SUFFIX.sub("", label) if value_hash and isinstance(label, str) else label
