"""Kinds of packs: what the speed of a training depends on, next to its device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.arguments import function_name
from mlpsubmit.jobs.plan import Plan
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.schedules import Schedule

__all__ = ["Kinds", "Workload", "kinds_of"]

#: What one step of a stack costs whatever its size, in floating-point operations: the calls
#: themselves, some tenths of a millisecond. Where one config trains alone, they are its step.
STACK_OVERHEAD = 2e7

#: Hyperparameters that make kinds differ; an axis of any other does not.
SPEED_SETTINGS = frozenset(
    {
        *("width", "depth", "n_samples", "n_test", "max_iter", "online", "eval_every"),
        *("optimizer", "precision", "model", "loss", "onlythresholds", "grab_every"),
    }
)


@dataclass(frozen=True)
class Workload:
    """Packs that train at the same speed on the same device.

    Attributes:
        model, batchfn: the names of the functions; ``mlp`` for the default network.
        optimizer, precision: as the hyperparameters say.
        online: whether every step draws a batch.
        grabs: the names of the grabs, and how often they are called.
        width, depth, samples: of the hyperparameters WIDTH, DEPTH and N_SAMPLES.
        tests: rows of the test set per step, on average.
        configs: how many the plan trains together.
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
        """Return the kind of a pack.

        Args:
            config: any of its configs.
            configs: how many it has.
            cost: of the whole pack, as the plan has it.
        """
        h = config.hyperparameters
        evaluations = Schedule(h.eval_every, h.max_iter).count
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
            tests=0.0 if h.online else _rounded(h.n_test * evaluations / h.max_iter),
            configs=configs,
            cost=_rounded(cost / (configs * h.max_iter)),
        )

    @property
    def work(self) -> float:
        """What time grows with: the operations of one model-step, and its share of the calls."""
        return self.cost + STACK_OVERHEAD / self.configs

    def to_json(self) -> dict[str, Any]:
        """Return the kind as a heartbeat holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Workload | None:
        """Return the kind that :meth:`to_json` wrote; None where another version wrote it."""
        names = {field.name for field in fields(cls)}
        return cls(**content) if content.keys() == names else None


@dataclass(frozen=True)
class Kinds:
    """The kinds of packs that a plan has.

    Attributes:
        kinds: each of them once.
        steps: (kinds,) MAX_ITER of each.
        examples: (kinds,) the number of a pack of each.
        which: (packs,) the place of each pack's kind among ``kinds``.
    """

    kinds: list[Workload]
    steps: NDArray[np.int64]
    examples: NDArray[np.int64]
    which: NDArray[np.int64]


def kinds_of(plan: Plan, sweep: Sweep) -> Kinds:
    """Return the kinds of packs of a plan: in time and memory linear in the packs, not configs."""
    axes = [
        place
        for place, a in enumerate(sweep.product.axes)
        if not SPEED_SETTINGS.isdisjoint(a.names)
    ]
    firsts, likeness = plan.first_indices, plan.pack_sizes
    points = np.unravel_index(firsts, plan.shape) if plan.shape else ()
    for place in axes:
        likeness = likeness * plan.shape[place] + points[place]
    _, examples, which = np.unique(likeness, return_index=True, return_inverse=True)
    kinds, steps = [], []
    for number in examples.tolist():
        config = sweep.config(int(firsts[number]))
        size, cost = int(plan.pack_sizes[number]), float(plan.pack_costs[number])
        kinds.append(Workload.of(sweep, config, size, cost))
        steps.append(config.hyperparameters.max_iter)
    return Kinds(kinds, np.array(steps, np.int64), examples, which)


def _name(value: Any) -> str:
    return value if isinstance(value, str) else function_name(value)


def _grabs(sweep: Sweep, h: Hyperparameters) -> str:
    names = ", ".join(sorted({*sweep.grabs, *h.other_model_grabs}))
    if not names:
        return ""
    return f"{names} at the end" if h.onlythresholds else f"{names} every {h.grab_every}"


def _rounded(number: float) -> float:
    """Return a number to six digits: the same in every process, whatever the order of sums."""
    return float(f"{number:.6g}") if math.isfinite(number) else number
