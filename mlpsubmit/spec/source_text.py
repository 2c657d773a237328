"""The source of a function, to be read by people: of a lambda, the lambda itself."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
import types
from collections.abc import Callable

__all__ = ["source_text"]

#: The most characters in which a lambda is looked for.
_MOST = 2000


def source_text(function: Callable[..., object]) -> str:
    """Return the source of a function, not indented; of a lambda, without what is around it.

    Raises:
        OSError, TypeError: it is lost.
    """
    text = textwrap.dedent(inspect.getsource(function)).rstrip() + "\n"
    code = getattr(function, "__code__", None)
    if not isinstance(code, types.CodeType) or code.co_name != "<lambda>" or len(text) > _MOST:
        return text
    for content in (_does, _uses):
        same = {source for source, other in _lambdas(text) if content(other) == content(code)}
        if len(same) == 1:
            return same.pop()
    return text


@functools.lru_cache(maxsize=64)
def _lambdas(text: str) -> list[tuple[str, types.CodeType]]:
    """Return the lambdas in some lines, which need not be a whole statement, and their code."""
    found = []
    for match in re.finditer(r"\blambda\b", text):
        for end in range(len(text), match.start(), -1):
            wrapped = f"({text[match.start() : end]}\n)"
            try:
                tree = ast.parse(wrapped, mode="eval")
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
            if isinstance(tree.body, ast.Lambda):
                outer = compile(tree, "", "eval", dont_inherit=True)
                code = next(c for c in outer.co_consts if isinstance(c, types.CodeType))
                found.append((ast.get_source_segment(wrapped, tree.body) or "", code))
                break
    return found


def _does(code: types.CodeType) -> tuple[object, ...]:
    """Return what the code of a lambda does, without where it is."""
    return code.co_code, code.co_names, *_uses(code)


def _uses(code: types.CodeType) -> tuple[object, ...]:
    """Return the arguments, names and constants of the code of a lambda.

    They are those of the lambda alone, too, where what is around it is loaded in another way.
    """
    constants = [
        _uses(c) if isinstance(c, types.CodeType) else repr(c)
        for c in code.co_consts
        # Until Python 3.10, the name of a lambda within is one of them, and says where it is.
        if not (isinstance(c, str) and c.endswith("<lambda>"))
    ]
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return arguments, {*code.co_names, *code.co_freevars, *code.co_cellvars}, tuple(constants)
