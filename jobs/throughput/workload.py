"""Workloads: everything that the speed of a training depends on, besides its device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.arguments import function_name
from mlpsubmit.jobs.plan import Plan
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.schedules import Schedule

__all__ = ["Workload", "Workloads", "workloads_of"]

#: The fixed cost of one step of a stack in floating-point operations: kernel launches and Python,
#: some tenths of a millisecond. For a small model that trains alone, they are its whole step.
STACK_OVERHEAD = 2e7

#: Hyperparameters that make workloads differ; an axis of any other does not.
SPEED_SETTINGS = frozenset(
    {
        *("width", "depth", "n_samples", "n_test", "max_iter", "online", "eval_every"),
        *("optimizer", "precision", "model", "loss", "onlythresholds", "grab_every"),
    }
)


@dataclass(frozen=True)
class Workload:
    """The type of a pack: packs of equal workloads train at the same speed on the same device.

    Attributes:
        model, batchfn: the names of the functions; ``mlp`` for the default model.
        optimizer, precision: the hyperparameters.
        online: whether every step draws a batch.
        grabs: the names of the grabs, and how often they are called.
        width, depth, samples: the hyperparameters WIDTH, DEPTH and N_SAMPLES.
        tests: rows of the test set per step, on average.
        configs: the number of configs that the plan trains together.
        cost: the plan's estimate for one model-step, in floating-point operations.
    """

    model: str
    batchfn: str
    optimizer: str
    precision: str
    online: bool
    grabs: str
    width: int
    depth: int
    samples: int
    tests: float
    configs: int
    cost: float

    @classmethod
    def of(cls, sweep: Sweep, config: Config, configs: int, cost: float) -> Workload:
        """Return the workload of a pack.

        Args:
            config: any of its configs.
            configs: the number of its configs.
            cost: of the whole pack, as the plan has it.
        """
        h = config.hyperparameters
        evaluations = Schedule(h.test_every, h.max_iter).count
        return cls(
            model=_name(h.model),
            batchfn=function_name(sweep.batchfn),
            optimizer=_name(h.optimizer),
            precision=h.precision,
            online=h.online,
            grabs=_grabs(sweep, h),
            width=h.width,
            depth=h.depth,
            samples=h.n_samples,
            tests=_rounded(h.n_test * evaluations / h.max_iter),
            configs=configs,
            cost=_rounded(cost / (configs * h.max_iter)),
        )

    @property
    def work(self) -> float:
        """Operations of one model-step, with its share of the fixed cost of a stack's step."""
        return self.cost + STACK_OVERHEAD / self.configs


@dataclass(frozen=True)
class Workloads:
    """The workloads of a plan's packs, one for each workload and MAX_ITER.

    Attributes:
        workloads: the workloads.
        steps: (workloads,) MAX_ITER of each.
        of_pack: (packs,) the index of each pack's workload.
    """

    workloads: list[Workload]
    steps: NDArray[np.int64]
    of_pack: NDArray[np.int64]


def workloads_of(plan: Plan, sweep: Sweep) -> Workloads:
    """Return the workloads of a plan, in time and memory linear in its packs, not its configs."""
    axes = [
        number
        for number, axis in enumerate(sweep.product.axes)
        if not SPEED_SETTINGS.isdisjoint(axis.names)
    ]
    firsts, classes = plan.first_indices, plan.pack_sizes
    order = plan.order
    points = np.unravel_index(firsts, order.shape) if order.shape else ()
    for axis in axes:
        of_axis = points[axis]
        if axis in order.classes:  # no speed depends on a setting that is not equal in a class
            of_axis = order.classes[axis][of_axis]
        classes = classes * order.shape[axis] + of_axis
    _, examples, of_pack = np.unique(classes, return_index=True, return_inverse=True)
    workloads, steps = [], []
    for number in examples.tolist():
        config = sweep.config(int(firsts[number]))
        size, cost = int(plan.pack_sizes[number]), float(plan.pack_costs[number])
        workloads.append(Workload.of(sweep, config, size, cost))
        steps.append(config.hyperparameters.max_iter)
    return Workloads(workloads, np.array(steps, np.int64), of_pack)


def _name(value: Any) -> str:
    return value if isinstance(value, str) else function_name(value)


def _grabs(sweep: Sweep, h: Hyperparameters) -> str:
    names = ", ".join(sorted({*sweep.grabs, *h.other_model_grabs}))
    if not names:
        return ""
    return f"{names} at the end" if h.onlythresholds else f"{names} every {h.grab_every}"


def _rounded(number: float) -> float:
    """Return a number to six digits: equal in every process, independent of the order of sums."""
    return float(f"{number:.6g}") if math.isfinite(number) else number
