"""Arguments and options that several commands share, and KEY=VALUE overrides."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlpsubmit.cli.slurm_options import slurm_options, slurm_request
from mlpsubmit.display.output import echo
from mlpsubmit.errors import SpecError, UserError, shown
from mlpsubmit.jobs.executors import NAMES, check_name

if TYPE_CHECKING:
    from mlpsubmit.runs.run import Run
    from mlpsubmit.slurm_templates import SlurmRequest

__all__ = [
    "check_where",
    "executor_options",
    "json_option",
    "open_selected",
    "parse_overrides",
    "run_argument",
    "runs_dir_option",
]

Command = TypeVar("Command", bound=Callable[..., Any])

_WORDS = {"true": True, "false": False, "none": None, "null": None}


#: A path, the name of a sweep, the start of a run id, a folder of runs, or nothing for the run that
#: was last launched or resumed.
run_argument = click.argument("run", required=False)

#: Print one object of JSON, in the style that docs/runs.md describes.
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

#: The folder of all runs.
runs_dir_option = click.option(
    "--runs-dir",
    type=click.Path(path_type=Path),
    help="Folder of all runs; default: $MLPSUBMIT_RUNS, else ./mlpruns.",
)


def open_selected(run: str | None, runs_dir: Path | None) -> Run:
    """Open the run that RUN selects; if it is the latest of several, print which one that is."""
    from mlpsubmit.runs.run import open_run

    opened = open_run(run, runs_dir)
    if len(opened.selected.among) > 1 or opened.selected.folder is not None:
        echo(opened.selected, err=True)
    return opened


def executor_options(command: Command) -> Command:
    """Add the options that decide where and how tasks run."""
    for option in (
        click.option(
            "--trust",
            is_flag=True,
            help="Continue a run even if other users could have written the functions in it: take "
            "it over from them.",
        ),
        click.option(
            "--same-device/--no-same-device",
            default=None,
            help="Train all tasks of the run on one type of GPU, or one model of CPU.",
        ),
        click.option(
            "--pdb", is_flag=True, help="With --executor debug: open a debugger when a pack fails."
        ),
        click.option(
            "--follow/--detach",
            default=None,
            help="Show progress until the end (the default except on SLURM), or return at once.",
        ),
        click.option(
            "--retries",
            type=click.IntRange(min=0),
            default=0,
            metavar="N",
            help="SLURM: resume missing configs automatically, up to N times.",
        ),
        click.option(
            "--tasks", type=click.IntRange(min=1), metavar="N", help="Maximum number of tasks."
        ),
        click.option(
            "--executor",
            metavar="|".join(NAMES),
            help="SLURM cluster, worker processes on this machine, or this process (debug).",
        ),
    ):
        command = option(command)
    return slurm_options(command)


def check_where(where: Mapping[str, Any]) -> SlurmRequest:
    """Check the options that decide where tasks run, and return the request to SLURM.

    Args:
        where: the values of the options of :func:`executor_options`, by name.

    Raises:
        UserError: an unknown executor, an invalid ``--sbatch``, or ``--pdb`` with another executor
            than debug, whose tasks have no terminal.
    """
    if where["executor"] is not None:
        check_name(where["executor"])
    if where["pdb"] and where["executor"] != "debug":
        raise UserError("--pdb: needs the training to run in this process; add --executor debug")
    return slurm_request(where)


def parse_overrides(entries: Sequence[str]) -> dict[str, Any]:
    """Return KEY=VALUE arguments as a dictionary; KEY+=VALUE has the key ``"KEY+"``.

    A value is a Python literal, a list in brackets (of literals or unquoted strings), one of true,
    false and none in any case, or else a string.

    Raises:
        SpecError: an argument without ``=``, or a key given twice.
    """
    overrides: dict[str, Any] = {}
    errors = []
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not equals or not name.removesuffix("+"):
            errors.append(f"{entry!r}: an override should be KEY=VALUE, as in LR=0.1")
        elif name in overrides:
            errors.append(f"{name}: is given twice; keep one")
        elif (value := _value(text.strip())) == text and text[:1] in "[({" and _depth(text) > 0:
            errors.append(
                f"{name}: got {shown(text)}, where a bracket is not closed; write a list without "
                f"spaces, or in quotes, as in '{name}=[0.1, 1]'"
            )
        else:
            overrides[name] = value
    if errors:
        raise SpecError(errors)
    return overrides


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        pass  # not a literal: literal_eval raises any of these
    if text.startswith("[") and text.endswith("]"):
        return [_value(part.strip()) for part in _split(text[1:-1])]
    try:
        return float(text)  # nan and inf, which no literal spells
    except ValueError:
        return text


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    parts, start = [], 0
    for i, character in enumerate(text):
        if character == "," and _depth(text[start:i]) == 0:
            parts.append(text[start:i])
            start = i + 1
    last = text[start:]
    return [*parts, last] if last.strip() else parts


def _depth(text: str) -> int:
    """Return how many more brackets are opened than closed."""
    return sum(map(text.count, "[({")) - sum(map(text.count, "])}"))
