"""SLURM's commands, each with a time-out, in an environment that no allocation has changed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "CommandResult",
    "SlurmUnavailable",
    "answered",
    "ask",
    "configured",
    "environment",
    "first_line",
    "setting",
    "settings",
]

#: A controller under load answers within seconds; beyond that it counts as silent.
QUERY_SECONDS = 10.0

#: What SLURM sets within an allocation would bind a job that is submitted from there to its nodes,
#: memory and tasks, or change the form of answers. These alone say which cluster to talk to.
_KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"}
_OF_SLURM = ("SLURM_", "SLURMD_", "SRUN_", "SQUEUE_", "SACCT_", "SINFO_")


class SlurmUnavailable(Exception):
    """A SLURM command that is not there, that hangs, or whose controller does not answer."""


@dataclass(frozen=True)
class CommandResult:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str


def environment() -> dict[str, str]:
    """Return this process's environment without what an allocation that it runs in has set."""
    kept = {k: v for k, v in os.environ.items() if k in _KEPT or not k.startswith(_OF_SLURM)}
    # Indices of an array's tasks are cut short otherwise.
    return {**kept, "SLURM_BITSTR_LEN": "0"}


def ask(
    *command: str,
    seconds: float = QUERY_SECONDS,
    keep_locks: bool = False,
    unset: Iterable[str] = (),
) -> CommandResult:
    """Run a command of SLURM and return what it answered, whatever its exit code.

    Args:
        seconds: how long to wait.
        keep_locks: whether the locks that this process holds are held until the command ends,
            even where this process is killed meanwhile.
        unset: variables that the command is not to see.

    Raises:
        SlurmUnavailable: where there is no such command, or none that answers in time.
    """
    hidden = set(unset)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            env={k: v for k, v in environment().items() if k not in hidden},
            close_fds=not keep_locks,
            check=False,
        )
    except FileNotFoundError:
        raise SlurmUnavailable(f"there is no {command[0]} on the PATH") from None
    except subprocess.TimeoutExpired:
        raise SlurmUnavailable(f"{command[0]} did not answer within {seconds:.0f} s") from None
    except OSError as error:
        raise SlurmUnavailable(f"{command[0]} cannot be run ({error.strerror})") from error
    return CommandResult(done.returncode, done.stdout, done.stderr)


def answered(*command: str, seconds: float = QUERY_SECONDS) -> str:
    """Run a query and return its output.

    Raises:
        SlurmUnavailable: where it fails for whatever reason.
    """
    answer = ask(*command, seconds=seconds)
    if answer.code != 0:
        raise SlurmUnavailable(
            f"{command[0]}: {first_line(answer.err) or f'exit code {answer.code}'}"
        )
    return answer.out


def first_line(text: str) -> str:
    """Return the first line that says something, without the command's name before it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^\w+: (error: |fatal: )?", "", lines[0]) if lines else ""


def configured() -> bool:
    """Tell whether this machine belongs to a cluster: sbatch is there and finds its settings.

    The packages of SLURM alone do not make a cluster.
    """
    if shutil.which("sbatch") is None:
        return False
    settings = os.environ.get("SLURM_CONF")
    if settings and not os.path.exists(settings):
        return False  # its commands would look for the file for a minute
    try:
        return ask("sbatch", "--version").code == 0
    except SlurmUnavailable:
        return True  # a cluster whose settings come from a controller that is slow to answer


def setting(name: str) -> str | None:
    """Return a setting of the cluster, such as MaxArraySize; None where it has none.

    Raises:
        SlurmUnavailable: where the controller does not answer.
    """
    return settings().get(name)


def settings() -> dict[str, str]:
    """Return all settings of the cluster.

    Raises:
        SlurmUnavailable: where the controller does not answer.
    """
    shown = answered("scontrol", "show", "config")
    return dict(re.findall(r"^(\w+) *= ?(.*?) *$", shown, re.M))
