"""Checks of single values of a template, which raise ``ValueError("should be ...")``."""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlpsubmit.errors import did_you_mean

__all__ = [
    "count",
    "flag",
    "gpus",
    "image",
    "image_in",
    "line",
    "lines",
    "mebibytes",
    "memory",
    "prefix",
    "program",
    "word",
]

#: Longer numbers are no sensible count, and Python refuses to convert the longest.
_DIGITS = re.compile(r"\d{1,9}", re.A)
_TYPED_GPUS = re.compile(r"(?P<type>[a-z0-9][a-z0-9_.-]*):(?P<count>[1-9]\d{0,8})", re.A | re.I)
#: SLURM's units, and the most digits of which every one fits into its 64 bits of megabytes.
_MEMORY = re.compile(r"(?P<size>\d{1,12})(?P<unit>[KMGT]?)", re.A | re.I)

_PROGRAM = re.compile(r"[a-z0-9][a-z0-9_.+-]*", re.A | re.I)

_URI = re.compile(r"([a-z][a-z0-9+.-]*)://", re.A | re.I)

#: Where apptainer and singularity get images from, by their documentation of ``exec`` and ``pull``.
_SCHEMES = ("docker", "oras", "library", "shub", "ipfs", "http", "https", "instance")

_PREFIX = "should be a program that runs the command after it, such as 'numactl --interleave=all'"
#: What no program can do for the command after it.
_SHELL = frozenset({".", "cd", "eval", "exec", "export", "module", "set", "source", "ulimit"})

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


def image(value: Any) -> str:
    """Return the image of a container: a path, or a URI such as ``docker://python:3.11``."""
    text = _on_one_line(os.fspath(value) if isinstance(value, os.PathLike) else value).strip()
    if not text:
        raise ValueError("should be the path of an image, or a URI such as 'docker://python:3.11'")
    if (uri := _URI.match(text)) and uri[1].lower() not in _SCHEMES:
        meant = did_you_mean(uri[1].lower(), _SCHEMES)
        raise ValueError(
            f"should be a path, or begin with one of {'://, '.join(_SCHEMES)}://{meant}"
        )
    return text


def image_in(folder: Path, value: Any) -> Any:
    """Return an image whose path, if it is one, is absolute; another value as it is."""
    try:
        text = image(value)
    except ValueError:
        return value  # is refused later, with all other errors
    return text if _URI.match(text) else os.path.normpath(folder / os.path.expanduser(text))


def program(value: Any) -> str:
    """Return the path of a program, or a name to be found on the PATH."""
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    text = os.path.expanduser(_on_one_line(value).strip())
    if not os.path.isabs(text) and not _PROGRAM.fullmatch(text):
        raise ValueError(
            "should be an absolute path, or the name of a program on the PATH such as 'python3.11'"
        )
    return text


def prefix(value: Any) -> str:
    """Return a command of the shell that runs the command which follows it."""
    text = word(value)
    try:
        words, symbols = shlex.split(text), shlex.shlex(text, posix=True, punctuation_chars=True)
        control = next((part for part in symbols if set(part) <= set("();<>|&")), None)
    except ValueError as error:
        raise ValueError(f"should be shell words; {str(error).lower()}") from None
    if control:
        raise ValueError(f"{_PREFIX}, without {control!r}; commands before it go into setup")
    if placeholder := next((part for part in words if part in ("{}", "{command}")), None):
        raise ValueError(f"{_PREFIX}; leave out {placeholder!r}")
    if "=" in words[0]:
        raise ValueError(f"{_PREFIX}; for variables of the environment: env {text}")
    if "/" in words[0] and words[0][0] not in "/~$":
        raise ValueError(f"{_PREFIX}, by its name or its absolute path: jobs may start elsewhere")
    if words[0] in _SHELL:
        raise ValueError(f"{_PREFIX}; {words[0]!r} is a command of the shell: put it into setup")
    return text


def line(value: Any) -> str:
    """Return one line of text, which may be empty."""
    return _on_one_line(value, besides="\t")


def lines(value: Any) -> Any:
    """Return a list; its entries are not checked here."""
    if not isinstance(value, (list, tuple)):
        raise ValueError('should be a list of shell commands, such as ["module load cuda"]')
    return value
