"""The JSON files of a run directory: the fields of each, and a reader that checks them all.

A run may be copied, edited, or come from another user. So each file is checked as a whole when it
is read, and whatever uses it can rely on its types, its bounds, and that its parts fit together.
Fields that are not declared here are kept, and never read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, Required, TypedDict

from mlpsubmit.errors import DamageError
from mlpsubmit.files import LARGEST_JSON, read_json
from mlpsubmit.jobs.store.masks import decode_classes, decode_mask
from mlpsubmit.jobs.store.plan_order import PlanOrder
from mlpsubmit.spec.limits import MOST_CONFIGS
from mlpsubmit.spec.read import VALID_NAME

__all__ = [
    "MOST_PACKS",
    "Beat",
    "DataRecord",
    "DeviceRecord",
    "EndedSubmission",
    "Environments",
    "FailedPack",
    "IngredientRecord",
    "Ingredients",
    "Intent",
    "JobRecord",
    "Jobs",
    "KilledProcesses",
    "Launched",
    "Manifest",
    "PlanRecord",
    "VerificationRecord",
    "check_beat",
    "check_ingredients",
    "check_jobs",
    "check_run",
    "check_slices",
    "checked",
    "order_of",
    "read",
    "task_count",
]

#: The most packs that a run may have: a status counts them all.
MOST_PACKS = 10_000_000

#: Errors of one file that are listed.
_MOST_ERRORS = 3

#: The longest path of Linux.
_LONGEST_PATH = 4096

_T = TypeVar("_T")


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("should have no NUL character")
    return text


def _absolute(path: str) -> str:
    if not path.startswith("/") or len(path) > _LONGEST_PATH:
        raise ValueError("should be an absolute path")
    return _without_nul(path)


def _sweep_name(text: str) -> str:
    if not VALID_NAME.fullmatch(text):
        raise ValueError("should be letters, digits, '.', '_' and '-'")
    return text


def _dim_name(text: str) -> str:
    if not text.isidentifier():
        raise ValueError("should be letters, digits and underscores")
    return text


#: Text that may be part of a path or of a command line.
Text = Annotated[str, AfterValidator(_without_nul)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
SweepName = Annotated[str, AfterValidator(_sweep_name)]

DimName = Annotated[str, AfterValidator(_dim_name)]
#: The name of an attribute of a dataset.
Attribute = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
PackName = Annotated[str, Field(pattern=r"^[0-9]{7,12}$")]
JobId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
#: Only ``slurm`` has a meaning here: the tasks of all others are processes.
ExecutorName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{1,128}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Size = Annotated[int, Field(ge=1, lt=1 << 53)]
#: An index, or a number of configs.
Index = Annotated[int, Field(ge=0, le=MOST_CONFIGS)]
Pid = Annotated[int, Field(gt=0, lt=1 << 31)]
#: Seconds, since 1970 or between two times, or another amount.
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
#: A step and a loss, of which a step is an integer.
LossPoint = Annotated[list[Finite | None], Field(min_length=2, max_length=2)]
Scalar = int | float | bool | str
#: Half-open.
Range = Annotated[list[Index], Field(min_length=2, max_length=2)]

_open = with_config(ConfigDict(extra="allow"))


# ---- written by a launch, once -------------------------------------------------------------------


@_open
class AxisRecord(TypedDict):
    """An axis: the values of each of its names, as coordinates.

    ``hashes`` has for each name one of each value, empty where the coordinate identifies it; none
    if all do.
    """

    dimension: Text
    names: Annotated[list[Text], Field(min_length=1)]
    values: Annotated[list[list[Scalar]], Field(min_length=1)]
    hashes: list[list[str]]


@_open
class ThresholdAxis(TypedDict):
    """The thresholds of each value of the dimension along which they vary."""

    dimension: Text
    values: list[list[Finite]]


@_open
class MetricThresholdsRecord(TypedDict):
    """The thresholds of one name in METRIC_THRESHOLDS; positions if they vary along an axis."""

    name: Annotated[str, Field(pattern=r"^(train|test)_[A-Za-z_][A-Za-z0-9_]{0,59}$")]
    thresholds: list[Finite]
    threshold_axis: ThresholdAxis | None


@_open
class Folders(TypedDict):
    """The working directory of a launch, and the run directory then."""

    folder: AbsolutePath
    run: AbsolutePath


@_open
class LabelsRecord(TypedDict):
    """The labels of a grab, as :class:`mlpsubmit.results.labels.Labels` writes them."""

    dims: list[DimName] | dict[str, list[DimName]] | None
    coords: dict[DimName, list[int | float | bool | str]]
    units: str | dict[str, str]
    long_name: str | dict[str, str]
    optional: Annotated[int, Field(ge=0)]


@_open
class SourceRecord(TypedDict):
    """A function of a sweep; what :mod:`mlpsubmit.runs.function_sources` returns."""

    place: str
    name: str
    arguments: dict[str, str]
    module: str
    file: str
    line: Count
    hash: str


@_open
class FunctionsRecord(TypedDict):
    """The functions of a sweep by name, their own arguments, and hashes.

    These are of settings that their texts do not identify, and of the code of grabs.
    """

    batchfn: NotRequired[Scalar]
    data: NotRequired[Scalar]
    where: NotRequired[Scalar]
    grabs: NotRequired[dict[str, Scalar]]
    arguments: NotRequired[dict[str, Scalar]]
    hashes: NotRequired[dict[str, str]]


@_open
class Manifest(TypedDict):
    """sweep.json; what :func:`mlpsubmit.runs.manifest.manifest` returns, and the run's id."""

    format: int
    name: SweepName
    id: SweepName
    created: str
    fingerprint: str
    configs: Index
    axes: list[AxisRecord]
    included: str | None
    reused: Index
    thresholds: list[Finite]
    threshold_axis: ThresholdAxis | None
    metrics: list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,59}$")]]
    metric_thresholds: list[MetricThresholdsRecord]
    tested: bool
    hyperparameters: dict[str, Scalar]
    arguments: dict[str, Scalar]
    functions: FunctionsRecord
    given: list[str]
    overrides: dict[str, str]
    sources: list[SourceRecord]
    reads: list[Text]
    labels: dict[str, LabelsRecord]
    devices: Any
    launched_in: Folders
    origin: dict[Attribute, str]


@_open
class CostSettingRecord(TypedDict):
    """A setting: a value for each class of an axis of the product, or one value."""

    axis: Index | None
    values: Annotated[list[Annotated[float, Field(ge=0, le=1e18)]], Field(min_length=1)]


@_open
class CostSettings(TypedDict):
    """The settings from which :mod:`mlpsubmit.jobs.plan` estimates costs."""

    d: CostSettingRecord
    width: CostSettingRecord
    depth: CostSettingRecord
    n_samples: CostSettingRecord
    n_test: CostSettingRecord
    max_iter: CostSettingRecord
    online: CostSettingRecord
    precision: CostSettingRecord
    optimizer: CostSettingRecord
    eval_every: CostSettingRecord
    log_spaced_evaluations: CostSettingRecord
    test_thresholds: CostSettingRecord


@_open
class PlanRecord(TypedDict):
    """plan.json; what :meth:`mlpsubmit.jobs.plan.Plan.to_json` returns.

    ``pack_limits`` has pairs: how many groups in a row have a limit, and the limit. ``classes`` has
    the classes of the points of an axis by its number: see
    :mod:`~mlpsubmit.jobs.store.plan_order`.
    """

    configs: Index
    packs: Annotated[int, Field(ge=0, le=MOST_PACKS)]
    shape: list[Annotated[int, Field(ge=1, le=MOST_CONFIGS)]]
    order: list[Index]
    outside: Index
    classes: dict[str, str]
    pack_limits: list[
        Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
    ]
    cost_settings: CostSettings
    threads: Annotated[int, Field(ge=1, le=1 << 16)]
    kept: str | None


class PartRecord(TypedDict):
    """A part of a function: a hash and a text."""

    hash: str
    text: str


@_open
class IngredientRecord(TypedDict):
    """A setting of a key; functions have parts, by name: their positions among all parts."""

    hash: str
    text: str
    parts: NotRequired[dict[str, Index]]
    unseen: NotRequired[list[str]]


@_open
class InitialIngredients(TypedDict):
    """The networks that configs begin from: see :mod:`mlpsubmit.spec.initial_weights`."""

    axes: list[Annotated[int, Field(ge=0)]]
    hashes: list[Annotated[str, Field(pattern=r"^([0-9a-f]{32})?$")]]
    table: Annotated[str, Field(pattern=r"^([0-9a-f]{32})+$")]


@_open
class Ingredients(TypedDict):
    """ingredients.json; what :func:`mlpsubmit.spec.ingredients.stored` returns.

    ``base`` and each of ``axes`` are bytes in hex: 16 of the key, and 16 for each value of an axis.
    ``on_axes`` has the functions among the values of axes, by name and position.
    """

    python: str
    settings: dict[str, IngredientRecord]
    base: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    axes: list[Annotated[str, Field(pattern=r"^([0-9a-f]{32})+$")]]
    on_axes: dict[str, dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], IngredientRecord]]
    where: IngredientRecord | None
    parts: list[PartRecord]
    initial: InitialIngredients | None


# ---- written by a launch or a resume -------------------------------------------------------------


@_open
class Launched(TypedDict):
    """launched.json: the order of launches."""

    number: Annotated[int, Field(ge=0)]


@_open
class DeviceRecord(TypedDict):
    """results/device.json: the device to which same_device binds a run, and the task that did."""

    device: str
    task: str
    host: str


@_open
class ArrayRecord(TypedDict):
    """A job array, before it is submitted."""

    name: Text
    first: Index
    count: Index


@_open
class Intent(TypedDict):
    """intent.json: the packs of each worker. On SLURM, all fields are there.

    ``workers`` is how many of the slices one task trains: the first ones the first task, and so on.
    ``later`` has the packs of tasks that a job of the run submits when those of ``slices`` have
    ended, ``limit`` why. ``continues`` is the number of the submission that had left its tasks for
    later.
    """

    executor: ExecutorName
    host: str
    created: Amount
    gpus: bool
    same_device: bool
    slices: list[list[Range]]
    workers: NotRequired[Annotated[int, Field(ge=1)]]
    later: NotRequired[list[list[Range]]]
    continues: NotRequired[Count | None]
    limit: NotRequired[Text | None]
    arrays: NotRequired[list[ArrayRecord]]
    retries: NotRequired[Count]
    retry: NotRequired[Text | None]
    template: NotRequired[dict[str, Any]]
    tasks: NotRequired[Count | None]
    cluster: NotRequired[str | None]
    user: NotRequired[Count]


@_open
class JobRecord(TypedDict):
    """A job in jobs.json: a :class:`mlpsubmit.jobs.submission.Job`."""

    id: JobId
    first: Index
    count: Index
    array: bool
    host: str
    pid: Pid | None
    pid_namespace: str | None
    process_start: str | None


@_open
class Jobs(TypedDict):
    """jobs.json: the jobs of a submission."""

    jobs: list[JobRecord]


@_open
class EndedSubmission(TypedDict):
    """ended.json: why no task of a submission may train any more, and since when."""

    why: str
    at: Amount


# ---- written by tasks ----------------------------------------------------------------------------


class WorkloadRecord(TypedDict):
    """The fields of a :class:`mlpsubmit.jobs.throughput.workload.Workload`."""

    model: str
    batchfn: str
    optimizer: str
    precision: str
    online: bool
    grabs: str
    width: Size
    depth: Count
    samples: Size
    tests: Amount
    configs: Size
    cost: Amount


class SpeedRecord(TypedDict):
    """The fields of a :class:`mlpsubmit.jobs.throughput.speeds.Speed`."""

    workload: WorkloadRecord
    packs: Size
    model_steps: Count
    training: Amount
    setup: Amount


@_open
class Beat(TypedDict, total=False):
    """A heartbeat; from ``pack`` on of the pack in training, or the last one."""

    state: Required[Literal["starting", "training", "done", "interrupted", "crashed"]]
    started: Required[Amount]
    updated: Required[Amount]
    task: str
    host: str
    pid: Pid
    pid_namespace: str | None
    process_start: str | None
    interval: Amount
    error: str
    attempt: Count
    device: str
    device_memory: Count | None
    cpu_name: str
    threads: Count
    startup: Amount | None
    supervised: bool
    progressed: bool
    without_progress: Count
    packs: Count
    packs_done: Count
    packs_failed: Count
    halved: Count
    crossed_at_start: Count
    diverged: Count
    cost_done: Amount
    speed: Amount
    matmul_utilization: Amount | None
    model_steps: Count
    ideal_seconds: Amount | None
    speeds: list[SpeedRecord]
    pack: PackName
    pack_started: Amount
    configs: Size
    settled: Count
    stack: Count
    step: Count
    first_step: Count
    first_share: Amount
    max_iter: Count
    active: Count
    loss: Finite | None
    losses: list[LossPoint]
    doing: str


@_open
class Environments(TypedDict):
    """results/<task>.<attempt>.json: the versions and devices that results were made with."""

    environments: list[dict[Attribute, int | str]]


class MemberRecord(TypedDict):
    """The position of a member in its shard."""

    name: str
    offset: Count
    size: Count


@_open
class VerificationRecord(TypedDict):
    """results/<shard>.verified.json and .damaged.json: what was read of a shard, and when.

    ``size`` is -1 if only a part of the shard was read.
    """

    size: Annotated[int, Field(ge=-1, lt=1 << 63)]
    mtime: int
    damaged: list[MemberRecord]


@_open
class InputFile(TypedDict):
    """A file that a data function read."""

    path: Text
    size: Count
    mtime: int
    ctime: int
    hash: Hash | None


@_open
class InputFolder(TypedDict):
    """A folder that a data function listed, and its files with some suffixes."""

    path: Text
    suffixes: list[str]
    names: list[str]


@_open
class DataRecord(TypedDict):
    """data/<key>.json: the hash of the data, and what it was read from."""

    hash: Hash
    data_checksum: Hash | None
    arguments: dict[str, str]
    environment: dict[Attribute, int | str]
    files: list[InputFile]
    folders: list[InputFolder]
    unseen: list[str]


class EndRecord(TypedDict):
    """The fields of a :class:`mlpsubmit.jobs.process_end.ProcessEnd`."""

    attempt: str
    signal: Annotated[int, Field(gt=0, lt=128)] | None
    code: int | None
    memory: bool
    where: str


@_open
class KilledProcesses(TypedDict):
    """checkpoints/<pack>.ends.json: how processes were killed in a pack."""

    ends: list[EndRecord]


@_open
class FailureRecord(TypedDict):
    """Configs that failed for one reason; a :class:`mlpsubmit.results.source.Failure`."""

    indices: Annotated[list[Index], Field(min_length=1)]
    error: str
    traceback: str
    where: str
    line: str


@_open
class FailedPack(TypedDict):
    """<pack>.failed.json in a shard; ``finished``: indices of the configs with a result."""

    finished: list[Index]
    failures: list[FailureRecord]


# ---- reading -------------------------------------------------------------------------------------


def read(file: Path, model: type[_T], most: int = LARGEST_JSON) -> _T:
    """Return the content of a file, checked against its model.

    Args:
        most: the bytes that it may have.

    Raises:
        FileNotFoundError: there is none.
        DamageError: it is not as it was written.
    """
    return checked(read_json(file, most), model, str(file))


def checked(content: Any, model: type[_T], name: str) -> _T:
    """Return a content, checked against a model.

    Raises:
        DamageError: it does not fit; the message begins with the name.
    """
    try:
        adapter = _adapter(model)  # type: ignore[arg-type]  # mypy takes no class as hashable
        valid: _T = adapter.validate_python(content, strict=True)
        return valid
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
        texts = [_text(one) for one in errors[:_MOST_ERRORS]]
        more = [f"and {len(errors) - len(texts)} more"] if len(errors) > len(texts) else []
        raise damaged(name, "; ".join(texts + more)) from None


def damaged(name: str | Path, why: str) -> DamageError:
    """Return the error of a file that is not as it was written."""
    return DamageError(f"{name}: is damaged ({why})")


@functools.cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def _text(error: Any) -> str:
    """Return one of pydantic's errors: ``axes.0.names: got 3; should be a valid list``."""
    what = error["msg"].removeprefix("Value error, ")
    what = what[0].lower() + what[1:]
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{place}: missing"
    got = f"got {error['input']!r:.80}; {what.removeprefix('input ')}"
    return f"{place}: {got}" if place else got


# ---- what a model alone does not express ---------------------------------------------------------


def check_run(sweep_file: Path, sweep: Manifest, plan_file: Path, plan: PlanRecord) -> None:
    """Check that sweep.json and plan.json are consistent, and of one sweep.

    Raises:
        DamageError: they are not.
    """
    if problem := _manifest_problem(sweep):
        raise damaged(sweep_file, problem)
    problem = _plan_problem(plan)
    if not problem and plan["shape"] != [len(axis["values"][0]) for axis in sweep["axes"]]:
        problem = f"shape {plan['shape']} is not that of the axes in {sweep_file.name}"
    if not problem and plan["configs"] + sweep["reused"] != sweep["configs"]:
        problem = f"it trains {plan['configs']} configs, {sweep_file.name} has another number"
    if problem:
        raise damaged(plan_file, problem)


def _manifest_problem(sweep: Manifest) -> str:
    """Return what does not fit together in a manifest; empty if all does."""
    names: list[str] = []
    for axis in sweep["axes"]:
        lengths = {len(values) for values in axis["values"]}
        if len(lengths) != 1 or 0 in lengths or len(axis["values"]) != len(axis["names"]):
            return f"axis {axis['dimension']!r:.80}: its names have not equally many values"
        sizes = [len(axis["values"][0]) if own else 0 for own in axis["hashes"]]
        if [*map(len, axis["hashes"])] != sizes or len(sizes) != len(axis["names"]):
            return f"axis {axis['dimension']!r:.80}: its hashes are not those of its values"
        if len(axis["names"]) == 1 and axis["dimension"] != axis["names"][0]:
            return f"axis {axis['dimension']!r:.80}: is called {axis['names'][0]!r:.80}, too"
        names += axis["names"] if len(axis["names"]) == 1 else [axis["dimension"], *axis["names"]]
    if len(set(names)) < len(names):
        return "two axes have the same name"
    shape = [len(axis["values"][0]) for axis in sweep["axes"]]
    if (points := math.prod(shape)) > MOST_CONFIGS:
        return f"the axes have {points} points; the most is {MOST_CONFIGS}"
    if sweep["included"] is not None:
        try:
            points = int(np.count_nonzero(decode_mask(sweep["included"], points)))
        except ValueError as error:
            return f"included: {error}"
    if points != sweep["configs"]:
        return f"configs: got {sweep['configs']}; the axes have {points}"
    named = [one["name"] for one in sweep["metric_thresholds"]]
    if len(set(named)) < len(named) or len(set(sweep["metrics"])) < len(sweep["metrics"]):
        return "metrics, or metric_thresholds: a name is there twice"
    problems = (_threshold_problem(sweep, own) for own in (sweep, *sweep["metric_thresholds"]))
    return next(filter(None, problems), "")


def _threshold_problem(sweep: Manifest, own: Manifest | MetricThresholdsRecord) -> str:
    axis = own["threshold_axis"]
    if axis is None:
        return ""
    sizes = {one["dimension"]: len(one["values"][0]) for one in sweep["axes"]}
    longest = max(map(len, axis["values"]), default=0)
    if sizes.get(axis["dimension"]) != len(axis["values"]) or longest > len(own["thresholds"]):
        return "threshold_axis: does not fit the axes"
    return ""


def _plan_problem(plan: PlanRecord) -> str:
    """Return what does not fit together in a plan; empty if all does."""
    shape, order, outside = plan["shape"], plan["order"], plan["outside"]
    points = math.prod(shape)
    if points > MOST_CONFIGS:
        return f"the shape has {points} points; the most is {MOST_CONFIGS}"
    if sorted(order) != list(range(len(shape))) or outside > len(shape):
        return "order and outside do not fit the shape"
    try:
        planned = order_of(plan)
    except ValueError as error:
        return f"classes: {error}"
    groups = math.prod(planned.group_shape)
    if groups > MOST_PACKS:
        return f"it has {groups} groups; the most is {MOST_PACKS}"
    if sum(count for count, _ in plan["pack_limits"]) != groups:
        return f"pack_limits: not those of {groups} groups"
    lengths: dict[int | None, int] = dict(zip(order, planned.group_shape, strict=False))
    for name in CostSettings.__annotations__:
        setting: CostSettingRecord = plan["cost_settings"][name]  # type: ignore[literal-required]
        axis, size = setting["axis"], len(setting["values"])
        if axis not in [None, *order[:outside]] or size != lengths.get(axis, 1):
            return f"cost_settings.{name}: does not fit the shape"
    sizes = planned.group_sizes
    if plan["kept"] is not None:
        try:
            sizes = planned.group_counts(decode_mask(plan["kept"], points))
        except ValueError as error:
            return f"kept: {error}"
    counts, limits = np.array(plan["pack_limits"], dtype=object).T.tolist()
    limits = np.repeat([min(limit, points) for limit in limits], counts)
    packs, configs = int((-(-sizes // limits)).sum()), int(sizes.sum())
    if (packs, configs) != (plan["packs"], plan["configs"]):
        return f"it has {packs} packs of {configs} configs, not as it says"
    return ""


def order_of(plan: PlanRecord) -> PlanOrder:
    """Return the order of the points of a plan.

    Raises:
        ValueError: classes that do not fit the axes.
    """
    shape, order, outside = plan["shape"], plan["order"], plan["outside"]
    classes = {}
    for axis, text in plan["classes"].items():
        if axis not in map(str, order[:outside]):
            raise ValueError(f"of the axis {axis:.40}, which is not one of those outside")
        classes[int(axis)] = decode_classes(text, shape[int(axis)])
    return PlanOrder(tuple(shape), tuple(order), outside, classes)


def check_ingredients(file: Path, content: Ingredients, sweep: Manifest) -> None:
    """Check that the ingredients of keys are those of the axes of a sweep.

    Raises:
        DamageError: they are not.
    """
    values = [len(axis["values"][0]) for axis in sweep["axes"]]
    if [len(table) for table in content["axes"]] != [32 * count for count in values]:
        raise damaged(file, "axes: they have not the values of those of the run")
    counts = {name: len(axis["values"][0]) for axis in sweep["axes"] for name in axis["names"]}
    for name, own in content["on_axes"].items():
        if any(int(position) >= counts.get(name, 0) for position in own):
            raise damaged(file, f"on_axes: {name:.40} has a value that is none of those of the run")
    entries = [*content["settings"].values(), *([content["where"]] if content["where"] else [])]
    entries += [entry for own in content["on_axes"].values() for entry in own.values()]
    if any(at >= len(content["parts"]) for one in entries for at in one.get("parts", {}).values()):
        raise damaged(file, f"parts: there are {len(content['parts'])}, and a setting has others")
    if (initial := content["initial"]) is None:
        return
    known = all(axis < len(values) for axis in initial["axes"])
    count = math.prod(values[axis] for axis in initial["axes"]) if known else -1
    if len(initial["hashes"]) != count or len(initial["table"]) != 32 * count:
        raise damaged(file, "initial: it has not the axes of those of the run")


def check_slices(file: Path, intent: Intent, packs: int) -> None:
    """Check that the slices of an intent have packs of a plan, and all that SLURM needs.

    Raises:
        DamageError: they have not.
    """
    slices = [*intent["slices"], *intent.get("later", ())]
    ranges = [one for slice_ in slices for one in slice_]
    if any(not low < high <= packs for low, high in ranges):
        raise damaged(file, f"slices: got ranges that are not within the {packs} packs")
    if sum(high - low for low, high in ranges) > packs:
        raise damaged(file, f"slices: got more than {packs} packs")
    if not all(slices):
        raise damaged(file, "slices: got an empty one")
    needed = ["workers", "later", "continues", "limit"]
    needed += ("arrays", "retries", "retry", "template", "tasks", "cluster", "user")
    missing = [name for name in needed if name not in intent]
    if intent["executor"] == "slurm" and missing:
        raise damaged(file, f"{', '.join(missing)}: missing")
    _check_within(file, intent.get("arrays", ()), task_count(intent))


def task_count(intent: Intent) -> int:
    """Return the number of tasks of a submission."""
    return -(-len(intent["slices"]) // intent.get("workers", 1))


def check_beat(file: Path, beat: Beat, packs: int) -> None:
    """Check that a heartbeat has what its state needs, and a pack of the plan.

    Raises:
        DamageError: it has not.
    """
    needed = {"host", "pid"} if beat["state"] != "crashed" else set()
    if beat["state"] == "training" or {"pack", "max_iter"} & beat.keys():
        needed |= {"pack", "attempt", "supervised", "step", "cost_done"}
    if missing := sorted(needed - set(beat)):
        raise damaged(file, f"{', '.join(missing)}: missing")
    if int(beat.get("pack", 0)) >= max(packs, 1):
        raise damaged(file, f"pack: got {beat['pack']}; there are {packs}")


def check_jobs(file: Path, jobs: Jobs, intent: Intent) -> None:
    """Check that jobs cover tasks of their submission.

    Raises:
        DamageError: they do not, or SLURM has no such ids.
    """
    _check_within(file, jobs["jobs"], task_count(intent))
    if intent["executor"] == "slurm" and not all(job["id"].isdecimal() for job in jobs["jobs"]):
        raise damaged(file, "jobs: got an id that is not a SLURM job id")


def _check_within(file: Path, parts: Iterable[ArrayRecord | JobRecord], tasks: int) -> None:
    if any(part["first"] + part["count"] > tasks for part in parts):
        raise damaged(file, f"got jobs for more than its {tasks} tasks")
