"""How a script ends that does not catch what ``run_job_iterator`` raises: with the message alone.

A traceback through this package tells a user nothing that the message does not. The exception is
raised all the same: whoever catches it gets it, as do notebooks, debuggers and tests, which have
hooks of their own or catch everything.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, TypeVar

from mlpsubmit.errors import UserError

__all__ = ["ends_with_its_message"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

#: Exit codes: of mlpsubmit's commands for an error of the user, and of shells for Ctrl-C.
_MISTAKE, _INTERRUPTED = 2, 130


def ends_with_its_message(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return the function; a script that does not catch its UserError or Ctrl-C ends in brief."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except (UserError, KeyboardInterrupt):
            if _is_script() and sys.excepthook is sys.__excepthook__:
                sys.excepthook = _end
            raise

    return wrapped


def _is_script() -> bool:
    """Tell whether Python runs a file, and exits when that has ended."""
    interactive = hasattr(sys, "ps1") or sys.flags.interactive
    return not interactive and hasattr(sys.modules.get("__main__"), "__file__")


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End Python after an exception that nobody has caught.

    Raises:
        SystemExit: with the exit code; Python heeds it in a hook as it does in a script.
    """
    if isinstance(error, UserError):
        print(error, file=sys.stderr)
        raise SystemExit(_MISTAKE)
    if isinstance(error, KeyboardInterrupt):  # what there is to say has been said
        raise SystemExit(_INTERRUPTED)
    sys.__excepthook__(kind, error, trace)
