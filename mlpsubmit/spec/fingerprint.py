"""Content hashes of settings and functions, from which the keys of configs are made.

The hash of a function covers its bytecode, constants, defaults, closure and the globals it uses,
but not its comments, docstring or line numbers. The hash of a user's module covers all its code and
that of the user's modules it imports. Functions of installed packages are hashed by name. Bytecode
differs between minor versions of Python, so keys do too.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import itertools
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlpsubmit.spec.libraries import is_library

__all__ = ["DIGEST_BYTES", "digest"]

DIGEST_BYTES = 16

#: Names in the body of a class that describe its source.
_ABOUT_SOURCE = frozenset({"__doc__", "__firstlineno__", "__static_attributes__"})
#: Names that Python adds to a class: caches, and attributes that follow from its bases.
_BOOKKEEPING = frozenset(
    {"__module__", "__dict__", "__weakref__", "__slotnames__", "_abc_impl"}
    | {"__annotations__", "__annotate_func__", "__annotations_cache__"}
)

_CO_HAS_DOCSTRING = 0x4000000  # from Python 3.13 on


def digest(*values: Any) -> bytes:
    """Return the 16-byte BLAKE2b hash of the content of some values.

    Raises:
        TypeError: if a value cannot be reduced to its content (an open file, a lock).
    """
    encoder = _Encoder()
    for value in values:
        encoder.add(value)
    return encoder.hash.digest()


#: Exact types that are encoded here; subclasses of them are reduced as other objects are.
_SCALARS = (type(None), bool, int, float, complex, str)
_CONTAINERS = (list, tuple, range, set, frozenset, dict, str, int, float, complex, bytes, bytearray)


class _Encoder:
    """Feeds values, in an unambiguous form, into one hash."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self.open: dict[int, int] = {}  # objects being encoded, and how deep: a cycle ends there
        # The digests of objects seen before, with the object: alive, so that its id stays unique.
        self.done: dict[int, tuple[bytes, Any]] = {}

    def tag(self, tag: str, content: bytes = b"") -> None:
        self.hash.update(f"{tag}:{len(content)}:".encode() + content)

    def add(self, value: Any) -> None:
        if type(value) in _SCALARS:
            self.tag(type(value).__name__, repr(value).encode())
        elif type(value) in (bytes, bytearray):
            self.tag("bytes", bytes(value))
        elif id(value) in self.open:
            self.tag("cycle", str(self.open[id(value)]).encode())
        else:  # one digest per object: equal for equal objects however they are shared
            if id(value) not in self.done:
                self.open[id(value)] = len(self.open)
                self.done[id(value)] = self.separate(self.add_object, value), value
                del self.open[id(value)]
            self.tag("digest", self.done[id(value)][0])

    def separate(self, encode: Callable[[Any], None], value: Any) -> bytes:
        """Return the digest of one value in a hash of its own."""
        outer, self.hash = self.hash, hashlib.blake2b(digest_size=DIGEST_BYTES)
        encode(value)
        self.hash, inner = outer, self.hash
        return inner.digest()

    def sort_key(self, value: Any) -> bytes:
        """Return the digest by which the entries of sets and the keys of mappings are sorted."""
        return self.separate(self.add, value)

    def add_all(self, tag: str, values: Any) -> None:
        entries = list(values)
        self.tag(tag, str(len(entries)).encode())
        for entry in entries:
            self.add(entry)

    def add_object(self, value: Any) -> None:
        if type(value) in _CONTAINERS or not isinstance(value, _CONTAINERS):
            for types_, encode in self.encoders():
                if isinstance(value, types_):
                    encode(value)
                    return
        if isinstance(value, (np.ndarray, np.generic)) or _is_tensor(value):
            self.array(value)
        else:
            self.reduced(value)

    def encoders(self) -> Iterator[tuple[Any, Callable[[Any], None]]]:
        yield (list, range), lambda value: self.add_all("list", value)
        yield tuple, lambda value: self.add_all("tuple", value)
        yield (set, frozenset), lambda value: self.add_all("set", sorted(map(self.sort_key, value)))
        yield (dict, types.MappingProxyType), self.mapping
        yield functools.partial, lambda p: self.add_all("partial", (p.func, p.args, p.keywords))
        yield types.FunctionType, self.function
        yield types.MethodType, lambda m: self.add_all("method", (m.__func__, m.__self__))
        yield types.CodeType, self.code
        yield types.ModuleType, self.module
        yield type, self.a_class
        yield types.BuiltinFunctionType, self.builtin
        yield types.MethodDescriptorType, self.named
        yield functools.cached_property, lambda p: self.add_all("property", (p.func,))
        yield property, lambda p: self.add_all("property", (p.fget, p.fset))
        yield (staticmethod, classmethod), lambda m: self.add_all("method", (m.__func__,))

    def mapping(self, value: Mapping[Any, Any]) -> None:
        keys = sorted(value, key=self.sort_key)
        self.add_all("mapping", itertools.chain.from_iterable((key, value[key]) for key in keys))

    def named(self, value: Any) -> None:
        name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"
        self.tag("name", name.encode())

    def builtin(self, function: types.BuiltinFunctionType) -> None:
        self.named(function)
        if not isinstance(function.__self__, types.ModuleType):
            self.add(function.__self__)  # the object whose method it is

    def array(self, value: Any) -> None:
        if _is_tensor(value):
            self.tag("tensor", str(value.dtype).encode())
            value = value.detach().cpu()
            dense = value.to_dense() if value.layout is not type(value)().layout else value
            value = (dense.float() if dense.dtype.itemsize < 4 else dense).numpy()
        self.tag("array", f"{value.dtype}{value.shape}".encode())
        if value.dtype.hasobject:
            self.add(value.tolist())
        else:
            self.tag("content", value.tobytes())

    def function(self, function: types.FunctionType) -> None:
        if is_library(function.__module__ or ""):
            self.named(function)
            if "<locals>" in function.__qualname__:
                self.closure(function)  # returned by a library function: its name is not enough
            return
        self.tag("function")
        self.code(function.__code__)
        self.add((function.__defaults__, function.__kwdefaults__))
        self.closure(function)
        for name in sorted(_globals_used(function.__code__)):
            if name in function.__globals__:
                self.tag("global", name.encode())
                self.add(function.__globals__[name])

    def closure(self, function: types.FunctionType) -> None:
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # a recursive function whose own cell is still empty
                self.tag("empty")
            else:
                self.add(content)

    def code(self, code: types.CodeType) -> None:
        """Encode the instructions with their constants; none of them loads the docstring."""
        arguments = code.co_argcount + code.co_kwonlyargcount
        self.add_all("code", (code.co_names, code.co_varnames[:arguments]))
        self.add(code.co_flags & ~_CO_HAS_DOCSTRING)
        self.add(getattr(code, "co_exceptiontable", b""))
        steps = [step for step in dis.get_instructions(code) if step.opname != "NOP"]
        self.tag("steps", str(len(steps)).encode())
        for step, following in itertools.zip_longest(steps, steps[1:]):
            self.tag(step.opname)
            stored = following.argval if following and following.opname == "STORE_NAME" else None
            if stored not in _ABOUT_SOURCE:
                self.add(step.argval if step.opcode in dis.hasconst else step.arg)

    def module(self, module: types.ModuleType) -> None:
        self.tag("module", module.__name__.encode())
        if not is_library(module.__name__):
            for file in _sources(module):
                if file.is_file():  # not so where a worker has the module by value alone
                    self.source(file)

    def source(self, file: Path) -> None:
        content = file.read_bytes()
        if file.suffix == ".py":
            self.code(compile(content, file.name, "exec", dont_inherit=True, optimize=2))
        else:
            self.tag("source", content)

    def a_class(self, value: type) -> None:
        self.named(value)
        if is_library(value.__module__):
            return
        self.add_all("bases", value.__bases__)
        for name in sorted(set(vars(value)) - _ABOUT_SOURCE - _BOOKKEEPING):
            entry = vars(value)[name]
            if not isinstance(entry, (types.GetSetDescriptorType, types.MemberDescriptorType)):
                self.tag("attribute", name.encode())
                self.add(entry)

    def reduced(self, value: Any) -> None:
        reduce = copyreg.dispatch_table.get(type(value))  # compiled patterns, numpy's functions
        parts = reduce(value) if reduce else value.__reduce_ex__(2)
        if isinstance(parts, str):
            self.tag("global", f"{getattr(value, '__module__', '')}.{parts}".encode())
            self.add(getattr(value, "__wrapped__", None))  # the function in a functools.cache
            return
        flat = [list(part) if isinstance(part, Iterator) else part for part in parts]
        self.add_all("object", flat)


def _globals_used(code: types.CodeType) -> set[str]:
    names = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= _globals_used(const)
    return names


def _is_tensor(value: Any) -> bool:
    """Return whether a value is a torch tensor, without importing torch."""
    return hasattr(value, "__array__") and hasattr(value, "detach")


def _sources(module: types.ModuleType) -> list[Path]:
    """Return the files of a user's module and of the user's modules it imports, sorted by name."""
    found = {module.__name__: module}
    queue = [module]
    while queue:
        for value in list(vars(queue.pop()).values()):
            is_module = isinstance(value, types.ModuleType)
            name = str(getattr(value, "__name__" if is_module else "__module__", ""))
            imported = sys.modules.get(name)
            if imported is not None and name not in found and not is_library(name):
                found[name] = imported
                queue.append(imported)
    files = [getattr(found[name], "__file__", None) for name in sorted(found)]
    return [Path(file) for file in files if file]
