"""How the ingredients of keys differ: settings by value, functions by what they reach."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlpsubmit.runs.run_keys import DEFAULT_HASH, RunKeys

__all__ = ["Change", "axis_changes", "changes", "version_changes"]

#: Versions of a launch that keys do not cover.
_VERSIONS = ("mlpsubmit", "torch", "numpy")

#: The most values of an axis that are listed.
_VALUES = 8

_ABSENT: Mapping[str, Any] = {"hash": "", "text": ""}


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        name: of the setting, the function or the axis.
        part: of a function: what differs in it, such as ``function shift``; else empty.
        before, after: as text; empty where there is a diff.
        same_text: whether the contents differ although their texts are equal.
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
        if a["text"] != b["text"] or not (a.get("parts") or b.get("parts")):
            yield Change(name, "", str(a["text"]), str(b["text"]))
        yield from _changed_parts(name, a.get("parts", {}), b.get("parts", {}), old, new)


def _changed_parts(
    name: str, before: Mapping[str, Any], after: Mapping[str, Any], old: str, new: str
) -> Iterator[Change]:
    """Yield the parts of a function that differ, the source of functions as a diff."""
    for part in dict.fromkeys([*before, *after]):
        a, b = before.get(part, _ABSENT), after.get(part, _ABSENT)
        if a["hash"] == b["hash"]:
            continue
        diff: Sequence[str] = ()
        if part.startswith(("function ", "module ")):
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
                _values(own[name]) if name in own else f"{known.get(name, 'not set')} (no axis)"
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
