"""What sbatch says when it refuses a job, and which option that is about."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mlpsubmit.errors import UserError
from mlpsubmit.jobs.slurm.commands import CommandResult, SlurmUnavailable, answered

__all__ = ["Refused", "is_uncertain", "refusal"]

#: SLURM's words, and the keys of a template that they may be about.
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

#: After these the job may be there all the same.
_UNCERTAIN = re.compile(
    "timed out|zero bytes|communication|connection|transport|unexpected message", re.IGNORECASE
)


class Refused(UserError):
    """The cluster does not take a job; nothing was submitted."""


def is_uncertain(answer: CommandResult) -> bool:
    """Tell whether sbatch failed in a way that leaves open whether the job is there."""
    return bool(_UNCERTAIN.search(answer.err))


def refusal(answer: CommandResult, asked: Mapping[str, object], source: str) -> Refused:
    """Return sbatch's own words as an error that names the options they are about.

    Args:
        asked: what the template asks for, by key.
        source: where that comes from, for the message.
    """
    words = _words(answer.err) or f"exit code {answer.code}, and no reason"
    keys = next((keys for text, keys in _ABOUT if re.search(text, words, re.IGNORECASE)), ())
    named = [f"--{key} {_shown(asked[key])}" for key in keys if asked.get(key)]
    about = " or ".join(named) or "the job"
    text = f"{about} (template {source}): sbatch refused it: {words}; nothing was submitted"
    return Refused(text + _advice(keys))


def _shown(value: object) -> str:
    """Return a value as the command line gives it."""
    if isinstance(value, Mapping):
        return " ".join(name if v is True else f"{name}={v}" for name, v in value.items())
    return str(value)


def _words(stderr: str) -> str:
    """Return what sbatch said as one line, without its prefixes."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line.strip()) for line in stderr.splitlines()]
    told = [line for line in lines if line and not line.startswith("Try ")]
    return "; ".join(dict.fromkeys(told))


def _advice(keys: tuple[str, ...]) -> str:
    """Return what to try."""
    if keys[:1] == ("partition",) and (known := _partitions()):
        return f"; partitions are {', '.join(known)}"
    if "gpus" in keys:
        return "; mlpsubmit doctor lists what the nodes have; without GPUs: --template cpu"
    if keys:
        return f"; give another --{keys[0]}, or change the template"
    return "; mlpsubmit doctor says what of the cluster works"


def _partitions() -> list[str]:
    try:
        return sorted(set(answered("sinfo", "--noheader", "--format=%R").split()))
    except SlurmUnavailable:
        return []
