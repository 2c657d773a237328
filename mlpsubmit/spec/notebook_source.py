"""The cells of a notebook as Python: magics left out, parsed one after another."""

from __future__ import annotations
import __future__

import ast
import functools
import json
import linecache
import operator
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

from mlpsubmit.errors import SpecError

__all__ = ["Cell", "IgnoredMagics", "read_cells", "statements"]

#: A line that IPython understands and Python does not: ``%magic``, ``!command``, ``x = !command``,
#: ``name?``.
_MAGIC = re.compile(r"^(\s*)(?:[\w\s,.\[\]'\"]+=\s*)?[%!?].*$|^(\s*)[\w.]+\?{1,2}\s*$")

#: Magics that run the Python after them, which is kept.
_TIMERS = re.compile(r"^(\s*)%{1,2}(?:time|timeit|prun|capture)\b[^\S\n]*(.*)$")

#: What ``from __future__ import ...`` sets: as in a notebook, it holds for all that follows.
_FUTURE = functools.reduce(
    operator.or_, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)


@dataclass(frozen=True)
class Cell:
    """One code cell.

    Attributes:
        statements: its top-level statements, magics left out.
        file: what tracebacks call it: the notebook's path, and its place among the code cells.
    """

    statements: list[ast.stmt]
    file: str


class IgnoredMagics:
    """What ``get_ipython()`` gives to a cell: magics that are called do nothing either."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


def read_cells(path: Path) -> Iterator[Cell]:
    """Yield the code cells of a notebook, each parsed when its turn has come; none is run.

    Raises:
        SpecError: where the file is no notebook of format 4 or newer, or a cell does not parse.
    """
    try:
        cells = json.loads(path.read_bytes())["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(
            "is no notebook of format 4 or newer (JSON with a list of cells); save it again in "
            "Jupyter, or give a .py file",
            where=str(path),
        ) from error
    for number, source in enumerate(sources, start=1):
        yield _cell(number, source, path)


def statements(cells: Iterable[Cell]) -> Iterator[CodeType]:
    """Yield the compiled statements of cells one by one, each when its turn has come."""
    flags = 0
    for cell in cells:
        for statement in cell.statements:
            module = ast.Module(body=[statement], type_ignores=[])
            code = compile(module, cell.file, "exec", flags, dont_inherit=True)
            flags |= code.co_flags & _FUTURE
            yield code


def _cell(number: int, source: str, path: Path) -> Cell:
    file = f"{path}, cell {number}"
    lines = source.split("\n")
    # For tracebacks: a cell is no file whose lines could be read again.
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    if lines[0].startswith("%%"):
        if not _TIMERS.match(lines[0]):
            return Cell([], file)  # another language, or a file to be written
        lines[0] = ""
    while True:
        try:
            return Cell(ast.parse("\n".join(lines), file).body, file)
        except SyntaxError as error:
            place = (error.lineno or 1) - 1
            if not (place < len(lines) and _MAGIC.match(lines[place])):
                shown = (error.text or "").strip()
                raise SpecError(
                    f"cell {number}, line {place + 1}: {error.msg}: {shown}", where=str(path)
                ) from error
            lines[place] = _without_magic(lines[place])


def _without_magic(line: str) -> str:
    """Return what remains of a line of IPython: the statement that is timed, or nothing."""
    timed = _TIMERS.match(line)
    indent = line[: len(line) - len(line.lstrip())]
    return indent + ((timed and timed[2]) or "pass")
