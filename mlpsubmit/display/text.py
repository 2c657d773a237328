"""Short texts for numbers, for terminals and notebooks."""

from __future__ import annotations

import time
from collections.abc import Iterable

__all__ = [
    "abridged",
    "compact",
    "counted",
    "crossed_at_start",
    "cut",
    "diverged",
    "duration",
    "file_size",
    "throughput",
    "utc",
]

#: The end of the year 9999, after which a year has more digits.
_LAST_SECOND = 253_402_300_799


def abridged(texts: Iterable[str]) -> str:
    """Return the first of some texts, and how many follow: ``"a and 3 more"``."""
    first, *more = texts
    return first + (f" and {len(more)} more" if more else "")


def compact(number: float) -> str:
    """Return a number of up to four digits: ``"0.35"``, ``"980"``, ``"11.4k"``, ``"2.57M"``."""
    if number >= 1e6:
        return f"{number / 1e6:.2f}M" if number < 1e9 else f"{number:.2e}"
    if number >= 1000:
        return f"{number / 1000:.1f}k"
    return f"{number:.0f}" if number >= 10 or number == 0 else f"{number:.2g}"


def counted(count: int, noun: str) -> str:
    """Return a number and its noun: ``"1 config"``, ``"1,024 configs"``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def cut(text: str, most: int) -> str:
    """Return text of at most so many characters; of a longer one the beginning and ``...``."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def crossed_at_start(configs: int) -> str:
    """Return one line on configs that crossed a threshold on the train loss at step 0."""
    return (
        f"{counted(configs, 'config')} crossed a threshold on the train loss at step 0, where the "
        "smoothed loss is that of the first batch; try a larger N_SAMPLES, or a lower threshold"
    )


def diverged(configs: int) -> str:
    """Return one line on configs whose train loss was no longer finite."""
    return (
        f"{counted(configs, 'config')} diverged: the train loss became infinite or NaN; that is a "
        "result, which counts as done"
    )


def duration(seconds: float) -> str:
    """Return a duration in seconds, minutes, hours or days, whichever fits."""
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 48:
        return f"{hours / 24:.0f} d"
    if minutes >= 90:
        return f"{hours:.1f} h"
    return f"{minutes:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def file_size(count: float) -> str:
    """Return a number of bytes in KiB, MiB, GiB or TiB: ``"1.5 GiB"``."""
    value, units = count / 1024, ["KiB", "MiB", "GiB", "TiB"]
    while value >= 1000 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.2g} {units[0]}" if value < 100 else f"{value:.0f} {units[0]}"


def utc(seconds: float) -> str:
    """Return a time since 1970 as text: ``"2026-11-27T21:16:13Z"``; of the year 9999 at most."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(seconds, _LAST_SECOND)))


def throughput(model_steps: float, utilization: float | None) -> str:
    """Return a throughput in model-steps per second, and the matmul utilization if it is known.

    Args:
        utilization: 0 to 1.
    """
    used = "" if utilization is None else f", {100 * utilization:.0f}% matmul utilization"
    return f"{compact(model_steps)} model-steps/s{used}"
