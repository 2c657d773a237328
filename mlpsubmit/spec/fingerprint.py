"""Content hashes of settings and functions, from which the keys of configs are made.

The hash of a function covers its bytecode, constants, defaults, closure, attributes, the globals it
uses (of a module, the attributes that it uses), and the modules that it imports when it runs. It
covers neither comments, docstrings, line numbers nor the place of its file. Functions of installed
packages are hashed by name. Objects that are compared by identity, such as functions and sentinels,
are numbered: which of them are the same one counts. Bytecode differs between minor versions of
Python, so hashes do too.
"""

from __future__ import annotations

import builtins
import contextlib
import copyreg
import functools
import hashlib
import itertools
import logging
import os
import re
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from mlpsubmit.errors import SpecError
from mlpsubmit.results.labels import unlabelled
from mlpsubmit.spec import bytecode, objects
from mlpsubmit.spec.imports import modules_of, package_of
from mlpsubmit.spec.libraries import is_library, is_library_file
from mlpsubmit.spec.limits import MOST_BYTES, MOST_ENTRIES
from mlpsubmit.spec.numbers import canonical_number

__all__ = ["DIGEST_BYTES", "digest", "setting_digest"]

DIGEST_BYTES = 16

_CO_HAS_DOCSTRING = 0x4000000  # from Python 3.13 on

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_]\w*")


def digest(*values: Any) -> bytes:
    """Return the 16-byte BLAKE2b hash of the content of some values: types and order count.

    Raises:
        TypeError: if a value cannot be reduced to its content (an open file, a lock).
    """
    return _encoded(values, _Encoder())


def setting_digest(*values: Any, unseen: list[str] | None = None) -> bytes:
    """Return the hash of some values of settings, which is equal where the values are.

    Numbers are compared by value, Python's, numpy's and torch's alike: 0 and 0.0 are equal, True
    and 1 are not. So are those in lists, tuples, sets and dictionaries; the order of dictionaries
    does not count. What functions and other objects hold is compared as in :func:`digest`.

    Args:
        unseen: takes a text for each place of a function whose effect cannot be seen.

    Raises:
        TypeError: as :func:`digest`.
        SpecError: if a function uses something of a library that the user has replaced, which
            workers would not have.
    """
    encoder = _Encoder(equal=True)
    content = _encoded(values, encoder)
    if encoder.replaced:
        raise SpecError([_REPLACED.format(text) for text in dict.fromkeys(encoder.replaced)])
    if unseen is not None:
        unseen += encoder.unseen
    return content


_REPLACED = (
    "{}, which is not the library's own, but set by the spec; workers load libraries as they are "
    "installed, so define a function in the spec and use that"
)


def _encoded(values: Iterable[Any], encoder: _Encoder) -> bytes:
    try:
        for value in values:
            encoder.add(value)
    except RecursionError:
        raise TypeError("it is nested too deeply") from None
    return encoder.hash.digest()


#: What has a name in its module.
_NAMED = (type, types.FunctionType, types.BuiltinFunctionType)

#: Exact types whose content is their text.
_SCALARS = (type(None), bool, int, float, complex, str)

#: Types of what may be changed in place, besides tensors.
_MUTABLE = (list, dict, set, np.ndarray)

#: Types that wrap functions, and the attributes that hold these.
_WRAPPERS = {
    functools.partial: ("func", "args"),
    property: ("fget", "fset", "fdel"),
    functools.cached_property: ("func",),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
}


def _entries(values: Iterable[Any]) -> list[Any]:
    """Return values as a list.

    Raises:
        TypeError: for more than anyone writes down; there may be no end.
    """
    entries = list(itertools.islice(values, MOST_ENTRIES + 1))
    if len(entries) > MOST_ENTRIES:
        raise TypeError(f"a {type(values).__name__} of more than {MOST_ENTRIES:,} values")
    return entries


class _NoContent(TypeError):
    """A value of a function that has no content, with the name by which the function uses it."""


class _Encoder:
    """Feeds values, in an unambiguous form, into one hash.

    Args:
        equal: compare numbers by value, and dictionaries without their order.
        sorting: the sets whose entries are being sorted, each by an encoder of its own.
    """

    def __init__(self, *, equal: bool = False, sorting: tuple[Any, ...] = ()) -> None:
        self.hash = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self.equal = equal
        self.sorting = sorting
        self.unseen: list[str] = []
        self.replaced: list[str] = []  # texts, as of what is unseen
        self.place = ""  # the function being encoded, for messages
        self.open: list[int] = []  # ids of the values being encoded: a cycle ends there
        # By id, with the object: alive, so that its id stays unique.
        self.numbered: dict[Any, tuple[int, Any]] = {}
        self.done: dict[tuple[int, bool], tuple[bytes, Any]] = {}
        # What may be changed in place, by id: its digest, and as which of those with this digest.
        self.reached: dict[int, tuple[bytes, int, Any]] = {}
        self.equals: dict[bytes, int] = {}
        self.mutable: dict[int, tuple[bool, Any]] = {}  # of tuples, by id
        self.references = 0  # to numbers and open values: a digest without any holds everywhere

    def tag(self, tag: str, content: bytes = b"") -> None:
        self.hash.update(f"{tag}:{len(content)}:".encode() + content)

    def add(self, value: Any) -> None:
        value = unlabelled(value)  # names of dimensions change no result
        if self.equal:
            value = canonical_number(value)
        if type(value) in _SCALARS:
            self.tag(type(value).__name__, repr(value).encode())
        elif type(value) in (bytes, bytearray):
            self.tag("bytes", bytes(value))
        elif id(value) in self.open:
            self.references += 1
            self.tag("cycle", str(len(self.open) - self.open.index(id(value))).encode())
        elif objects.has_identity(value):
            if self.is_new(id(value), value):
                self.add_object(value)
        elif self.equal or not self.is_mutable(value):
            self.tag("digest", self.by_value(value))
        else:
            self.add_mutable(value)

    def is_mutable(self, value: Any) -> bool:
        """Return whether a function may change a value, or what a tuple holds, in place."""
        if not isinstance(value, (tuple, frozenset)):
            return isinstance(value, _MUTABLE) or objects.is_tensor(value)
        if id(value) not in self.mutable:
            self.mutable[id(value)] = any(map(self.is_mutable, value)), value
        return self.mutable[id(value)][0]

    def add_mutable(self, value: Any) -> None:
        """Add what a function may change in place: by its content, and as which of its equals.

        In ``[row, row]`` an entry that is set appears twice, and in two equal rows once.
        """
        if id(value) in self.reached:
            self.references += 1
            content, number, _ = self.reached[id(value)]
            self.tag("same", content + str(number).encode())
            return
        content = self.by_value(value)
        number = self.equals[content] = self.equals.get(content, -1) + 1
        self.reached[id(value)] = content, number, value
        self.tag("digest", content)

    def is_new(self, key: Any, value: Any) -> bool:
        """Number an object; return False if it was numbered before."""
        self.references += 1
        new = key not in self.numbered
        number, _ = self.numbered.setdefault(key, (len(self.numbered), value))
        self.tag("new" if new else "known", str(number).encode())
        return new

    def by_value(self, value: Any) -> bytes:
        """Return the digest of a value in a hash of its own, computed once where possible."""
        key = id(value), self.equal
        if key in self.done:
            return self.done[key][0]
        outer, self.hash = self.hash, hashlib.blake2b(digest_size=DIGEST_BYTES)
        references = self.references
        self.open.append(id(value))
        self.add_object(value)
        self.open.pop()
        self.hash, inner = outer, self.hash
        if self.references == references:
            self.done[key] = inner.digest(), value
        return inner.digest()

    def add_all(self, tag: str, values: Iterable[Any]) -> None:
        entries = values if isinstance(values, list) else _entries(values)
        self.tag(tag, str(len(entries)).encode())
        for entry in entries:
            self.add(entry)

    def add_object(self, value: Any) -> None:
        if type(value) in (list, range):
            self.add_all("list", value)
        elif type(value) is tuple:
            self.add_all("tuple", value)
        elif isinstance(value, (set, frozenset)):
            self.a_set(value)
        elif type(value) in (dict, MappingProxyType):
            entries = ((key, value[key]) for key in (self.sorted(value) if self.equal else value))
            self.add_all("mapping", itertools.chain.from_iterable(entries))
        else:
            equal, self.equal = self.equal, False
            self.other(value)
            self.equal = equal

    def a_set(self, value: Any) -> None:
        self.add_type("set", type(value), (set, frozenset))
        if any(value is outer for outer in self.sorting):
            self.references += 1
            self.tag("cycle")
        else:
            self.add_all("entries", self.sorted(value, within=value))
        self.add_attributes(getattr(value, "__dict__", {}))

    def sorted(self, values: Iterable[Any], within: Any = None) -> list[Any]:
        """Return entries of a set or keys of a mapping in the order of their digests."""

        def alone(value: Any) -> bytes:
            encoder = _Encoder(equal=self.equal, sorting=(*self.sorting, within))
            encoder.add(value)
            return encoder.hash.digest()

        return sorted(values, key=alone)

    def add_type(self, tag: str, own: type, known: tuple[type, ...]) -> None:
        """Add the type of a value if it is a subclass of the known ones."""
        self.tag(tag)
        if own not in known:
            self.add(own)

    def add_attributes(self, attributes: Mapping[str, Any]) -> None:
        names = sorted(attributes)
        self.add_all("attributes", itertools.chain(*((name, attributes[name]) for name in names)))

    def other(self, value: Any) -> None:
        """Encode a value that is no container."""
        for types_, encode in self.encoders():
            if issubclass(type(value), types_):  # a proxy's __class__ may be another type
                encode(value)
                return
        if type(value) in (np.ndarray, np.memmap) or isinstance(value, np.generic):
            self.array(value)
        elif objects.is_tensor(value):
            self.tensor(value)
        else:
            self.reduced(value)

    def encoders(self) -> Iterator[tuple[Any, Callable[[Any], None]]]:
        yield types.FunctionType, self.function
        yield types.MethodType, lambda m: self.add_all("method", (m.__func__, m.__self__))
        yield types.CodeType, self.code
        yield types.ModuleType, self.module
        yield type, self.a_class
        yield types.BuiltinFunctionType, self.builtin
        yield types.MethodDescriptorType, self.named
        yield tuple(_WRAPPERS), self.wrapper
        yield functools._lru_cache_wrapper, self.cached
        yield weakref.WeakKeyDictionary, lambda cache: self.tag("cache")  # pickle refuses others
        yield logging.Logger, lambda logger: self.tag("logger")  # no result depends on it

    # ---- data ------------------------------------------------------------------------------------

    def array(self, value: Any) -> None:
        self.tag("array", f"{value.dtype}{value.shape}".encode())
        if value.nbytes > MOST_BYTES:  # it may be a view that repeats a few of them
            raise TypeError(f"an array of {value.nbytes / 2**30:.0f} GiB is too large")
        if value.dtype.hasobject:
            self.add(value.tolist())
        else:
            self.tag("content", value.tobytes())

    def tensor(self, value: Any) -> None:
        torch = sys.modules["torch"]
        about = f"{value.dtype} {value.layout} {value.requires_grad}"
        self.add_type("tensor", type(value), (torch.Tensor,))
        self.tag("about", about.encode())
        self.add_attributes(vars(value))
        if value.is_meta:
            raise TypeError("a tensor on the device 'meta' has no content")
        value = value.detach().cpu().resolve_conj().resolve_neg()
        value = value if value.layout is torch.strided else value.to_dense()
        self.array((value.float() if value.dtype.itemsize < 4 else value).numpy())

    def reduced(self, value: Any) -> None:
        """Encode an object by what pickle would send to a worker."""
        if value is os.environ:
            self.unseen.append(f"{self.place} holds os.environ")
            return
        reduce = copyreg.dispatch_table.get(type(value))  # compiled patterns, numpy's functions
        try:
            parts = reduce(value) if reduce else value.__reduce_ex__(2)
        except RecursionError:
            raise
        except Exception as error:  # of any kind, as the class of the value may be the user's
            raise TypeError(str(error)) from error
        if isinstance(parts, str):
            self.global_object(value, parts)
            return
        make, arguments, state, *entries = (*parts, None, None, None)[:5]
        self.add_all("object", (make, arguments))
        if isinstance(state, dict) and all(isinstance(name, str) for name in state):
            copied = objects.COPIED if "__wrapped__" in state else ()
            self.add_attributes({n: state[n] for n in state if n not in copied})
        else:
            self.add(state)
        for part in entries:
            self.add(_entries(part) if isinstance(part, Iterator) else part)

    def global_object(self, value: Any, name: str) -> None:
        """Encode an object that pickle finds by its name in a module."""
        module = objects.module_name(value)
        if is_library(module):
            self.tag("name", f"{module}.{name}".encode())
            return
        self.tag("global", name.encode())
        self.add(type(value))
        self.extension(module)
        self.add_attributes(getattr(value, "__dict__", {}))

    # ---- functions and classes -------------------------------------------------------------------

    def named(self, value: Any) -> None:
        self.check_seen(value)
        name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"
        self.tag("name", name.encode())

    def check_seen(self, value: Any) -> None:
        """Record an object of a library that runs code which is no part of the hash."""
        name = objects.unseen_name(value)
        text = f"{self.place} uses {name}"
        if name and text not in self.unseen:
            self.unseen.append(text)

    def builtin(self, function: types.BuiltinFunctionType) -> None:
        owner = function.__self__
        if isinstance(owner, types.ModuleType) or owner is None:
            self.named(function)
            self.extension(function.__module__ or "")
        elif objects.is_in_own_module(function):  # random.random: the generator is the module's
            self.tag("name", f"{type(owner).__module__}.{function.__name__}".encode())
        else:
            self.named(function)
            self.add(owner)  # the object whose method it is

    def extension(self, module_name: str) -> None:
        """Encode the compiled code of a user's module."""
        file = getattr(sys.modules.get(module_name), "__file__", None)
        if file and not file.endswith(".py") and not is_library(module_name):
            self.tag("compiled", Path(file).read_bytes())

    def wrapper(self, value: Any) -> None:
        kind = next(kind for kind in _WRAPPERS if isinstance(value, kind))
        self.add_type(kind.__name__, type(value), (kind,))
        self.add_all("wrapped", (getattr(value, name) for name in _WRAPPERS[kind]))
        self.add_attributes(getattr(value, "keywords", {}))
        self.add_attributes(objects.own_attributes(value))

    def cached(self, value: Any) -> None:
        if is_library(objects.module_name(value)) and objects.is_named(value):
            self.named(value)
            return
        self.tag("cached")
        self.add_attributes({**value.cache_parameters(), **objects.own_attributes(value)})

    def function(self, function: types.FunctionType) -> None:
        home = str(function.__globals__.get("__name__", ""))
        of_library = is_library(home)
        if of_library and objects.is_named(function, home):
            self.named(function)
            return
        if "_torchdynamo_orig_callable" in vars(function):
            self.add_all("compiled", (vars(function)["_torchdynamo_orig_callable"],))
            return
        outer, self.place = self.place, function.__qualname__
        self.content(function, of_library)
        self.place = outer

    def content(self, function: types.FunctionType, of_library: bool) -> None:
        """Encode a function that no library has under its name."""
        self.tag("function", function.__name__.encode())
        self.code(function.__code__)
        self.add(function.__defaults__)
        self.add_attributes(function.__kwdefaults__ or {})
        if function.__globals__ is vars(functools) and (registry := objects.registry(function)):
            self.add(registry)  # of singledispatch, beside caches
            return
        self.closure(function)
        self.add_attributes(vars(function))
        if not of_library:  # what a library's function uses is the library's
            self.uses(function)

    def closure(self, function: types.FunctionType) -> None:
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                content = cell.cell_contents
            except ValueError:  # a recursive function whose own cell is still empty
                self.tag("empty")
            else:
                with self.naming(name):
                    self.add(content)

    @contextlib.contextmanager
    def naming(self, name: str) -> Iterator[None]:
        """Tell in errors by which name the function being encoded uses what has no content."""
        place = self.place
        try:
            yield
        except _NoContent:  # of a function that it uses
            raise
        except TypeError as error:
            raise _NoContent(f"{error}: {name}, which {place} uses") from error

    def uses(self, function: types.FunctionType) -> None:
        """Encode the globals that a function uses and the modules that it imports."""
        namespace, code = function.__globals__, function.__code__
        paths = bytecode.global_paths(code)
        for name in sorted(paths):
            values = namespace if name in namespace else vars(builtins)
            if name in values:
                self.tag("global", name.encode())
                for path in sorted(paths[name]):
                    with self.naming(".".join((name, *path))):
                        self.used(code, name, path, values)
        if {"dir", "locals", "vars"} & set(paths):  # local names matter to these
            self.add([part.co_varnames for part in bytecode.nested(code)])
        self.unseen += [f"{self.place} uses {name}" for name in objects.unseen_attributes(code)]
        for name in sorted(bytecode.attributes(code) & self.replaced_of_tensors.keys()):
            self.add(self.replaced_of_tensors[name])
            self.replaced.append(f"{self.place} uses Tensor.{name}")
        self.imported(code, package_of(namespace), namespace)

    def used(
        self,
        code: types.CodeType,
        name: str,
        path: bytecode.Path,
        namespace: Mapping[str, Any],
    ) -> None:
        """Encode a global, or what a function takes from it if it is a module.

        Of a library's module the names of the attributes count, whether they are loaded yet or
        not; and what they refer to, where the user has replaced it.
        """
        value, library = namespace[name], namespace is vars(builtins)
        while isinstance(value, types.ModuleType):
            home = value.__name__
            if is_library(value.__name__) and not library:
                library = True
                self.tag("module", ".".join((value.__name__, *path)).encode())
            if not path or not objects.has_attribute(value, path[0], lazy=not library):
                break
            name, path, value = path[0], path[1:], getattr(value, path[0])
            if library and not objects.is_of_library(value):
                library = False
                self.replaced.append(f"{self.place} uses {home}.{name}")
        if value is os.environ or value is os.getenv:
            self.environment(code)
        elif id(value) in objects.unseen_objects() or library:
            self.check_seen(value)
            if isinstance(value, _NAMED) and value.__name__ != name:
                self.named(value)
            if isinstance(value, type):
                self.methods(value)
        else:
            self.add(value)

    @functools.cached_property
    def replaced_of_tensors(self) -> dict[str, Any]:
        """The methods that the user has set in torch.Tensor, by name."""
        torch = sys.modules.get("torch")
        return objects.replaced_methods(torch.Tensor) if torch else {}

    def environment(self, code: types.CodeType) -> None:
        """Encode the environment variables that the constants of some code name."""
        names = {
            const
            for part in bytecode.nested(code)
            for const in part.co_consts
            if isinstance(const, str) and _ENVIRONMENT_NAME.fullmatch(const)
        }
        if not names:
            self.unseen.append(f"{self.place} uses os.environ")
        self.add_attributes({name: os.environ.get(name) for name in names})

    def code(self, code: types.CodeType) -> None:
        """Encode what some code does; names of its local variables do not matter."""
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
        arguments = code.co_argcount + code.co_kwonlyargcount
        self.add((counts, code.co_varnames[:arguments], code.co_flags & ~_CO_HAS_DOCSTRING))
        steps = bytecode.steps(code)
        self.add(steps.handlers)
        self.tag("steps", str(len(steps.plain)).encode())
        for number, (operation, argument) in enumerate(steps.plain):
            self.tag(operation)
            if number in steps.constants and isinstance(argument, types.CodeType):
                self.code(argument)
            else:
                self.add(argument)

    def imported(
        self,
        code: types.CodeType,
        package: str,
        namespace: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Encode the user's modules that some code imports when it runs, by their source.

        They are not imported for it: that may take long, or need a GPU.

        Args:
            namespace: where these modules may be too: what has been set in them counts.
        """
        for statement in bytecode.imports(code):
            for name, file in modules_of(statement, package):
                if not is_library_file(name, file):
                    if self.is_new(file, None):
                        self.source(name, file)
                    module = sys.modules.get(name)
                    if module is not None and any(v is module for v in namespace.values()):
                        self.add(module)

    def source(self, name: str, file: Path) -> None:
        if not file.is_file():
            self.unseen.append(f"{self.place} imports {name}, whose file {file} is gone")
            return
        content = file.read_bytes()
        try:
            code = compile(content, file.name, "exec", dont_inherit=True, optimize=0)
        except (SyntaxError, ValueError):  # compiled code, or an error once it is imported
            self.tag("source", content)
            return
        self.code(code)
        self.unseen += [f"{name} uses {what}" for what in objects.unseen_in_source(code)]
        if {"environ", "getenv"} & {*bytecode.attributes(code), *bytecode.global_paths(code)}:
            self.environment(code)
        self.imported(code, name if file.name == "__init__.py" else name.rpartition(".")[0])

    def module(self, module: types.ModuleType) -> None:
        """Encode all of a module that is used as a value, as in getattr(module, name)."""
        if is_library(module.__name__):
            self.tag("module", module.__name__.encode())
            return
        self.tag("all of a module")
        self.extension(module.__name__)
        if "__getattr__" in vars(module):
            self.unseen.append(f"{self.place} uses {module.__name__}.__getattr__")
        for name, entry in objects.attributes_of_module(module).items():
            self.tag("attribute", name.encode())
            before = self.hash.copy(), self.equal, self.place
            depth = len(self.open)
            try:
                self.add(entry)
            except TypeError as error:
                self.hash, self.equal, self.place = before
                del self.open[depth:]
                self.unseen.append(f"{self.place} uses {module.__name__}.{name} ({error})")

    def a_class(self, value: type) -> None:
        if is_library(objects.module_name(value)) and objects.is_named(value):
            self.named(value)
            self.methods(value)
            return
        self.tag("class", value.__name__.encode())
        self.add_all("bases", (type(value), *value.__bases__))
        for name, entry in objects.attributes_of_class(value).items():
            self.tag("attribute", name.encode())
            self.add(entry)
        self.add_attributes(objects.annotation_texts(value))

    def methods(self, value: type) -> None:
        """Encode the methods of a library's class that the user has replaced."""
        replaced = objects.replaced_methods(value)
        if replaced:  # most classes have none
            self.add_attributes(replaced)
        self.replaced += [f"{self.place} uses {value.__name__}.{name}" for name in replaced]
