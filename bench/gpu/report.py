"""What a part of the acceptance finds: rows, in a file that is complete after each of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Report", "Row", "compact", "table"]


@dataclass(frozen=True)
class Row:
    """One measured case.

    Attributes:
        measured: the figure, as it is to be read.
        bound: what the card allows, or the prediction.
        target: what is required; empty if nothing is.
        passed: whether the requirement holds; None if there is none.
        figures: the numbers, for programs.
    """

    part: str
    case: str
    measured: str
    bound: str = ""
    target: str = ""
    passed: bool | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)


class Report:
    """The rows of one part, published to a JSON file whenever one is added.

    Args:
        part: its letter.
        file: where to write; its folder exists.
    """

    def __init__(self, part: str, file: Path) -> None:
        self._part, self._file = part, file
        self._rows: list[Row] = []
        self._publish(complete=False)

    def add(
        self,
        case: str,
        measured: str,
        *,
        bound: str = "",
        target: str = "",
        passed: bool | None = None,
        **figures: Any,
    ) -> None:
        """Add a row, print it, and write the file."""
        self._rows.append(Row(self._part, case, measured, bound, target, passed, figures))
        print(_line(self._rows[-1]), flush=True)
        self._publish(complete=False)

    def extend(self, file: Path) -> None:
        """Add the rows of another file."""
        for row in json.loads(file.read_text())["rows"]:
            self._rows.append(Row(**row))
        self._publish(complete=False)

    def finish(self) -> None:
        """Mark the part as complete."""
        self._publish(complete=True)

    def _publish(self, *, complete: bool) -> None:
        content = {"complete": complete, "rows": [asdict(row) for row in self._rows]}
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=2))
        os.replace(temporary, self._file)


def table(rows: Iterable[Row]) -> str:
    """Return rows as a Markdown table."""
    head = "| part | case | measured | bound or prediction | target | |\n|---|---|---|---|---|---|"
    return "\n".join([head, *map(_line, rows)])


def _line(row: Row) -> str:
    verdict = {None: "", True: "holds", False: "**fails**"}[row.passed]
    cells = (row.part, row.case, row.measured, row.bound, row.target, verdict)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def compact(number: float) -> str:
    """Return a number with three digits and k, M, G or T."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.3g}"
