"""From a product of axes to packs, and from packs to slices of equal cost.

The axes are put in a fixed order: those that change the shapes of tensors outside, those whose
configs can share a pack inside. In this plan order configs of equal shapes form one contiguous
*group*. The *rank* of a config is its position in plan order among the configs that train, and a
pack is a range of ranks within a group. So a plan is a few numbers however large the product is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.jobs.pack_memory import fitting
from mlpsubmit.jobs.store.masks import decode_mask, encode_mask
from mlpsubmit.spec.hyperparameters import OPTIMIZERS, STACKED, Hyperparameters, log_spaced
from mlpsubmit.spec.product import Axis
from mlpsubmit.spec.sweep import Sweep

__all__ = ["PackRange", "Plan", "Range", "cut", "make_plan"]

#: Weights that one stack may hold on a CPU: beyond it, more configs gain nothing.
STACKED_WEIGHTS = 1 << 22
LARGEST_PACK = 64

#: Activations that one stack may hold, of its largest set of samples: 256 MiB in fp32.
STACKED_ACTIVATIONS = 1 << 26

#: Fixed cost of one step of one config, in FLOPs: what packing saves.
STEP_OVERHEAD = 2e5

#: Input dimensions assumed for the cost of a sweep whose spec does not give ``d``.
ASSUMED_INPUTS = 64

#: Settings that the cost of a config is estimated from.
COST_SETTINGS = (
    *("d", "width", "depth", "n_samples", "n_test", "max_iter", "eval_every", "online"),
    "optimizer",
)

Range = tuple[int, int]


@dataclass(frozen=True)
class PackRange:
    """Configs that train together: those of the ranks ``start`` to ``stop``.

    Attributes:
        number: which pack of the plan it is.
        cost: the estimated cost of all of them, in FLOPs.
    """

    number: int
    start: int
    stop: int
    cost: float

    @property
    def name(self) -> str:
        """The name of the pack in files."""
        return f"{self.number:07d}"


@dataclass(frozen=True)
class GroupRun:
    """Consecutive groups that are cut into packs in the same way.

    Attributes:
        groups: how many groups.
        configs: configs to train in each.
        pack_size: configs per pack at most.
    """

    groups: int
    configs: int
    pack_size: int

    @property
    def packs_per_group(self) -> int:
        """How many packs a group is cut into."""
        return math.ceil(self.configs / self.pack_size)


@dataclass(frozen=True)
class CostSetting:
    """A setting that cost depends on: one value, or the values along one axis of the product."""

    values: tuple[float, ...]
    axis: int | None = None


@dataclass(frozen=True)
class Plan:
    """What trains together: the packs of a sweep.

    Attributes:
        shape: points per axis of the product.
        order: the axes of the product in plan order, outermost first.
        outside: how many axes of the order, from the outermost, distinguish the groups.
        group_runs: the groups in plan order, run-length encoded.
        cost_settings: what :attr:`group_costs` is computed from.
        threads: CPU threads that a task of this plan computes with; part of the plan, since the
            rounding of a matrix product can depend on it.
        kept: (size,) bool over the product in plan order, the configs to train; None for all.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    outside: int
    group_runs: tuple[GroupRun, ...]
    cost_settings: Mapping[str, CostSetting]
    threads: int
    kept: NDArray[np.bool_] | None = field(default=None, repr=False)

    @cached_property
    def configs(self) -> int:
        """How many configs the plan trains."""
        return sum(group_run.groups * group_run.configs for group_run in self.group_runs)

    @cached_property
    def packs(self) -> int:
        """How many packs the plan has."""
        return sum(group_run.groups * group_run.packs_per_group for group_run in self.group_runs)

    @cached_property
    def group_costs(self) -> NDArray[np.float64]:
        """The estimated cost of one config of each group that trains, (groups,)."""
        group_shape = tuple(self.shape[axis] for axis in self.order[: self.outside])
        settings = _by_group(self.cost_settings, self.order[: self.outside], group_shape)
        costs = _costs(settings)
        if self.kept is None:
            return costs
        return costs[self.kept.reshape(len(costs), -1).any(axis=1)]

    @cached_property
    def pack_costs(self) -> NDArray[np.float64]:
        """The estimated cost of each pack, (packs,)."""
        return np.asarray(self.pack_sizes * np.repeat(self.group_costs, self._packs_by_group))

    @cached_property
    def pack_sizes(self) -> NDArray[np.int64]:
        """How many configs each pack has, (packs,)."""
        return np.diff(self._bounds)

    @cached_property
    def _packs_by_group(self) -> NDArray[np.int64]:
        counts = [group_run.packs_per_group for group_run in self.group_runs]
        return np.repeat(np.array(counts, int), [group_run.groups for group_run in self.group_runs])

    @cached_property
    def _bounds(self) -> NDArray[np.int64]:
        """The rank at which each pack starts, and that at which the last one stops, (packs + 1,).

        Packs of a group are of nearly equal size, so that none is much slower than another.
        """
        bounds, start = [np.zeros(1, dtype=np.int64)], 0
        for group_run in self.group_runs:
            n = group_run.packs_per_group
            inner = np.arange(1, n + 1) * group_run.configs // n
            outer = np.arange(group_run.groups) * group_run.configs
            bounds.append(start + (outer[:, None] + inner[None, :]).ravel())
            start += group_run.groups * group_run.configs
        return np.concatenate(bounds)

    @property
    def cost(self) -> float:
        """The estimated cost of all packs, in FLOPs."""
        return float(self.pack_costs.sum())

    def pack(self, number: int) -> PackRange:
        """Return one pack by its number."""
        start, stop = self._bounds[number : number + 2].tolist()
        return PackRange(number, start, stop, float(self.pack_costs[number]))

    def __iter__(self) -> Iterator[PackRange]:
        """Iterate over all packs."""
        return (self.pack(number) for number in range(self.packs))

    @cached_property
    def _ordered_indices(self) -> NDArray[np.int64] | None:
        """By rank, the flat index into the product in plan order; None where they are equal."""
        return None if self.kept is None else np.flatnonzero(self.kept)

    def indices(self, pack: PackRange) -> NDArray[np.int64]:
        """Return the flat indices into the product, (K,) int64, of a pack's configs."""
        return self._indices(np.arange(pack.start, pack.stop))

    @property
    def first_indices(self) -> NDArray[np.int64]:
        """The flat index into the product of the first config of each pack, (packs,) int64."""
        return self._indices(self._bounds[:-1])

    def _indices(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the flat indices into the product of ranks."""
        ordered = ranks if self._ordered_indices is None else self._ordered_indices[ranks]
        if not self.shape:
            return ordered
        by_place = np.unravel_index(ordered, tuple(self.shape[axis] for axis in self.order))
        by_axis = [by_place[self.order.index(axis)] for axis in range(len(self.shape))]
        return np.asarray(np.ravel_multi_index(by_axis, self.shape), dtype=np.int64)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plan.json holds it."""
        return {
            "configs": self.configs,
            "packs": self.packs,
            "shape": list(self.shape),
            "order": list(self.order),
            "outside": self.outside,
            "group_runs": [[s.groups, s.configs, s.pack_size] for s in self.group_runs],
            "cost_settings": {
                name: [setting.axis, list(setting.values)]
                for name, setting in self.cost_settings.items()
            },
            "threads": self.threads,
            "kept": None if self.kept is None else encode_mask(self.kept),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Plan:
        """Return the plan that :meth:`to_json` wrote."""
        kept = None
        if content["kept"]:
            kept = decode_mask(content["kept"], math.prod(content["shape"]))
        return cls(
            shape=tuple(content["shape"]),
            order=tuple(content["order"]),
            outside=content["outside"],
            group_runs=tuple(GroupRun(*entry) for entry in content["group_runs"]),
            cost_settings={
                name: CostSetting(tuple(values), axis)
                for name, (axis, values) in content["cost_settings"].items()
            },
            threads=content["threads"],
            kept=kept,
        )


def make_plan(
    sweep: Sweep,
    max_tasks: int,
    threads: int,
    finished: NDArray[np.int64] | None = None,
    memory: int | None = None,
) -> Plan:
    """Plan a sweep for a number of tasks that train at the same time.

    Args:
        max_tasks: how many; a group that carries much of the cost is cut so that all of them get a
            share of it.
        threads: CPU threads of each task.
        finished: indices of configs whose results are known already.
        memory: bytes free on the GPU of each task; None where tasks train on CPUs.
    """
    axes = sweep.product.axes
    outside = [i for i, axis in enumerate(axes) if not _stacks(axis)]
    # What sets the size of packs goes outermost: few group_runs, however many groups.
    outside.sort(key=lambda i: not {"width", "depth"} & set(axes[i].names))
    inside = [i for i, axis in enumerate(axes) if _stacks(axis)]
    group_shape = tuple(len(axes[i]) for i in outside)
    group_size = math.prod(len(axes[i]) for i in inside)
    kept = _kept(sweep, outside + inside, finished)
    counts = np.full(math.prod(group_shape), group_size)
    if kept is not None:
        counts = kept.reshape(-1, group_size).sum(axis=1)
    cost_settings = {name: _cost_setting(sweep, name) for name in COST_SETTINGS}
    settings = _by_group(cost_settings, outside, group_shape)
    sizes = _pack_sizes(sweep.base, settings, counts, max_tasks, memory)
    return Plan(
        shape=sweep.product.shape,
        order=tuple(outside + inside),
        outside=len(outside),
        group_runs=tuple(_run_lengths(counts, sizes)),
        cost_settings=cost_settings,
        threads=threads,
        kept=kept,
    )


def _stacks(axis: Axis) -> bool:
    """Return whether configs that differ along an axis can share a pack.

    Arguments of functions can: where they turn out to change shapes, the task trains the pack as
    several stacks.
    """
    return all(name in STACKED or name not in Hyperparameters.model_fields for name in axis.names)


def _kept(
    sweep: Sweep, order: Sequence[int], finished: NDArray[np.int64] | None
) -> NDArray[np.bool_] | None:
    """Return which configs to train, over the product in plan order; None for all."""
    if sweep.included is None and (finished is None or not len(finished)):
        return None
    wanted = np.ones(sweep.product.size, bool) if sweep.included is None else sweep.included.copy()
    if finished is not None:
        wanted[finished] = False
    kept = np.zeros(sweep.product.size, dtype=bool)
    kept[sweep.product.transposed(np.flatnonzero(wanted), order)] = True
    return kept


def _cost_setting(sweep: Sweep, name: str) -> CostSetting:
    if name == "d":
        return CostSetting((float(_known_inputs(sweep)),))
    for i, axis in enumerate(sweep.product.axes):
        if name in axis.names:
            values = axis.values(name)
            return CostSetting(tuple(_as_number(name, v, sweep.base) for v in values), i)
    return CostSetting((_as_number(name, getattr(sweep.base, name), sweep.base),))


def _known_inputs(sweep: Sweep) -> int:
    """Return the input dimensions that the spec gives as ``d``, or an assumption."""
    bound = getattr(sweep.data, "keywords", {}).get("d")
    named = (sweep.arguments.get("d"), sweep.base.datasethps.get("d"), bound)
    return next((d for d in named if isinstance(d, int)), ASSUMED_INPUTS)


def _as_number(name: str, value: Any, base: Hyperparameters) -> float:
    """Return a setting as a number.

    A schedule of N events is the mean number of steps between them; an optimizer is 1 where it
    trains a whole pack at once, 0 where it is a class of torch.optim.
    """
    if name == "optimizer":
        return float(isinstance(value, str) and value in OPTIMIZERS)
    if isinstance(value, str):
        return max(1.0, base.max_iter / (log_spaced(value) or 1))
    return float(value)


def _by_group(
    settings: Mapping[str, CostSetting], outside: Sequence[int], group_shape: tuple[int, ...]
) -> dict[str, NDArray[np.float64]]:
    """Return the value of each setting in each group, (groups,)."""
    found: dict[str, NDArray[np.float64]] = {}
    for name, setting in settings.items():
        values = np.array(setting.values)
        if setting.axis is not None:
            along = [1] * len(group_shape)
            along[list(outside).index(setting.axis)] = len(values)
            values = values.reshape(along)
        found[name] = np.broadcast_to(values, group_shape or (1,)).ravel()
    return found


def _weights(settings: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the weights of one model, (groups,): d w + (depth - 1) w^2 + w."""
    width = settings["width"]
    return settings["d"] * width + (settings["depth"] - 1) * width**2 + width


def _costs(settings: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the cost of one config, (groups,), in FLOPs.

    A forward pass costs 2 per weight and sample, a backward pass twice that; centring costs one
    more forward pass online, and the test set one per evaluation offline.
    """
    weights = _weights(settings)
    online = settings["online"]
    train = (6 + 2 * online) * settings["n_samples"] * weights
    test = (1 - online) * 2 * settings["n_test"] * weights / settings["eval_every"]
    return np.asarray(settings["max_iter"] * (train + test + STEP_OVERHEAD))


def _pack_sizes(
    base: Hyperparameters,
    settings: Mapping[str, NDArray[np.float64]],
    counts: NDArray[np.int64],
    max_tasks: int,
    memory: int | None,
) -> NDArray[np.int64]:
    """Return the configs per pack of each group, (groups,)."""
    one_by_one = settings["optimizer"] == 0
    if base.pack_size != "auto":
        return np.where(one_by_one, 1, int(base.pack_size))
    weights = _weights(settings)
    sizes = _cached(weights, settings) if memory is None else fitting(memory, weights, settings)
    costs = counts * _costs(settings)
    expensive = costs * max_tasks > 0.5 * costs.sum()
    shared = np.minimum(sizes, np.maximum(1, -(-counts // max_tasks)))
    return np.where(one_by_one, 1, np.where(expensive, shared, sizes))


def _cached(
    weights: NDArray[np.float64], settings: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.int64]:
    """Return how many configs are to train together on a CPU, (groups,)."""
    samples = np.maximum(settings["n_samples"], (1 - settings["online"]) * settings["n_test"])
    activations = samples * settings["width"] * settings["depth"]
    sizes = np.minimum(STACKED_WEIGHTS // weights, STACKED_ACTIVATIONS // activations)
    return np.clip(sizes, 1, LARGEST_PACK).astype(np.int64)


def _run_lengths(counts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Iterator[GroupRun]:
    """Run-length encode the groups; those with nothing to train are left out."""
    table = np.stack([counts, sizes], axis=1)[counts > 0]
    changes = np.flatnonzero((table[1:] != table[:-1]).any(axis=1)) + 1
    for start, stop in itertools.pairwise([0, *changes.tolist(), len(table)]):
        if stop > start:
            yield GroupRun(stop - start, *table[start].tolist())


def cut(numbers: NDArray[np.int64], costs: NDArray[np.float64], tasks: int) -> list[list[Range]]:
    """Cut packs into slices of nearly equal cost.

    Args:
        numbers: (n,) pack numbers, ascending.
        costs: (n,) their estimated costs.
        tasks: how many slices at most.

    Returns:
        One list of ranges of pack numbers per slice, the most expensive packs first; no slice is
        empty.
    """
    slices: list[list[Range]] = [[] for _ in range(tasks)]
    loads = np.zeros(tasks)
    # Costs are estimates: within 1% they count as equal, which keeps slices in long ranges.
    level = np.round(np.log(np.maximum(costs, 1.0)) * 100).astype(np.int64)
    for value in np.unique(level)[::-1]:
        equal = numbers[level == value]
        shares = _shares(loads, len(equal), float(np.exp(value / 100)))
        for task, share in enumerate(np.split(equal, np.cumsum(shares)[:-1])):
            slices[task] += _ranges(share)
    return [ranges for ranges in slices if ranges]


def _shares(loads: NDArray[np.float64], count: int, cost: float) -> NDArray[np.int64]:
    """Share ``count`` packs of equal cost out so that the loads become as even as they can.

    Each task takes what lifts its load to the common level.

    Args:
        loads: (tasks,) the cost that each task has; its share is added here.

    Returns:
        How many packs each task gets, (tasks,).
    """
    low, high = loads.min(), loads.max() + count * cost
    for _ in range(64):  # bisection of the common level
        middle = (low + high) / 2
        filled = np.maximum(0, np.floor((middle - loads) / cost)).sum()
        low, high = (middle, high) if filled <= count else (low, middle)
    shares = np.maximum(0, np.floor((low - loads) / cost)).astype(np.int64)
    rest = count - int(shares.sum())
    shares[np.argsort(loads + shares * cost, kind="stable")[:rest]] += 1
    loads += shares * cost
    return np.asarray(shares)


def _ranges(numbers: NDArray[np.int64]) -> list[Range]:
    """Return ascending numbers as half-open ranges."""
    if not len(numbers):
        return []
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    starts = numbers[np.concatenate([[0], breaks])]
    stops = numbers[np.concatenate([breaks - 1, [len(numbers) - 1]])] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))
