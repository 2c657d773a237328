"""Checks of single values of a template, which raise ``ValueError("should be ...")``."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any

__all__ = ["count", "flag", "gpus", "line", "lines", "mebibytes", "memory", "word"]

#: Longer numbers are no sensible count, and Python refuses to convert the longest.
_DIGITS = re.compile(r"\d{1,9}", re.A)
_TYPED_GPUS = re.compile(r"(?P<type>[a-z0-9][a-z0-9_.-]*):(?P<count>[1-9]\d{0,8})", re.A | re.I)
#: SLURM's units, and the most digits of which every one fits into its 64 bits of megabytes.
_MEMORY = re.compile(r"(?P<size>\d{1,12})(?P<unit>[KMGT]?)", re.A | re.I)

#: Control characters, surrogates and line ends: none may be in a line of a script.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")


def _integer(value: Any) -> int | None:
    """Return a whole number, which may be a string from the command line; else None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _DIGITS.fullmatch(value.strip()):
        return int(value)
    return None


def count(minimum: int, maximum: int | None = None) -> Callable[[Any], int]:
    """Return a check for integers from a minimum to a maximum, if any."""
    valid = f">= {minimum}" if maximum is None else f"from {minimum} to {maximum}"

    def check(value: Any) -> int:
        number = _integer(value)
        if number is None or number < minimum or (maximum is not None and number > maximum):
            raise ValueError(f"should be an integer {valid}")
        return number

    return check


def gpus(value: Any) -> int | str:
    """Return a number of GPUs, or ``type:count``."""
    number = _integer(value)
    if number is not None and number >= 0:
        return number
    text = value.strip() if isinstance(value, str) else ""
    wanted = text.removeprefix("gpu:")  # as --gres would have it
    if wanted == text and _TYPED_GPUS.fullmatch(text):
        return text
    valid = "should be an integer >= 0, or 'type:count' such as 'a100:1'"
    for tried in (wanted, f"{wanted}:1"):
        if _DIGITS.fullmatch(tried) or _TYPED_GPUS.fullmatch(tried):
            raise ValueError(f"{valid}; try {tried!r}")
    raise ValueError(valid)


def flag(value: Any) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise ValueError("should be true or false")
    return value


def memory(value: Any) -> str:
    """Return memory as a number with a unit, by default megabytes; 0 is all of a node."""
    text = str(value).strip()
    valid = "should be megabytes, or a whole number with K, M, G or T such as '8G'"
    size = _MEMORY.fullmatch(text)
    if size is None:
        longer = re.fullmatch(r"(\d{1,12}) *([KMGT])i?B?", text, re.A | re.I)
        raise ValueError(f"{valid}; try {longer[1] + longer[2].upper()!r}" if longer else valid)
    if int(size["size"]) == 0:
        return "0"
    return f"{int(size['size'])}{size['unit'].upper() or 'M'}"


def mebibytes(memory: str) -> int:
    """Return checked memory in MiB, rounded up as SLURM does: 1025K is 2."""
    kibibytes = int(memory[:-1]) << 10 * "KMGT".index(memory[-1])
    return -(-kibibytes >> 10)


def _on_one_line(value: Any, besides: str = "") -> str:
    if not isinstance(value, str) or any(
        unicodedata.category(letter) in _UNPRINTABLE for letter in value if letter not in besides
    ):
        raise ValueError("should be a string on one line, without control characters")
    return value


def word(value: Any) -> str:
    """Return text that can be the value of an sbatch option: not empty, on one line."""
    text = _on_one_line(value).strip()
    if not text:
        raise ValueError("should not be empty; leave it out for the cluster's default")
    return text


def line(value: Any) -> str:
    """Return one line of text, which may be empty."""
    return _on_one_line(value, besides="\t")


def lines(value: Any) -> Any:
    """Return a list; its entries are not checked here."""
    if not isinstance(value, (list, tuple)):
        raise ValueError('should be a list of shell commands, such as ["module load cuda"]')
    return value
