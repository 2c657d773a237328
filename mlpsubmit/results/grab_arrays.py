"""The names of the arrays of grabs: in packs, and as results.

A grab that returns a number or an array has one array in each pack, ``grab.<name>``. One that
returns a dictionary has an array per key, ``grab[<length of name>].<name>.<key>``: the length keeps
names and keys apart whatever characters they have.
"""

from __future__ import annotations

import re

__all__ = ["array_name", "grab_of", "result_name"]

_KEYED = re.compile(r"grab\[([0-9]{1,4})\]\.(.*)", re.DOTALL)


def array_name(grab: str, key: str | None) -> str:
    """Return the name in packs of the array of a grab, or of one key of its dictionaries."""
    return f"grab.{grab}" if key is None else f"grab[{len(grab)}].{grab}.{key}"


def grab_of(array: str) -> tuple[str, str | None] | None:
    """Return the grab and the key of an array of a pack, or None if it is not of a grab."""
    if array.startswith("grab."):
        return array.removeprefix("grab."), None
    found = _KEYED.fullmatch(array)
    if found is None:
        return None
    length, rest = int(found[1]), found[2]
    return (rest[:length], rest[length + 1 :]) if rest[length : length + 1] == "." else None


def result_name(grab: str, key: str | None) -> str:
    """Return the name of a grab's results: its own, with ``_<key>`` for a key of dictionaries."""
    return grab if key is None else f"{grab}_{key}"
