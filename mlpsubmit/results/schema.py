"""The schema of a source, read from its small arrays: every variable's dimensions, shape and type.

The packs of one run may differ: MAX_ITER and RECORD_EVERY may be axes, so that traces have other
steps, and a Gram matrix is as large as its model is wide. The schema is their common form: sorted
unions of steps, largest shapes, and for every config the pack that has its latest result.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mlpsubmit.errors import UserError
from mlpsubmit.results.grab_arrays import grab_of
from mlpsubmit.results.grab_dims import GrabDims, grab_dims
from mlpsubmit.results.labels import NO_LABELS
from mlpsubmit.results.names import (
    CLOCKS,
    SEVERAL,
    TOGETHER,
    TRAINED_BY,
    TRAINED_ON,
    clean_text,
    grab_names,
    metric_names,
    spaced,
)
from mlpsubmit.results.source import (
    Array,
    FinishedPack,
    FixedSetting,
    Layout,
    ResultSource,
    Scalar,
    Text,
    Thresholds,
)

__all__ = ["COUNTS", "PackId", "Schema", "Variable", "identified", "scan"]

PackId: TypeAlias = tuple[str, int]
Steps: TypeAlias = npt.NDArray[np.int64]
FLOAT: np.dtype[Any] = np.dtype(np.float64)
METRIC = "metric."
TOGETHER_TEXT = Text(
    "configs trained together",
    "how many configs trained together, where a pack was divided because it ran out of memory or "
    "configs of it failed; NaN for packs that trained as planned",
)
TRAINED_ON_TEXT = Text(
    "trained on",
    "the device, or all of them if several have trained it; empty where missing or unknown",
)
TRAINED_BY_TEXT = Text("trained by", "the run and its task; empty where missing")
#: Variables that are integers.
COUNTS = ("steps", TOGETHER)
NO_TEXT = Text("", "")
NAN_IF_MISSING = "NaN where missing"
TRAIN_LOSS = Text("train loss", "loss of the batch before the step, smoothed with EMA_SMOOTHER")
TEST_LOSS = Text("test loss", "loss on the test set, smoothed with EMA_SMOOTHER")
STEPS = Text("gradient steps", f"gradient steps that were made; {NAN_IF_MISSING}")
SECONDS = Text(
    "training time",
    f"the config's share of the training time of its pack; {NAN_IF_MISSING}",
    "s",
)
# A grab without a trace is kept in memory for all configs if it has at most this many bytes per
# config; larger ones are written config by config, like traces.
SMALL_ROW_BYTES = 256
#: The most values to which a grab of one config is padded.
MOST_VALUES = 1 << 30


@dataclass(frozen=True)
class Variable:
    """One variable of the dataset.

    Args:
        name: in the dataset.
        array: in the packs.
        dims: its dimensions after those of the sweep.
        shape: their sizes.
        dtype: of the dataset's variable, which has NaN where a point is missing; integer and
            boolean ones have no missing point. So counts are integers if no point is missing.
        recorded: the array of a pack that holds the steps along ``dims[0]`` ("step", "eval_step" or
            "grab_step"); ``None`` if this is no trace.
        text: its attributes ``long_name``, ``units`` and ``description``.
        function: of a grab, what measured it, if that is known.
        decode: from the pack's values to the dataset's, elementwise; ``None`` if they are equal.
    """

    name: str
    array: str
    dims: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] = FLOAT
    recorded: str | None = None
    text: Text = NO_TEXT
    function: FixedSetting | None = None
    decode: Callable[[Array], Array] | None = None

    @property
    def is_grab(self) -> bool:
        """Whether this is a grab."""
        return grab_of(self.array) is not None

    @property
    def fill(self) -> Any:
        """The value of missing entries, as a scalar of the variable's type."""
        fills = {"f": np.nan, "c": complex(np.nan, np.nan), "O": ""}
        return self.dtype.type(fills.get(self.dtype.kind, 0))

    @property
    def attributes(self) -> dict[str, str]:
        """Its attributes in the dataset, with the metric or the function that measured it."""
        found = self.text.attributes
        if self.array.startswith(METRIC):
            found["metric"] = self.name.partition("_")[2]
        if self.function is not None:
            found["function"] = str(self.function.value)
            if self.function.hash:
                found["function_hash"] = self.function.hash
        return found

    @property
    def encoding(self) -> dict[str, Any]:
        """How files store it: what counts as integers, also where points are missing."""
        if self.array in COUNTS and self.dtype.kind == "f":
            return {"dtype": "int64", "_FillValue": -1}
        return {}

    @property
    def is_small(self) -> bool:
        """Whether the values of all configs are kept in memory together."""
        row_bytes = math.prod(self.shape) * self.dtype.itemsize
        if not self.shape or row_bytes == 0:
            return True
        few = row_bytes <= SMALL_ROW_BYTES or not self.is_grab
        return self.recorded is None and few

    def padded(self, values: Array, columns: Steps | None) -> Array:
        """Return values padded to the variable's shape.

        Args:
            values: shape (n, ...), with an axis of steps after n if ``columns`` is given.
            columns: the columns of the trace, positions along ``dims[0]``, of those steps.
        """
        out = np.full((len(values), *self.shape), self.fill, dtype=self.dtype)
        steps = () if columns is None else (columns,)
        region = (slice(None), *steps, *map(slice, values.shape[1 + len(steps) :]))
        out[region] = values if self.decode is None else self.decode(values)
        return out


@dataclass(frozen=True)
class Schema:
    """The variables of a dataset, and how to read them from its source.

    Args:
        layout: the sweep's.
        packs: the number of each pack, by its name and how many packs before it had the same name.
        owner: shape (layout.size,): the number of the pack with a point's result, -1 for none.
        clocks: the steps along each dimension of traces, sorted.
        variables: all but `status` and `error`.
        coordinates: the values along dimensions that grabs name.
    """

    layout: Layout
    packs: dict[PackId, int]
    owner: npt.NDArray[np.int64]
    clocks: dict[str, Steps]
    variables: tuple[Variable, ...]
    coordinates: Mapping[str, tuple[Scalar, ...]]

    def small_and_streamed(self) -> tuple[list[Variable], list[Variable]]:
        """Return the variables in memory for all configs at once, and those for one pack only."""
        small = [variable for variable in self.variables if variable.is_small]
        return small, [variable for variable in self.variables if not variable.is_small]

    def owned(self, source: ResultSource) -> Iterator[tuple[FinishedPack, Array, Array]]:
        """Yield each pack with its rows that no later pack overrides, and their configs' indices.

        Packs that were added since the scan are left out.

        Raises:
            RuntimeError: packs of the scan have disappeared.
        """
        missing = set(self.packs)
        for pack_id, pack in identified(source):
            if pack_id not in missing:
                continue
            missing.remove(pack_id)
            index = pack["index"]
            rows = np.flatnonzero(self.owner[index] == self.packs[pack_id])
            if rows.size:
                yield pack, rows, index[rows]
        if missing:
            names = sorted(name for name, _ in missing)
            raise RuntimeError(f"packs disappeared while they were read: {', '.join(names)}")

    def rows(
        self, source: ResultSource, variables: Sequence[Variable]
    ) -> Iterator[tuple[int, Variable, Array]]:
        """Yield (index, variable, values of the variable's shape), with one pack in memory."""
        for pack, rows, points in self.owned(source):
            for variable in variables:
                if variable.array not in pack.arrays():
                    continue
                values, columns = self._aligned(variable, pack)
                for row, point in zip(rows, points, strict=True):
                    yield int(point), variable, variable.padded(values[row : row + 1], columns)[0]

    def traces(
        self, source: ResultSource, variables: Sequence[Variable]
    ) -> Iterator[tuple[int, Variable, Steps, Array]]:
        """Yield (index, variable, steps, values) of traces, at the steps that their packs recorded.

        A final value alone is at the last step of all.
        """
        for pack, rows, points in self.owned(source):
            for variable in variables:
                if variable.array not in pack.arrays():
                    continue
                values, columns = self._aligned(variable, pack)
                assert columns is not None
                steps = self.clocks[variable.dims[0]][columns]
                for row, point in zip(rows, points, strict=True):
                    padded = variable.padded(values[row : row + 1], columns)[0]
                    yield int(point), variable, steps, padded[columns]

    def read(self, variable: Variable, pack: FinishedPack, rows: Array) -> Array:
        """Return some rows of a pack, padded: shape (len(rows), *variable.shape)."""
        values, columns = self._aligned(variable, pack)
        return variable.padded(values[rows], columns)

    def _aligned(self, variable: Variable, pack: FinishedPack) -> tuple[Array, Steps | None]:
        """Return values and the columns of their steps; no columns if this is no trace."""
        values = pack[variable.array]
        if variable.recorded is None:
            return values, None
        clock = self.clocks[variable.dims[0]]
        steps = _recorded_steps(pack, variable.recorded)
        if steps is None or values.ndim == 1:
            # Only the final value was recorded. A trace keeps its last value to the end, so it
            # goes into the last column.
            return values[:, None], np.array([len(clock) - 1])
        return values, np.searchsorted(clock, steps)


@dataclass
class _Scanned:
    """The schema of one pack.

    ``tested``: whether it has test losses; ``devices``: on which its configs were trained.
    """

    last_step: int
    steps: dict[str, bytes | None]  # of int64: hashed once, and one copy for all packs
    divided: bool
    tested: bool
    devices: frozenset[str] = frozenset()
    grabs: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = field(default_factory=dict)

    def has_clock(self, recorded: str) -> bool:
        """Return whether anything of the pack is recorded at these steps, or only at the end."""
        return bool({"eval_step": self.tested, "grab_step": self.grabs}.get(recorded, True))


def _recorded_steps(pack: FinishedPack, recorded: str) -> Steps | None:
    """Return the steps of a pack's traces, or None if it kept final values only.

    Test losses without steps of their own have those of the train losses.
    """
    arrays = pack.arrays()
    if recorded == "eval_step" and recorded not in arrays:
        recorded = "step"
    return np.asarray(pack[recorded], dtype=np.int64) if recorded in arrays else None


class _Opened:
    """A pack whose names and small arrays are read once: every access to an npz opens it again."""

    def __init__(self, pack: FinishedPack) -> None:
        self.name = pack.name
        self._pack = pack
        self._names = tuple(pack.arrays())
        self._small: dict[str, Array] = {}

    def arrays(self) -> Sequence[str]:
        return self._names

    def __getitem__(self, array: str) -> Array:
        if array not in ("index", *CLOCKS):
            return self._pack[array]
        if array not in self._small:
            self._small[array] = self._pack[array]
        return self._small[array]


def identified(source: ResultSource) -> Iterator[tuple[PackId, FinishedPack]]:
    """Yield every pack with its name and how many before it had that name."""
    seen: Counter[str] = Counter()
    for pack in source.packs():
        yield (pack.name, seen[pack.name]), _Opened(pack)
        seen[pack.name] += 1


def scan(layout: Layout, source: ResultSource) -> Schema:
    """Read the small arrays of every pack (and each grab once, for its shape).

    Raises:
        UserError: a grab is not numeric, or its number of dimensions differs between packs.
    """
    owner = np.full(layout.size, -1, dtype=np.int64)
    ids: dict[PackId, int] = {}
    packs: list[_Scanned] = []
    interned: dict[bytes, bytes] = {}
    for pack_id, pack in identified(source):
        index = pack["index"]
        ids[pack_id] = len(ids)
        owner[index] = ids[pack_id]
        packs.append(_scan_pack(pack, interned))
    counted = np.unique(owner[owner >= 0])
    return _schema(layout, ids, owner, {int(i): packs[i] for i in counted})


def _scan_pack(pack: FinishedPack, interned: dict[bytes, bytes]) -> _Scanned:
    steps: dict[str, bytes | None] = {}
    for recorded in CLOCKS:
        found = _recorded_steps(pack, recorded)
        content = None if found is None else found.tobytes()
        # Thousands of packs share a few arrays of steps: keep one copy of each.
        steps[recorded] = content and interned.setdefault(content, content)
    arrays = pack.arrays()
    last_step = int(np.max(pack["steps"], initial=1)) - 1
    devices = frozenset(_texts(pack[TRAINED_ON]).tolist() if TRAINED_ON in arrays else ())
    scanned = _Scanned(last_step, steps, TOGETHER in arrays, "test_loss" in arrays, devices)
    for array in arrays:
        if grab_of(array) is not None:
            values = pack[array]
            leading = 1 if steps["grab_step"] is None else 2
            scanned.grabs[array] = (values.shape[leading:], values.dtype)
    return scanned


def _schema(
    layout: Layout,
    ids: dict[PackId, int],
    owner: npt.NDArray[np.int64],
    packs: dict[int, _Scanned],
) -> Schema:
    arrays = sorted({grab for pack in packs.values() for grab in pack.grabs})
    dims = _clock_dims(list(packs.values()), bool(arrays), layout.own_clocks)
    clocks = {
        dim: _union([pack for pack in packs.values() if pack.has_clock(recorded)], recorded)
        for recorded, dim in dims.items()
        if recorded == dim
    }
    tested = layout.tested or any(pack.tested for pack in packs.values())
    complete = bool((owner >= 0).all())
    variables = _fixed_variables(layout, tested, dims, clocks, complete)
    if any(pack.divided for pack in packs.values()):
        variables.append(Variable(TOGETHER, TOGETHER, text=TOGETHER_TEXT))
    devices = frozenset[str]().union(*(pack.devices for pack in packs.values())) - {""}
    if len(devices) > 1 or any(SEVERAL in device for device in devices):
        variables += _origin_variables()
    shapes = {
        array: [pack.grabs[array][0] for pack in packs.values() if array in pack.grabs]
        for array in arrays
    }
    named = grab_dims(shapes, layout)
    for array, name in grab_names(arrays, named.sizes, layout).items():
        variable = _grab_variable(array, name, owner, packs, clocks, dims.get("grab_step"), named)
        grab, _ = grab_of(array) or (array, None)
        function = layout.functions.get(grab)
        variables.append(replace(variable, text=_grab_text(variable, layout), function=function))
    return Schema(layout, ids, owner, clocks, tuple(variables), named.coordinates)


def _clock_dims(
    packs: Sequence[_Scanned], has_grabs: bool, own_clocks: Collection[str]
) -> dict[str, str]:
    """Return the dimension of each kind of trace; final values have none.

    Test losses and grabs share `step` if they were recorded at exactly the train losses' steps.
    """
    dims: dict[str, str] = {}
    for recorded in CLOCKS if has_grabs else CLOCKS[:2]:
        having = [pack for pack in packs if pack.has_clock(recorded)]
        if all(pack.steps[recorded] is None for pack in having):
            continue
        shared = all(pack.steps[recorded] == pack.steps["step"] for pack in having)
        dims[recorded] = "step" if shared and recorded not in own_clocks else recorded
    return dims


def _union(packs: Sequence[_Scanned], recorded: str) -> Steps:
    """Return all recorded steps, up to the last step of packs that have final values only."""
    distinct = {steps for pack in packs if (steps := pack.steps[recorded]) is not None}
    union = np.unique(np.concatenate([np.frombuffer(steps, np.int64) for steps in distinct]))
    final = max((pack.last_step for pack in packs if pack.steps[recorded] is None), default=-1)
    return union if union.size and final <= union[-1] else np.append(union, max(final, 0))


def _fixed_variables(
    layout: Layout, tested: bool, dims: dict[str, str], clocks: dict[str, Steps], complete: bool
) -> list[Variable]:
    """Return the variables but grabs: of the test set only if its loss is evaluated."""

    def recorded(name: str, array: str, clock: str, text: Text) -> Variable:
        text = replace(text, description=f"{text.description}; {NAN_IF_MISSING}")
        if clock not in dims:
            return Variable(name, array, text=replace(text, long_name=f"final {text.long_name}"))
        dim = dims[clock]
        return Variable(name, array, (dim,), clocks[dim].shape, recorded=clock, text=text)

    found = [recorded("train_loss", "train_loss", "step", TRAIN_LOSS)]
    if tested:
        found.append(recorded("test_loss", "test_loss", "eval_step", TEST_LOSS))
    for name in metric_names(layout):
        which, _, metric = name.partition("_")
        if tested or which == "train":
            clock = "step" if which == "train" else "eval_step"
            found.append(recorded(name, f"{METRIC}{name}", clock, _metric_text(which, metric)))
    for thresholds in layout.all_thresholds:
        found += _per_threshold(thresholds)
    return [
        *found,
        Variable("steps", "steps", dtype=np.dtype(np.int64) if complete else FLOAT, text=STEPS),
        Variable("seconds", "seconds", text=SECONDS),
    ]


def _metric_text(which: str, metric: str) -> Text:
    where = "of the batch, before the step" if which == "train" else "on the test set"
    return Text(spaced(f"{which} {metric}"), f"metric {metric} {where}, not smoothed")


def _origin_variables() -> list[Variable]:
    """Return on what configs were trained, and by which tasks: where it was not all on one."""
    texts = {TRAINED_ON: TRAINED_ON_TEXT, TRAINED_BY: TRAINED_BY_TEXT}
    return [
        Variable(name, name, dtype=np.dtype(object), text=text, decode=_texts)
        for name, text in texts.items()
    ]


def _texts(values: Array) -> Array:
    """Return texts, of which packs have the bytes, as few objects: most of them are equal."""
    known: dict[Any, str] = {}
    for value in set(values.tolist()):
        text = value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
        known[value] = clean_text(text)
    return np.array([known[value] for value in values.tolist()], dtype=object)


def _per_threshold(thresholds: Thresholds) -> list[Variable]:
    """Return when thresholds were crossed, and whether they were."""
    common = (thresholds.array, (thresholds.named("threshold"),), (len(thresholds.values),))
    reached, fell = f"{thresholds.of} reaches the threshold", f"{thresholds.of} reached"
    if thresholds.of in ("", "test_loss"):
        loss = f"smoothed {'test' if thresholds.of else 'train'} loss"
        reached, fell = f"{loss} is below the threshold", f"the {loss} fell below"
    of = f"{thresholds.of.replace('_', ' ')} " if thresholds.of else ""
    return [
        Variable(
            thresholds.named("timekeys"),
            *common,
            text=Text(
                f"steps to {of}threshold",
                f"first step whose {reached}; NaN if there is none, or no result",
            ),
            decode=lambda steps: np.where(steps < 0, np.nan, steps),
        ),
        Variable(
            thresholds.named("crossed"),
            *common,
            dtype=np.dtype(np.bool_),
            text=Text(
                f"{of}threshold crossed",
                f"whether {fell} the threshold; False if there is no result",
            ),
            decode=lambda steps: steps >= 0,
        ),
    ]


def _grab_text(variable: Variable, layout: Layout) -> Text:
    """Return what a grab measured, as its labels say."""
    grab, key = grab_of(variable.array) or (variable.array, None)
    labels = layout.labels.get(grab, NO_LABELS).attributes_of(key)
    long_name = labels.get("long_name", spaced(variable.name))
    which = f"grab {grab!r}" if key is None else f"grab {grab!r}, its key {key!r}"
    when = "after the step" if variable.recorded else "after the last step"
    missing = f"; {NAN_IF_MISSING}" if variable.dtype.kind in "fc" else ""
    return Text(
        long_name, clean_text(f"result of the {which}, {when}{missing}"), labels.get("units", "1")
    )


def _grab_variable(
    array: str,
    name: str,
    owner: npt.NDArray[np.int64],
    packs: dict[int, _Scanned],
    clocks: dict[str, Steps],
    clock: str | None,
    named: GrabDims,
) -> Variable:
    """Return the variable of one array of a grab, for all packs."""
    with_grab = {ordinal: pack for ordinal, pack in packs.items() if array in pack.grabs}
    shapes = sorted({pack.grabs[array][0] for pack in with_grab.values()})
    if len({len(shape) for shape in shapes}) != 1:
        raise UserError(
            f"grab {name!r} has another number of dimensions from pack to pack: "
            f"got the shapes {', '.join(map(str, shapes))}; make the grab return one number of "
            "dimensions for every config"
        )
    shape = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    dims = named.of_array.get(array)
    if dims is None:
        dims = tuple(f"{name}_dim{axis}" for axis in range(len(shape)))
    shape = tuple(named.sizes.get(dim, size) for dim, size in zip(dims, shape, strict=True))
    if (padded := math.prod(shape)) > MOST_VALUES >= max(map(math.prod, shapes)):
        raise UserError(
            f"grab {name!r} has shapes so different ({', '.join(map(str, shapes[:4]))}) that each "
            f"config would be padded to {padded} values; the most is {MOST_VALUES}"
        )
    # Integers have no value for missing entries.
    gaps = shapes != [shape] or not np.isin(owner, list(with_grab)).all()
    if clock is not None:
        every_step = clocks[clock].tobytes()
        gaps = gaps or any(pack.steps["grab_step"] != every_step for pack in with_grab.values())
        dims, shape = (clock, *dims), (*clocks[clock].shape, *shape)
    dtype = _grab_dtype(name, [pack.grabs[array][1] for pack in with_grab.values()], gaps)
    return Variable(name, array, dims, shape, dtype, None if clock is None else "grab_step")


def _grab_dtype(name: str, dtypes: Sequence[np.dtype[Any]], gaps: bool) -> np.dtype[Any]:
    """Return the type for all values, restricted to those that every file format has."""
    wrong = sorted({str(dtype) for dtype in dtypes if dtype.kind not in "biufc"})
    if wrong:
        raise UserError(
            f"grab {name!r} must return numbers or arrays of numbers, got the type "
            f"{', '.join(wrong)}"
        )
    dtype = np.result_type(*set(dtypes))
    if dtype.kind == "f":
        return np.dtype(np.float32 if dtype.itemsize <= 4 else np.float64)
    if dtype.kind == "c":
        return np.dtype(np.complex64 if dtype.itemsize <= 8 else np.complex128)
    return np.dtype(np.float64) if gaps else dtype.newbyteorder("=")
