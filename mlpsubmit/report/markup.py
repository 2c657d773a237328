"""HTML from text that is data: escaped, and with nothing that acts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlpsubmit.display.html import escape

__all__ = ["definitions", "details", "escape", "section", "table"]


#: The most characters of a cell of a table whose texts do not wrap.
LONGEST_CELL = 60


def section(identity: str, title: str, *content: str, note: str = "", kind: str = "") -> str:
    """Return a section with a heading, if it has any content.

    Args:
        content: HTML.
        note: a line of text below the heading.
        kind: its class.
    """
    body = "\n".join(filter(None, content))
    lead = f'<p class="note">{escape(note)}</p>\n' if note else ""
    if not body:
        return ""
    heading = f'<h2 id="{identity}-title">{escape(title)}</h2>'
    attributes = f'id="{identity}" aria-labelledby="{identity}-title"'
    attributes += f' class="{kind}"' if kind else ""
    return f"<section {attributes}>\n{heading}\n{lead}{body}\n</section>"


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Iterable[int] = (),
    caption: str = "",
    identity: str = "",
    wraps: bool = False,
) -> str:
    """Return a table, in a box that scrolls; long texts are cut, and have the rest in a title.

    Args:
        numbers: the columns that are aligned to the right.
        caption: above it.
        identity: if given, its ``id``.
        wraps: whether texts continue on further lines instead.
    """
    right = set(numbers)

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = (' class="number"' if column in right else "" for column in range(len(row)))
        scope = ' scope="col"' if tag == "th" else ""
        pairs = zip(kinds, row, strict=True)
        return "".join(f"<{tag}{scope}{kind}{_cell(cell, wraps)}</{tag}>" for kind, cell in pairs)

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    named = f' id="{identity}"' if identity else ""
    kind = ' class="wraps"' if wraps else ""
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    label = escape(caption or "table")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"<table{named}{kind}>{above}<thead><tr>{cells('th', header)}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(text: str, wraps: bool) -> str:
    """Return the end of a tag, and a text."""
    if wraps or len(text) <= LONGEST_CELL:
        return f">{escape(text)}"
    return f' title="{escape(text)}">{escape(text[: LONGEST_CELL - 1])}…'


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names with their values; nothing if there are none."""
    rows = [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs]
    return "<dl>" + "\n".join(rows) + "</dl>" if rows else ""


def details(summary: str, *content: str, opened: bool = False) -> str:
    """Return what is shown after a click on its summary, if it has any content.

    Args:
        content: HTML.
    """
    body = "\n".join(filter(None, content))
    state = " open" if opened else ""
    return f"<details{state}><summary>{escape(summary)}</summary>\n{body}</details>" if body else ""
