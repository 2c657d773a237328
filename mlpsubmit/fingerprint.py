"""Content hashes of settings and functions, from which the keys of configs are made.

A function counts by what it does: its bytecode, constants, defaults, closure and the globals it
uses, but neither its comments, its docstring nor its line numbers. Functions of installed
packages count by name. Bytecode differs between minor versions of Python, so keys do too.
"""

from __future__ import annotations

import functools
import hashlib
import site
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["DIGEST_BYTES", "digest", "is_library"]

DIGEST_BYTES = 16

_SKIPPED_IN_CLASSES = frozenset(
    {"__module__", "__doc__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__"}
)


def digest(*values: Any) -> bytes:
    """Return the 16-byte BLAKE2b hash of the content of some values.

    Raises:
        TypeError: where a value cannot be taken apart (an open file, a lock).
    """
    encoder = _Encoder()
    for value in values:
        encoder.add(value)
    return bytes(encoder.hash.digest())


@functools.cache
def _library_folders() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [sysconfig.get_paths()[name] for name in names]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({Path(folder).resolve() for folder in folders})


@functools.cache
def is_library(module_name: str) -> bool:
    """Tell whether a module is part of Python, of an installed package or of mlpsubmit."""
    if module_name.partition(".")[0] == "mlpsubmit":
        return True
    module = sys.modules.get(module_name)
    if module is None or module_name == "__main__":
        return False
    file = getattr(module, "__file__", None)
    if file is None:
        return module_name in sys.builtin_module_names or hasattr(module, "__path__")
    path = Path(file).resolve()
    return any(folder in path.parents for folder in _library_folders())


def _new_hash() -> Any:
    return hashlib.blake2b(digest_size=DIGEST_BYTES)


class _Encoder:
    """Feeds values, in an unambiguous form, into one hash."""

    def __init__(self) -> None:
        self.hash = _new_hash()
        self.open: dict[int, int] = {}  # objects being encoded, and how deep: a cycle ends there
        self.done: dict[int, bytes] = {}  # digests of objects met before
        self.kept: list[Any] = []  # keeps temporaries alive, so that their ids stay theirs

    def tag(self, tag: str, content: bytes = b"") -> None:
        self.hash.update(f"{tag}:{len(content)}:".encode() + content)

    def add(self, value: Any) -> None:
        if value is None or isinstance(value, (bool, int, float, complex, str)):
            self.tag(type(value).__name__, repr(value).encode())
        elif isinstance(value, (bytes, bytearray)):
            self.tag("bytes", bytes(value))
        elif id(value) in self.open:
            self.tag("cycle", str(self.open[id(value)]).encode())
        else:
            self.tag("digest", self.done.get(id(value)) or self.encoded(value))

    def encoded(self, value: Any) -> bytes:
        """Return the digest of one object, equal for equal objects however they are shared."""
        outer, self.hash = self.hash, _new_hash()
        self.open[id(value)] = len(self.open)
        self.add_object(value)
        del self.open[id(value)]
        self.hash, inner = outer, self.hash
        self.kept.append(value)
        self.done[id(value)] = inner.digest()
        return self.done[id(value)]

    def add_all(self, tag: str, values: Any) -> None:
        entries = list(values)
        self.tag(tag, str(len(entries)).encode())
        for entry in entries:
            self.add(entry)

    def add_object(self, value: Any) -> None:
        for kinds, encode in self.kinds():
            if isinstance(value, kinds):
                encode(value)
                return
        if hasattr(value, "__array__") and hasattr(value, "shape"):
            self.array(value)
        else:
            self.reduced(value)

    def kinds(self) -> Iterator[tuple[Any, Callable[[Any], None]]]:
        yield (list, tuple, range), lambda value: self.add_all("sequence", value)
        yield (set, frozenset), lambda value: self.add_all("set", sorted(map(digest, value)))
        yield types.MappingProxyType, lambda value: self.mapping(value)
        yield dict, self.mapping
        yield functools.partial, lambda p: self.add_all("partial", (p.func, p.args, p.keywords))
        yield types.FunctionType, self.function
        yield types.MethodType, lambda m: self.add_all("method", (m.__func__, m.__self__))
        yield types.CodeType, self.code
        yield types.ModuleType, self.module
        yield type, self.a_class
        yield (types.BuiltinFunctionType, types.MethodDescriptorType), self.named
        yield (property,), lambda p: self.add_all("property", (p.fget, p.fset))
        yield (staticmethod, classmethod), lambda m: self.add_all("method", (m.__func__,))

    def mapping(self, value: Mapping[Any, Any]) -> None:
        if type(value) not in (dict, types.MappingProxyType):
            self.add(type(value))
        self.add_all(
            "mapping", sorted((digest(key), digest(entry)) for key, entry in value.items())
        )

    def named(self, value: Any) -> None:
        name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"
        self.tag("name", name.encode())

    def array(self, value: Any) -> None:
        if hasattr(value, "detach"):  # a torch tensor, told apart without importing torch
            value = value.detach().cpu().numpy()
        self.tag("array", f"{value.dtype}{value.shape}".encode())
        self.tag("content", value.tobytes())

    def function(self, function: types.FunctionType) -> None:
        if is_library(function.__module__ or ""):
            self.named(function)
            return
        self.tag("function")
        self.code(function.__code__, function.__doc__)
        self.add((function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # a recursive function whose own cell is not filled yet
                self.tag("empty")
        for name in sorted(_names_used(function.__code__)):
            if name in function.__globals__:
                self.tag("global", name.encode())
                self.add(function.__globals__[name])

    def code(self, code: types.CodeType, docstring: str | None = None) -> None:
        consts = [const for const in code.co_consts if const is None or const != docstring]
        arguments = code.co_argcount + code.co_kwonlyargcount
        self.add_all("code", (code.co_code, code.co_names, code.co_varnames[:arguments]))
        self.add_all("consts", (code.co_flags, *consts))

    def module(self, module: types.ModuleType) -> None:
        self.tag("module", module.__name__.encode())
        file = getattr(module, "__file__", None)
        if file and not is_library(module.__name__):
            self.tag("source", Path(file).read_bytes())

    def a_class(self, value: type) -> None:
        self.named(value)
        if is_library(value.__module__):
            return
        self.add_all("bases", value.__bases__)
        for name in sorted(set(vars(value)) - _SKIPPED_IN_CLASSES):
            entry = vars(value)[name]
            if not isinstance(entry, (types.GetSetDescriptorType, types.MemberDescriptorType)):
                self.tag("attribute", name.encode())
                self.add(entry)

    def reduced(self, value: Any) -> None:
        parts = value.__reduce_ex__(2)
        if isinstance(parts, str):
            self.tag("global", parts.encode())
            return
        flat = [list(part) if isinstance(part, Iterator) else part for part in parts]
        self.add_all("object", flat)


def _names_used(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= _names_used(const)
    return names
