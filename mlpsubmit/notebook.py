"""What runs and sweeps look like in a notebook: short HTML, and progress that is kept current."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from mlpsubmit.calling import function_name
from mlpsubmit.wording import doing, totals

if TYPE_CHECKING:
    from mlpsubmit.jobs.status import Status
    from mlpsubmit.sweep import Sweep

__all__ = ["progress_display", "status_html", "sweep_html"]

#: Tasks, reasons and values that are listed.
_TASKS = 8
_REASONS = 3
_VALUES = 6

#: Letters of a value, and of the reason of a failure, that are shown.
_LETTERS = 48
_REASON = 300


def status_html(status: Status) -> str:
    """Return how far a run is: its name, a bar with the totals, and what its tasks do.

    What has ended well is said in one line; what failed, with why.
    """
    head = f"<b>{escape(status.name)}</b> <code>{escape(status.run)}</code> {escape(status.state)}"
    bar = f'<progress value="{status.fraction:.4f}" max="1"></progress> {escape(totals(status))}'
    parts = [head, bar]
    if not status.complete and status.tasks:
        told = [(task.name, task.state, doing(task)) for task in status.tasks[:_TASKS]]
        more = len(status.tasks) - len(told)
        parts.append(_table(told) + (f"... and {more} more tasks" if more else ""))
    reasons = dict.fromkeys(failure.error for failure in status.failures)
    parts += [f"failed: {escape(reason[:_REASON])}" for reason in list(reasons)[:_REASONS]]
    return "<div>" + "<br>".join(parts) + "</div>"


def sweep_html(sweep: Sweep) -> str:
    """Return a sweep's name and size, its axes with their values, and what else it sets."""
    size = f"{len(sweep):,} config{'s' if len(sweep) != 1 else ''}"
    rows = [(axis.dimension, str(len(axis)), _values(axis.points)) for axis in sweep.product.axes]
    defaults = {name: field.default for name, field in type(sweep.base).model_fields.items()}
    varied = {name for axis in sweep.product.axes for name in axis.names}
    changed = {
        name.upper(): value
        for name, value in dict(sweep.base).items()
        if name not in varied and value is not None and value != defaults[name]
    }
    functions = {"batchfn": sweep.batchfn, "data": sweep.data, "where": sweep.where}
    told = {name: value for name, value in functions.items() if value is not None}
    settings = [f"{name}={_short(v)}" for name, v in {**changed, **sweep.arguments, **told}.items()]
    if sweep.grabs:
        settings.append("grabs: " + ", ".join(sweep.grabs))
    head = f"<b>{escape(sweep.name)}</b>: {size}"
    return f"<div>{head}{_table(rows)}{escape('; '.join(settings))}</div>"


def progress_display() -> Callable[[Status], None] | None:
    """Return a function that shows a status in the cell that is running, in place of the last one.

    Returns:
        None where this process is no notebook's kernel.
    """
    # Only a process that has loaded IPython can be a kernel, and this must not load it.
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    if not hasattr(get_shell(), "kernel"):
        return None
    display: Any = importlib.import_module("IPython.display")  # it has no types
    handle: Any = None

    def show(status: Status) -> None:
        nonlocal handle
        shown = display.HTML(status_html(status))
        if handle is None:
            handle = display.display(shown, display_id=True)
        else:
            handle.update(shown)

    return show


def _table(rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Sequence[str]) -> str:
        return "".join(f'<td style="text-align: left">{escape(cell)}</td>' for cell in cells)

    return "<table>" + "".join(f"<tr>{row(cells)}</tr>" for cells in rows) + "</table>"


def _values(points: Sequence[tuple[Any, ...]]) -> str:
    """Return the values of an axis, the middle of long ones left out."""
    shown = [_short(point[0]) if len(point) == 1 else _short(point) for point in points]
    if len(shown) > _VALUES:
        shown[_VALUES - 2 : -1] = ["..."]
    return ", ".join(shown)


def _short(value: Any) -> str:
    text = function_name(value) if callable(value) else str(value)
    return text if len(text) <= _LETTERS else text[: _LETTERS - 3] + "..."
