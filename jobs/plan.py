"""From a product of axes to packs, and from packs to slices of equal cost.

The axes are put in a fixed order: those that change the shapes of tensors outside, those whose
configs can share a pack inside. In this plan order configs of equal shapes form one contiguous
*group*, also those of a zipped axis, wherever they stand on it (:mod:`.store.plan_order`). The
*rank* of a config is its position in plan order among the configs that train, and a pack is a range
of ranks within a group. So a plan is a few numbers however large the product is; besides, for each
point of a zipped axis of shapes, a few bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.arguments import declared, takes_all
from mlpsubmit.errors import SpecError
from mlpsubmit.jobs.pack_memory import config_bytes, evaluates_test_set, fitting
from mlpsubmit.jobs.store.masks import decode_mask, encode_classes, encode_mask
from mlpsubmit.jobs.store.plan_order import PlanOrder
from mlpsubmit.jobs.store.records import MOST_PACKS, PlanRecord, order_of
from mlpsubmit.spec.fingerprint import setting_digest
from mlpsubmit.spec.hyperparameters import OPTIMIZERS, STACKED, Hyperparameters
from mlpsubmit.spec.product import Axis
from mlpsubmit.spec.setting_types import log_spaced
from mlpsubmit.spec.sweep import Sweep

__all__ = ["PackRange", "Plan", "Range", "cut", "make_plan", "pack_file_name"]

#: Weights that one stack may hold on a CPU: beyond it, more configs gain nothing.
STACKED_WEIGHTS = 1 << 22
LARGEST_PACK = 64

#: Activations that one stack may hold, of its largest set of samples: 256 MiB in fp32.
STACKED_ACTIVATIONS = 1 << 26

#: Fixed cost of one step of one config, in FLOPs: what packing saves.
STEP_OVERHEAD = 2e5

#: Matrix products of a step of Muon, per hidden matrix: three per iteration.
MUON_PRODUCTS = 3 * 5

#: Input dimensions assumed for the cost of a sweep whose spec does not give ``d``.
ASSUMED_INPUTS = 64

#: The width assumed, on a CPU, of a custom model that does not take it. (On a GPU, where a pack
#: that is too large has to be trained again, it is the default, the largest.)
ASSUMED_WIDTH = 256

#: What the cost of a config is estimated from: settings; N of EVAL_EVERY="log:N"; and whether
#: METRIC_THRESHOLDS has one of the test set.
COST_SETTINGS = (
    *("d", "width", "depth", "n_samples", "n_test", "max_iter", "online", "precision", "optimizer"),
    *("eval_every", "log_spaced_evaluations", "test_thresholds"),
)

#: The settings that those are read from, where they are called otherwise.
_READ_FROM = {"log_spaced_evaluations": "eval_every", "test_thresholds": "metric_thresholds"}

Range = tuple[int, int]

#: A setting that cost depends on: an axis of the product and the setting's value in each of its
#: classes, or None and the one value.
CostSetting = tuple[int | None, list[float]]


def pack_file_name(number: int) -> str:
    """Return the name of a pack in files."""
    return f"{number:07d}"


@dataclass(frozen=True)
class PackRange:
    """Configs that train together: those of the ranks ``start`` to ``stop``.

    Attributes:
        number: its pack number.
        cost: the estimated cost of its configs, in FLOPs.
    """

    number: int
    start: int
    stop: int
    cost: float

    @property
    def name(self) -> str:
        """The name of the pack in files."""
        return pack_file_name(self.number)


@dataclass(frozen=True)
class Plan:
    """The packs of a sweep: the configs that train together.

    Attributes:
        order: the order of the points of the product, and the groups.
        pack_limits: (groups,) configs per pack at most in each group, in plan order.
        cost_settings: the settings from which costs are computed.
        threads: CPU threads that a task of this plan computes with; part of the plan, since the
            rounding of a matrix product can depend on it.
        kept: (size,) bool over the product in plan order, the configs to train; None for all.
    """

    order: PlanOrder
    pack_limits: NDArray[np.int64] = field(repr=False)
    cost_settings: Mapping[str, CostSetting]
    threads: int
    kept: NDArray[np.bool_] | None = field(default=None, repr=False)

    @cached_property
    def _group_configs(self) -> NDArray[np.int64]:
        """How many configs of each group train, (groups,)."""
        return self.order.group_sizes if self.kept is None else self.order.group_counts(self.kept)

    @cached_property
    def _group_packs(self) -> NDArray[np.int64]:
        """How many packs each group is cut into, (groups,)."""
        return np.asarray(-(-self._group_configs // self.pack_limits))

    @property
    def configs(self) -> int:
        """How many configs the plan trains."""
        return int(self._group_configs.sum())

    @property
    def packs(self) -> int:
        """How many packs the plan has."""
        return len(self._bounds) - 1

    @cached_property
    def _group_settings(self) -> dict[str, NDArray[np.float64]]:
        """The settings that cost and memory depend on, each (groups,)."""
        return _by_group(self.cost_settings, self.order)

    @cached_property
    def pack_costs(self) -> NDArray[np.float64]:
        """The estimated cost of each pack, (packs,)."""
        costs = _costs(self._group_settings)
        return np.asarray(self.pack_sizes * np.repeat(costs, self._group_packs))

    @cached_property
    def pack_bytes(self) -> NDArray[np.float64]:
        """The estimated memory of each pack on a GPU, (packs,)."""
        settings = self._group_settings
        each = config_bytes(_weights(settings), settings)
        return np.asarray(self.pack_sizes * np.repeat(each, self._group_packs))

    @property
    def weights(self) -> float:
        """The number of weights of all configs that the plan trains, if they are MLPs."""
        each = np.repeat(_weights(self._group_settings), self._group_packs)
        return float((self.pack_sizes * each).sum())

    @cached_property
    def pack_sizes(self) -> NDArray[np.int64]:
        """How many configs each pack has, (packs,)."""
        return np.diff(self._bounds)

    @cached_property
    def _bounds(self) -> NDArray[np.int64]:
        """The rank at which each pack starts, and that at which the last one stops, (packs + 1,).

        Packs of a group are of nearly equal size, so that none is much slower than another.
        """
        configs, packs = self._group_configs, self._group_packs
        starts = [np.cumsum(counts) - counts for counts in (configs, packs)]
        # Of the group of each pack: its first rank, its first pack, its configs and its packs.
        rank, first, size, count = (np.repeat(v, packs) for v in (*starts, configs, packs))
        stops = rank + (np.arange(len(first)) - first + 1) * size // count
        return np.concatenate([np.zeros(1, np.int64), stops])

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
    def _kept_places(self) -> NDArray[np.int64] | None:
        """By rank, the place in plan order; None if they are equal."""
        return None if self.kept is None else np.flatnonzero(self.kept)

    def indices(self, pack: PackRange) -> NDArray[np.int64]:
        """Return the flat indices into the product, (K,) int64, of a pack's configs."""
        return self._indices(np.arange(pack.start, pack.stop))

    def indices_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the flat indices into the product, (n,) int64, of all configs of some packs."""
        chosen = np.zeros(self.packs, dtype=bool)
        chosen[numbers] = True
        return self._indices(np.flatnonzero(np.repeat(chosen, self.pack_sizes)))

    def pack_of(self, index: int) -> PackRange | None:
        """Return the pack of a config, by its flat index; None if the plan does not train it."""
        ranks = np.flatnonzero(self._indices(np.arange(self.configs)) == index)
        if not len(ranks):
            return None
        return self.pack(int(np.searchsorted(self._bounds, ranks[0], side="right")) - 1)

    @property
    def first_indices(self) -> NDArray[np.int64]:
        """The flat index into the product of the first config of each pack, (packs,) int64."""
        return self._indices(self._bounds[:-1])

    def _indices(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the flat indices into the product of ranks."""
        return self.order.points(ranks if self._kept_places is None else self._kept_places[ranks])

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plan.json holds it."""
        return {
            "configs": self.configs,
            "packs": self.packs,
            "shape": list(self.order.shape),
            "order": list(self.order.axes),
            "outside": self.order.outside,
            "classes": {str(n): encode_classes(c) for n, c in self.order.classes.items()},
            "pack_limits": [
                [len(list(equal)), limit] for limit, equal in groupby(self.pack_limits.tolist())
            ],
            "cost_settings": {
                name: {"axis": axis, "values": values}
                for name, (axis, values) in self.cost_settings.items()
            },
            "threads": self.threads,
            "kept": None if self.kept is None else encode_mask(self.kept),
        }

    @classmethod
    def from_json(cls, content: PlanRecord) -> Plan:
        """Return the plan that :meth:`to_json` wrote."""
        kept = None
        if content["kept"]:
            kept = decode_mask(content["kept"], math.prod(content["shape"]))
        counts, limits = np.array(content["pack_limits"]).T
        settings: Mapping[str, Any] = dict(content["cost_settings"])
        return cls(
            order=order_of(content),
            pack_limits=np.repeat(limits, counts),
            cost_settings={
                name: (setting["axis"], setting["values"]) for name, setting in settings.items()
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
        max_tasks: the number of tasks; a group with much of the cost is cut so that each gets a
            share of it.
        threads: CPU threads of each task.
        finished: indices of configs whose results are known already.
        memory: bytes free on the GPU of each task; None if tasks train on CPUs.

    Raises:
        SpecError: there would be too many packs.
    """
    axes = sweep.product.axes
    outside = [i for i, axis in enumerate(axes) if not _stacks(axis)]
    # The axes that set the limits go outermost: runs of equal limits are then long.
    outside.sort(key=lambda i: not {"width", "depth"} & set(axes[i].names))
    inside = [i for i, axis in enumerate(axes) if _stacks(axis)]
    classes = {i: found for i in outside if (found := _shape_classes(axes[i])) is not None}
    order = PlanOrder(sweep.product.shape, (*outside, *inside), len(outside), classes)
    kept = _kept(sweep, order, finished)
    counts = order.group_sizes if kept is None else order.group_counts(kept)
    cost_settings = {name: _cost_setting(sweep, name, classes) for name in COST_SETTINGS}
    if memory is None and not _takes_width(sweep):
        cost_settings["width"] = (None, [float(ASSUMED_WIDTH)])
    settings = _by_group(cost_settings, order)
    plan = Plan(
        order=order,
        pack_limits=_pack_limits(sweep.base, settings, counts, max_tasks, memory),
        cost_settings=cost_settings,
        threads=threads,
        kept=kept,
    )
    if plan.packs > MOST_PACKS:
        raise SpecError(
            f"PACK_SIZE: the sweep would be cut into {plan.packs} packs, and a run may have "
            f"{MOST_PACKS}; make packs larger, or divide the sweep"
        )
    return plan


def _stacks(axis: Axis) -> bool:
    """Return whether configs that differ along an axis can share a pack.

    Arguments of functions can: if they turn out to change shapes, the task trains the pack as
    several stacks.
    """
    return not any(map(_distinguishes, axis.names))


def _distinguishes(name: str) -> bool:
    """Return whether configs that differ in a setting cannot share a pack."""
    return name in Hyperparameters.model_fields and name not in STACKED


def _shape_classes(axis: Axis) -> NDArray[np.int64] | None:
    """Return which points of an axis can share a pack, as class numbers; None if no two can."""
    columns = [column for column, name in enumerate(axis.names) if _distinguishes(name)]
    if len(columns) == len(axis.names):  # no point appears twice
        return None
    numbers: dict[Any, int] = {}
    classes = np.empty(len(axis), np.int64)
    for index, point in enumerate(axis.points):
        values = [point[column] for column in columns]
        plain = all(type(value) in (int, float, str) for value in values)  # a million times
        content = tuple(values) if plain else setting_digest(*values)
        classes[index] = numbers.setdefault(content, len(numbers))
    return classes if len(numbers) < len(axis) else None


def _kept(
    sweep: Sweep, order: PlanOrder, finished: NDArray[np.int64] | None
) -> NDArray[np.bool_] | None:
    """Return which configs to train, over the product in plan order; None for all."""
    if sweep.included is None and (finished is None or not len(finished)):
        return None
    wanted = np.ones(sweep.product.size, bool) if sweep.included is None else sweep.included.copy()
    if finished is not None:
        wanted[finished] = False
    kept = np.zeros(sweep.product.size, dtype=bool)
    kept[order.places(np.flatnonzero(wanted))] = True
    return kept


def _cost_setting(sweep: Sweep, name: str, classes: Mapping[int, NDArray[np.int64]]) -> CostSetting:
    if name == "d":
        return None, [float(_known_inputs(sweep))]
    setting = _READ_FROM.get(name, name)
    for i, axis in enumerate(sweep.product.axes):
        if setting in axis.names:
            values = axis.values(setting)
            if i in classes:  # every setting that cost depends on is equal in a class
                _, firsts = np.unique(classes[i], return_index=True)
                values = tuple(values[first] for first in firsts.tolist())
            return i, [_as_number(name, value) for value in values]
    return None, [_as_number(name, getattr(sweep.base, setting))]


def _takes_width(sweep: Sweep) -> bool:
    """Return whether WIDTH says how large the models are."""
    model, given = sweep.base.model, {name for axis in sweep.product.axes for name in axis.names}
    given |= sweep.base.model_fields_set
    if not callable(model) or "width" in given:
        return True
    return "width" in declared(model) or takes_all(model)


def _known_inputs(sweep: Sweep) -> int:
    """Return the input dimensions that the spec gives as ``d``, or an assumption."""
    bound = getattr(sweep.data, "keywords", {}).get("d")
    named = (sweep.arguments.get("d"), sweep.base.datasethps.get("d"), bound)
    return next((d for d in named if isinstance(d, int)), ASSUMED_INPUTS)


def _as_number(name: str, value: Any) -> float:
    """Return a setting as a number.

    An optimizer is 1 if it trains a whole pack at once, 2 if that is muon, 0 if it is a class of
    torch.optim; a precision is bytes per number; what is not set is 0.
    """
    if name == "precision":
        return 8.0 if value == "fp64" else 4.0
    if name == "optimizer":
        return 2.0 if value == "muon" else float(isinstance(value, str) and value in OPTIMIZERS)
    if name == "test_thresholds":
        return float(any(key.startswith("test_") for key in value))
    if name == "log_spaced_evaluations":
        return float(log_spaced(value) or 0)
    return 0.0 if isinstance(value, str) else float(value or 0)


def _by_group(
    settings: Mapping[str, CostSetting], order: PlanOrder
) -> dict[str, NDArray[np.float64]]:
    """Return the value of each setting in each group, (groups,)."""
    found: dict[str, NDArray[np.float64]] = {}
    for name, (axis, listed) in settings.items():
        values = np.array(listed)
        if axis is not None:
            along = [1] * order.outside
            along[order.axes.index(axis)] = len(values)
            values = values.reshape(along)
        found[name] = np.broadcast_to(values, order.group_shape or (1,)).ravel()
    return found


def _weights(settings: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the weights of one model, (groups,): d w + (depth - 1) w^2 + w."""
    width = settings["width"]
    return settings["d"] * width + (settings["depth"] - 1) * width**2 + width


def _costs(settings: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the cost of one config, (groups,), in FLOPs.

    A forward pass costs 2 per weight and sample, a backward pass twice that; centring costs one
    more forward pass online, and each evaluation of the test loss one on the test set. Muon makes
    three products of hidden matrices in each step of its iteration.
    """
    weights = _weights(settings)
    online = settings["online"]
    train = (6 + 2 * online) * settings["n_samples"] * weights
    test = 2 * settings["n_test"] * weights * _evaluations(settings)
    muon = MUON_PRODUCTS * 2 * (settings["depth"] - 1) * settings["width"] ** 3
    update = (settings["optimizer"] == 2) * muon
    return np.asarray(settings["max_iter"] * (train + update + STEP_OVERHEAD) + test)


def _evaluations(settings: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return how often a config evaluates the test set, (groups,)."""
    steps, log_spaced = settings["max_iter"], settings["log_spaced_evaluations"]
    regularly = steps / np.maximum(settings["eval_every"], 1)
    often = np.where(log_spaced > 0, np.minimum(log_spaced, steps), regularly)
    return np.asarray(often * evaluates_test_set(settings))


def _pack_limits(
    base: Hyperparameters,
    settings: Mapping[str, NDArray[np.float64]],
    counts: NDArray[np.int64],
    max_tasks: int,
    memory: int | None,
) -> NDArray[np.int64]:
    """Return the configs per pack at most in each group, (groups,)."""
    one_by_one = settings["optimizer"] == 0
    if base.pack_size != "auto":
        return np.where(one_by_one, 1, int(base.pack_size))
    weights = _weights(settings)
    sizes = _cached(weights, settings) if memory is None else fitting(memory, weights, settings)
    costs = counts * _costs(settings)
    expensive = costs * max_tasks > 0.5 * costs.sum()
    # As many packs for each task: three of a size for two tasks would take as long as four.
    rounds = np.maximum(1, -(-counts // (sizes * max_tasks)))
    shared = np.minimum(sizes, np.maximum(1, -(-counts // (rounds * max_tasks))))
    return np.where(one_by_one, 1, np.where(expensive, _evened(shared, counts, max_tasks), sizes))


def _evened(limits: NDArray[np.int64], counts: NDArray[np.int64], tasks: int) -> NDArray[np.int64]:
    """Return slightly smaller packs where these can be shared out more evenly, (groups,).

    32 configs are 11 packs of three at most, so one of two tasks would get six of them, and the
    other five; of packs of two each gets eight. Smaller packs cost a little, so the largest share
    has to become 2% smaller at least.
    """
    best, least = limits, np.minimum(limits, np.maximum(2, (limits + 1) // 2))
    for fewer in range(1, 4):
        smaller = np.maximum(least, limits - fewer)
        gains = _largest_share(smaller, counts, tasks) < 0.98 * _largest_share(best, counts, tasks)
        best = np.where(gains, smaller, best)
    return best


def _largest_share(
    limits: NDArray[np.int64], counts: NDArray[np.int64], tasks: int
) -> NDArray[np.int64]:
    """Return how many configs a task gets at most, (groups,)."""
    packs = np.maximum(1, -(-counts // limits))
    return np.asarray(-(-(-(-packs // tasks) * counts) // packs))


def _cached(
    weights: NDArray[np.float64], settings: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.int64]:
    """Return how many configs are to train together on a CPU, (groups,)."""
    test_samples = evaluates_test_set(settings) * settings["n_test"]
    samples = np.maximum(settings["n_samples"], test_samples)
    activations = samples * settings["width"] * settings["depth"]
    sizes = np.minimum(STACKED_WEIGHTS // weights, STACKED_ACTIVATIONS // activations)
    return np.clip(sizes, 1, LARGEST_PACK).astype(np.int64)


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
            slices[task] += ranges_of(share)
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


def ranges_of(numbers: NDArray[np.int64]) -> list[Range]:
    """Return ascending numbers as half-open ranges."""
    if not len(numbers):
        return []
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    starts = numbers[np.concatenate([[0], breaks])]
    stops = numbers[np.concatenate([breaks - 1, [len(numbers) - 1]])] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))
