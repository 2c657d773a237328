"""What SLURM has allotted to the job that this process belongs to: a shell, a script, a notebook.

Many clusters do not bind a process to its cores, and show it all GPUs of the node; then only the
variables of the job say what is its own (sbatch(1), "OUTPUT ENVIRONMENT VARIABLES").
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from mlpsubmit.errors import UserError
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, run_checked

__all__ = ["Allocation", "allocation"]


#: Variables with the number of GPUs that a job has asked for.
_GPU_COUNTS = ("SLURM_GPUS_ON_NODE", "SLURM_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_TASK")


@dataclass(frozen=True)
class Allocation:
    """The part of this machine that belongs to a job.

    Attributes:
        job: its id.
        cores: None where that is unknown.
        megabytes: MiB of memory; None where that is unknown, or all of the machine.
        gpus: indices of GPUs by the driver's order; None where CUDA_VISIBLE_DEVICES decides.
    """

    job: str
    cores: int | None
    megabytes: int | None
    gpus: tuple[int, ...] | None


def allocation(environ: Mapping[str, str] = os.environ) -> Allocation | None:
    """Return what this process was allotted on this machine; None outside of a job.

    Raises:
        UserError: if the nodes of the job are other machines, as in a shell that salloc starts on
            a login node.
    """
    job = environ.get("SLURM_JOB_ID", "")
    if not job:
        return None
    _check_is_here(job, environ)
    cores = _cores(environ)
    return Allocation(job, cores, _megabytes(environ, cores), _gpus(environ))


def _check_is_here(job: str, environ: Mapping[str, str]) -> None:
    """Check that this machine is a node of the job, as far as can be found out."""
    nodes = environ.get("SLURM_JOB_NODELIST", "")
    if environ.get("SLURMD_NODENAME") or not nodes:
        return  # a process that SLURM itself has started on a node
    try:
        shown = run_checked("scontrol", "show", "node", "--oneliner", nodes)
    except SlurmUnavailable:
        return
    hosts = {name.partition(".")[0] for name in re.findall(r"\bNodeHostName=(\S+)", shown)}
    here = socket.gethostname().partition(".")[0]
    if hosts and here not in hosts:
        raise UserError(
            f"--executor local: this shell is on {here}, and job {job}, which it belongs to, has "
            f"{nodes}; train there: srun --pty mlpsubmit ..., or submit a job array: leave "
            "--executor local out"
        )


def _cores(environ: Mapping[str, str]) -> int | None:
    """Return the cores of this job on this node."""
    if own := re.fullmatch(r"\d+", environ.get("SLURM_CPUS_ON_NODE", "")):
        return int(own[0]) or None
    # Such as 8(x2),4: by node; which of them this one is, nobody says.
    counts = re.findall(r"(\d+)(?:\(x\d+\))?", environ.get("SLURM_JOB_CPUS_PER_NODE", ""))
    return min(map(int, counts), default=0) or None


def _megabytes(environ: Mapping[str, str], cores: int | None) -> int | None:
    """Return the memory of this job on this node; 0 stands for all of it."""
    of_node, of_core = (
        re.fullmatch(r"\d+", environ.get(f"SLURM_MEM_PER_{unit}", "")) for unit in ("NODE", "CPU")
    )
    if of_node:
        return int(of_node[0]) or None
    return int(of_core[0]) * cores or None if of_core and cores else None


def _gpus(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """Return the GPUs of this step, or else of the job, on this node."""
    if "CUDA_VISIBLE_DEVICES" in environ:
        return None
    given = environ.get("SLURM_STEP_GPUS") or environ.get("SLURM_JOB_GPUS", "")
    if not given and any(environ.get(name, "0") != "0" for name in _GPU_COUNTS):
        return None  # it has some, and only the cluster knows which
    ranges = re.findall(r"(\d+)(?:-(\d+))?", given)
    return tuple(n for low, high in ranges for n in range(int(low), int(high or low) + 1))
