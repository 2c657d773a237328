"""While a spec is read, nothing is launched: reading ends at the spec's first launch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlpsubmit.spec.sweep import Sweep

__all__ = ["EndOfSpec", "reading_spec", "stop_reading"]

#: Of the process, not of a context: a spec that starts threads launches nothing from them either.
_reading = False


class EndOfSpec(BaseException):
    """Raised where a spec launches a sweep or opens a run: the rest of it is not read.

    Not an Exception, so that no handler in the spec catches it.

    Attributes:
        sweep: the sweep that it was about to launch, if known.
    """

    def __init__(self, sweep: Sweep | None) -> None:
        self.sweep = sweep


@contextlib.contextmanager
def reading_spec() -> Iterator[None]:
    """Let :func:`stop_reading` end the code that is executed inside."""
    global _reading
    outer, _reading = _reading, True
    try:
        yield
    finally:
        _reading = outer


def stop_reading(sweep: Sweep | None = None) -> None:
    """End the spec that is being read; do nothing if none is.

    Raises:
        EndOfSpec: if a spec is being read.
    """
    if _reading:
        raise EndOfSpec(sweep)
