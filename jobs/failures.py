"""Why configs of a pack have no result."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpsubmit.errors import UserError, error_message, error_text
from mlpsubmit.spec.libraries import missing_file, user_frames, user_traceback

__all__ = ["RowsFailure", "failures_of"]


@dataclass(frozen=True)
class RowsFailure:
    """The failure of some configs of a pack.

    Attributes:
        rows: of the configs.
        error: the exception, or the end of the process, in one line.
        traceback: of the exception, from the first line of the user's code on; whole where there
            is none, and empty then of an exception of ours, whose text says it all.
        where: the last line of the user's code in the traceback: ``spec.py:12 in batch_fn``.
        line: its text.
        killed: whether the configs killed their process.
    """

    rows: list[int]
    error: str
    traceback: str = ""
    where: str = ""
    line: str = ""
    killed: bool = False

    @classmethod
    def of(cls, error: BaseException, rows: Sequence[int]) -> RowsFailure:
        """Return the failure of rows whose training raised an exception."""
        where, line = _place(error)
        text = error_text(error) + missing_file(error)
        return cls(list(rows), text, _traceback(error), where, line)

    def to_json(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return the failure as a shard holds it.

        Args:
            indices: by row, of the configs of the pack.
        """
        fields = {"error": self.error, "traceback": self.traceback}
        places = {"where": self.where, "line": self.line}
        return {"indices": [int(indices[row]) for row in self.rows], **fields, **places}


def failures_of(errors: Mapping[int, BaseException]) -> list[RowsFailure]:
    """Return the failures of rows by their exceptions; rows of equal exceptions share one."""
    equal: dict[tuple[str, str, str], list[int]] = {}
    for row, error in errors.items():
        key = type(error).__name__, error_message(error), _place(error)[0]
        equal.setdefault(key, []).append(row)
    return [RowsFailure.of(errors[rows[0]], rows) for rows in equal.values()]


def _place(error: BaseException) -> tuple[str, str]:
    """Return where in the user's code an exception was raised, and that line; empty if nowhere.

    An exception of ours has that of the user's function as its cause.
    """
    cause = _users(error)
    if cause is None:
        return "", ""
    last = [*user_frames(cause.__traceback__)][-1]
    place = f"{Path(last.filename).name}:{last.lineno} in {last.name}"
    return place, (last.line or "").strip()


def _traceback(error: BaseException) -> str:
    """Return the traceback of an exception in the user's code, without our lines above it."""
    cause = _users(error)
    if cause is None:
        return "" if isinstance(error, UserError) else "".join(traceback.format_exception(error))
    lines = traceback.format_exception(
        type(cause), cause, user_traceback(cause.__traceback__), chain=cause is error
    )
    return "".join(lines) + ("" if cause is error else f"{error_text(error)}\n")


def _users(error: BaseException) -> BaseException | None:
    """Return the innermost cause of an exception that the user's code raised, if any."""
    causes = reversed([*_causes(error)])
    return next((one for one in causes if user_traceback(one.__traceback__) is not None), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
