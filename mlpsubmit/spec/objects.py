"""Properties of single objects that decide how they are hashed.

These are the library that an object belongs to, under its own name or replaced by the user; whether
it runs code that no hash covers; and which of its attributes are its content.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import inspect
import os
import re
import runpy
import sys
import types
from typing import Any

from mlpsubmit.results.labels import unlabelled
from mlpsubmit.spec import bytecode
from mlpsubmit.spec.libraries import is_library

__all__ = [
    "COPIED",
    "annotation_texts",
    "attributes_of_class",
    "attributes_of_module",
    "has_attribute",
    "has_identity",
    "is_in_own_module",
    "is_named",
    "is_of_library",
    "is_tensor",
    "module_name",
    "own_attributes",
    "registry",
    "replaced_methods",
    "unseen_attributes",
    "unseen_in_source",
    "unseen_name",
    "unseen_objects",
]


# ---- the library that it belongs to --------------------------------------------------------------


def module_name(value: Any) -> str:
    """Return the name of the module that a value, or else its type, is from."""
    for owner in (value, type(value)):
        module = getattr(owner, "__module__", None)
        if isinstance(module, str):
            return module
    return ""


def is_named(value: Any, home: str = "") -> bool:
    """Return whether a library has this very object under its name.

    A name may be copied to another object, as functools.wraps does.
    """
    if isinstance(value, type) and not value.__flags__ & _HEAP_TYPE:
        return True  # a type of Python's own, which may have no public name
    name = getattr(value, "__qualname__", "")
    return any(
        is_library(module) and _found(module, name) is value
        for module in {home, module_name(value)} - {""}
    )


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE


def _found(module_name: str, qualified_name: str) -> Any:
    """Return what a module has under a name; None if there is nothing."""
    value: Any = sys.modules.get(module_name)
    for name in qualified_name.split("."):
        value = inspect.getattr_static(value, name, None)
        value = unlabelled(getattr(value, "__func__", value))  # of a static or class method
    return value


def is_in_own_module(function: types.BuiltinFunctionType) -> bool:
    """Return whether a method of an object is a function of a module, as random.random is."""
    found = _found(type(function.__self__).__module__, function.__name__)
    return isinstance(found, types.BuiltinFunctionType) and found == function


def is_of_library(value: Any) -> bool:
    """Return whether something in a library's module is its own, and not set by the user."""
    if isinstance(value, types.ModuleType):
        return is_library(value.__name__)
    if not isinstance(value, types.FunctionType):
        return is_library(module_name(value))
    cells = (cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell))
    inner = [content for content in cells if isinstance(content, types.FunctionType)]
    homes = (str(f.__globals__.get("__name__", "")) for f in [value, *inner])
    return all(map(is_library, homes))


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def replaced_methods(value: type) -> dict[str, Any]:
    """Return the methods of a library's class that the user has replaced."""
    return {
        name: entry
        for base in reversed(value.__mro__)
        if is_library(module_name(base))
        for name, entry in vars(base).items()
        if isinstance(entry, types.FunctionType) and not is_of_library(entry)
    }


# ---- what no hash covers -------------------------------------------------------------------------

#: Attributes of functions and classes that lead to what is no part of their hash.
_UNSEEN_ATTRIBUTES = frozenset(
    {"__doc__", "__annotations__", "__code__", "__globals__", "__subclasses__"}
)
#: Further ones of modules of which only the source is known.
_UNSEEN_IN_SOURCE = frozenset({"import_module", "run_path", "run_module", "_getframe"})

#: Modules that run what is not Python code of the user.
_UNSEEN_MODULES = frozenset({"ctypes", "subprocess"})

#: Objects of Python that run or return what the bytecode of their caller does not name.
_UNSEEN = frozenset(
    {"eval", "exec", "globals", "__import__", "import_module", "importlib.import_module"}
    | {"sys.modules", "sys._getframe", "inspect.currentframe", "inspect.stack"}
    | {"runpy.run_path", "runpy.run_module", "os.system", "os.popen"}
)


@functools.cache
def unseen_objects() -> dict[int, str]:
    """Return the names of the objects in _UNSEEN, by id: their modules keep them alive."""
    modules = (importlib, inspect, os, runpy, sys)
    objects: dict[int, str] = {}
    for name in _UNSEEN:
        module, _, attribute = name.rpartition(".")
        for home in (*modules, builtins):
            if home.__name__ == (module or "builtins") and hasattr(home, attribute):
                objects[id(getattr(home, attribute))] = name
    return objects


def unseen_name(value: Any) -> str | None:
    """Return the name of an object that runs code which is no part of a hash; None for others."""
    found = unseen_objects().get(id(value))
    module = str(getattr(value, "__module__", ""))
    if found is None and module in _UNSEEN_MODULES:
        return f"{module}.{getattr(value, '__name__', type(value).__name__)}"
    return found


def unseen_attributes(code: types.CodeType) -> list[str]:
    """Return the attributes that a function loads whose content is no part of its hash."""
    return sorted(bytecode.attributes(code) & _UNSEEN_ATTRIBUTES)


def unseen_in_source(code: types.CodeType) -> list[str]:
    """Return what the source of a module uses that no hash covers; the module is not imported."""
    paths = bytecode.global_paths(code)
    loaded = {".".join((first, *path)) for first in paths for path in paths[first]}
    modules = {statement.name for statement in bytecode.imports(code)} & _UNSEEN_MODULES
    found = modules | loaded & _UNSEEN - {"globals"}
    return sorted(found | bytecode.attributes(code) & (_UNSEEN_ATTRIBUTES | _UNSEEN_IN_SOURCE))


# ---- its content ---------------------------------------------------------------------------------

#: Names that Python adds to a class: caches, and attributes that follow from its bases.
_BOOKKEEPING = frozenset(
    {"__module__", "__dict__", "__weakref__", "__slotnames__", "_abc_impl"}
    | {"__annotations__", "__annotations_cache__"}
    | {"_autograd_function_id", "_backward_cls"}  # of torch.autograd.Function
    | {"__pydantic_core_schema__", "__pydantic_validator__", "__pydantic_serializer__"}
)

#: Names that Python gives to a module.
_OF_MODULE = frozenset(
    {"__name__", "__doc__", "__package__", "__loader__", "__spec__", "__file__", "__cached__"}
    | {"__builtins__", "__path__", "__annotations__", "__warningregistry__"}
)

#: What functools.update_wrapper copies that describes the source.
COPIED = frozenset(functools.WRAPPER_ASSIGNMENTS) - {"__name__"}


def attributes_of_class(value: type) -> dict[str, Any]:
    """Return the own attributes of a class, sorted, without what Python adds to it."""
    names = sorted(set(vars(value)) - bytecode.ABOUT_SOURCE - _BOOKKEEPING)
    slots = (types.GetSetDescriptorType, types.MemberDescriptorType)
    return {name: vars(value)[name] for name in names if not isinstance(vars(value)[name], slots)}


def attributes_of_module(module: types.ModuleType) -> dict[str, Any]:
    """Return the attributes of a module, sorted, without what Python adds to it."""
    return {name: vars(module)[name] for name in sorted(set(vars(module)) - _OF_MODULE)}


def own_attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of a wrapper without those that it copied or computes."""
    computed = {"func", "attrname", "lock"} if isinstance(value, functools.cached_property) else ()
    attributes = getattr(value, "__dict__", {})
    return {
        name: entry
        for name, entry in attributes.items()
        if name not in COPIED and name not in computed
    }


def annotation_texts(value: type) -> dict[str, str]:
    """Return the annotations of a class as text, without the modules of the types."""
    annotations = vars(value).get("__annotations__") or {}
    texts = {
        name: getattr(entry, "__name__", repr(entry)) if isinstance(entry, type) else str(entry)
        for name, entry in annotations.items()
    }
    return {name: _PLACES.sub("", text) for name, text in texts.items()}


#: Modules of types, and addresses of objects, in a text.
_PLACES = re.compile(r"\b(?:\w+\.)+| at 0x[0-9a-f]+")


def registry(function: types.FunctionType) -> Any:
    """Return the functions by type of a function made by functools.singledispatch."""
    names = function.__code__.co_freevars
    closure = function.__closure__ or ()
    held = {
        n: cell.cell_contents for n, cell in zip(names, closure, strict=True) if n == "registry"
    }
    return held.get("registry") or vars(function).get("registry")


def has_attribute(module: types.ModuleType, name: str, *, lazy: bool) -> bool:
    """Return whether a module has an attribute; a lazy one may have to import it."""
    if name in vars(module):
        return True
    try:
        return lazy and "__getattr__" in vars(module) and hasattr(module, name)
    except Exception:  # of any kind: it runs code of the user
        return False


def has_identity(value: Any) -> bool:
    """Return whether a value is equal to itself alone, as functions and most objects are."""
    return getattr(type(value), "__eq__", None) is object.__eq__


def is_tensor(value: Any) -> bool:
    """Return whether a value is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
