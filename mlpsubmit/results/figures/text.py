"""Text in a figure: mathematics where matplotlib can render it, and numbers."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mlpsubmit.results.names import spaced
from mlpsubmit.results.shown_values import visible

__all__ = ["label", "length", "number", "tick_labels", "title_of", "wrapped"]

#: Characters after which a label is cut; of mathematics, which cannot be cut, at most.
_LONGEST = 40
_LONGEST_MATHEMATICS = 160


def label(text: object, longest: int = _LONGEST) -> str:
    """Return text for matplotlib: mathematics between dollars if it can be rendered, else as it is.

    Control characters, for which fonts have no glyphs, become visible escapes.
    """
    string = "".join(visible(character) for character in str(text))
    if len(string) <= _LONGEST_MATHEMATICS and _is_mathematics(string):
        return string
    string = string if len(string) <= longest else f"{string[: longest - 1]}…"
    return string.replace("$", r"\$")


def wrapped(text: object, width: float) -> str:
    """Return a label in lines of about so many characters, broken at spaces outside mathematics."""
    lines = [""]
    for word in re.findall(r"(?:\$[^$]*\$|\S)+", label(text, 200)):
        if length(word) > width and not _is_mathematics(word):
            word = f"{word[: max(1, int(width) - 1)]}…"
        joined = f"{lines[-1]} {word}".strip()
        if lines[-1] and length(joined) > width:
            lines.append(word)
        else:
            lines[-1] = joined
    return "\n".join(lines)


def length(text: str) -> int:
    """Return about how many characters a label is long when it is rendered."""
    return len(re.sub(r"\\[a-zA-Z]+", "x", re.sub(r"[${}^_]|\\[$]", "", text)))


@functools.lru_cache(1024)
def _is_mathematics(text: str) -> bool:
    """Return whether matplotlib takes text for mathematics, and can render it."""
    dollars = text.count("$") - text.count(r"\$")
    if dollars <= 0 or dollars % 2:
        return False
    from matplotlib.mathtext import MathTextParser

    try:
        MathTextParser("path").parse(text)
    except Exception:  # ValueError; RecursionError of nested braces
        return False
    return True


def title_of(name: str, attributes: Mapping[str, Any]) -> str:
    """Return the title of a variable or a coordinate: its ``long_name`` and units, or its name."""
    title = str(attributes.get("long_name") or spaced(name))
    units = str(attributes.get("units") or "1")
    return title if units == "1" else f"{title} ({units})"


def number(value: float) -> str:
    """Return a number for a tick: a power of ten as 10^k, others to four digits."""
    exponent = _exponent(value)
    if exponent is not None:
        return f"$10^{{{exponent}}}$"
    text = f"{value:.4g}"
    if "e" not in text:
        return text
    mantissa, _, power = text.partition("e")
    return rf"${mantissa}\times 10^{{{int(power)}}}$"


def _exponent(value: float) -> int | None:
    if not (value > 0 and math.isfinite(value)):
        return None
    exponent = round(math.log10(value))
    return exponent if math.isclose(value, 10.0**exponent, rel_tol=1e-9) else None


def tick_labels(values: Iterable[float]) -> list[str]:
    """Return labels of ticks: 10^k if all are powers of ten, else plain numbers."""
    ticks = [float(value) for value in values]
    if all(_exponent(value) is not None for value in ticks):
        return [number(value) for value in ticks]
    return [
        f"{value:g}" if 1e-4 <= abs(value) < 1e5 or not value else number(value) for value in ticks
    ]
