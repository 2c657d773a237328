"""What the nodes of a cluster have, and whether a task fits on any of them.

Many clusters take a job that no node can ever run, and let it wait for good.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlpsubmit.jobs.slurm.commands import SlurmUnavailable, answered
from mlpsubmit.slurm_templates import Template, time_limit

__all__ = ["Node", "gpus_of", "misfits", "nodes_of"]

_FORMAT = "%n|%P|%c|%m|%l|%G"


@dataclass(frozen=True)
class Node:
    """One node, as part of one partition.

    Attributes:
        host: the machine, without its domain.
        memory: in MiB.
        gpus: (type, count) pairs; a type may be empty.
        minutes: the time limit of the partition; None for none.
    """

    host: str
    partition: str
    cores: int
    memory: int
    gpus: tuple[tuple[str, int], ...]
    minutes: int | None


def nodes_of(partition: str | None) -> list[Node]:
    """Return the nodes of a partition, whatever their state; none where SLURM does not say.

    Args:
        partition: one or several with commas between; None for the cluster's default.
    """
    try:
        text = answered("sinfo", "--Node", "--noheader", f"--format={_FORMAT}")
    except SlurmUnavailable:
        return []
    wanted = set(partition.split(",")) if partition else None
    found = []
    for line in text.splitlines():
        if line.count("|") != _FORMAT.count("|"):
            continue  # a headline
        host, name, cores, memory, limit, gres = line.strip().split("|")
        # The default partition is the one with a star.
        if name.endswith("*") if wanted is None else name.rstrip("*") in wanted:
            short, plain = host.partition(".")[0], name.rstrip("*")
            minutes = _minutes(limit)
            found.append(
                Node(short, plain, _number(cores), _number(memory), gpus_of(gres), minutes)
            )
    return found


def _number(text: str) -> int:
    """Return a count, which sinfo may follow with a plus sign."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def _minutes(limit: str) -> int | None:
    """Return the time limit of a partition, as sinfo writes it, in minutes; None for none."""
    try:
        seconds = time_limit.seconds_of(time_limit.normalised(limit))
    except ValueError:
        return None  # "n/a"
    return None if seconds is None else seconds // 60


def gpus_of(gres: str) -> tuple[tuple[str, int], ...]:
    """Return the GPUs among what SLURM calls generic resources: ``gpu:a100:4(S:0-1),nvme:1``."""
    found = []
    for name in re.sub(r"\([^)]*\)", "", gres).split(","):
        head, *middle = name.replace(":no_consume", "").split(":")
        if head == "gpu":
            count = int(middle[-1]) if middle and middle[-1].isdigit() else 1
            found.append((middle[0] if middle and not middle[0].isdigit() else "", count))
    return tuple(found)


def misfits(template: Template) -> list[str]:
    """Return what of a task no node of its partition has, each as one error."""
    nodes = nodes_of(template.partition)
    if not nodes:
        return []
    where = f"partition {template.partition}" if template.partition else "the default partition"
    errors = [
        _beyond("cpus", template.cpus, nodes, lambda node: node.cores, f" cores in {where}"),
        _beyond("mem", template.megabytes, nodes, lambda node: node.memory, f"M in {where}", "M"),
    ]
    kind = template.gpu_type
    what = f" {kind} GPUs in {where}" if kind else f" GPUs in {where}"
    errors.append(_beyond("gpus", template.gpu_count, nodes, lambda n: _count(n, kind), what))
    limits = [node.minutes for node in nodes if node.minutes is not None]
    if template.minutes and len(limits) == len(nodes) and template.minutes > max(limits):
        errors.append(
            f"--time: got {template.time}; the limit of {where} is "
            f"{time_limit.normalised(max(limits))}; ask for less, as a task that does not come to "
            "an end is queued again, or give another --partition"
        )
    return [message for message in errors if message]


def _beyond(
    key: str,
    asked: int | None,
    nodes: Sequence[Node],
    has: Callable[[Node], int],
    of: str,
    unit: str = "",
) -> str:
    most = max(map(has, nodes))
    if asked is None or asked <= most:
        return ""
    advice = "; to train without: --template cpu" if key == "gpus" else ""
    return f"--{key}: got {asked}{unit}; no node has more than {most}{of}{advice}"


def _count(node: Node, kind: str) -> int:
    """Return how many GPUs a node has, of one type or of any."""
    return sum(count for type_, count in node.gpus if not kind or type_ == kind)
