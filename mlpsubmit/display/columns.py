"""A table of text in columns that fits into a terminal: columns are left out before cells are cut.

Where there is no terminal, as in a pipe, all columns are there in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from mlpsubmit.display.console import Console, text
from mlpsubmit.display.output import inline

__all__ = ["Column", "print_columns", "shortened"]

_GAP = "  "

#: What is left of the last column before another one is left out.
_LEAST = 16


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: its heading.
        cells: a text for each row, or several parts, of which as many are shown as fit.
        right: whether cells are aligned to the right.
        rank: columns of a higher rank are left out first where not all fit; never those of rank 0.
        styles: by the text of a cell, its style.
    """

    title: str
    cells: Sequence[str | Sequence[str]]
    right: bool = False
    rank: int = 0
    styles: dict[str, str] | None = None


def print_columns(columns: Sequence[Column], console: Console | None = None) -> None:
    """Print columns with a heading; the last one takes the room that the others leave."""
    console = console or Console()
    width = console.width if console.is_terminal else None
    console.print(Text("\n").join(_lines(columns, width)), soft_wrap=True)


def _lines(columns: Sequence[Column], width: int | None) -> Iterable[Text]:
    shown = [column for column in columns if any(map(_whole, column.cells))]
    while width is not None and _width(shown) > width:
        highest = max(shown, key=lambda column: column.rank)
        if highest.rank == 0:
            break
        shown = [column for column in shown if column is not highest]
    *left, last = shown
    widths = [_natural(column) for column in left]
    room = None if width is None else max(width - sum(widths) - len(_GAP) * len(left), 8)
    yield _line(left, widths, [column.title for column in left], last.title, header=True)
    for row in range(len(last.cells)):
        cells = [_whole(column.cells[row]) for column in left]
        yield _line(left, widths, cells, shortened(last.cells[row], room))


def _line(
    columns: Sequence[Column],
    widths: Sequence[int],
    cells: Sequence[str],
    last: str,
    *,
    header: bool = False,
) -> Text:
    parts: list[object] = []
    for column, width, cell in zip(columns, widths, cells, strict=True):
        padding = " " * (width - cell_len(cell))
        style = "bold" if header else (column.styles or {}).get(cell, "")
        parts += [padding if column.right else "", (cell, style), "" if column.right else padding]
        parts.append(_GAP)
    line = text(*parts, (last, "bold" if header else ""))
    line.rstrip()
    return line


def shortened(cell: str | Sequence[str], room: int | None) -> str:
    """Return the parts of a cell that fit, and how many more there are; one that does not is cut.

    Args:
        room: in characters of a terminal; None for all of it.
    """
    whole = _whole(cell)
    if room is None or cell_len(whole) <= room:
        return whole
    parts = [whole] if isinstance(cell, str) else list(map(inline, cell))
    for kept in range(len(parts) - 1, 0, -1):
        shown = f"{', '.join(parts[:kept])}, +{len(parts) - kept}"
        if cell_len(shown) <= room:
            return shown
    if len(parts) > 1:
        return f"+{len(parts)}"
    return f"{set_cell_size(parts[0], max(room - 3, 1))}..."


def _whole(cell: str | Sequence[str]) -> str:
    return inline(cell if isinstance(cell, str) else ", ".join(cell))


def _natural(column: Column) -> int:
    return max(map(cell_len, (column.title, *map(_whole, column.cells))))


def _width(columns: Sequence[Column]) -> int:
    """Return what the columns need, with the last one shortened."""
    *left, last = columns
    return sum(map(_natural, left)) + len(_GAP) * len(left) + min(_natural(last), _LEAST)
