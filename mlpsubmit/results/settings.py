"""The fixed settings of a run as attributes of its dataset, and back.

Each is an attribute of its own name, a number or a text (of booleans, too). Of those that results
depend on, the attribute ``settings`` has the names; ``value_hashes`` has, as JSON, a hash of those
that their text does not say in full, such as functions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlpsubmit.results.results_hash import RESULTS_HASH
from mlpsubmit.results.source import FixedSetting, Scalar
from mlpsubmit.results.values import (
    coordinate_values,
    identity,
    is_text,
    plain_value,
    read_label,
    text_of,
)

__all__ = [
    "SETTINGS",
    "VALUE_HASHES",
    "attribute_names",
    "fixed_settings",
    "hash_attributes",
    "hashes_of",
    "setting_attributes",
    "setting_values",
]

SETTINGS = "settings"
VALUE_HASHES = "value_hashes"

_RESERVED = (SETTINGS, VALUE_HASHES, RESULTS_HASH, "data_hash", "bit_identity", "joined")
_SUFFIX = "_setting"
#: The most characters of a text; HDF5 stores up to 64 KB.
_MOST = 2000
#: The most of the hashes in one attribute.
_MOST_HASHES = 60_000


def setting_attributes(
    settings: Mapping[str, FixedSetting], taken: Iterable[str]
) -> dict[str, str | int | float]:
    """Return settings as attributes; ``_setting`` is appended to names that are taken."""
    if not settings:
        return {}
    counting = {name: setting for name, setting in settings.items() if setting.counts}
    found: dict[str, str | int | float] = {SETTINGS: " ".join(counting)}
    hashes = {
        name: own
        for name, setting in counting.items()
        if (own := identity(setting.value, setting.hash)) != identity(_short_value(setting))
    }
    if hashes:
        found[VALUE_HASHES] = json.dumps(hashes)
    for own, value in setting_values(settings, {*taken, *found}).items():
        found[own] = str(value) if isinstance(value, bool) else value
    return found


def setting_values(settings: Mapping[str, FixedSetting], taken: Iterable[str]) -> dict[str, Scalar]:
    """Return the values by name; long texts are cut, ``_setting`` is appended to taken names."""
    names, found = {*taken, *_RESERVED}, dict[str, Scalar]()
    for name, setting in settings.items():
        own = name
        while own in names or own in found:
            own += _SUFFIX
        found[own] = _short_value(setting)
    return found


def fixed_settings(attributes: Mapping[str, Any]) -> dict[str, FixedSetting]:
    """Return the settings that results depend on, from the attributes of a dataset."""
    hashes = json.loads(attributes.get(VALUE_HASHES, "{}"))
    return {
        name: FixedSetting(_value(attributes[own], hashes.get(name, "")), hashes.get(name, ""))
        for name, own in attribute_names(attributes).items()
    }


def hash_attributes(labels: Sequence[Scalar], hashes: Sequence[str]) -> dict[str, str]:
    """Return hashes of the values along an axis as attributes of its coordinate, by label.

    Of those that the label alone does not identify; in several attributes if they are many.
    """
    if not any(hashes) and not is_text(labels):
        return {}
    shown = coordinate_values(labels).tolist()
    found = {
        text_of(own): value_hash
        for own, label, known in zip(shown, labels, hashes, strict=True)
        if (value_hash := identity(label, known)) != identity(own)
    }
    parts, size = [dict[str, str]()], 0
    for text, value_hash in found.items():
        length = len(json.dumps({text: value_hash}))
        if size + length > _MOST_HASHES:
            parts.append({})
            size = 0
        parts[-1][text] = value_hash
        size += length
    return {_numbered(number): json.dumps(part) for number, part in enumerate(parts) if part}


def hashes_of(labels: Sequence[Scalar], attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the hash of each value of a coordinate, empty where the label identifies it."""
    found: dict[str, str] = {}
    number = 0
    while (name := _numbered(number)) in attributes:
        found |= json.loads(attributes[name])
        number += 1
    return tuple(found.get(text_of(label), "") for label in labels)


def _numbered(number: int) -> str:
    return f"{VALUE_HASHES}_{number + 1}" if number else VALUE_HASHES


def attribute_names(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return the attribute of each setting that results depend on."""
    found = {}
    for name in str(attributes.get(SETTINGS, "")).split():
        found[name] = name
        while found[name] + _SUFFIX in attributes:
            found[name] += _SUFFIX
    return found


def _short_value(setting: FixedSetting) -> Scalar:
    plain = plain_value(setting.value)
    if isinstance(plain, str) and len(plain) > _MOST:
        digest = hashlib.blake2b(plain.encode(), digest_size=8).hexdigest()
        return f"{plain[:_MOST]}... ({len(plain)} characters, of the hash {digest})"
    return plain


def _value(attribute: Any, value_hash: str) -> Scalar:
    """Return a setting, booleans as such; a text if it has a hash."""
    plain = plain_value(attribute)
    value = read_label(plain)
    return value if isinstance(value, bool) and not value_hash else plain
