"""What a command is doing, for whoever waits for it at a terminal.

A block of code names what it does: ``with doing("importing torch")``. The name appears on standard
error while it lasts, in place; on a terminal that cannot move its cursor it is a line. Nothing
appears where standard error is no terminal, nor where Python code and no command is waiting. There
is no thread that could hold a lock while a function of the user's forks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from mlpsubmit.display.output import echo

__all__ = ["doing", "is_dumb", "show_cursor_at_end", "show_what_is_done"]


def is_dumb() -> bool:
    """Return whether the terminal cannot move its cursor."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Name what a block of code does; within another one, in place of that."""
    if _waiting is None:
        yield
        return
    with _waiting.named(what):
        yield


def show_what_is_done() -> None:
    """Show the names of blocks from now on, if standard error is a terminal."""
    global _waiting
    if sys.stderr is not None and sys.stderr.isatty():
        _waiting = _Waiting()


def show_cursor_at_end() -> None:
    """Let SIGTERM end this process with a visible cursor: live displays hide that of a terminal."""
    terminals = [one for one in (sys.stdout, sys.stderr) if one is not None and one.isatty()]
    if not terminals or is_dumb() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        for terminal in terminals:
            with contextlib.suppress(OSError, ValueError):
                os.write(terminal.fileno(), b"\x1b[?25h")
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)


class _Waiting:
    """Shows the innermost of the blocks that run."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._live: Any = None

    @contextlib.contextmanager
    def named(self, what: str) -> Iterator[None]:
        self._names.append(what)
        self._show()
        try:
            yield
        finally:
            self._names.pop()
            if self._live is not None and self._names:
                self._live.refresh()
            elif self._live is not None:
                self._live.stop()
                self._live = None

    def _show(self) -> None:
        if is_dumb():
            echo(f"{self._names[-1]} ...", err=True)
        elif self._live is None:
            from mlpsubmit.display.console import transient

            self._live = transient(self._line)
            self._live.start(refresh=True)
        else:
            self._live.refresh()

    def _line(self) -> Any:
        from mlpsubmit.display.console import text

        name = self._names[-1] if self._names else ""
        return text((f"{name} ...", "dim"))


#: What shows the names; None where no command has asked for that.
_waiting: _Waiting | None = None
