"""What commands that submit take about SLURM: a template, and changes to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlpsubmit.errors import SpecError

if TYPE_CHECKING:
    from mlpsubmit.slurm_templates import SlurmRequest

__all__ = ["given", "slurm_options"]

Command = TypeVar("Command", bound=Callable[..., Any])

#: Keys of a template with an option each. None has a type of click's: the template checks them.
_KEYS = {
    "partition": ("NAME", "Partition of the tasks."),
    "account": ("NAME", "Account that is charged."),
    "qos": ("NAME", "Quality of service."),
    "constraint": ("FEATURES", "Features that a node should have."),
    "time": ("LIMIT", "Time limit of a task: minutes, hours:minutes:seconds, days-hours."),
    "gpus": ("N|TYPE:N", "GPUs of a task."),
    "cpus": ("N", "CPU cores of a task."),
    "mem": ("SIZE", "Main memory of a task, such as 16G."),
    "max_parallel": ("M", "Tasks that run at once, at most."),
}


def slurm_options(command: Command) -> Command:
    """Take what decides what a SLURM task asks for; :func:`given` reads it."""
    options = [
        click.option(
            "--template",
            metavar="NAME|FILE",
            help="SLURM: cluster profile to start from (see mlpsubmit templates).",
        )
    ]
    for key, (metavar, text) in _KEYS.items():
        name = f"--{key.replace('_', '-')}"
        options.append(click.option(name, key, metavar=metavar, help=f"SLURM: {text}"))
    options.append(
        click.option(
            "--sbatch",
            multiple=True,
            metavar="NAME[=VALUE]",
            help="SLURM: any further option of sbatch; NAME=false leaves out the template's.",
        )
    )
    for option in reversed(options):
        command = option(command)
    return command


def given(values: Mapping[str, Any]) -> SlurmRequest:
    """Return what the options of :func:`slurm_options` say, out of all that a command got.

    Raises:
        SpecError: for ``--sbatch`` without a name, or with one that is given twice.
    """
    from mlpsubmit.slurm_templates import SlurmRequest

    changes = {key: values[key] for key in _KEYS if values.get(key) is not None}
    if values.get("sbatch"):
        changes["sbatch"] = _sbatch(values["sbatch"])
    return SlurmRequest(values.get("template"), changes, values.get("retries") or 0)


def _sbatch(entries: Iterable[str]) -> dict[str, Any]:
    from mlpsubmit.slurm_templates.sbatch_options import spelling

    options: dict[str, Any] = {}
    errors = []
    for entry in entries:
        name, equals, text = entry.partition("=")
        name = spelling(name)
        if not name:
            errors.append(f"--sbatch: got {entry!r}; should be NAME=VALUE, or NAME for a flag")
        elif name in options:
            errors.append(f"--sbatch {name}: is given twice; keep one")
        else:
            flag = not equals or {"true": True, "false": False}.get(text.strip().lower())
            options[name] = text if flag is None else flag
    if errors:
        raise SpecError(errors)
    return options
