"""What several commands take: the run they are about, and KEY=VALUE overrides."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlpsubmit.cli.slurm_options import given, slurm_options
from mlpsubmit.errors import SpecError, UserError

if TYPE_CHECKING:
    from mlpsubmit.slurm_templates import SlurmRequest

__all__ = ["check_where", "executor_options", "parse_overrides", "run_argument", "runs_dir_option"]

Command = TypeVar("Command", bound=Callable[..., Any])

_WORDS = {"true": True, "false": False, "none": None, "null": None}


def run_argument(command: Command) -> Command:
    """Take a RUN: a path, the name of a sweep, the start of a run id, or nothing for the latest."""
    return click.argument("run", required=False)(command)


def runs_dir_option(command: Command) -> Command:
    """Take the folder that runs are kept in."""
    return click.option(
        "--runs-dir",
        type=click.Path(path_type=Path),
        help="Where runs are kept; else $MLPSUBMIT_RUNS, else ./mlpruns.",
    )(command)


def executor_options(command: Command) -> Command:
    """Take what decides where tasks run."""
    for option in (
        click.option("--pdb", is_flag=True, help="With debug: a debugger where a pack fails."),
        click.option(
            "--follow/--detach",
            default=None,
            help="Show progress until the end (the default but on SLURM), or return at once.",
        ),
        click.option(
            "--retries",
            type=click.IntRange(min=0),
            default=0,
            metavar="N",
            help="SLURM: resume what is missing at the end, up to N times.",
        ),
        click.option("--tasks", type=click.IntRange(min=1), help="Tasks at most."),
        click.option(
            "--executor",
            metavar="auto|slurm|local|debug",
            help="A cluster, worker processes on this machine, or this very process.",
        ),
    ):
        command = option(command)
    return slurm_options(command)


def check_where(where: Mapping[str, Any]) -> SlurmRequest:
    """Refuse what is mistaken about where tasks run.

    Args:
        where: what the options of :func:`executor_options` say.

    Returns:
        What is asked of SLURM.

    Raises:
        UserError: for an executor that does not exist, ``--pdb`` with another than debug, whose
            tasks have no terminal, or a mistaken ``--sbatch``.
    """
    from mlpsubmit.jobs.executors import check_name

    if where["executor"] is not None:
        check_name(where["executor"])
    if where["pdb"] and where["executor"] != "debug":
        raise UserError("--pdb: needs a training in this very process; add --executor debug")
    return given(where)


def parse_overrides(entries: Sequence[str]) -> dict[str, Any]:
    """Return KEY=VALUE arguments as a dictionary.

    A value is a Python literal, a list in brackets (of literals or bare words), one of true,
    false and none in any case, or else a string.

    Raises:
        SpecError: for an argument without ``=``, or a key given twice.
    """
    overrides: dict[str, Any] = {}
    errors = []
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not equals or not name:
            errors.append(f"{entry!r}: an override should be KEY=VALUE, as in LR=0.1")
        elif name in overrides:
            errors.append(f"{name}: is given twice; keep one")
        else:
            overrides[name] = _value(text.strip())
    if errors:
        raise SpecError(errors)
    return overrides


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        pass  # not a literal, in all the ways in which literal_eval says so
    if text.startswith("[") and text.endswith("]"):
        return [_value(part.strip()) for part in _split(text[1:-1])]
    try:
        return float(text)  # nan and inf, which no literal spells
    except ValueError:
        return text


def _split(text: str) -> list[str]:
    """Split at the commas that stand outside of brackets."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "[({") - (letter in "])}")
        if letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    last = text[start:]
    return [*parts, last] if last.strip() else parts
