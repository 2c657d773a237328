"""sbatch's error messages when it rejects a job, and the options that they are about."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mlpsubmit.errors import UserError
from mlpsubmit.jobs.slurm.commands import CommandResult, SlurmUnavailable, run_checked

__all__ = ["Rejected", "is_outcome_unknown", "rejection"]

#: Patterns in sbatch's messages, and the template keys that they may be about.
_ABOUT: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("invalid partition|partition name", ("partition",)),
    ("account or account/partition|invalid account", ("account", "partition")),
    ("invalid qos|qos specification", ("qos",)),
    ("feature specification|invalid constraint", ("constraint",)),
    ("generic resource|invalid gres|tres specification", ("gpus",)),
    ("time limit", ("time", "partition")),
    ("invalid --time", ("time",)),
    ("memory specification|invalid --mem", ("mem",)),
    ("node configuration is not available|cpu count", ("gpus", "cpus", "mem", "constraint")),
    ("more processors requested|cpus-per-task", ("cpus",)),
    ("unrecognized option|invalid option|ambiguous", ("sbatch",)),
    ("license", ("sbatch",)),
)

#: After these errors the job may have been submitted all the same.
_UNKNOWN_OUTCOME = re.compile(
    "timed out|zero bytes|communication|connection|transport|unexpected message", re.IGNORECASE
)


class Rejected(UserError):
    """The cluster rejected a job; nothing was submitted."""


def is_outcome_unknown(result: CommandResult) -> bool:
    """Return whether a failed sbatch may have submitted the job all the same."""
    return bool(_UNKNOWN_OUTCOME.search(result.err))


def rejection(result: CommandResult, requested: Mapping[str, object], source: str) -> Rejected:
    """Return an error with sbatch's own message and the options that it is about.

    Args:
        requested: the template's values, by key.
        source: the template's name, for the message.
    """
    message = _message(result.err) or f"exit code {result.code}, and no reason"
    keys = next((keys for text, keys in _ABOUT if re.search(text, message, re.IGNORECASE)), ())
    options = [f"--{key} {_as_given(requested[key])}" for key in keys if requested.get(key)]
    about = " or ".join(options) or "the job"
    text = f"{about} (template {source}): sbatch rejected it: {message}; nothing was submitted"
    return Rejected(text + _advice(keys))


def _as_given(value: object) -> str:
    """Return a value as it is given on the command line."""
    if isinstance(value, Mapping):
        return " ".join(name if v is True else f"{name}={v}" for name, v in value.items())
    return str(value)


def _message(stderr: str) -> str:
    """Return sbatch's error output as one line, without its prefixes."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line.strip()) for line in stderr.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line and not line.startswith("Try ")))


def _advice(keys: tuple[str, ...]) -> str:
    if keys[:1] == ("partition",) and (known := _partitions()):
        return f"; partitions are {', '.join(known)}"
    if "gpus" in keys:
        return "; mlpsubmit doctor lists what the nodes have; without GPUs: --template cpu"
    if keys:
        return f"; give another --{keys[0]}, or change the template"
    return "; mlpsubmit doctor shows what of the cluster works"


def _partitions() -> list[str]:
    try:
        return sorted(set(run_checked("sinfo", "--noheader", "--format=%R").split()))
    except SlurmUnavailable:
        return []
