"""The cells of a notebook as Python: magics left out, parsed one after another.

IPython's own transformer is not used: it turns ``%time x = f()`` into a call with the statement as
a string, and every ``launch study.ipynb`` would need IPython.
"""

from __future__ import annotations

import ast
import codeop
import json
import linecache
import re
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

from mlpsubmit.errors import SpecError

__all__ = ["IgnoredMagics", "statements"]

#: A line that IPython understands and Python does not: ``%magic``, ``!command``, ``x = !command``,
#: ``name?``.
_MAGIC = re.compile(r"^(\s*)(?:[\w\s,.\[\]'\"]+=\s*)?[%!?].*$|^(\s*)[\w.]+\?{1,2}\s*$")

#: Magics that run the statement after their options, which is kept: {magic: its options}.
_TIMERS = {
    "time": r"--\S+",
    "timeit": r"-(?:[nrp]\s*\d+|[tcqov]+)",
    "prun": r"-(?:[DlsT]\s*\S+|[rq]+)",
}
_TIMED = {
    magic: re.compile(rf"^\s*%{{1,2}}{magic}(?:\s+(?:{options}(?:\s+|$))*(?P<statement>.*))?$")
    for magic, options in _TIMERS.items()
}

#: Cell magics that run the Python below them; all others are another language, or write a file.
_RUN_CELL = re.compile(r"^%%(?:time|timeit|prun|capture)\b")


class IgnoredMagics:
    """The result of ``get_ipython()`` in a cell: magics that are called do nothing, too."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


def statements(path: Path) -> Iterator[CodeType]:
    """Yield the top-level statements of a notebook's code cells, without magics.

    Each is compiled when the one before it has run, under its ``from __future__ import``.

    Raises:
        SpecError: if the file is not a notebook of format 4 or newer, or a cell does not parse.
    """
    compiled = codeop.Compile()  # remembers future statements
    for number, source in enumerate(_sources(path), start=1):
        file = f"{path}, cell {number}"
        # For tracebacks: a cell is not a file whose lines could be read again.
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        try:
            body = _parsed(source.split("\n"), file)
        except SyntaxError as error:
            shown = (error.text or "").strip()
            raise SpecError(
                f"cell {number}, line {error.lineno or 1}: {error.msg}: {shown}", where=str(path)
            ) from error
        for statement in body:
            module: Any = ast.Module(body=[statement], type_ignores=[])
            yield compiled(module, file, "exec")


def _sources(path: Path) -> list[str]:
    try:
        cells = json.loads(path.read_bytes())["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(
            "is not a notebook of format 4 or newer (JSON with a list of cells); save it again in "
            "Jupyter, or give a .py file",
            where=str(path),
        ) from error


def _parsed(lines: list[str], file: str) -> list[ast.stmt]:
    """Return the statements of a cell, its magics replaced."""
    if lines[0].startswith("%%"):
        if not _RUN_CELL.match(lines[0]):
            return []
        lines[0] = _timed_statement(lines[0])
    while True:
        try:
            return ast.parse("\n".join(lines), file).body
        except SyntaxError as error:
            row = (error.lineno or 1) - 1
            if not (row < len(lines) and _MAGIC.match(lines[row])):
                raise
            _remove_magic(lines, row)


def _remove_magic(lines: list[str], row: int) -> None:
    """Replace a line of IPython by the statement that it times, or by ``pass``."""
    line = lines[row]
    indent = line[: len(line) - len(line.lstrip())]
    statement = _timed_statement(line)
    lines[row] = indent + (statement or "pass")
    while not statement and line.endswith("\\") and row + 1 < len(lines):
        row += 1
        line, lines[row] = lines[row], ""  # the rest of a command


def _timed_statement(line: str) -> str:
    """Return the statement that a magic times, without the magic's options; "" if none."""
    matches = (pattern.match(line) for pattern in _TIMED.values())
    return next((match["statement"] or "" for match in matches if match), "")
