"""The resources of a cluster's nodes, and whether a task fits on any of them.

Many clusters accept a job that no node can ever run, and leave it pending for good.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mlpsubmit.jobs.gpu_models import model_of
from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, run_checked
from mlpsubmit.jobs.slurm.constraint import allows
from mlpsubmit.slurm_templates import Template, time_limit

__all__ = ["Node", "gpus_of", "nodes_of", "possible_nodes", "resource_errors"]

_FORMAT = "%n|%P|%c|%m|%l|%G|%h|%f"


@dataclass(frozen=True)
class Node:
    """One node in one partition.

    Attributes:
        host: its name, without the domain.
        memory: in MiB.
        gpus: (type, count) pairs; a type may be empty.
        minutes: the time limit of the partition; None without one.
        features: by which constraints choose nodes.
        exclusive: whether a job gets all of it in that partition, whatever it asks for.
    """

    host: str
    cores: int
    memory: int
    gpus: tuple[tuple[str, int], ...]
    minutes: int | None
    features: tuple[str, ...] = ()
    exclusive: bool = False

    def gpus_of_type(self, gpu_type: str) -> int:
        """Return how many GPUs of a type it has; of all types if that is empty."""
        return sum(count for own, count in self.gpus if gpu_type in ("", own))

    @property
    def gpu_types(self) -> tuple[str, ...]:
        """The types of its GPUs; of untyped ones a feature that names a model, or else empty."""
        named = [own for own, _ in self.gpus if own]
        if named or not self.gpus:
            return tuple(dict.fromkeys(named))
        return (self.gpu_feature,)

    @property
    def gpu_feature(self) -> str:
        """The feature that names a model of GPU; empty if none does."""
        models = [own for own in self.features if model_of(own) and not own.isdigit()]
        return max(models, key=len, default="")


def nodes_of(partition: str | None) -> list[Node]:
    """Return the nodes of a partition, whatever their state; empty if SLURM does not answer.

    Args:
        partition: one or several with commas between; None for the cluster's default.
    """
    try:
        text = run_checked("sinfo", "--Node", "--noheader", f"--format={_FORMAT}")
    except SlurmUnavailable:
        return []
    found = []
    for line in text.splitlines():
        if line.count("|") != _FORMAT.count("|"):
            continue  # a header
        host, name, cores, memory, limit, gres, shared, features = line.strip().split("|")
        # The default partition is the one with a star.
        if name.rstrip("*") in partition.split(",") if partition else name.endswith("*"):
            counts = _number(cores), _number(memory)
            found.append(
                Node(
                    *(host.partition(".")[0], *counts, gpus_of(gres), _minutes(limit)),
                    tuple(name for name in features.split(",") if name not in ("", "(null)")),
                    shared == "EXCLUSIVE",
                )
            )
    return found


def possible_nodes(template: Template, nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes on which a task may run, as far as its request says.

    Args:
        nodes: those of its partition.
    """
    hosts = {name: _hosts(template.sbatch.get(name)) for name in ("nodelist", "exclude")}
    unknown = not any(node.gpus for node in nodes)  # to SLURM; they may have some all the same
    found = [
        node
        for node in nodes
        if (template.constraint is None or allows(template.constraint, node.features) is not False)
        and (hosts["nodelist"] is None or node.host in hosts["nodelist"])
        and (hosts["exclude"] is None or node.host not in hosts["exclude"])
        and node.cores >= template.cpus
        and node.memory >= (template.megabytes or 0)
        and (
            node.gpus_of_type(template.gpu_type) >= template.gpu_count
            or (template.whole_node and unknown)
        )
    ]
    return found or list(nodes)  # sbatch has the word for what no node fits


def _hosts(expression: str | bool | None) -> set[str] | None:
    """Return the hosts of an expression such as ``n[1-3],m7``; None if it cannot be read."""
    if not isinstance(expression, str):
        return None
    try:  # which asks nobody
        return set(run_checked("scontrol", "show", "hostnames", expression).split())
    except SlurmUnavailable:
        return None


def _number(text: str) -> int:
    """Return a count, which sinfo may follow with a plus sign."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def _minutes(limit: str) -> int | None:
    """Return a partition's time limit, as sinfo writes it, in minutes; None without one."""
    try:
        seconds = time_limit.seconds_of(time_limit.normalised(limit))
    except ValueError:
        return None  # "n/a"
    return None if seconds is None else seconds // 60


def gpus_of(gres: str) -> tuple[tuple[str, int], ...]:
    """Return the GPUs among generic resources such as ``gpu:a100:4(S:0-1),nvme:1``."""
    found = []
    for name in re.sub(r"\([^)]*\)", "", gres).split(","):
        head, *middle = name.replace(":no_consume", "").split(":")
        if head == "gpu":
            count = int(middle[-1]) if middle and middle[-1].isdigit() else 1
            found.append((middle[0] if middle and not middle[0].isdigit() else "", count))
    return tuple(found)


def resource_errors(template: Template, nodes: Sequence[Node]) -> list[str]:
    """Return an error for each resource of a task that no node of its partition has.

    Args:
        nodes: those of the partition.
    """
    if not nodes:
        return []
    where = f"partition {template.partition}" if template.partition else "the default partition"
    errors = [
        _beyond("cpus", template.cpus, [node.cores for node in nodes], f" cores in {where}"),
        _beyond("mem", template.megabytes, [node.memory for node in nodes], f"M in {where}", "M"),
    ]
    gpu_type = template.gpu_type
    of = f" {gpu_type} GPUs in {where}" if gpu_type else f" GPUs in {where}"
    has = [node.gpus_of_type(gpu_type) for node in nodes]
    # Of a whole node, also GPUs that SLURM does not know are a task's.
    if any(node.gpus for node in nodes) or not template.whole_node:
        errors.append(_beyond("gpus", template.gpu_count, has, of))
    limits = [node.minutes for node in nodes if node.minutes is not None]
    if template.minutes and len(limits) == len(nodes) and template.minutes > max(limits):
        errors.append(
            f"--time: got {template.time}; the limit of {where} is "
            f"{time_limit.normalised(max(limits))}; request less, since a task that does "
            "not finish is requeued, or give another --partition"
        )
    return [message for message in errors if message]


def _beyond(key: str, asked: int | None, has: Sequence[int], of: str, unit: str = "") -> str:
    """Return an error if more is requested than any node has, else an empty string."""
    most = max(has)
    if asked is None or asked <= most:
        return ""
    advice = "; to train without: --template cpu" if key == "gpus" else ""
    return f"--{key}: got {asked}{unit}; no node has more than {most}{of}{advice}"
