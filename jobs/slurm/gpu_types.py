"""The types of GPU that a task may get, and the memory that its packs are planned for.

Where a partition has several types, a task that leaves the type open may get any of them. Then
packs are planned for the type with the least memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from mlpsubmit.display.text import counted
from mlpsubmit.jobs.gpu_models import is_of_type, memory_in_name, model_of, smallest_memory
from mlpsubmit.jobs.gpus import ASSUMED_MEMORY
from mlpsubmit.jobs.slurm.nodes import Node, possible_nodes
from mlpsubmit.jobs.store.records import Beat
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.slurm_templates import Template

__all__ = ["GpuType", "error", "gpu_types", "lines", "pins", "recorded_gpus"]

#: Heartbeats that are read at most, from those of the newest runs on.
MOST_HEARTBEATS = 400

#: A type that neither SLURM nor a feature names.
UNKNOWN = "an unknown type"


@dataclass(frozen=True)
class GpuType:
    """A type of GPU that a task may get.

    Attributes:
        name: as SLURM calls it, or the feature of its nodes that names it; empty if unknown.
        nodes: how many nodes have it.
        memory: bytes.
        source: where that figure comes from, for people.
        pin: the option with which a task gets no other; empty if there is none.
    """

    name: str
    nodes: int
    memory: int
    source: str
    pin: str = ""

    def __str__(self) -> str:
        memory = f"{self.memory / (1 << 30):.3g} GiB"
        nodes = f", {counted(self.nodes, 'node')}" if self.nodes else ""
        return f"{self.name or UNKNOWN} ({memory}: {self.source}{nodes})"

    def has(self, device: str) -> bool:
        """Return whether a GPU with the driver's name for it is of this type, by the names."""
        return is_of_type(device, self.name)


def gpu_types(
    template: Template, nodes: Sequence[Node], recorded: Mapping[str, Mapping[str, int]]
) -> list[GpuType]:
    """Return the types of GPU that a task may get, the one with the least memory first.

    Args:
        nodes: those of its partition; empty if the scheduler does not answer.
        recorded: what :func:`recorded_gpus` returns.
    """
    by_type: dict[str, set[str]] = {}
    for node in possible_nodes(template, nodes):
        for name in node.gpu_types or [node.gpu_feature] * template.whole_node:
            if template.gpu_type in ("", name):
                by_type.setdefault(name, set()).add(node.host)
    names = by_type or {template.gpu_type: set[str]()}
    typed = {own for node in nodes for own, _ in node.gpus}
    alone = {node.host for node in nodes if len(node.gpu_types) == 1}
    return sorted(
        (
            GpuType(
                name,
                len(hosts),
                *_memory(name, hosts & alone, recorded),
                pin=_pin(template, name, typed),
            )
            for name, hosts in names.items()
        ),
        key=lambda own: (own.memory, own.name),
    )


def _pin(template: Template, name: str, typed: set[str]) -> str:
    if not name:
        return ""
    if name in typed:
        return f"--gpus {name}:{template.gpu_count}"
    old = template.constraint
    return f"--constraint {name}" if old is None else f"--constraint '{name}&({old})'"


def _memory(
    name: str, hosts: set[str], recorded: Mapping[str, Mapping[str, int]]
) -> tuple[int, str]:
    """Return the bytes of the smallest GPU of a type, and where that is known from.

    Args:
        hosts: of nodes that have no other type.
    """
    seen = [
        memory
        for host, devices in recorded.items()
        for device, memory in devices.items()
        if host in hosts or is_of_type(device, name)
    ]
    if seen:
        return min(seen), "as earlier tasks found"
    if (size := memory_in_name(name)) is not None:
        return size, "by its name"
    if (size := smallest_memory(name)) is not None:
        return size, "the least that is sold under this name"
    return ASSUMED_MEMORY, "assumed"


def recorded_gpus(runs: Iterable[RunDirectory], cluster: str | None) -> dict[str, dict[str, int]]:
    """Return by host the bytes of each GPU that tasks of earlier runs found there, by its name.

    Args:
        runs: the newest first.
        cluster: the name of this cluster; other ones have other hosts.
    """
    found: dict[str, dict[str, int]] = {}
    for beat in islice(_beats(runs, cluster), MOST_HEARTBEATS):
        host = beat.get("host", "").partition(".")[0]
        memory, device = beat.get("device_memory"), beat.get("device", "cpu")
        if memory and device != "cpu":
            own = found.setdefault(host, {})
            own[device] = min(memory, own.get(device, memory))
    return found


def _beats(runs: Iterable[RunDirectory], cluster: str | None) -> Iterator[Beat]:
    for run in runs:
        for number in reversed(run.submissions()):
            intent = run.readable_intent(number)
            if intent is None or not intent["gpus"] or intent.get("cluster") != cluster:
                continue
            yield from run.heartbeats(number).values()


def error(types: Sequence[GpuType], device: str) -> str:
    """Return why tasks may not all get one type of GPU; empty if they do, or that is not known.

    Args:
        device: the driver's name of the one that they must get; empty for any.
    """
    fitting = [own for own in types if own.has(device)] if device else list(types)
    if len(types) > 1:
        must = f"; the results so far were made on {device}" if device else ""
        alone = pins(fitting or types) or "another --partition or --constraint"
        every = " or ".join(map(str, types))
        return f"tasks may get {every}{must}; choose one type: {alone}"
    if device and model_of(device) and [own for own in types if model_of(own.name)] and not fitting:
        return (
            f"the results so far were made on {device}, and tasks would get {types[0].name}; give "
            "a --gpus, --constraint or --partition that gets them the same, or leave it out "
            "(--no-same-device)"
        )
    return ""


def pins(types: Sequence[GpuType]) -> str:
    """Return the options with which tasks get one type alone, for a message; empty if none."""
    return " or ".join(own.pin for own in types if own.pin)


def lines(types: Sequence[GpuType], *, planned: bool) -> list[str]:
    """Return which GPUs tasks may get, and what packs are planned for, for a dry run.

    Args:
        planned: whether packs are planned for these types; else they are those of a plan.
    """
    if len(types) < 2:
        return [f"GPUs: {own}; packs are planned for that memory" for own in types if planned]
    found = [f"GPUs: tasks may get {' or '.join(map(str, types))}"]
    if planned:
        least = types[0].name or UNKNOWN
        found.append(f"packs are planned for {least}, with the least memory")
    alone = f"; for one type: {pins(types)}" if pins(types) else ""
    return [*found, f"on different types, results agree up to rounding only{alone}"]
