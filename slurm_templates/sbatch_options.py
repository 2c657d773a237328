"""The sbatch options that a template may pass on: all but those that mlpsubmit sets itself."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mlpsubmit.slurm_templates.values import word

__all__ = ["KEY_OF", "ONE", "option_name", "option_value", "spelling", "table"]

#: Options that have a key of the template.
KEY_OF = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "time": "time",
    "gpus": "gpus",
    "gpus-per-node": "gpus",
    "gpus-per-socket": "gpus",
    "gpus-per-task": "gpus",
    "cpus": "cpus",
    "cpus-per-gpu": "cpus",
    "cpus-per-task": "cpus",
    "mem": "mem",
    "max-parallel": "max_parallel",
    "notice": "notice",
    "signal": "notice",
    "setup": "setup",
    "container": "container",
    "python": "python",
    "wrap": "wrap",
    "helper-partition": "helper_partition",
    "description": "description",
}

#: Options that mlpsubmit sets: its logs, job ids and retries depend on them.
SET_HERE = frozenset(
    {
        "array",
        "batch",
        "clusters",
        "dependency",
        "error",
        "help",
        "input",
        "job-name",
        "no-requeue",
        "ntasks-per-core",
        "ntasks-per-gpu",
        "ntasks-per-socket",
        "open-mode",
        "output",
        "parsable",
        "quiet",
        "requeue",
        "test-only",
        "usage",
        "version",
        "wait",
    }
)

#: Options that may be given, as the filters of some clusters want, but are 1 for every job: an
#: array task is one process on one node.
ONE = frozenset({"nodes", "ntasks", "ntasks-per-node"})

#: Keys without a command-line option.
_ONLY_IN_FILES = ("notice", "setup", "helper_partition", "description")

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", re.A)


def spelling(name: str) -> str:
    """Return a name as sbatch spells it: ``mail-type`` for ``mail_type`` and ``--mail-type``."""
    return name.strip().removeprefix("--").replace("_", "-")


def option_name(name: str) -> str:
    """Return the name of an sbatch option, spelt as sbatch does.

    Raises:
        ValueError: for one that mlpsubmit sets, that has a key of its own, or that is not a name.
    """
    plain = spelling(name)
    key = KEY_OF.get(plain)
    if key:
        option = f" (on the command line: --{key.replace('_', '-')})"
        raise ValueError(
            f"should be set by the template's own key {key}, above [sbatch]"
            f"{'' if key in _ONLY_IN_FILES else option}"
        )
    if plain in SET_HERE:
        raise ValueError("should be left out; mlpsubmit sets it itself")
    # sbatch accepts abbreviations, of these too.
    closed = (*KEY_OF, *sorted(SET_HERE | ONE))
    meant = next((full for full in closed if full.startswith(plain)), None)
    if meant and plain and plain not in ONE:
        raise ValueError(f"should be spelt in full; sbatch reads it as {meant}")
    if not _NAME.fullmatch(plain) or len(plain) == 1:
        raise ValueError("should be the long name of an sbatch option, such as exclude")
    return plain


def option_value(value: Any) -> str | bool:
    """Return an option's value as text, or whether a bare flag is given."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise ValueError("should be a string, an integer, true (a bare flag) or false (left out)")
    return word(value)


def table(value: Any) -> dict[str, Any]:
    """Return a dictionary of sbatch options, each given once; their values are not checked here."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ValueError("should be a table of sbatch options, such as exclude = 'n3'")
    twice = [name for name, count in Counter(map(spelling, value)).items() if count > 1]
    if twice:
        raise ValueError(f"should have each option once; keep one {', one '.join(sorted(twice))}")
    return dict(value)
