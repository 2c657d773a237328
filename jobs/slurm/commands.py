"""SLURM's commands, each with a timeout, in an environment without an allocation's variables."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection

__all__ = [
    "SlurmUnavailable",
    "configured",
    "environment",
    "error_lines",
    "installed",
    "run",
    "run_checked",
    "settings",
]

#: Seconds after which a query fails; a controller under load answers sooner.
QUERY_SECONDS = 10.0

#: An allocation's variables would bind a job submitted from within it to its nodes, memory and
#: tasks, or change the format of output. Only these, which select the cluster, are kept.
_KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"}
_OF_SLURM = ("SLURM_", "SLURMD_", "SRUN_", "SQUEUE_", "SACCT_", "SINFO_")


class SlurmUnavailable(Exception):
    """A SLURM command that is missing, hangs, or cannot reach its controller."""


def environment(unset: Collection[str] = ()) -> dict[str, str]:
    """Return this process's environment without the variables of an enclosing allocation.

    Args:
        unset: further variables to leave out.
    """
    kept = {k: v for k, v in os.environ.items() if k in _KEPT or not k.startswith(_OF_SLURM)}
    kept = {k: v for k, v in kept.items() if k not in unset}
    # Otherwise squeue truncates the list of an array's indices.
    return {**kept, "SLURM_BITSTR_LEN": "0"}


def run(
    *command: str,
    seconds: float = QUERY_SECONDS,
    keep_locks: bool = False,
    unset: Collection[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a SLURM command, and return its output and its exit code, whatever that is.

    Args:
        seconds: the timeout.
        keep_locks: whether the file locks of this process stay held until the command ends, even
            if this process is killed meanwhile.
        unset: environment variables to hide from the command.

    Raises:
        SlurmUnavailable: if the command does not exist or does not finish in time.
    """
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            env=environment(unset),
            close_fds=not keep_locks,
            check=False,
        )
    except FileNotFoundError:
        raise SlurmUnavailable(f"there is no {command[0]} on the PATH") from None
    except subprocess.TimeoutExpired:
        raise SlurmUnavailable(f"{command[0]} did not answer within {seconds:.0f} s") from None
    except OSError as error:
        raise SlurmUnavailable(f"{command[0]} cannot be run ({error.strerror})") from error


def run_checked(*command: str) -> str:
    """Run a query and return its standard output.

    Raises:
        SlurmUnavailable: if it fails for any reason.
    """
    result = run(*command)
    if result.returncode != 0:
        reason, *_ = [*error_lines(result.stderr), f"exit code {result.returncode}"]
        raise SlurmUnavailable(f"{command[0]}: {reason}")
    return result.stdout


def error_lines(stderr: str) -> list[str]:
    """Return the lines of a command's error output, without the command's name in front."""
    lines = (line.strip() for line in stderr.splitlines())
    return [re.sub(r"^\w+: (error: |fatal: )?", "", line) for line in lines if line]


def installed() -> bool:
    """Return whether this machine has SLURM's commands."""
    return shutil.which("squeue") is not None


def configured() -> bool:
    """Return whether this machine belongs to a cluster: sbatch exists and finds a configuration.

    SLURM's packages may be installed on a machine that belongs to no cluster.
    """
    if shutil.which("sbatch") is None:
        return False
    file = os.environ.get("SLURM_CONF")
    if file and not os.path.exists(file):
        return False  # SLURM's commands would retry for a minute
    try:
        return run("sbatch", "--version").returncode == 0
    except SlurmUnavailable:
        return True  # a cluster that distributes its configuration from a slow controller


def settings() -> dict[str, str]:
    """Return all settings of the cluster, such as MaxArraySize.

    Raises:
        SlurmUnavailable: if the controller does not answer.
    """
    shown = run_checked("scontrol", "show", "config")
    return dict(re.findall(r"^(\w+) *= ?(.*?) *$", shown, re.M))
