"""Writes docs/library.md: every function of the library, from its docstring.

.venv/bin/python docs/library.py
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mlpsubmit.batchfns
import mlpsubmit.grabs

PAGE = Path(__file__).with_name("library.md")

HEAD = """\
# The library

Every function of `mlpsubmit.batchfns` and `mlpsubmit.grabs`, with one line of use. What shapes it
takes and gives, its formula and where that comes from stand in its docstring:
`help(mlpsubmit.grabs.sharpness)`. In a spec, arguments that are not given come by name from axes,
fixed settings, `datasethps` or what `data=` returned; see [spec.md](spec.md).

<!-- Written by docs/library.py from the docstrings; a test holds the two together. -->
"""

INTRODUCTIONS = {
    mlpsubmit.batchfns: "## Data and batch functions: `mlpsubmit.batchfns`",
    mlpsubmit.grabs: "## Grabs: `mlpsubmit.grabs`",
}


def page() -> str:
    """Return the whole text of docs/library.md."""
    parts = [HEAD]
    for package, heading in INTRODUCTIONS.items():
        parts += [heading, *_sections(package)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def public(package: ModuleType) -> dict[str, Any]:
    """Return the functions and classes that a package offers, by name."""
    offered = {name: getattr(package, name) for name in package.__all__}
    return {
        name: value
        for name, value in offered.items()
        if inspect.isfunction(value) or inspect.isclass(value)
    }


def example(value: Any) -> str:
    """Return the line that shows the use of a function: the first of its docstring's Example."""
    _, _, text = (inspect.getdoc(value) or "").partition("Example:")
    line = re.search(r">>> (.*)", text)
    if line is None:
        raise ValueError(f"{value.__name__} has no Example in its docstring")
    return re.sub(r"\s*# doctest:.*", "", line[1])


def _sections(package: ModuleType) -> Iterator[str]:
    by_module: dict[str, dict[str, Any]] = {}
    for name, value in public(package).items():
        by_module.setdefault(value.__module__, {})[name] = value
    for module, values in sorted(by_module.items()):
        title = _summary(importlib.import_module(module)).rstrip(".")
        rows = [
            f"| `{_signature(n, v)}` | {_cell(_summary(v))} | `{_cell(example(v))}` |"
            for n, v in values.items()
        ]
        yield "\n".join([f"### {title}", "", "| | | for example |", "|---|---|---|", *rows])


def _summary(value: Any) -> str:
    paragraph = (inspect.getdoc(value) or "").split("\n\n")[0]
    text = " ".join(textwrap.dedent(paragraph).split()).replace("``", "`")
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    return re.sub(r":math:`(.+?)`", lambda m: f"${m[1].replace('|', chr(92) + 'vert ')}$", text)


def _signature(name: str, value: Any) -> str:
    return f"{name}({', '.join(inspect.signature(value).parameters)})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
