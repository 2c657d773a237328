"""What a task has: what its template asks for, or all of a node of its partition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlpsubmit.display.text import counted
from mlpsubmit.errors import SpecError
from mlpsubmit.jobs.shares import workers_on_cores
from mlpsubmit.jobs.slurm.nodes import Node, possible_nodes, resource_errors
from mlpsubmit.slurm_templates import Template

__all__ = ["TaskResources", "idle_hint", "task_resources"]


@dataclass(frozen=True)
class TaskResources:
    """What a task has.

    Attributes:
        request: what sbatch is asked for.
        gpus: how many GPUs the task has; those of a node may be none that SLURM knows.
        cores: how many cores it has.
        workers: how many processes train in it, each with GPUs or cores of its own.
    """

    request: Template
    gpus: int
    cores: int
    workers: int

    @property
    def threads(self) -> int:
        """CPU threads of each worker."""
        return max(1, self.cores // self.workers)

    @property
    def described(self) -> str:
        """The GPUs and cores, for people."""
        gpu_type = self.request.gpu_type
        gpus = f"{counted(self.gpus, 'GPU')} {gpu_type}".rstrip() if self.gpus else "no GPU"
        return f"{gpus} and {counted(self.cores, 'core')} per task"


def task_resources(template: Template, nodes: Sequence[Node]) -> TaskResources:
    """Return what each task of a template has.

    A task with a whole node is planned for the smallest one that has what the template asks for.

    Args:
        nodes: those of its partition; of no importance unless tasks get whole ones.

    Raises:
        SpecError: no node has what the template asks for, there are none, or they are too small
            for that many workers.
    """
    if not template.whole_node:
        gpus, cores = template.gpu_count, template.cpus
        return TaskResources(template, gpus, cores, template.worker_count)
    return _whole_node(template, nodes)


def _whole_node(template: Template, nodes: Sequence[Node]) -> TaskResources:
    where = f"template {template.name}"
    partition = template.partition or "the default partition"
    if not nodes:
        raise SpecError(
            [
                f"--whole-node: sinfo lists no nodes of {partition}, whose GPUs and cores a task "
                "would use; try again, or leave it out and give --gpus, --cpus and --mem"
            ],
            where,
        )
    if errors := resource_errors(template, nodes):
        raise SpecError(errors, where)
    asked, gpu_type = template.gpu_count, template.gpu_type
    declared = any(node.gpus for node in nodes)
    fitting = possible_nodes(template, nodes)
    # Where no node has all that is asked for, sbatch has the word.
    cores = max(template.cpus, min(node.cores for node in fitting))
    gpus = asked
    if asked and declared:
        gpus = max(asked, min(node.gpus_of_type(gpu_type) for node in fitting))
    most = gpus or workers_on_cores(cores, min(node.memory for node in fitting))
    if (template.workers or 0) > (gpus or cores):
        raise SpecError(
            [
                f"--workers: got {template.workers}; should be at most {gpus or cores}, as each "
                f"worker has a {'GPU' if gpus else 'core'} of its own, and a node of {partition} "
                f"has {gpus or cores}"
            ],
            where,
        )
    # GPUs that SLURM does not know cannot be asked for: the task finds them on its node.
    typed = f"{gpu_type}:{gpus}" if gpu_type else gpus
    request = {
        "gpus": typed if gpus else 0,
        "gpus_on_node": not declared,
        "cpus": cores,
        "mem": "0",
        "sbatch": {"exclusive": True, **template.sbatch},
    }
    return TaskResources(template.model_copy(update=request), gpus, cores, template.workers or most)


def idle_hint(template: Template, nodes: Sequence[Node]) -> str:
    """Return what a task leaves idle of the whole node that it gets; empty if nothing.

    It gets one where the partition gives nodes, or where its template asks sbatch for one.
    """
    given = template.sbatch.get("exclusive") is True or all(node.exclusive for node in nodes)
    if template.whole_node or not nodes or not given:
        return ""
    possible = possible_nodes(template, nodes)
    node = min(possible, key=lambda node: (node.gpus_of_type(""), node.cores))
    asked, has, unit = template.gpu_count, node.gpus_of_type(""), "GPU"
    if not asked:
        asked, has, unit = template.cpus, node.cores, "core"
    if has <= asked:
        return ""
    return (
        f"each task gets a whole node, and uses {asked} of {counted(has, unit)}; to use them all: "
        "--whole-node"
    )
