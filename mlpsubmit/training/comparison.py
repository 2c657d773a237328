"""Which models can be one stack: those that compute the same function of their tensors.

A stack evaluates one of its models for all, with the tensors of each. So everything else that a
forward pass can depend on has to be equal: classes, functions with their closures, defaults and
globals, hooks, plain attributes, what is a parameter or a buffer, trained or tied. A signature is
all of that as one flat sequence, with the parameters and buffers by name. Both models are in this
process, so code is compared as code objects, and what cannot be taken apart by its identity.
"""

from __future__ import annotations

import collections
import copyreg
import functools
import hashlib
import sys
import types
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlpsubmit.errors import SpecError
from mlpsubmit.spec.libraries import is_library

__all__ = ["Signature", "StackingError", "names_used", "signature"]


class StackingError(SpecError):
    """Models that cannot be trained together, but can be in smaller groups.

    Attributes:
        reason: why.
        groups: the rows of the models, as they can be trained; None for each alone.
    """

    def __init__(self, reason: str, groups: Sequence[Sequence[int]] | None = None) -> None:
        super().__init__(f"models: cannot be trained together: {reason}; train them separately")
        self.reason, self.groups = reason, groups


class Signature:
    """Everything but tensors that the outputs of a model depend on; equal for what can be stacked.

    Attributes:
        content: the sequence that is compared.
        alone: why the model equals no other; None where it may.
        aliased: whether tensors of the model share memory.
    """

    def __init__(
        self, places: list[str], content: list[Hashable], alone: str | None, aliased: bool
    ) -> None:
        self._places, self.content = places, tuple(content)
        self.alone, self.aliased = alone, aliased
        self._hash = hash(self.content)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Signature) or self.alone or other.alone:
            return self is other
        return self.content == other.content

    def __hash__(self) -> int:
        return self._hash

    def difference(self, other: Signature) -> str:
        """Return the reason why two signatures differ."""
        if self.alone or other.alone:
            return str(self.alone or other.alone)
        for place, one, two in zip(self._places, self.content, other.content, strict=False):
            if one != two:
                return f"they differ in {place}"
        return "they differ in their structure"


def signature(model: nn.Module, *functions: Any) -> Signature:
    """Return the signature of a model, and of functions that are evaluated with it."""
    walk = _Walk(model)
    try:
        walk.tree(model)
        for function in functions:
            walk.visit("LOSS", function)
    except Exception as error:  # whatever an object of the user's raises when it is looked at
        walk.emit("", _Same(walk))
        walk.set_alone(f"they cannot be compared ({type(error).__name__}: {error})")
    return Signature(walk.places, walk.content, walk.alone, walk.aliased)


class _Same:
    """Compares an object by its identity, and keeps it alive so that its id stays unique."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


#: Compared by their values. Floats are by their bits: nan equals itself, zero differs from -0.0.
_SCALARS = {type(None), bool, int, str, bytes, type(Ellipsis), type(NotImplemented)}

#: Compared by identity: nothing can be changed in them that a forward pass would notice.
_FIXED = (
    types.ModuleType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    torch.dtype,
    torch.layout,
    torch.memory_format,
)

#: Attributes of a class that describe its source, or that Python keeps there for itself.
_BOOKKEEPING = frozenset(
    {"__doc__", "__firstlineno__", "__static_attributes__", "__module__", "__dict__"}
    | {"__weakref__", "__slotnames__", "_abc_impl", "__annotations__", "__annotate_func__"}
    | {"__annotations_cache__", "__annotate__"}
)

#: The hooks of a module that a forward or a backward pass calls: dictionaries by a running number.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


#: What a function may use that works on gradients, which a stack computes outside of it.
_LOST = frozenset(
    {"register_hook", "register_post_accumulate_grad_hook", "retain_grad", "autograd", "backward"}
)


class _Walk:
    """One walk over everything that can be reached from a model."""

    def __init__(self, model: nn.Module) -> None:
        self.places: list[str] = []
        self.content: list[Hashable] = []
        self.alone: str | None = None
        self.aliased = False
        self._seen: dict[int, int] = {}
        self._modules: set[tuple[int, tuple[str, ...]]] = set()  # the user's, by names used
        self._kept: list[Any] = []  # so that no id is used again
        self._paths = {id(module): path for path, module in model.named_modules()}
        named = [*model.named_parameters(), *model.named_buffers()]
        self._names = {id(tensor): name for name, tensor in named}
        self._memory: dict[int, str] = {}
        self._exact = self._visitors()
        for name, tensor in named:
            self._check_memory(name, tensor)

    def emit(self, place: str, entry: Hashable) -> None:
        self.places.append(place)
        self.content.append(entry)

    def set_alone(self, reason: str) -> None:
        self.alone = self.alone or reason

    # ---- modules

    def tree(self, model: nn.Module) -> None:
        """Visit a model, module by module."""
        for path, module in model.named_modules(remove_duplicate=False):
            first = self._paths[id(module)]
            self.emit(path, first)
            if path == first:
                self.module(path or type(model).__name__, module)
            elif next(module.parameters(), None) is not None or any(True for _ in module.buffers()):
                self.set_alone(f"the module {first!r} with weights occurs again as {path!r}")

    def module(self, place: str, module: nn.Module) -> None:
        if isinstance(module, nn.RNNBase):
            kind = type(module).__name__
            self.set_alone(f"{place} is an nn.{kind}, which computes one model at a time")
        self.visit(f"the class of {place}", type(module))
        own = vars(module)
        self.emit(place, len(own))
        for name, value in own.items():
            where = f"{place}.{name}"
            self.emit(where, name)
            if name in ("_parameters", "_buffers"):
                for key, tensor in value.items():
                    self.registered(f"{place}.{key}", key, tensor)
            elif name in _HOOKS:
                self.hooks(where, own, name)
            elif name.startswith(_HOOKS):  # flags of the hooks above
                continue
            elif name.endswith("hooks") and isinstance(value, dict):
                self.visit(where, list(value.values()))
            else:
                self.visit(where, value)

    def registered(self, place: str, key: str, tensor: Tensor | None) -> None:
        self.emit(place, key)
        name = self._names.get(id(tensor))
        if tensor is None or name is None:
            self.visit(place, tensor)
            return
        kind = (name, tuple(tensor.shape), tensor.dtype, tensor.requires_grad, type(tensor))
        self.emit(place, kind)
        if vars(tensor):
            self.visit(place, dict(vars(tensor)))
        if tensor._backward_hooks:
            self.set_alone(f"{place} has a hook")

    def hooks(self, place: str, own: Mapping[str, Any], name: str) -> None:
        numbers = own[name]
        if numbers and "backward" in name:
            self.set_alone(f"{place} are not called where gradients are computed for a stack")
        self.emit(place, len(numbers))
        for position, (number, hook) in enumerate(numbers.items()):
            flags = [
                number in own.get(name + flag, ()) for flag in ("_with_kwargs", "_always_called")
            ]
            self.emit(f"{place}[{position}]", tuple(flags))
            self.visit(f"{place}[{position}]", hook)

    # ---- tensors

    def _check_memory(self, name: str, tensor: Tensor) -> None:
        if tensor.numel() and tensor.layout == torch.strided:
            first = self._memory.setdefault(tensor.untyped_storage().data_ptr(), name)
            if first != name:
                self.aliased = True
                self.set_alone(f"{name} shares memory with {first}")

    def tensor(self, place: str, tensor: Tensor) -> None:
        if (name := self._names.get(id(tensor))) is not None:
            self.emit(place, name)
            self.set_alone(f"{place} is {name} itself, which a stack cannot replace")
            return
        self._check_memory(place, tensor)
        if tensor.grad_fn is not None or tensor.layout != torch.strided:
            self.set_alone(f"{place} is a tensor that is computed from others, or not dense")
        kind = (tuple(tensor.shape), tensor.dtype, str(tensor.device), tensor.requires_grad)
        self.emit(place, (*kind, type(tensor)))
        if tensor.layout == torch.strided:
            bits = tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy()
            self.emit(place, hashlib.blake2b(bits.tobytes(), digest_size=16).digest())

    def array(self, place: str, array: np.ndarray[Any, Any]) -> None:
        self.emit(place, (str(array.dtype), array.shape))
        if array.dtype.hasobject:
            self.visit(place, array.tolist())
        else:
            self.emit(place, hashlib.blake2b(array.tobytes(), digest_size=16).digest())

    # ---- any object

    def visit(self, place: str, value: Any) -> None:
        kind = type(value)
        if kind in _SCALARS:
            self.emit(place, (kind, value))
        elif kind in (float, complex):
            self.emit(place, (kind, repr(value)))
        elif isinstance(value, Tensor):
            self.tensor(place, value)
        elif id(value) in self._paths:
            self.emit(place, ("module", self._paths[id(value)]))
        elif isinstance(value, _FIXED):
            self.emit(place, _Same(value))
        elif id(value) in self._seen:
            self.emit(place, ("again", self._seen[id(value)]))
        else:
            self._seen[id(value)] = len(self._seen)
            self._kept.append(value)
            self._visitor(value)(place, value)

    def _visitor(self, value: Any) -> Callable[[str, Any], None]:
        if (exact := self._exact.get(type(value))) is not None:
            return exact
        if isinstance(value, type):
            return self.a_class
        return self.module if isinstance(value, nn.Module) else self.instance

    def _visitors(self) -> dict[type, Callable[[str, Any], None]]:
        return {
            list: self.sequence,
            tuple: self.sequence,
            collections.deque: self.sequence,
            dict: self.mapping,
            collections.OrderedDict: self.mapping,
            types.MappingProxyType: self.mapping,
            set: self.unordered,
            frozenset: self.unordered,
            types.FunctionType: self.function,
            types.CodeType: self.emit,
            types.CellType: self.cell,
            types.MethodType: self.parts("__func__", "__self__"),
            types.BuiltinFunctionType: self.builtin,
            types.MethodWrapperType: self.builtin,
            functools.partial: self.parts("func", "args", "keywords", "__dict__"),
            property: self.parts("fget", "fset", "fdel"),
            staticmethod: self.parts("__func__"),
            classmethod: self.parts("__func__"),
            functools.cached_property: self.parts("func"),
            weakref.ref: lambda place, ref: self.visit(place, ref()),
            np.ndarray: self.array,
        }

    def parts(self, *names: str) -> Callable[[str, Any], None]:
        """Return a visitor of an object that consists of these attributes."""

        def visit(place: str, value: Any) -> None:
            self.emit(place, type(value).__name__)
            for name in names:
                self.visit(place, getattr(value, name))

        return visit

    def sequence(self, place: str, values: Sequence[Any]) -> None:
        self.emit(place, (type(values), len(values)))
        for position, value in enumerate(values):
            self.visit(f"{place}[{position}]", value)

    def mapping(self, place: str, values: Mapping[Any, Any]) -> None:
        self.emit(place, (type(values), len(values)))
        for key, value in values.items():
            self.visit(place, key)
            self.visit(f"{place}[{key!r:.40}]" if isinstance(key, (str, int)) else place, value)

    def unordered(self, place: str, values: set[Any]) -> None:
        if all(type(value) in _SCALARS for value in values):
            entries = sorted((type(value).__name__, repr(value)) for value in values)
            self.emit(place, (type(values), tuple(entries)))
        else:
            self.emit(place, _Same(values))

    def cell(self, place: str, cell: types.CellType) -> None:
        try:
            content = cell.cell_contents
        except ValueError:  # a recursive function whose own cell is still empty
            self.emit(place, "empty")
        else:
            self.visit(place, content)

    def builtin(self, place: str, function: Any) -> None:
        if isinstance(function.__self__, (types.ModuleType, type, type(None))):
            self.emit(place, _Same(function))
        else:
            self.emit(place, function.__name__)
            self.visit(place, function.__self__)

    def function(self, place: str, function: types.FunctionType) -> None:
        code = function.__code__
        self.emit(place, code)
        self.emit(place, _Same(function.__globals__))
        defaults = (function.__defaults__, function.__kwdefaults__, vars(function))
        for value in defaults:
            if value:
                self.visit(f"a default of {place}", value)
            else:
                self.emit(place, None)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self.cell(f"{place}: {name}", cell)
        if not is_library(str(function.__globals__.get("__name__", ""))):
            names = names_used(code)
            if found := _LOST.intersection(names):
                self.set_alone(f"{place} uses {min(found)}, which has no effect in a stack")
            self.globals(place, names, function.__globals__)

    def globals(self, place: str, names: tuple[str, ...], found: Mapping[str, Any]) -> None:
        """Visit the globals of a user's function, and those of the user's modules among them."""
        for name in names:
            if name not in found:
                continue
            value = found[name]
            self.emit(place, name)
            self.visit(f"{place}: {name}", value)
            own = isinstance(value, types.ModuleType) and not is_library(value.__name__)
            if own and (id(value), names) not in self._modules:
                self._modules.add((id(value), names))
                self.globals(f"{place}: {name}", names, vars(value))

    def a_class(self, place: str, cls: type) -> None:
        if is_library(cls.__module__) and _is_importable(cls):
            self.emit(place, _Same(cls))
            return
        self.emit(place, cls.__qualname__)
        self.visit(place, type(cls))
        self.visit(place, cls.__bases__)
        for name, value in list(vars(cls).items()):
            if name not in _BOOKKEEPING:
                self.emit(place, name)
                self.visit(f"{cls.__name__}.{name}", value)

    def instance(self, place: str, value: Any) -> None:
        """Visit an object by what it is pickled as; one that cannot be equals itself alone."""
        self.visit(f"the class of {place}", type(value))
        reduce = copyreg.dispatch_table.get(type(value))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parts: Any = reduce(value) if reduce else value.__reduce_ex__(4)
        except Exception:
            parts = ""
        if isinstance(parts, str):
            self.emit(place, _Same(value))
        else:
            for part in parts:
                self.visit(place, list(part) if isinstance(part, Iterator) else part)
        # What is left out of the pickle may still be used by the forward pass.
        self.visit(place, getattr(value, "__dict__", None))


def _is_importable(cls: type) -> bool:
    found: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is cls


@functools.lru_cache(maxsize=4096)
def names_used(code: types.CodeType) -> tuple[str, ...]:
    """Return the names of globals and attributes in a function, and in those defined in it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(names_used(constant))
    return tuple(sorted(names))
