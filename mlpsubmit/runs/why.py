"""Why the keys of two configs differ: setting by setting, and functions by their source."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mlpsubmit.display.text import counted
from mlpsubmit.errors import RunError, UserError, did_you_mean
from mlpsubmit.jobs.store import records, run_directory
from mlpsubmit.jobs.store.masks import decode_mask
from mlpsubmit.jobs.store.records import Ingredients
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.runs.locate import readable, runs_of
from mlpsubmit.spec.initial_weights import InitialWeights

__all__ = ["compare_configs", "compare_runs", "compare_with_earlier"]

#: The hash of a setting at its default, which is no part of a key.
_DEFAULT = "0" * 32

#: Versions of a launch that keys do not cover.
_VERSIONS = ("mlpsubmit", "torch", "numpy")

#: The most values of an axis that are listed.
_VALUES = 8


def compare_configs(
    runs: tuple[RunDirectory, RunDirectory], selectors: tuple[str, str | None]
) -> list[str]:
    """Return lines on how the keys of two configs differ, each in a run.

    Args:
        selectors: of each config, its index or the values of axes; None for the one in the second
            run with the values of the first.

    Raises:
        UserError: there is no such config, or there are several.
    """
    before, after = (_Keys(run) for run in runs)
    first = before.select(selectors[0])
    if selectors[1] is None:
        second = after.counterpart(before.values(first))
        if isinstance(second, str):
            raise UserError(f"run {after.run.id} has no such config: {second}")
    else:
        second = after.select(selectors[1])
    return list(_compared(before, first, after, second))


def compare_with_earlier(run: RunDirectory, selector: str) -> list[str]:
    """Return lines on why a config was trained and not reused, by the runs before its own."""
    own = _Keys(run)
    index = own.select(selector)
    earlier = [path for path in runs_of(run.path.parent) if path.name != run.id]
    lines = []
    for other in readable(reversed(earlier)):
        if other.sweep["created"] > run.sweep["created"]:
            continue
        with contextlib.suppress(RunError):  # its ingredients are damaged
            keys = _Keys(other)
            found = keys.counterpart(own.values(index))
            if isinstance(found, int):
                return [*_compared(keys, found, own, index)]
            lines.append(f"  {other.id}: {found}")
    no_run = f"config {index} of run {run.id} ({own.point(index)}): no earlier run has it"
    return [no_run, *lines, *(f"  {name}: {text}" for name, text in own.texts(index).items())]


def compare_runs(before: RunDirectory, after: RunDirectory) -> list[str]:
    """Return lines on how the ingredients of two runs differ, and how many keys are equal."""
    first, second = _Keys(before), _Keys(after)
    shared = len(np.intersect1d(first.all_keys(), second.all_keys()))
    count = counted(len(second.indices), "config")
    head = f"{shared:,} of the {count} of run {after.id} have a key of run {before.id}"
    axes = list(_differing_axes(first, second))
    settings = list(_differences(first.settings, second.settings, before.id, after.id))
    return [head, *axes, *settings, *_versions(first, second)]


# ---- the configs of a run ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Keys:
    """The ingredients of the keys of a run's configs."""

    run: RunDirectory

    @cached_property
    def content(self) -> Ingredients:
        """The content of ingredients.json.

        Raises:
            RunError: it is lost or damaged.
        """
        file = self.run.path / run_directory.INGREDIENTS
        try:
            found = records.read(file, Ingredients)
        except FileNotFoundError:
            raise RunError(f"run {self.run.id}: its {run_directory.INGREDIENTS} is lost") from None
        records.check_ingredients(file, found, self.run.sweep)
        return found

    @cached_property
    def axes(self) -> Sequence[Mapping[str, Any]]:
        """The axes as in sweep.json: dimension, names and values of each."""
        axes: Sequence[Mapping[str, Any]] = self.run.sweep["axes"]
        return axes

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The points of each axis."""
        return tuple(len(axis["values"][0]) for axis in self.axes)

    @cached_property
    def indices(self) -> Any:
        """The indices of the configs, (n,)."""
        size, mask = math.prod(self.shape), self.run.sweep["included"]
        return np.arange(size) if mask is None else np.flatnonzero(decode_mask(mask, size))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The ingredients that all configs share."""
        settings: Mapping[str, Any] = self.content["settings"]
        return settings

    def _table(self, axis: int) -> Any:
        table = bytes.fromhex(self.content["axes"][axis])
        return np.frombuffer(table, dtype="<u8").reshape(-1, 2)

    @property
    def _initial(self) -> InitialWeights | None:
        """The networks that configs begin from."""
        if (found := self.content["initial"]) is None:
            return None
        shape = tuple(self.shape[axis] for axis in found["axes"])
        return InitialWeights(tuple(found["axes"]), shape, tuple(found["hashes"]))

    def all_keys(self) -> Any:
        """Return the keys of all configs, (n,) of 16 bytes."""
        total = np.frombuffer(bytes.fromhex(self.content["base"]), dtype="<u8")
        keys = np.tile(total, (len(self.indices), 1))
        columns = np.unravel_index(self.indices, self.shape) if self.shape else ()
        for axis, column in enumerate(columns):
            keys += self._table(axis)[column]
        if (initial := self._initial) is not None:
            assert self.content["initial"] is not None
            table = bytes.fromhex(self.content["initial"]["table"])
            own = np.frombuffer(table, dtype="<u8").reshape(-1, 2)
            keys += own[initial.numbers(self.shape, self.indices)]
        return keys.view("V16").ravel()

    def key(self, index: int) -> str:
        """Return the key of a config, in hex."""
        position = int(np.searchsorted(self.indices, index))
        return bytes(self.all_keys()[position]).hex()

    def place(self, index: int) -> tuple[int, ...]:
        """Return the position of a config on each axis."""
        return tuple(map(int, np.unravel_index(index, self.shape))) if self.shape else ()

    def on_axes(self, index: int) -> dict[str, Any]:
        """Return the values of a config on the axes, by name."""
        return {
            name: values[at]
            for axis, at in zip(self.axes, self.place(index), strict=True)
            for name, values in zip(axis["names"], axis["values"], strict=True)
        }

    def values(self, index: int) -> dict[str, Any]:
        """Return the values of all settings of a config, by name."""
        sweep = self.run.sweep
        fixed = {"trial": 0, **sweep["hyperparameters"], **sweep["arguments"]}
        return {**fixed, **self.on_axes(index)}

    def point(self, index: int) -> str:
        """Return the values of a config on the axes as text."""
        return ", ".join(f"{name}={value}" for name, value in self.on_axes(index).items()) or "-"

    def texts(self, index: int) -> dict[str, str]:
        """Return the text of every ingredient of a config's key."""
        fixed = {name: str(entry["text"]) for name, entry in self.settings.items()}
        return {**fixed, **{name: str(value) for name, value in self.on_axes(index).items()}}

    def ingredients(self, index: int) -> dict[str, Any]:
        """Return the ingredients of a config's key, by name; those on a zipped axis together."""
        found = dict(self.settings)
        for number, (axis, at) in enumerate(zip(self.axes, self.place(index), strict=True)):
            names, texts = axis["names"], [str(values[at]) for values in axis["values"]]
            own = self._table(number)[at].tobytes().hex()
            found[", ".join(names)] = {"hash": own, "text": ", ".join(texts)}
        if (initial := self._initial) is not None:
            own = initial.hashes[int(initial.numbers(self.shape, np.array([index]))[0])]
            text = f"weights {own}" if own else "(default)"
            found["init_weights"] = {"hash": own or _DEFAULT, "text": text}
        return found

    # ---- which config

    def select(self, selector: str) -> int:
        """Return the index of the config with an index, or with values of axes.

        Raises:
            UserError: there is none, or there are several.
        """
        if "=" in selector:
            return self._with_values(selector)
        if selector.isascii() and selector.isdecimal() and len(selector) < 19:
            if int(selector) in self.indices:
                return int(selector)
            valid = f"0 to {math.prod(self.shape) - 1}"
            left_out = ", or where= leaves it out" if self.run.sweep["included"] else ""
            raise UserError(
                f"config {selector}: run {self.run.id} has none with this index; valid are {valid}"
                f"{left_out}"
            )
        raise UserError(
            f"{selector!r}: should be the index of a config, or values of axes, such as "
            f"{self.point(int(self.indices[0])).replace(', ', ',')!r}"
        )

    def _with_values(self, selector: str) -> int:
        known = {name.lower(): name for axis in self.axes for name in axis["names"]}
        wanted = {}
        for part in selector.split(","):
            name, _, text = (piece.strip() for piece in part.partition("="))
            if name.lower() not in known:
                raise UserError(
                    f"{part.strip()!r}: {name} is no axis of run {self.run.id}"
                    f"{did_you_mean(name, known)}; its axes are {', '.join(known) or 'none'}"
                )
            wanted[known[name.lower()]] = text
        matching = [*self._matching(wanted)]
        if len(matching) != 1:
            found = "no config" if not matching else counted(len(matching), "config")
            places = zip(*map(self.place, matching), strict=True)
            several = [
                axis["names"][0]
                for axis, at in zip(self.axes, places, strict=False)
                if len({*at}) > 1
            ]
            more = f"; add {several[0]}=..." if several else ""
            more = more if matching else f"; valid are {self._values(wanted)}"
            raise UserError(f"{selector}: matches {found} of run {self.run.id}{more}")
        return matching[0]

    def _values(self, names: Collection[str]) -> str:
        """Return the values of some axes, for a message; of long axes the first eight."""
        texts = []
        for axis in self.axes:
            for name, values in zip(axis["names"], axis["values"], strict=True):
                if name in names:
                    more = ", ..." if len(values) > 8 else ""
                    texts.append(f"{name} = {', '.join(map(str, values[:8]))}{more}")
        return "; ".join(texts)

    def counterpart(self, values: Mapping[str, Any]) -> int | str:
        """Return the index of the config with some values; what is missing if there is none."""
        wanted = {
            name: values[name] for name in self.on_axes(int(self.indices[0])) if name in values
        }
        for axis in self.axes:
            for name, own in zip(axis["names"], axis["values"], strict=True):
                if name in wanted and not any(_equal(value, wanted[name]) for value in own):
                    listed = ", ".join(map(str, own[:_VALUES])) + ", ..." * (len(own) > _VALUES)
                    return f"no config has {name}={wanted[name]} (its values: {listed})"
        return next(self._matching(wanted), "no config has this combination of values")

    def _matching(self, wanted: Mapping[str, Any]) -> Iterator[int]:
        """Yield the indices of the configs with some values on axes."""
        fitting = [
            np.array(
                [
                    all(
                        _equal(values[at], wanted[name])
                        for name, values in zip(axis["names"], axis["values"], strict=True)
                        if name in wanted
                    )
                    for at in range(count)
                ],
                dtype=bool,
            )
            for axis, count in zip(self.axes, self.shape, strict=True)
        ]
        places = np.unravel_index(self.indices, self.shape) if self.shape else ()
        chosen = np.ones(len(self.indices), dtype=bool)
        for fits, at in zip(fitting, places, strict=True):
            chosen &= fits[at]
        return iter(self.indices[chosen].tolist())


def _equal(value: Any, wanted: Any) -> bool:
    """Return whether a value of an axis is a wanted one, or has this text."""
    if str(value).lower() == str(wanted).lower():
        return True
    try:
        return not isinstance(value, bool) and float(value) == float(wanted)
    except (TypeError, ValueError):
        return False


# ---- differences ---------------------------------------------------------------------------------


def _compared(before: _Keys, first: int, after: _Keys, second: int) -> Iterator[str]:
    """Yield how the keys of two configs differ."""
    for keys, index in ((before, first), (after, second)):
        point = keys.point(index)
        yield f"{keys.key(index)}  config {index} of run {keys.run.id} ({point})"
    if before.key(first) == after.key(second):
        yield (
            "the keys are equal: a launch reuses the result, unless the files of its data= have "
            "changed or --fresh is given"
        )
    else:
        yield "the keys differ in:"
        ingredients = before.ingredients(first), after.ingredients(second)
        yield from _differences(*ingredients, before.run.id, after.run.id)
    yield from _versions(before, after)


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], old: str, new: str
) -> Iterator[str]:
    """Yield the ingredients that differ.

    Args:
        before, after: ingredients by name; those at their default may be left out.
        old, new: the runs that they are of.
    """
    default = {"hash": _DEFAULT, "text": "(default)"}
    for name in dict.fromkeys([*before, *after]):
        a, b = before.get(name, default), after.get(name, default)
        for unseen in dict.fromkeys([*a.get("unseen", ()), *b.get("unseen", ())]):
            yield f"  {name}: {unseen}, which cannot be seen: its key is another in every launch"
        if a["hash"] == b["hash"]:
            continue
        if a["text"] != b["text"] or not (a.get("parts") or b.get("parts")):
            same = " (of other contents)" if a["text"] == b["text"] else ""
            yield f"  {name}: {a['text']} -> {b['text']}{same}"
        yield from _differing_parts(name, a.get("parts", {}), b.get("parts", {}), old, new)


def _differing_parts(
    name: str, before: Mapping[str, Any], after: Mapping[str, Any], old: str, new: str
) -> Iterator[str]:
    """Yield the parts of a function that differ, the source of functions as a diff."""
    absent = {"hash": "", "text": ""}
    for part in dict.fromkeys([*before, *after]):
        a, b = before.get(part, absent), after.get(part, absent)
        if a["hash"] == b["hash"]:
            continue
        if not part.startswith(("function ", "module ")):
            same = " (of other contents)" if a["text"] == b["text"] else ""
            yield f"  {name}: {part}: {a['text'] or '(none)'} -> {b['text'] or '(none)'}{same}"
            continue
        yield f"  {name}: {part}"
        source, edited = (str(entry["text"]).splitlines() for entry in (a, b))
        diff = difflib.unified_diff(source, edited, f"run {old}", f"run {new}", lineterm="")
        yield from (f"    {line}" for line in diff)


def _differing_axes(before: _Keys, after: _Keys) -> Iterator[str]:
    """Yield the axes of two runs that differ."""
    old, new = (
        {
            name: (
                ", ".join(map(str, values[:_VALUES])) + ", ..." * (len(values) > _VALUES),
                values,
            )
            for axis in keys.axes
            for name, values in zip(axis["names"], axis["values"], strict=True)
        }
        for keys in (before, after)
    )
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name), new.get(name)
        if a is None or b is None or a[1] != b[1]:
            texts = ["not an axis" if one is None else one[0] for one in (a, b)]
            yield f"  axis {name}: {texts[0]} -> {texts[1]}"


def _versions(before: _Keys, after: _Keys) -> Iterator[str]:
    """Yield the versions that differ; that of Python is part of keys, as bytecode depends on it."""
    a, b = before.content["python"], after.content["python"]
    if a != b:
        yield f"  python: {a} -> {b}, whose bytecode differs, and so do all functions"
    old, new = (
        {name: keys.run.sweep["origin"].get(name, "?") for name in _VERSIONS}
        for keys in (before, after)
    )
    changed = [f"{name} {old[name]} -> {new[name]}" for name in _VERSIONS if old[name] != new[name]]
    if changed:
        yield f"not part of the keys: {', '.join(changed)}"
