"""The formats of time limits in SLURM."""

from __future__ import annotations

import datetime
import re
from typing import Any

__all__ = ["UNLIMITED", "normalised", "seconds_of"]

UNLIMITED = "UNLIMITED"

#: SLURM stores the seconds of a limit in 32 bits, of which one is the sign.
_MOST_SECONDS = 2**31 - 1

#: A colon means something else after a day than without one: 1:30 is a minute and a half.
_WITH_DAYS = re.compile(r"(?P<d>\d{1,9})-(?P<h>\d{1,9})(:(?P<m>\d{1,9})(:(?P<s>\d{1,9}))?)?", re.A)
_WITHOUT_DAYS = re.compile(r"((?P<h>\d{1,9}):(?=\d+:))?(?P<m>\d{1,9})(:(?P<s>\d{1,9}))?", re.A)
_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}

#: Notations that SLURM does not accept, such as 4h, 30min, 2 days.
_WITH_UNIT = re.compile(r"(?P<count>\d{1,9}) *(?P<unit>[dhms])[a-z]*", re.A | re.I)

_VALID = (
    "should be minutes, 'minutes:seconds', 'hours:minutes:seconds', 'days-hours', "
    "'days-hours:minutes', 'days-hours:minutes:seconds' or 'UNLIMITED'"
)


def normalised(value: Any) -> str:
    """Return a limit as ``[days-]hours:minutes:seconds``, or as ``UNLIMITED``.

    Args:
        value: minutes as an integer, any of SLURM's strings, or a TOML time without quotes.

    Raises:
        ValueError: with what is valid.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str, datetime.time)):
        raise ValueError(_VALID)
    text = str(value).strip()
    if text.upper() in (UNLIMITED, "INFINITE"):
        return UNLIMITED
    seconds = _sum(text)
    if seconds is None:
        raise ValueError(_VALID + _try(text))
    if seconds > _MOST_SECONDS:
        days = _MOST_SECONDS // _SECONDS["d"]
        raise ValueError(f"should be at most {days} days, the most that SLURM can store")
    return _text(seconds) if seconds else UNLIMITED  # SLURM reads zero as no limit


def seconds_of(limit: str) -> int | None:
    """Return the seconds of a normalised limit, or None for ``UNLIMITED``."""
    return None if limit == UNLIMITED else _sum(limit)


def _sum(text: str) -> int | None:
    """Return the seconds of a limit that is not a name, or None for another text."""
    parts = _WITH_DAYS.fullmatch(text) or _WITHOUT_DAYS.fullmatch(text)
    if parts is None:
        return None
    return sum(int(count) * _SECONDS[unit] for unit, count in parts.groupdict("0").items())


def _text(seconds: int) -> str:
    days, rest = divmod(seconds, 86_400)
    clock = f"{rest // 3_600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


def _try(text: str) -> str:
    written = _WITH_UNIT.fullmatch(text)
    if written is None:
        return ""
    seconds = int(written["count"]) * _SECONDS[written["unit"].lower()]
    return f"; try {_text(seconds)!r}" if 0 < seconds <= _MOST_SECONDS else ""
