"""What the keys of a sweep's configs are made of, in a form that can be read and compared later.

Keys are hashes: two of them differ or do not. This records, for every setting of a key, its own
hash and its text; and for functions those of all that they reach: their source, the functions and
values that they use, the modules that they import. Values of environment variables are hashed and
not recorded, as they may be secrets.
"""

from __future__ import annotations

import platform
import re
import reprlib
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpsubmit.arguments import function_name
from mlpsubmit.batchfns.monomial import Monomial
from mlpsubmit.spec import bytecode
from mlpsubmit.spec.fingerprint import _Encoder as Encoder
from mlpsubmit.spec.keys import KeyTables, common_entries, counts
from mlpsubmit.spec.source_text import source_text

if TYPE_CHECKING:
    from mlpsubmit.spec.read import Spec

__all__ = [
    "SOURCES",
    "ingredient",
    "ingredients",
    "sources",
    "stored",
    "whole",
]

#: The most characters of a text, such as the source of a module.
_MOST = 1 << 16

#: What the names of parts begin with whose text is a source.
SOURCES = ("function ", "module ")

#: What is recorded part by part, because encoding it encodes its parts.
_RECURSIVE = (types.FunctionType, types.ModuleType, types.MethodType, type)

#: What holds no function.
_PLAIN = (type(None), bool, int, float, complex, str, Monomial)

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")

_short = reprlib.Repr()
_short.maxlist = _short.maxtuple = _short.maxset = _short.maxfrozenset = _short.maxdict = 32
_short.maxstring = _short.maxother = _short.maxlong = 400

#: A hash, a text, and for functions the parts, each with the same two.
Ingredient = dict[str, Any]


def ingredients(spec: Spec, tables: KeyTables) -> dict[str, Any]:
    """Return the ingredients of the keys of a sweep, and the function of ``where``, which has none.

    The hash of a setting is its contribution to the key, a sum over all settings. ``on_axes`` has
    the functions among the values of axes, by the name and the position on its axis.
    """
    settings = {}
    for name, value in common_entries(spec):
        if counts(name, value):
            settings[name.replace("()", "")] = ingredient(name, value)
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "settings": settings,
        "base": tables.base.tobytes().hex(),
        "axes": [table.tobytes().hex() for table in tables.axes],
        "on_axes": _on_axes(spec),
        "where": None if spec.where is None else ingredient("where", spec.where),
        "initial": _initial(tables),
    }


def stored(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return ingredients as ingredients.json holds them: each part once, referred to by number.

    The functions on an axis may be a thousand partials of one, which imports a long module.
    """
    numbers: dict[tuple[str, str], int] = {}

    def number(part: Mapping[str, str]) -> int:
        return numbers.setdefault((part["hash"], part["text"]), len(numbers))

    found = _with_parts(content, number)
    parts = [{"hash": content_hash, "text": text} for content_hash, text in numbers]
    return {**found, "parts": parts}


def whole(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ingredients whose content :func:`stored` returned."""
    found = _with_parts(content, content["parts"].__getitem__)
    del found["parts"]
    return found


def _with_parts(content: Mapping[str, Any], converted: Callable[[Any], Any]) -> dict[str, Any]:
    """Return ingredients with each part of their functions converted."""

    def entry(own: Mapping[str, Any]) -> Ingredient:
        if "parts" not in own:
            return dict(own)
        return {**own, "parts": {name: converted(part) for name, part in own["parts"].items()}}

    return {
        **content,
        "settings": {name: entry(own) for name, own in content["settings"].items()},
        "on_axes": {
            name: {position: entry(own) for position, own in values.items()}
            for name, values in content["on_axes"].items()
        },
        "where": None if content["where"] is None else entry(content["where"]),
    }


def sources(content: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return the sources among the parts of functions, by where these are and what they are.

    The functions are called as :func:`mlpsubmit.runs.function_sources.function_sources` does.
    """
    entries = {re.sub(r"^grab\[(.*)\]$", r"grab \1", n): e for n, e in content["settings"].items()}
    for name, own in content["on_axes"].items():
        entries |= {f"axis {name}[{position}]": entry for position, entry in own.items()}
    if content["where"] is not None:
        entries["where"] = content["where"]
    found = {
        place: {
            part: str(one["text"])
            for part, one in entry.get("parts", {}).items()
            if part.startswith(SOURCES)
        }
        for place, entry in entries.items()
    }
    return {place: own for place, own in found.items() if own}


def _on_axes(spec: Spec) -> dict[str, dict[str, Ingredient]]:
    """Return the values of axes that are functions or hold some, by name and position."""
    found: dict[str, dict[str, Ingredient]] = {}
    for axis in spec.product.axes:
        for name in axis.names:
            for position, value in enumerate(axis.values(name)):
                if isinstance(value, _PLAIN):
                    continue
                entry = ingredient(name, value)
                parts = entry.get("parts", {})
                if parts and (callable(value) or any(n.startswith(SOURCES) for n in parts)):
                    found.setdefault(name, {})[str(position)] = entry
    return found


def _initial(tables: KeyTables) -> dict[str, Any] | None:
    """Return which network each config begins from, and the hash of each; None without any."""
    if tables.initial is None:
        return None
    initial, table = tables.initial
    content = {"axes": list(initial.axes), "hashes": list(initial.hashes)}
    return {**content, "table": table.tobytes().hex()}


def ingredient(name: str, value: Any) -> Ingredient:
    """Return the hash, the text and the parts of a setting.

    Raises:
        TypeError: it holds something that has no content to hash, such as an open file.
    """
    recorder = _Recorder(hidden=name.startswith("process()"))
    recorder.add(name)
    recorder.add(value)
    found: Ingredient = {"hash": recorder.hash.hexdigest(), "text": recorder.text(value)}
    if recorder.parts:
        found["parts"] = recorder.parts
    if recorder.unseen:
        found["unseen"] = list(dict.fromkeys(recorder.unseen))
    return found


class _Recorder(Encoder):
    """Encodes a setting as for its key, and records the parts that functions are made of.

    Args:
        hidden: whether values are left out of the texts.
    """

    def __init__(self, *, hidden: bool = False) -> None:
        super().__init__(equal=True)
        self.hidden = hidden
        self.parts: dict[str, Ingredient] = {}
        self.next = ""  # what the value to be added next is called

    def record(self, name: str, content: bytes | str, text: str) -> None:
        label, number = name, 1
        while label in self.parts:
            number += 1
            label = f"{name} ({number})"
        content = content if isinstance(content, str) else content.hex()
        self.parts[label] = {"hash": content, "text": text[:_MOST]}

    def text(self, value: Any) -> str:
        """Return a value as one line, abridged."""
        if self.hidden:
            return "(not recorded)"
        try:
            if callable(value) and not hasattr(value, "items"):
                return function_name(value)
            return _ADDRESS.sub("", " ".join(_short.repr(value).split()))
        except Exception:  # of a class of the user
            return f"({type(value).__name__})"

    def value(self, name: str, value: Any) -> None:
        """Record a value that functions use, unless its own parts are."""
        if isinstance(value, _RECURSIVE):
            return
        encoder = Encoder(equal=True)
        try:
            encoder.add(value)
        except Exception:  # the key is another in every launch, or the launch is refused
            return
        self.record(name, encoder.hash.digest(), self.text(value))

    # ---- where values have names

    def add(self, value: Any) -> None:
        name, self.next = self.next, ""
        if name:
            self.value(name, value)
        super().add(value)

    def used(
        self,
        code: types.CodeType,
        name: str,
        path: bytecode.Path,
        namespace: Mapping[str, Any],
    ) -> None:
        if not isinstance(namespace.get(name), types.ModuleType) or path:
            self.next = f"{'.'.join((name, *path))} in {self.place}"
        super().used(code, name, path, namespace)
        self.next = ""

    def closure(self, function: types.FunctionType) -> None:
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=False
        ):
            try:
                self.value(f"{name} in {function.__qualname__}", cell.cell_contents)
            except ValueError:  # empty: a recursive function
                continue
        super().closure(function)

    def add_attributes(self, attributes: Mapping[str, Any]) -> None:
        for name in sorted(attributes):
            of = f" of {self.place}" if self.place else ""
            self.value(f"{name}{of}", attributes[name])
        super().add_attributes(attributes)

    def environment(self, code: types.CodeType) -> None:
        hidden, self.hidden = self.hidden, True
        super().environment(code)
        self.hidden = hidden

    # ---- what has a source

    def content(self, function: types.FunctionType, of_library: bool) -> None:
        encoder = Encoder()
        encoder.code(function.__code__)
        self.record(f"function {function.__qualname__}", encoder.hash.digest(), _source(function))
        defaults = function.__defaults__ or ()
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        for name, value in zip(names[len(names) - len(defaults) :], defaults, strict=True):
            self.value(f"default of {name} in {function.__qualname__}", value)
        super().content(function, of_library)

    def source(self, name: str, file: Path) -> None:
        if file.is_file():
            encoder, content = Encoder(), file.read_bytes()
            encoder.add(content)
            text = content.decode(errors="replace")
            self.record(f"module {name}", encoder.hash.digest(), text)
        super().source(name, file)


def _source(function: types.FunctionType) -> str:
    """Return the source of a function; where that is lost, its bytecode."""
    try:
        return source_text(function)
    except (OSError, TypeError):
        steps = bytecode.steps(function.__code__).plain
        return "\n".join(f"{operation} {argument!r:.200}" for operation, argument in steps)
