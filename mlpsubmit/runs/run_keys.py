"""The keys of a run's configs: what they are made of, and which config a selector means."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from mlpsubmit.display.text import counted
from mlpsubmit.errors import RunError, UserError
from mlpsubmit.jobs.store import records, run_directory
from mlpsubmit.jobs.store.records import Ingredients
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.results.values import identity
from mlpsubmit.runs.selection import included, point, select_one
from mlpsubmit.spec.ingredients import whole
from mlpsubmit.spec.initial_weights import InitialWeights

__all__ = ["DEFAULT_HASH", "Labelled", "RunKeys", "comparable", "is_config"]

#: The hash of a setting at its default, which is no part of a key.
DEFAULT_HASH = "0" * 32

#: The most values of an axis that are listed.
_VALUES = 8

#: The start of a key: not so short that it may be a word.
_KEY = re.compile(r"[0-9a-f]{6,32}")

#: Between two values of axes: a comma before a name.
_NEXT_NAME = re.compile(r",(?=\s*[^\W\d]\w*\s*=)")


def is_config(text: str) -> bool:
    """Return whether a text can be a config and no run: an index, or values of axes."""
    return "=" in text or text.isdecimal()


#: The labels of the values of a setting, and their hashes, empty where the label identifies one.
Labelled: TypeAlias = Sequence[tuple[Any, str]]


@dataclass(frozen=True)
class RunKeys:
    """The ingredients of the keys of a run's configs."""

    run: RunDirectory

    @cached_property
    def content(self) -> Mapping[str, Any]:
        """The ingredients, as :func:`mlpsubmit.spec.ingredients.ingredients` returned them.

        Raises:
            RunError: it is lost or damaged.
        """
        file = self.run.path / run_directory.INGREDIENTS
        try:
            found = records.read(file, Ingredients)
        except FileNotFoundError:
            raise RunError(f"run {self.run.id}: its {run_directory.INGREDIENTS} is lost") from None
        records.check_ingredients(file, found, self.run.sweep)
        return whole(found)

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
        return included(self.run)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The ingredients that all configs share."""
        settings: Mapping[str, Any] = self.content["settings"]
        return settings

    def functions(self, name: str) -> Mapping[int, Mapping[str, Any]]:
        """Return the functions among the values that a name has on an axis, by position there."""
        return {int(at): entry for at, entry in self.content["on_axes"].get(name, {}).items()}

    def hashes(self, axis: int) -> Any:
        """Return the hashes of the values on an axis, (points, 2) uint64."""
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
            keys += self.hashes(axis)[column]
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
        return point(self.run, index)

    @property
    def fixed(self) -> dict[str, Any]:
        """The values of the settings that are on no axis, by name."""
        sweep = self.run.sweep
        return {"trial": 0, **sweep["hyperparameters"], **sweep["arguments"]}

    def values(self, index: int) -> dict[str, Any]:
        """Return the values of all settings of a config, by name."""
        return {**self.fixed, **self.on_axes(index)}

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
            own = self.hashes(number)[at].tobytes().hex()
            found[", ".join(names)] = {"hash": own, "text": ", ".join(texts)}
            if parts := self._parts(names, at):
                found[", ".join(names)]["parts"] = parts
        if (initial := self._initial) is not None:
            own = initial.hashes[int(initial.numbers(self.shape, np.array([index]))[0])]
            text = f"weights {own}" if own else "(default)"
            found["init_weights"] = {"hash": own or DEFAULT_HASH, "text": text}
        return found

    def _parts(self, names: Sequence[str], at: int) -> dict[str, Any]:
        """Return the parts of the functions at a point of an axis; with names if it is zipped."""
        return {
            part if len(names) == 1 else f"{part} of {name}": content
            for name in names
            for part, content in self.functions(name).get(at, {}).get("parts", {}).items()
        }

    # ---- which config

    def select(self, selector: str) -> int:
        """Return the index of the config with an index, a key or its start, or values of axes.

        Raises:
            UserError: there is none, or there are several.
        """
        if "=" in selector:
            return self._with_values(selector)
        decimal = selector.isascii() and selector.isdecimal() and len(selector) < 19
        if not decimal and _KEY.fullmatch(selector):
            return self._with_key(selector)
        if decimal:
            if int(selector) in self.indices:
                return int(selector)
            valid = f"0 to {math.prod(self.shape) - 1}"
            left_out = ", or where= leaves it out" if self.run.sweep["included"] else ""
            raise UserError(
                f"config {selector}: run {self.run.id} has none with this index; valid are {valid}"
                f"{left_out}"
            )
        raise UserError(
            f"{selector!r}: should be the index of a config, its key, or values of axes, such as "
            f"{self.point(int(self.indices[0])).replace(', ', ',')!r}"
        )

    def _with_key(self, start: str) -> int:
        matching = [
            int(index)
            for index, key in zip(self.indices, self.all_keys(), strict=True)
            if bytes(key).hex().startswith(start)
        ]
        if len(matching) != 1:
            found = counted(len(matching), "config") if matching else "no config"
            more = "; give more characters of the key" if matching else ""
            raise UserError(
                f"{start}: is the start of the key of {found} of run {self.run.id}{more}"
            )
        return matching[0]

    def _with_values(self, selector: str) -> int:
        parts = (part.partition("=") for part in _NEXT_NAME.split(selector))  # values have commas
        wanted = {name.strip(): text.strip() for name, _, text in parts}
        return select_one(self.run, wanted, "config")

    def labelled(self, name: str) -> Labelled:
        """Return the labels of a setting along its axis, or the fixed one, and their hashes."""
        for axis in self.axes:
            if name in axis["names"]:
                column = axis["names"].index(name)
                labels, hashes = axis["values"][column], axis["hashes"][column]
                return list(zip(labels, hashes or [""] * len(labels), strict=True))
        hashes = self.run.sweep["functions"].get("hashes", {})
        return [(self.fixed.get(name), hashes.get(name, ""))]

    def counterpart(self, other: RunKeys, index: int) -> int | str:
        """Return the index of the config with the values of one of another run, on the axes of
        this one; what is missing if there is none.
        """
        wanted = other.values(index)
        columns = np.unravel_index(self.indices, self.shape) if self.shape else ()
        chosen = np.ones(len(self.indices), dtype=bool)
        for axis, column in zip(self.axes, columns, strict=True):
            for name in (one for one in axis["names"] if one in wanted):
                own, theirs = self.labelled(name), other.labelled(name)
                value = comparable(theirs, own)[other.position(name, index)]
                fits = np.array([one == value for one in comparable(own, theirs)])
                if not fits.any():
                    labels = [str(label) for label, _ in own]
                    listed = ", ".join(labels[:_VALUES]) + ", ..." * (len(labels) > _VALUES)
                    return f"no config has {name}={wanted[name]} (its values: {listed})"
                chosen &= fits[column]
        found = self.indices[chosen]
        return int(found[0]) if len(found) else "no config has this combination of values"

    def position(self, name: str, index: int) -> int:
        """Return the position of a config among the values of a setting; 0 if it is fixed."""
        places = zip(self.axes, self.place(index), strict=True)
        return next((at for axis, at in places if name in axis["names"]), 0)


def comparable(own: Labelled, other: Labelled) -> list[str]:
    """Return what the values of a setting in one run are compared by with those in another.

    They are compared by what they are; and one that the other run has not by its label if that is
    all of it that is known, as that of a function, which may have been edited.
    """
    theirs = {identity(*pair) for pair in other}
    found = [(label, value_hash, identity(label, value_hash)) for label, value_hash in own]
    return [
        f"label {label}" if value_hash and same not in theirs else same
        for label, value_hash, same in found
    ]
