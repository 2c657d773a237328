"""The fixed settings of a run as attributes of its dataset, and back.

Each is an attribute of its own name, a number or a text (of booleans, too). Of those that results
depend on, the attribute ``settings`` has the names; ``function_hashes`` has, as JSON, a hash of the
code of those that are functions of the user.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlpsubmit.results.results_hash import RESULTS_HASH
from mlpsubmit.results.source import FixedSetting, Scalar
from mlpsubmit.results.values import plain_value, text_of

__all__ = [
    "FUNCTION_HASHES",
    "SETTINGS",
    "attribute_names",
    "code_attributes",
    "codes_of",
    "fixed_settings",
    "setting_attributes",
    "setting_values",
]

SETTINGS = "settings"
FUNCTION_HASHES = "function_hashes"

_RESERVED = (SETTINGS, FUNCTION_HASHES, RESULTS_HASH, "data_hash", "bit_identity", "joined")
_SUFFIX = "_setting"
#: The most characters of a text; HDF5 stores up to 64 KB.
_MOST = 2000
_MOST_CODES = 60_000


def setting_attributes(
    settings: Mapping[str, FixedSetting], taken: Iterable[str]
) -> dict[str, str | int | float]:
    """Return settings as attributes; ``_setting`` is appended to names that are taken."""
    if not settings:
        return {}
    counting = [name for name, setting in settings.items() if setting.counts]
    code = {name: setting.code for name, setting in settings.items() if setting.code}
    found: dict[str, str | int | float] = {SETTINGS: " ".join(counting)}
    if code:
        found[FUNCTION_HASHES] = json.dumps(code)
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
        found[own] = _short(plain_value(setting.value))
    return found


def fixed_settings(attributes: Mapping[str, Any]) -> dict[str, FixedSetting]:
    """Return the settings that results depend on, from the attributes of a dataset."""
    code = json.loads(attributes.get(FUNCTION_HASHES, "{}"))
    return {
        name: FixedSetting(_value(attributes[own]), code.get(name, ""))
        for name, own in attribute_names(attributes).items()
    }


def code_attributes(values: Sequence[Scalar], codes: Sequence[str]) -> dict[str, str]:
    """Return hashes of the values along an axis as an attribute of its coordinate, by value."""
    found = {text_of(value): code for value, code in zip(values, codes, strict=True) if code}
    text = json.dumps(found)
    return {FUNCTION_HASHES: text} if len(text) <= _MOST_CODES else {}


def codes_of(values: Sequence[Scalar], attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the hash of each value of a coordinate, empty where there is none."""
    found = json.loads(attributes.get(FUNCTION_HASHES, "{}"))
    return tuple(found.get(text_of(value), "") for value in values)


def attribute_names(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return the attribute of each setting that results depend on."""
    found = {}
    for name in str(attributes.get(SETTINGS, "")).split():
        found[name] = name
        while found[name] + _SUFFIX in attributes:
            found[name] += _SUFFIX
    return found


def _short(plain: Scalar) -> Scalar:
    if isinstance(plain, str) and len(plain) > _MOST:
        digest = hashlib.blake2b(plain.encode(), digest_size=8).hexdigest()
        return f"{plain[:_MOST]}... ({len(plain)} characters, of the hash {digest})"
    return plain


def _value(attribute: Any) -> Scalar:
    plain = plain_value(attribute)
    return {"True": True, "False": False}.get(plain, plain) if isinstance(plain, str) else plain
