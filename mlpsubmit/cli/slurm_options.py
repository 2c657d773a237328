"""Options for SLURM: a template, and changes to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlpsubmit.errors import SpecError

if TYPE_CHECKING:
    from mlpsubmit.slurm_templates import SlurmRequest

__all__ = ["slurm_options", "slurm_request"]

Command = TypeVar("Command", bound=Callable[..., Any])

#: The template, and its keys that have an option each. The template validates them, not click.
_KEYS = {
    "template": ("NAME|FILE", "cluster profile (see mlpsubmit templates)."),
    "partition": ("NAME", "partition."),
    "account": ("NAME", "account to charge."),
    "qos": ("NAME", "quality of service."),
    "constraint": ("FEATURES", "required node features."),
    "time": ("LIMIT", "time limit per task: minutes, hours:minutes:seconds, days-hours."),
    "gpus": ("N|TYPE:N", "GPUs per task."),
    "cpus": ("N", "CPU cores per task."),
    "mem": ("SIZE", "RAM per task, such as 16G."),
    "workers": ("N", "processes per task that train; one for each of its GPUs unless given."),
    "container": ("IMAGE", "image that tasks run in, by apptainer or singularity."),
    "python": ("PATH", "Python of the tasks; in a container, its own (default: python3)."),
    "wrap": ("COMMAND", "program that runs the command of a task, such as 'numactl -l'."),
    "max_parallel": ("M", "maximum number of tasks running at once."),
}


def slurm_options(command: Command) -> Command:
    """Add the options that change what a SLURM task requests; :func:`slurm_request` reads them."""
    command = click.option(
        "--sbatch",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="SLURM: any other sbatch option; NAME=false drops the template's.",
    )(command)
    command = click.option(
        "--whole-node/--no-whole-node",
        default=None,
        help="SLURM: a task gets all GPUs, cores and RAM of a node, or not.",
    )(command)
    for key, (metavar, text) in reversed(_KEYS.items()):  # the last one added is listed first
        name = f"--{key.replace('_', '-')}"
        command = click.option(name, metavar=metavar, help=f"SLURM: {text}")(command)
    return command


def slurm_request(values: Mapping[str, Any]) -> SlurmRequest:
    """Return the request of the options of :func:`slurm_options`, among all options of a command.

    Raises:
        SpecError: ``--sbatch`` without a name, or with a name given twice.
    """
    from mlpsubmit.slurm_templates import SlurmRequest

    keys = (*_KEYS, "whole_node")
    changes = {key: values[key] for key in keys if values.get(key) is not None}
    template = changes.pop("template", None)
    if values.get("sbatch"):
        changes["sbatch"] = _sbatch(values["sbatch"])
    return SlurmRequest(template, changes, values.get("retries") or 0)


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
