"""The errors that mlpsubmit reports to its user, each in one message and with exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["BusyError", "RunError", "SpecError", "UserError", "did_you_mean"]


class UserError(Exception):
    """An error the user can put right: it says what was got, what is valid, what to try."""


class SpecError(UserError):
    """One or several errors in a spec, listed together.

    Args:
        errors: one message per error, each of the form "got X; valid are Y; try Z".
        where: what holds the errors, for example the path of the spec file.
    """

    def __init__(self, errors: str | Iterable[str], where: str = "") -> None:
        self.errors = [errors] if isinstance(errors, str) else list(errors)
        self.where = where
        prefix = f"{where}: " if where else ""
        if len(self.errors) == 1:
            text = prefix + self.errors[0]
        else:
            lines = "\n".join(f"  - {message}" for message in self.errors)
            text = f"{prefix}{len(self.errors)} errors:\n{lines}"
        super().__init__(text)


class RunError(UserError):
    """A run directory that is missing, ambiguous, unwritable or not a run."""


class BusyError(RunError):
    """A run that somebody else is at work on, or may be: later it can be another matter."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest of the known names, or nothing."""
    spelt = {entry.lower(): entry for entry in sorted(known)}
    close = difflib.get_close_matches(name.lower(), spelt, n=1, cutoff=0.6)
    return f" (did you mean {spelt[close[0]]!r}?)" if close else ""
