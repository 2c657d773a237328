"""The errors that mlpsubmit reports to its user, each in one message and with exit code 2.

UserError                 the user can fix it
├── SpecError             a spec, or the arguments of a function of the library
│   └── StackingError     training.comparison: models that train in smaller groups only
├── RunError              a run directory
│   ├── BusyError         a run whose tasks are active, or may be
│   ├── FormatError       a run that another version has launched
│   └── DamageError       a file that is not as it was written
├── BatchError            training.batches: a batch that the model or the loss cannot take
├── WriteError            training.guard: a function that writes into a tensor which others read
├── GrabError             training.grab_results: a grab that failed
├── StateError            training.monitor: a saved state that cannot be resumed from
├── NothingToDraw         results.figures.request: no config of a figure has a value
├── OutOfMemory           jobs.train_pack: a config that does not fit into memory alone
├── NoRoom                jobs.slurm.limits: a limit on jobs that leaves none for what is wanted
├── Rejected              jobs.slurm.rejections: a job that the cluster does not accept
└── OutcomeUnknown        jobs.slurm.sbatch: a job that the cluster may or may not have
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

__all__ = [
    "BusyError",
    "DamageError",
    "FormatError",
    "RunError",
    "SpecError",
    "UserError",
    "collected",
    "did_you_mean",
    "error_message",
    "error_text",
    "explained",
    "shown",
    "uncalled",
    "unreturned",
    "validation_errors",
]


class UserError(Exception):
    """An error that the user can fix: got X; valid are Y; try Z."""


class SpecError(UserError):
    """One or several errors in a spec, listed together.

    Args:
        errors: one message per error, each of the form "got X; valid are Y; try Z".
        where: the place of the errors, for example the path of the spec file.
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


@contextlib.contextmanager
def collected(errors: list[str], prefix: str = "") -> Iterator[None]:
    """Append the messages of a SpecError that is raised inside to a list."""
    try:
        yield
    except SpecError as error:
        errors += [prefix + message for message in error.errors]


class RunError(UserError):
    """A run directory that is missing, ambiguous, unwritable or not a run."""


class BusyError(RunError):
    """A run whose tasks are active, or may be; the same command may succeed later."""


class FormatError(RunError):
    """A run in the format of another version.

    Args:
        run: its folder.
        written: the format that it has.
        reads: the one that this version reads.
    """

    def __init__(self, run: object, written: object, reads: int) -> None:
        self.short = f"format {written!r:.20}; this mlpsubmit reads {reads}"
        super().__init__(
            f"{run}: was written in format {written!r:.80}; this mlpsubmit reads format {reads}; "
            "use the version that launched it"
        )


class DamageError(RunError):
    """A file that is not as it was written."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest of the known names, or an empty string."""
    spelt = {entry.lower(): entry for entry in sorted(known)}
    close = difflib.get_close_matches(name.lower(), spelt, n=1, cutoff=0.6)
    return f" (did you mean {spelt[close[0]]!r}?)" if close else ""


#: Characters of a value, and of the message of an error, that a message quotes at most.
_LONGEST_VALUE = 200
_LONGEST_ERROR = 2000


def shown(value: Any) -> str:
    """Return a value as Python writes it, cut to a length that can be read.

    The class of the value may be the user's, and an integer may have too many digits to print.
    """
    try:
        text = repr(value)
    except (Exception, SystemExit) as error:
        return f"a {type(value).__name__} that cannot be printed ({type(error).__name__})"
    text = _LINE_BREAK.sub(" ", text)  # those between the rows of an array
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


_LINE_BREAK = re.compile(r"\s*\n\s*")


def uncalled(value: Any, example: str) -> str:
    """Return how a function is given, where its value came instead, as after ``data=load()``.

    An empty string for what no one calls a function for: None, a number, a string.
    """
    is_plain = value is None or isinstance(value, (bool, int, float, str))
    return "" if is_plain else f", without parentheses: {example}"


def unreturned(value: Any, otherwise: str = "") -> str:
    """Return what to try where a function returned a value, as the end of a message."""
    hint = "return it: a function without return gives None" if value is None else otherwise
    return hint and f"; {hint}"


def error_text(error: BaseException) -> str:
    """Return the type and the message of an error of the user's, whatever its ``__str__`` does."""
    return f"{type(error).__name__}: {error_message(error)}"


def error_message(error: BaseException) -> str:
    """Return the message of an error of the user's, whatever its ``__str__`` does."""
    try:
        text = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as second:
        return f"(its message cannot be printed: {type(second).__name__})"
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}..."


def explained(valid: str, description: str) -> str:
    """Return what is valid with a description in parentheses, unless that says the same again."""
    words, known = (set(re.findall(r"\w+", text.lower())) for text in (description, valid))
    new = len(words - known) > len(words) / 3
    return f"{valid} ({description})" if new else valid


def validation_errors(
    error: ValidationError,
    model: type[BaseModel],
    label: Callable[[str, Sequence[int | str]], str],
) -> list[str]:
    """Return pydantic's errors as messages: the name, the value, and what is valid.

    There is one message per label that has errors, and one per line of the whole model's error.

    Args:
        model: the model that was validated; its fields have descriptions.
        label: returns how the user writes a value, given its field and its position in that.
    """
    messages: dict[str, str] = {}
    for entry in error.errors():
        text = entry["msg"].removeprefix("Value error, ")
        if not entry["loc"]:
            messages.update({line: line for line in text.split("\n")})
            continue
        field, *inside = entry["loc"]
        name = label(str(field), inside)
        if inside[1:]:  # the name at this position is wrong, not the value
            message = f"{name}: {text}"
        else:
            description = "" if inside else model.model_fields[str(field)].description or ""
            message = f"{name}: got {shown(entry['input'])}; {explained(text, description)}"
        messages.setdefault(name, message)  # for a wrong name the value does not matter
    return list(messages.values())
