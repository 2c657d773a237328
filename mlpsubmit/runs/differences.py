"""How the ingredients of keys differ: settings by value, functions by what they reach."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlpsubmit.display.text import counted
from mlpsubmit.runs.run_keys import DEFAULT_HASH, RunKeys
from mlpsubmit.spec.ingredients import SOURCES

__all__ = ["Change", "axis_changes", "changes", "function_changes", "version_changes"]

#: Versions of a launch that keys do not cover.
_VERSIONS = ("mlpsubmit", "torch", "numpy")

#: The most values of an axis that are listed.
_VALUES = 8

_ABSENT: Mapping[str, Any] = {"hash": "", "text": ""}

#: In the place of a function that one run does not have.
_NONE: Mapping[str, Any] = {"hash": "", "text": "(none)", "parts": {}}


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        name: of the setting, the function or the axis.
        part: of a function: what differs in it, such as ``function shift``; else empty.
        before, after: as text; empty where there is a diff.
        diff: of sources, as lines of a unified diff.
        note: what else is to be said, in the place of the values.
    """

    name: str
    part: str = ""
    before: str = ""
    after: str = ""
    diff: tuple[str, ...] = ()
    note: str = ""

    @property
    def same_text(self) -> bool:
        """Whether the contents differ although their texts, which may be abridged, are equal."""
        return not (self.diff or self.note) and self.before == self.after

    @property
    def lines(self) -> list[str]:
        """The lines that show it."""
        place = ": ".join(filter(None, (self.name, self.part)))
        if self.note:
            return [f"  {place}: {self.note}"]
        if self.diff:
            return [f"  {place}", *(f"    {line}" for line in self.diff)]
        other = " (of other contents)" if self.same_text else ""
        return [f"  {place}: {self.before or '(none)'} -> {self.after or '(none)'}{other}"]

    def to_json(self) -> dict[str, Any]:
        """Return it as ``diff --json`` and ``why --json`` print it."""
        texts = (self.part, self.before, self.after, "\n".join(self.diff), self.note)
        part, before, after, diff, note = (text or None for text in texts)
        return {
            "name": self.name,
            "part": part,
            "before": before,
            "after": after,
            "diff": diff,
            "note": note,
        }


def changes(
    before: Mapping[str, Any], after: Mapping[str, Any], old: str, new: str
) -> Iterator[Change]:
    """Yield how ingredients differ.

    Args:
        before, after: ingredients by name; those at their default may be left out.
        old, new: the runs that they are of.
    """
    default = {"hash": DEFAULT_HASH, "text": "(default)"}
    for name in dict.fromkeys([*before, *after]):
        a, b = before.get(name, default), after.get(name, default)
        for unseen in dict.fromkeys([*a.get("unseen", ()), *b.get("unseen", ())]):
            note = f"{unseen}, which cannot be seen: its key is another in every launch"
            yield Change(name, note=note)
        if a["hash"] == b["hash"]:
            continue
        parts = [*_changed_parts(name, a.get("parts", {}), b.get("parts", {}), old, new)]
        if a["text"] != b["text"] or not parts:
            yield Change(name, "", str(a["text"]), str(b["text"]))
        yield from parts


def _changed_parts(
    name: str, before: Mapping[str, Any], after: Mapping[str, Any], old: str, new: str
) -> Iterator[Change]:
    """Yield the parts of a function that differ, the source of functions as a diff."""
    for part in dict.fromkeys([*before, *after]):
        a, b = before.get(part, _ABSENT), after.get(part, _ABSENT)
        if a["hash"] == b["hash"]:
            continue
        diff: Sequence[str] = ()
        if part.startswith(SOURCES):
            source, edited = (str(entry["text"]).splitlines() for entry in (a, b))
            diff = [*difflib.unified_diff(source, edited, f"run {old}", f"run {new}", lineterm="")]
        if diff:
            yield Change(name, part, diff=tuple(diff))
        else:
            yield Change(name, part, str(a["text"]), str(b["text"]))


def axis_changes(before: RunKeys, after: RunKeys) -> Iterator[Change]:
    """Yield the axes of two runs that differ; also those of one that are fixed in the other."""
    old, new = (_on_axes(keys) for keys in (before, after))
    zipped = [[axis["names"] for axis in k.axes if len(axis["names"]) > 1] for k in (before, after)]
    if zipped[0] != zipped[1]:
        texts = [", ".join(f"({', '.join(names)})" for names in own) for own in zipped]
        yield Change("zipped axes", "", texts[0], texts[1])
    fixed = before.fixed, after.fixed
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            texts = [
                _values(own[name])
                if name in own
                else (f"{known[name]} (no axis)" if name in known else "")
                for own, known in zip((old, new), fixed, strict=True)
            ]
            yield Change(f"axis {name}", "", texts[0], texts[1])
    yield from _other_contents(before, after)


def _other_contents(before: RunKeys, after: RunKeys) -> Iterator[Change]:
    """Yield the axes whose values have equal texts and other contents, such as functions."""
    there = {tuple(axis["names"]): number for number, axis in enumerate(after.axes)}
    for number, axis in enumerate(before.axes):
        other = there.get(tuple(axis["names"]))
        if other is None or axis["values"] != after.axes[other]["values"]:
            continue
        if not np.array_equal(before.hashes(number), after.hashes(other)):
            text = "; ".join(map(_values, axis["values"]))
            yield Change(f"axis {', '.join(axis['names'])}", "", text, text)


def function_changes(before: RunKeys, after: RunKeys) -> Iterator[Change]:
    """Yield how the functions differ that are values of axes, and that of ``where``.

    A function that is a value of an axis in one run may be a fixed setting of the other.
    """
    runs = before.run.id, after.run.id
    for name in dict.fromkeys([*_on_axes(before), *_on_axes(after)]):
        alone, found = 0, list[Change]()
        for place, a, b in _pairs(_functions(before, name), _functions(after, name)):
            alone += _NONE in (a, b)
            if _NONE not in (a, b) or alone <= _VALUES:
                found += changes({place: a}, {place: b}, *runs)
        yield from _each_once(found)
        if alone > _VALUES:
            more = f"{alone - _VALUES} more functions are in one of the runs only"
            yield Change(f"axis {name}", note=f"{more}: see mlpsubmit show RUN --sources")
    where = [{"where": keys.content["where"] or _NONE} for keys in (before, after)]
    yield from changes(where[0], where[1], *runs)


def _each_once(found: Iterable[Change]) -> Iterator[Change]:
    """Yield changes of the functions on an axis; one that several share with the first of them."""
    same: dict[Change, list[str]] = {}
    for change in found:
        same.setdefault(replace(change, name=""), []).append(change.name)
    for change, names in same.items():
        more = f" and {counted(len(names) - 1, 'other')}" if len(names) > 1 else ""
        yield replace(change, name=f"{names[0]}{more}")


def _functions(keys: RunKeys, name: str) -> dict[str, Mapping[str, Any]]:
    """Return the functions that a setting has, on an axis or fixed, by what they are called."""
    if (values := _on_axes(keys).get(name)) is not None:
        found = keys.functions(name)
        return {f"axis {name}={values[at]}": entry for at, entry in found.items()}
    fixed = keys.settings.get(name, {})
    return {f"axis {name}={fixed['text']}": fixed} if fixed.get("parts") else {}


def _pairs(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Yield the functions that differ, by name, in pairs: of equal ones in their order.

    So a function that is inserted among lambdas, which are numbered, makes no others differ.
    """
    shared = {entry["hash"] for entry in before.values()} & {e["hash"] for e in after.values()}
    rest = {place: entry for place, entry in after.items() if entry["hash"] not in shared}
    for place, entry in before.items():
        if entry["hash"] in shared:
            continue
        other = next((p for p, one in rest.items() if one["text"] == entry["text"]), None)
        yield place, entry, _NONE if other is None else rest.pop(other)
    yield from ((place, _NONE, entry) for place, entry in rest.items())


def _on_axes(keys: RunKeys) -> dict[str, Sequence[Any]]:
    """Return the values on the axes of a run, by name."""
    return {
        name: values
        for axis in keys.axes
        for name, values in zip(axis["names"], axis["values"], strict=True)
    }


def _values(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:_VALUES])) + ", ..." * (len(values) > _VALUES)


def version_changes(before: RunKeys, after: RunKeys) -> tuple[list[Change], list[Change]]:
    """Return the versions that differ: those that are part of keys, and the others.

    That of Python is, as bytecode depends on it.
    """
    python = before.content["python"], after.content["python"]
    own = [Change("python", "", *python)] if python[0] != python[1] else []
    old, new = (keys.run.sweep["origin"] for keys in (before, after))
    found = ((name, old.get(name, "?"), new.get(name, "?")) for name in _VERSIONS)
    return own, [Change(name, "", a, b) for name, a, b in found if a != b]
