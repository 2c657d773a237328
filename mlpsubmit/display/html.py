"""HTML for notebooks: a run's status, a sweep, and a cell's output that is updated in place."""

from __future__ import annotations

import html
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mlpsubmit.arguments import function_name
from mlpsubmit.display.output import inert
from mlpsubmit.display.text import counted

__all__ = ["escape", "in_cell", "status_html", "sweep_html"]

#: The most tasks, reasons of failures and values of an axis that are listed.
_TASKS = 8
_REASONS = 3
_VALUES = 6

#: The most characters of a value, and of the reason of a failure.
_VALUE_LENGTH = 48
_REASON_LENGTH = 300


def status_html(
    name: str,
    run: str,
    state: str,
    fraction: float,
    summary: str,
    tasks: Sequence[tuple[str, str, str]],
    reasons: Iterable[str],
    figure: str = "",
) -> str:
    """Return a run's status: its name, a progress bar with its summary, a row per task, failures.

    Args:
        fraction: of the work that is done, 0 to 1.
        tasks: name, state and summary of each task to show.
        figure: as SVG.
        reasons: of failures; each distinct one is shown once.
    """
    head = f"<b>{escape(name)}</b> <code>{escape(run)}</code> {escape(state)}"
    bar = f'<progress value="{fraction:.4f}" max="1"></progress> {escape(summary)}'
    parts = [head, bar]
    if tasks:
        more = len(tasks) - _TASKS
        parts.append(
            _table(tasks[:_TASKS]) + (f"... and {counted(more, 'more task')}" if more > 0 else "")
        )
    distinct = list(dict.fromkeys(reasons))[:_REASONS]
    parts += [f"failed: {escape(reason[:_REASON_LENGTH])}" for reason in distinct]
    return f'<div style="overflow-wrap: anywhere">{"<br>".join(parts)}{figure}</div>'


def sweep_html(
    name: str,
    configs: int,
    axes: Iterable[tuple[str, Sequence[tuple[Any, ...]]]],
    settings: Mapping[str, Any],
    grabs: Iterable[str],
) -> str:
    """Return a sweep's name and size, its axes with their values, and its other settings.

    Args:
        axes: the dimension and the points of each.
        settings: values that differ from the defaults, and functions, by name.
    """
    rows = [(dimension, str(len(points)), _values(points)) for dimension, points in axes]
    other = [f"{setting}={_short(value)}" for setting, value in settings.items()]
    if names := ", ".join(grabs):
        other.append(f"grabs: {names}")
    head = f"<b>{escape(name)}</b>: {counted(configs, 'config')}"
    return f"<div>{head}{_table(rows)}{escape('; '.join(other))}</div>"


def in_cell() -> Callable[[str], None] | None:
    """Return a function that shows HTML in the running cell and replaces what it showed before.

    Returns:
        None if this process is not the kernel of a notebook.
    """
    # A kernel has loaded IPython already; in any other process this must not load it.
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    if not hasattr(get_shell(), "kernel"):
        return None
    display: Any = importlib.import_module("IPython.display")  # it has no types
    handle: Any = None

    def show(html: str) -> None:
        nonlocal handle
        shown = display.HTML(html)
        if handle is None:
            handle = display.display(shown, display_id=True)
        else:
            handle.update(shown)

    return show


def escape(text: str) -> str:
    """Return text that neither HTML nor a control character in it changes."""
    return html.escape(inert(text))


def _table(rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Sequence[str]) -> str:
        first, *others = (escape(cell) for cell in cells)
        name = f'<td style="text-align: left; white-space: nowrap">{first}</td>'
        return name + "".join(f'<td style="text-align: left">{cell}</td>' for cell in others)

    return "<table>" + "".join(f"<tr>{row(cells)}</tr>" for cells in rows) + "</table>"


def _values(points: Sequence[tuple[Any, ...]]) -> str:
    """Return the values of an axis, without the middle ones if there are many."""
    shown = [_short(point[0]) if len(point) == 1 else _short(point) for point in points]
    if len(shown) > _VALUES:
        shown[_VALUES - 2 : -1] = ["..."]
    return ", ".join(shown)


def _short(value: Any) -> str:
    text = function_name(value) if callable(value) else str(value)
    return text if len(text) <= _VALUE_LENGTH else text[: _VALUE_LENGTH - 3] + "..."
