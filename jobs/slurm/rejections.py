"""sbatch's error messages when it rejects a job, and the options that they are about."""

from __future__ import annotations

import re
from collections.abc import Mapping
from subprocess import CompletedProcess

from mlpsubmit.errors import UserError
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, error_lines, run_checked
from mlpsubmit.slurm_templates import Template

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

#: SLURM's names of limits on how many jobs may be queued; its text about them also names others.
_QUEUED_LIMIT = re.compile(r"\b(?:Assoc|QOS)\w*SubmitJob\w*Limit\b")

#: After these errors the job may have been submitted all the same.
_UNKNOWN_OUTCOME = re.compile(
    "timed out|zero bytes|communication|connection|transport|unexpected message", re.IGNORECASE
)


class Rejected(UserError):
    """The cluster rejected a job.

    Args:
        what: the job, and sbatch's own words.
        advice: what to try.
        submitted: what is left of the submission that the job belongs to.
        is_of_limit: whether it would be accepted once other jobs have ended.
    """

    def __init__(
        self,
        what: str,
        advice: str,
        submitted: str = "nothing was submitted",
        *,
        is_of_limit: bool = False,
    ) -> None:
        super().__init__(f"{what}; {submitted}; {advice}")
        self.what, self.advice, self.is_of_limit = what, advice, is_of_limit

    def after(self, submitted: str) -> Rejected:
        """Return the same rejection, of a job before which others had been submitted."""
        return Rejected(self.what, self.advice, submitted)


def is_outcome_unknown(result: CompletedProcess[str]) -> bool:
    """Return whether a failed sbatch may have submitted the job all the same."""
    return bool(_UNKNOWN_OUTCOME.search(result.stderr))


def rejection(result: CompletedProcess[str], template: Template) -> Rejected:
    """Return an error with sbatch's own message and the template's options that it is about."""
    lines = [line for line in error_lines(result.stderr) if not line.startswith("Try ")]
    message = "; ".join(dict.fromkeys(lines)) or f"exit code {result.returncode}, and no reason"
    if limit := _QUEUED_LIMIT.search(message):
        what = f"the job array: sbatch rejected it: {message}"
        return Rejected(
            what,
            f"each of its tasks counts as a job under {limit[0]}: try fewer --tasks, which train "
            "the same configs, or wait until other jobs have ended (the limits: scontrol show "
            "assoc_mgr flags=assoc,qos)",
            is_of_limit=True,
        )
    keys = next((keys for text, keys in _ABOUT if re.search(text, message, re.IGNORECASE)), ())
    given = {key: getattr(template, key) for key in keys}
    options = [f"--{key} {_as_given(value)}" for key, value in given.items() if value]
    about = " or ".join(options) or "the job"
    what = f"{about} (template {template.name}): sbatch rejected it: {message}"
    return Rejected(what, _advice(keys))


def _as_given(value: object) -> str:
    """Return a value as it is given on the command line."""
    if isinstance(value, Mapping):
        return " ".join(name if v is True else f"{name}={v}" for name, v in value.items())
    return str(value)


def _advice(keys: tuple[str, ...]) -> str:
    if keys[:1] == ("partition",) and (known := _partitions()):
        return f"partitions are {', '.join(known)}"
    if "gpus" in keys:
        return "mlpsubmit doctor lists what the nodes have; without GPUs: --template cpu"
    if keys:
        return f"give another --{keys[0]}, or change the template"
    return "mlpsubmit doctor shows what of the cluster works"


def _partitions() -> list[str]:
    try:
        return sorted(set(run_checked("sinfo", "--noheader", "--format=%R").split()))
    except SlurmUnavailable:
        return []
