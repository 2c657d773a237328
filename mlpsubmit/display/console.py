"""Tables and live displays in which text is data: no markup, no links, no control characters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from mlpsubmit.display.output import inert

__all__ = ["Console", "text", "transient"]


class Console(RichConsole):
    """A console of rich whose styles are those of this package alone."""

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
        super().__init__(stderr=stderr, **plain, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield what is written: whatever was rendered, its text is inert here at the latest."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(inert(segment.text), segment.style)


def text(*parts: object | tuple[object, str]) -> Text:
    """Return text for a console from parts, each alone or with a style, inert before the layout."""
    return Text.assemble(
        *((inert(part[0]), part[1]) if isinstance(part, tuple) else inert(part) for part in parts)
    )


def transient(line: Callable[[], RenderableType]) -> Live:
    """Return a display on standard error, to start and to stop, that leaves nothing behind.

    Args:
        line: returns what it shows at the time.
    """
    return Live(
        console=Console(stderr=True),
        get_renderable=line,
        auto_refresh=False,
        transient=True,
        # What is printed meanwhile appears above; what goes into a pipe stays in it.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )
