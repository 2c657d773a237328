"""The inputs of this package: a sweep's dimensions, its finished packs, its failures.

Everything else here is a function of a `Layout` and a `ResultSource`, and independent of where the
packs are stored: in a run directory, or, in the tests, in a list of dictionaries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from mlpsubmit.results.labels import Labels, Scalar

__all__ = [
    "Dimension",
    "Failure",
    "FinishedPack",
    "FixedSetting",
    "Layout",
    "ResultSource",
    "Scalar",
    "Text",
    "Thresholds",
]

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Dimension:
    """One dimension of the dataset: an axis of the sweep, or several zipped ones.

    Args:
        name: the dimension, e.g. ``"width"``, or ``"width_lr"`` for a zipped axis.
        coordinates: the values along it, by name, equally many for each. A plain axis has one
            entry, called like the dimension (its index); a zipped axis has one for each of its
            names.
        hashes: of names with values that these labels do not identify, such as functions, a hash
            of each value, empty where the label does (:mod:`mlpsubmit.results.values`).
    """

    name: str
    coordinates: Mapping[str, tuple[Scalar, ...]]
    hashes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The number of values."""
        return len(next(iter(self.coordinates.values())))


@dataclass(frozen=True)
class Text:
    """What a variable or a coordinate is, for people: attributes of it in the dataset.

    Args:
        long_name: a few words, for the axis of a figure.
        description: a sentence.
        units: of its values, as UDUNITS write them; ``1`` for what has none.
    """

    long_name: str
    description: str
    units: str = "1"

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes."""
        return {
            "long_name": self.long_name,
            "units": self.units or "1",
            "description": self.description,
        }


@dataclass(frozen=True)
class FixedSetting:
    """A setting that is on no axis, or a grab.

    Args:
        value: a number, or its text; of a function the name.
        hash: of a setting, where the value does not identify it; of a grab that of its code, if any
            is the user's.
        counts: whether results depend on it.
    """

    value: Scalar
    hash: str = ""
    counts: bool = True


@dataclass(frozen=True, eq=False)
class Thresholds:
    """The thresholds that one list of timekeys refers to, and the names of what belongs to them.

    Args:
        of: a name in METRIC_THRESHOLDS, or nothing for those of the train loss.
        values: in the order of crossing.
        axis: if they are an axis, its dimension, and the thresholds of each of its values;
            ``values`` are then their positions.
    """

    of: str
    values: tuple[float, ...]
    axis: tuple[str, Sequence[Sequence[float]]] | None = None

    def named(self, name: str) -> str:
        """Return the name of a variable, dimension or coordinate of these thresholds."""
        return f"{name}_{self.of}" if self.of else name

    @property
    def array(self) -> str:
        """The array of the timekeys in a pack."""
        return f"timekeys.{self.of}" if self.of else "timekeys"


@dataclass(frozen=True, eq=False)
class Layout:
    """The dimensions and attributes of a run's results, known before there are any.

    Args:
        dimensions: in product order (the last varies fastest); none for a sweep of one config.
        thresholds: the loss thresholds that timekeys refer to, in their order; may be empty.
        attributes: where the results come from (run id, version, git commit, ...).
        included: boolean mask over the points of the product, in C order and of any shape;
            ``None`` for all. The sweep's ``where`` excludes the others.
        threshold_axis: if the thresholds are an axis, its dimension, and the thresholds of each of
            its values; ``thresholds`` are then their positions.
        metrics: the names of the metrics of any point.
        metric_thresholds: those of METRIC_THRESHOLDS.
        tested: whether test losses are evaluated, of any point.
        online: whether the points train online: one value for all, or a mask as ``included``.
        labels: of grabs, by name.
        texts: of axes, by the names of their coordinates.
        settings: those on no axis, by name.
        functions: of grabs, by the names of these.
        own_clocks: which of ``eval_step`` and ``grab_step`` are dimensions even if their steps are
            those of the train losses, as the union of the steps of several runs may be.
    """

    dimensions: tuple[Dimension, ...]
    thresholds: tuple[float, ...]
    attributes: Mapping[str, str | int | float]
    included: Array | None = None
    threshold_axis: tuple[str, Sequence[Sequence[float]]] | None = None
    tested: bool = True
    online: bool | Array = False
    labels: Mapping[str, Labels] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    metric_thresholds: tuple[Thresholds, ...] = ()
    texts: Mapping[str, Text] = field(default_factory=dict)
    settings: Mapping[str, FixedSetting] = field(default_factory=dict)
    functions: Mapping[str, FixedSetting] = field(default_factory=dict)
    own_clocks: frozenset[str] = frozenset()

    @property
    def all_thresholds(self) -> tuple[Thresholds, ...]:
        """Those of the train loss, and those of METRIC_THRESHOLDS."""
        own = Thresholds("", self.thresholds, self.threshold_axis)
        return (own, *self.metric_thresholds)

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the dimensions."""
        return tuple(dimension.size for dimension in self.dimensions)

    @property
    def size(self) -> int:
        """The number of points of the product, including excluded ones."""
        return math.prod(self.shape)

    @property
    def coordinate_names(self) -> tuple[str, ...]:
        """The names of all axes in order, those of a zipped axis one by one."""
        return tuple(name for dimension in self.dimensions for name in dimension.coordinates)

    def included_points(self) -> npt.NDArray[np.bool_]:
        """Return the mask of points that belong to the sweep, shape (size,)."""
        if self.included is None:
            return np.ones(self.size, dtype=np.bool_)
        return np.asarray(self.included, dtype=np.bool_).ravel()


class FinishedPack(Protocol):
    """The arrays of one finished pack of K configs, read one at a time.

    ==================== ============ ============================================================
    array                shape        what
    ==================== ============ ============================================================
    index                (K,)         C-order index into the product of the dimensions
    key                  (K,)         the configs' content hashes
    status               (K,)         1 done, 2 diverged
    steps                (K,)         gradient steps taken
    seconds              (K,)         wall time
    timekeys             (K, T)       first step below each threshold; -1 never
    train_loss           (K,), (K, R) final, or at the steps in `step`
    test_loss            (K,), (K, E) final, or at the steps in `eval_step`; only if evaluated
    metric.<name>        (K,), (K, .) as the loss of its set: `metric.train_accuracy`, ...
    timekeys.<name>      (K, T)       of METRIC_THRESHOLDS: first step that reaches each; -1 never
    step                 (R,)         with traces only
    eval_step            (E,)         with traces only
    grab_step            (G,)         with traces of grabs only
    grab.<name>          (K, ...)     final, or (K, G, ...) at the steps in `grab_step`
    grab[<n>].<name>.<key>            the same, of a key of a grab's dictionaries (`grab_arrays`)
    trained_together     (K,)         configs in one stack; only where the pack was divided
    weights_step         (S,)         with weights along the training only
    weights.<name>       (K, ...)     at the end, or (K, S, ...); where shapes differ, flat, and
                                      padded with zeros
    weights_shape.<name> (K, D + 1)   only then: the number of dimensions, and them; -1 for none
    ==================== ============ ============================================================
    """

    @property
    def name(self) -> str:
        """The pack's name, for messages."""

    def __getitem__(self, array: str) -> Array:
        """Read one array."""

    def arrays(self) -> Sequence[str]:
        """Return the names of the arrays there are."""


@dataclass(frozen=True, eq=False)
class Failure:
    """Configs of a pack that raised an exception, or killed their process.

    Args:
        indices: indices of its configs in the product.
        error: the exception in one line, e.g. ``"ValueError: boom"``.
        traceback: the whole of it.
        pack: the name of the pack.
        where: the last line of the user's code in the traceback, e.g. ``spec.py:12 in batch_fn``.
        line: its text.
    """

    indices: Array
    error: str
    traceback: str
    pack: str = ""
    where: str = ""
    line: str = ""

    def without(self, indices: Array) -> Failure:
        """Return the failure of its configs but those with some indices."""
        return replace(self, indices=self.indices[~np.isin(self.indices, indices)])


class ResultSource(Protocol):
    """A run's finished packs and failures.

    The packs are read in several passes. Those that a run in progress adds after the first pass are
    ignored; those of the first pass must stay, in the same order.
    """

    def packs(self) -> Iterator[FinishedPack]:
        """Yield the finished packs one by one; a later one overrides an earlier one's configs."""

    def failures(self) -> Iterable[Failure]:
        """Return the failures; a config that has a result as well counts as finished."""
