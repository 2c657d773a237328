"""While a spec is being read, nothing is launched: the first launch is where the spec ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlpsubmit.spec.sweep import Sweep

__all__ = ["EndOfSpec", "reading", "stop_reading"]

_at_it = False


class EndOfSpec(BaseException):
    """A spec has come to a launch, or to a run: what follows is no part of it.

    No Exception, so that no handler in the spec takes it for an error.

    Attributes:
        sweep: what it was about to launch, if that is known.
    """

    def __init__(self, sweep: Sweep | None) -> None:
        self.sweep = sweep


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Let :func:`stop_reading` end what is executed inside."""
    global _at_it
    outer, _at_it = _at_it, True
    try:
        yield
    finally:
        _at_it = outer


def stop_reading(sweep: Sweep | None = None) -> None:
    """End the spec that is being read; do nothing where none is.

    Raises:
        EndOfSpec: where a spec is being read.
    """
    if _at_it:
        raise EndOfSpec(sweep)
