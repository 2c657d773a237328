"""What an object holds: attributes, closures, defaults, globals, iterators, generators of numbers.

:func:`held` reads all of it into plain values, and :func:`difference` finds the first place at
which two of these differ. Unlike :mod:`mlpsubmit.spec.fingerprint`, which hashes what a function
computes, this reads state: code does not count, positions of iterators do, and each has a name.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import random
import types
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlpsubmit.results.labels import unlabelled
from mlpsubmit.spec.libraries import is_library
from mlpsubmit.training.comparison import names_used

__all__ = ["Held", "closure_of", "described", "difference", "held", "keeps_state"]

#: The most objects that are read; the rest counts as equal.
_MOST_OBJECTS = 100_000

#: The most bytes of an array that are read: of larger ones, elements at even distances.
_ARRAY_BYTES = 1 << 24

_SCALARS = (type(None), bool, int, float, complex, str, bytes)

#: Attributes that torch's optimizers and modules set, which hold no state of a training.
_IGNORED = frozenset({"__weakref__", "__dict__", "__module__", "__doc__", "_opt_called"})


@dataclass(frozen=True)
class Held:
    """The content of one object.

    Attributes:
        leaf: what is compared as it is: the class, and a value.
        parts: the content of what it holds, by how one writes it after the name of the object.
        grows: whether parts that one of two objects lacks do not count, as those of a cache.
        again: whether it was read before, elsewhere.
        is_array: whether it is a tensor or an array.
    """

    leaf: Any = None
    parts: Mapping[str, Held] = field(default_factory=dict)
    grows: bool = False
    again: bool = False
    is_array: bool = False


def held(value: Any) -> Held:
    """Return the content of an object, and of all that it holds. Nothing is changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of attributes and reductions that are deprecated
        return _Reader().read(value)


def difference(one: Held, other: Held) -> str | None:
    """Return where two contents differ: "" for the objects themselves, None if they do not.

    Of several places the shortest whose value is no array: what others follow from, most likely.
    """
    found = [(is_array, len(place), place) for place, is_array in _differences(one, other)]
    return min(found)[2] if found else None


def _differences(one: Held, other: Held) -> Iterator[tuple[str, bool]]:
    """Yield each place at which two contents differ, and whether that holds an array."""
    if one.again or other.again:
        return
    if one.leaf != other.leaf:
        yield "", one.is_array
        return
    names, others = list(one.parts), list(other.parts)
    pairs = [(name, name) for name in names if name in other.parts]
    if one.grows and len(pairs) == min(len(names), len(others)):
        pass  # a cache: one has entries that the other lacks
    elif one.grows and len(names) == len(others):  # other keys, such as the ids of objects
        pairs = list(zip(names, others, strict=True))
    elif len(pairs) < max(len(names), len(others)):
        yield next(name for name in names + others if (name, name) not in pairs), False
        return
    for name, corresponding in pairs:
        for inside, is_array in _differences(one.parts[name], other.parts[corresponding]):
            yield name + inside, is_array


def described(place: str) -> str:
    """Return a place that :func:`difference` has found as messages name it."""
    if place.startswith("."):
        return f"its attribute {place[1:]!r}"
    return place.strip() or "its state"


def keeps_state(name: str, place: str, hint: str) -> str:
    """Return the message of a function that keeps state which no checkpoint holds.

    Args:
        name: of the function, as messages call it.
        place: where it does, as :func:`difference` returns it.
        hint: where it is to keep that.
    """
    return (
        f"{name}: {described(place)} changes during the training but is not in a checkpoint, so "
        f"that a resumed training would differ; {hint}"
    )


def closure_of(function: Any) -> dict[str, Any]:
    """Return the variables of a function's closure by name; empty for what has none."""
    found: dict[str, Any] = {}
    if not (cells := getattr(function, "__closure__", None)):
        return found
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            found[name] = cell.cell_contents
    return found


class _Reader:
    """Reads objects, each once."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}  # alive, so that ids stay unique

    def read(self, value: Any) -> Held:
        value = unlabelled(value)
        if type(value) in _SCALARS:
            return Held((type(value).__name__, repr(value)))
        if isinstance(value, int):  # of a subclass
            return Held(("int", int.__repr__(value)))
        if id(value) in self._seen or len(self._seen) > _MOST_OBJECTS:
            return Held(again=True)
        self._seen[id(value)] = value
        try:
            return self._object(value)
        except Exception:  # of a kind that cannot be read: a dead tensor of vmap, a closed file
            return Held((type(value).__name__, "unreadable"))

    def _object(self, value: Any) -> Held:
        for types_, read in self._readers():
            if isinstance(value, types_):
                return read(value)
        return self._fields(value)

    def _readers(self) -> Iterator[tuple[Any, Callable[[Any], Held]]]:
        yield Tensor, self._tensor
        yield (np.ndarray, np.generic), self._array
        yield _GENERATORS, lambda g: Held((type(g).__name__, _generator_state(g)))
        yield Mapping, self._mapping
        yield (list, tuple, collections.deque), self._sequence
        yield (set, frozenset), self._set
        yield types.FunctionType, self._function
        yield types.MethodType, lambda m: self._of({"": m.__self__, "()": m.__func__})
        yield (types.BuiltinFunctionType, types.MethodWrapperType), self._builtin
        yield functools.partial, self._partial
        # What it caches follows from what it is given, or shows in the batches.
        yield functools._lru_cache_wrapper, lambda f: self._of({"": f.__wrapped__})
        yield types.GeneratorType, self._suspended
        yield itertools.count, lambda count: Held(repr(count))
        yield type, self._class
        yield types.ModuleType, self._module
        yield (property, staticmethod, classmethod), self._descriptor
        yield (weakref.ref, types.CodeType), lambda value: Held(type(value).__name__)

    def _set(self, value: Any) -> Held:
        scalars = sorted(repr(entry) for entry in value if type(entry) in _SCALARS)
        return Held((type(value).__name__, len(value), scalars))

    def _builtin(self, function: Any) -> Held:
        return self._of({"": getattr(function, "__self__", None)}, function.__name__)

    def _partial(self, value: Any) -> Held:
        parts = {"": value.func, ".args": value.args, ".keywords": value.keywords}
        return self._of({**parts, **_attributes(value)})

    def _descriptor(self, value: Any) -> Held:
        return self._of({"": [getattr(value, n, None) for n in ("fget", "fset", "__func__")]})

    def _of(self, parts: Mapping[str, Any], leaf: Any = None, grows: bool = False) -> Held:
        return Held(leaf, {name: self.read(part) for name, part in parts.items()}, grows)

    def _tensor(self, value: Tensor) -> Held:
        attributes = {name: self.read(part) for name, part in _attributes(value).items()}
        if isinstance(value, nn.Parameter):  # the weights in training
            return Held(tuple(value.shape), attributes)
        content = value.detach()
        content = content.to_dense() if content.layout is not torch.strided else content
        content = torch.view_as_real(content.resolve_conj()) if content.is_complex() else content
        every = content.nbytes // _ARRAY_BYTES + 1
        sample = content.reshape(-1)[::every].contiguous().view(torch.uint8).cpu().numpy()
        leaf = (str(value.dtype), tuple(value.shape), _crc(sample))
        return Held(leaf, attributes, is_array=True)

    def _array(self, value: Any) -> Held:
        array = np.asarray(value)
        if array.dtype.hasobject:
            return self._sequence(array.reshape(-1).tolist())
        sample = array.reshape(-1)[:: array.nbytes // _ARRAY_BYTES + 1]
        return Held((str(array.dtype), array.shape, _crc(sample)), is_array=True)

    def _sequence(self, value: Any) -> Held:
        if all(type(entry) in _SCALARS for entry in value):
            return Held((type(value).__name__, repr(list(value))))
        entries = {f"[{i}]": entry for i, entry in enumerate(value)}
        return self._of(entries, (type(value).__name__, len(value)))

    def _mapping(self, value: Mapping[Any, Any]) -> Held:
        simple = all(isinstance(key, (*_SCALARS, tuple)) for key in value)
        entries = {
            f"[{key!r}]" if simple else f"[{i}]": entry
            for i, (key, entry) in enumerate(value.items())
        }
        return self._of({**entries, **_attributes(value)}, type(value).__name__, grows=True)

    def _function(self, function: types.FunctionType) -> Held:
        cells = {f" its variable {n!r}": content for n, content in closure_of(function).items()}
        parts = {**cells, **_attributes(function)}
        if not is_library(function.__module__ or ""):
            arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
            defaults = dict(zip(arguments[::-1], (function.__defaults__ or ())[::-1], strict=False))
            defaults |= function.__kwdefaults__ or {}
            parts |= {f" the default of its argument {n!r}": v for n, v in defaults.items()}
            used = function.__globals__.keys() & set(names_used(function.__code__))
            parts |= {f" the global {name!r}": function.__globals__[name] for name in sorted(used)}
        return self._of(parts, "function")

    def _suspended(self, generator: types.GeneratorType[Any, Any, Any]) -> Held:
        frame = generator.gi_frame
        if frame is None:
            return Held("an ended generator")
        return self._of(
            {f" its variable {n!r}": v for n, v in frame.f_locals.items()}, frame.f_lasti
        )

    def _class(self, value: type) -> Held:
        if is_library(value.__module__):
            return Held(value.__qualname__)
        own = {f".{name}": v for name, v in vars(value).items() if not name.startswith("__")}
        return self._of(own, value.__qualname__)

    def _module(self, module: types.ModuleType) -> Held:
        if is_library(module.__name__):
            return Held(module.__name__)
        own = {f".{name}": v for name, v in vars(module).items() if not name.startswith("__")}
        return self._of(own, module.__name__)

    def _fields(self, value: Any) -> Held:
        """Return the attributes of an object; of one without any, what pickle would save."""
        attributes = _attributes(value)
        if not is_library(type(value).__module__):
            attributes["'s class"] = type(value)
        if attributes or not hasattr(value, "__next__"):
            return self._of(attributes, type(value).__name__)
        return self._of(
            {f"<{i}>": part for i, part in enumerate(value.__reduce__()[1:])}, "iterator"
        )


_GENERATORS = (
    *(torch.Generator, random.Random, np.random.Generator, np.random.RandomState),
    *(np.random.BitGenerator, np.random.SeedSequence),
)


def _generator_state(generator: Any) -> str:
    if isinstance(generator, torch.Generator):
        return str(_crc(generator.get_state().numpy()))
    if isinstance(generator, random.Random):
        return str(_crc(repr(generator.getstate()).encode()))
    if isinstance(generator, np.random.RandomState):
        state: Any = generator.get_state(legacy=False)
    else:
        state = getattr(generator, "bit_generator", generator).state
    with np.printoptions(threshold=10_000):
        return str(_crc(repr(state).encode()))


def _attributes(value: Any) -> dict[str, Any]:
    found = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                found[name] = getattr(value, name)
    return {f".{name}": v for name, v in found.items() if name not in _IGNORED}


def _crc(content: Any) -> int:
    content = np.ascontiguousarray(content) if isinstance(content, np.ndarray) else content
    return zlib.crc32(content.tobytes() if isinstance(content, np.ndarray) else content)
