"""The exit of a script that does not catch the errors of ``run_job_iterator``: message and code.

The user gains nothing from a traceback through this package. Code that catches the exception still
gets it, and so do notebooks, debuggers and test runners, which set a hook of their own or catch
everything.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import TracebackType

from mlpsubmit.display.output import echo
from mlpsubmit.errors import UserError

__all__ = ["exits_with_message"]

#: Exit codes: that of mlpsubmit's commands for a user error, and that of shells for Ctrl-C.
_USER_ERROR, _INTERRUPTED = 2, 130


@contextlib.contextmanager
def exits_with_message() -> Iterator[None]:
    """Make a script that does not catch a UserError or Ctrl-C exit with its message and code."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        if _is_script() and sys.excepthook is sys.__excepthook__:
            sys.excepthook = _exit
        raise


def _is_script() -> bool:
    """Return whether Python runs a file and exits at its end."""
    interactive = hasattr(sys, "ps1") or sys.flags.interactive
    return not interactive and hasattr(sys.modules.get("__main__"), "__file__")


def _exit(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Exit Python after an uncaught exception.

    Raises:
        SystemExit: with the exit code, which Python honours in a hook too.
    """
    if isinstance(error, UserError):
        echo(error, err=True)
        raise SystemExit(_USER_ERROR)
    if isinstance(error, KeyboardInterrupt):  # run_job_iterator has printed the message
        raise SystemExit(_INTERRUPTED)
    sys.__excepthook__(kind, error, trace)
