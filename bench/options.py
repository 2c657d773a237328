"""Options that several benchmarks have."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from results import FOLDER

__all__ = ["only_option", "repeats_option", "save_option"]


def only_option(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add the option ``--only TEXT``, for the cases whose name contains the text."""
    names = list(names)

    def contained(text: str) -> str:
        if not any(text in name for name in names):
            raise argparse.ArgumentTypeError(
                f"no name contains {text!r}; they are: {'; '.join(names)}"
            )
        return text

    parser.add_argument(
        "--only",
        default="",
        type=contained,
        metavar="TEXT",
        help="cases whose name contains this text",
    )


def repeats_option(parser: argparse.ArgumentParser, default: int) -> None:
    """Add the option ``--repeats N``, the rounds of all measurements."""

    def positive(text: str) -> int:
        if not text.isdecimal() or int(text) == 0:
            raise argparse.ArgumentTypeError(f"got {text!r}; give a number of rounds from 1 on")
        return int(text)

    parser.add_argument(
        "--repeats", default=default, type=positive, metavar="N", help="rounds of all measurements"
    )


def save_option(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--save [FOLDER]`` of all benchmarks."""
    parser.add_argument(
        "--save",
        nargs="?",
        const=FOLDER,
        type=Path,
        metavar="FOLDER",
        help="write the figures into FOLDER/<date>-<processor>.json; by default in bench/results",
    )
