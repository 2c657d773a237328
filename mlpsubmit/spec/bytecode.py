"""What the bytecode of a function does and uses, without what follows from how it is written."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = [
    "ABOUT_SOURCE",
    "Import",
    "Path",
    "Steps",
    "attributes",
    "global_paths",
    "imports",
    "nested",
    "steps",
]

#: Names in the body of a class or a module that describe its source.
ABOUT_SOURCE = frozenset({"__doc__", "__firstlineno__", "__static_attributes__"})

#: Instructions without an effect: their number depends on line breaks.
_PADDING = frozenset({"NOP", "EXTENDED_ARG", "CACHE"})

_LOADS_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_LOADS_ATTRIBUTE = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_JUMPS = frozenset({*dis.hasjrel, *dis.hasjabs})

#: Attributes that are loaded one after the other.
Path: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Import:
    """An import statement: ``from ..name import names`` has level 2; no names: ``import name``."""

    name: str
    level: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Steps:
    """The instructions of one code object, without those of its nested functions.

    Attributes:
        plain: (operation, argument) of each. A name is given as such, the target of a jump as a
            position in this list, a constant as its value.
        constants: the positions of those whose argument is a constant.
        handlers: (start, end, target, depth, whether it restores the instruction) of each
            exception handler, the first three as positions.
    """

    plain: list[tuple[str, Any]]
    constants: frozenset[int]
    handlers: list[tuple[Any, ...]]


def steps(code: types.CodeType) -> Steps:
    """Return the instructions of a code object that can affect what it does."""
    every = list(dis.get_instructions(code))
    omitted = set(_about_source(every))
    positions: dict[int, int] = {}
    kept: list[dis.Instruction] = []
    for number, step in enumerate(every):
        positions[step.offset] = len(kept)
        if number not in omitted and step.opname not in _PADDING:
            kept.append(step)
    constants = frozenset(n for n, step in enumerate(kept) if step.opcode in dis.hasconst)
    plain = [(step.opname, _argument(code, step, positions)) for step in kept]
    return Steps(plain, constants, list(_handlers(code, positions, len(kept))))


def _argument(code: types.CodeType, step: dis.Instruction, positions: dict[int, int]) -> Any:
    if step.opcode in dis.hasconst and step.arg is not None:
        return code.co_consts[step.arg]  # argval lacks the names of keyword arguments in 3.11
    if step.opcode in dis.hasname:
        return step.argrepr  # with the flags that share the argument: "NULL + f"
    if step.opcode in _JUMPS:
        return positions.get(step.argval, step.arg)
    return step.arg


def _about_source(every: list[dis.Instruction]) -> Iterator[int]:
    """Yield the numbers of the instructions that store a docstring or a line number."""
    for number, step in enumerate(every):
        if step.opname == "STORE_NAME" and step.argval in ABOUT_SOURCE:
            yield number
            for before in range(number - 1, -1, -1):
                yield before
                if every[before].opname not in _PADDING:
                    break


def _handlers(
    code: types.CodeType, positions: dict[int, int], end: int
) -> Iterator[tuple[Any, ...]]:
    """Yield the exception handlers; before Python 3.11 they are instructions."""
    for entry in getattr(dis.Bytecode(code), "exception_entries", ()):
        places = (positions.get(at, end) for at in (entry.start, entry.end, entry.target))
        yield (*places, entry.depth, entry.lasti)


def nested(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield a code object and all that are nested in it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from nested(const)


def global_paths(code: types.CodeType) -> dict[str, set[Path]]:
    """Return the globals that a function loads, each with the attributes that follow a load.

    ``a.b.f(x) + a`` gives ``{"a": {("b", "f"), ()}, "x": {()}}``. Attributes of other values than
    modules are included too: the bytecode does not tell them apart.
    """
    paths: dict[str, set[Path]] = {}
    for part in nested(code):
        every = [step for step in dis.get_instructions(part) if step.opname not in _PADDING]
        for number, step in enumerate(every):
            if step.opname in _LOADS_GLOBAL:
                paths.setdefault(step.argval, set()).add(_path(every, number + 1))
    return paths


def _path(every: list[dis.Instruction], start: int) -> Path:
    end = start
    while end < len(every) and every[end].opname in _LOADS_ATTRIBUTE:
        end += 1
    return tuple(step.argval for step in every[start:end])


def attributes(code: types.CodeType) -> set[str]:
    """Return the names of the attributes that a function loads, of any value."""
    return {
        step.argval
        for part in nested(code)
        for step in dis.get_instructions(part)
        if step.opname in _LOADS_ATTRIBUTE
    }


def imports(code: types.CodeType) -> list[Import]:
    """Return the import statements of a code object and of all nested ones, in order."""
    found = []
    for part in nested(code):
        every = [step for step in dis.get_instructions(part) if step.opname not in _PADDING]
        for number, step in enumerate(every):
            if step.opname == "IMPORT_NAME":
                level, names = every[number - 2].argval, every[number - 1].argval
                found.append(Import(step.argval, level or 0, tuple(names or ())))
    return found
