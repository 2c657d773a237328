"""A run's results as one labelled dataset in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mlpsubmit.protocol import EXCLUDED, FAILED, MISSING, STATUSES
from mlpsubmit.results.labels import prefix_of
from mlpsubmit.results.names import clean_text, coordinate_names, spaced, sweep_dims
from mlpsubmit.results.results_hash import RESULTS_HASH, ResultsHash
from mlpsubmit.results.schema import Schema, Variable, scan
from mlpsubmit.results.settings import hash_attributes, setting_attributes
from mlpsubmit.results.source import Array, Layout, ResultSource, Text, Thresholds
from mlpsubmit.results.values import coordinate_values, plain_value

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["assemble", "load_empty", "partial_dataset", "results_hash", "to_dataset"]

#: Of these conventions are the attributes of the dataset, its variables and its coordinates.
CONVENTIONS = "CF-1.11"
STATUS = Variable(
    "status",
    "status",
    dtype=np.dtype(np.uint8),
    text=Text(
        "status",
        "done; diverged: the loss was no longer finite, which is a result; failed: see error; "
        "missing: no result yet; excluded by where",
    ),
)
ERROR = Text("error", "why a config failed; empty for all others")
CLOCK_TEXTS = {
    "step": Text("gradient step", "gradient step at which a trace has a value, from 0 on"),
    "eval_step": Text("gradient step", "gradient step at which the test set was evaluated"),
    "grab_step": Text("gradient step", "gradient step at which grabs were called"),
}

Dims: TypeAlias = str | tuple[str, str]


def to_dataset(layout: Layout, source: ResultSource) -> xr.Dataset:
    """Return all results of a run, in memory.

    The dataset has one dimension per dimension of the layout, with its values as coordinates, and

    - ``train_loss``, ``test_loss``: float64, final values, or traces along ``step`` (test losses
      along ``eval_step`` if they were recorded at other steps). If some packs have traces and
      others final values only, the latter are at the last step. ``test_loss`` is absent if no
      config evaluates it.
    - ``timekeys``: float64, along ``threshold``: the first step whose smoothed train loss is below
      the threshold, NaN if there is none.
    - ``crossed``: bool, along ``threshold``: whether there is one. Both are NaN and False for
      points without a result, too, which ``status`` tells apart.
    - ``train_accuracy``, ``test_accuracy`` and so on: float64, each metric as the loss of its set,
      not smoothed; those of the test set are absent with ``test_loss``.
    - ``timekeys_test_accuracy``, ``crossed_test_accuracy`` and so on: for each name in
      METRIC_THRESHOLDS, along ``threshold_test_accuracy``.
    - ``status``: "done", "diverged", "failed", "missing", or "excluded" (left out by ``where``).
    - ``steps``: int64; float64 with NaN if points are missing, which files store as int64 with a
      fill value.
    - ``seconds``: float64.
    - ``trained_together``: float64 (in files as ``steps``), of packs that were divided, how many
      configs trained together with each one, itself included; NaN for the others; only if there is
      such a pack.
    - ``error``: text, "" for configs that have not failed; only if any has.
    - each grab by its name (with ``_grab`` where that is taken), a key of its dictionaries as
      ``<grab>_<key>``, its own dimensions called as its labels say or else ``<grab>_dim0`` and so
      on, its trace along ``step`` or ``grab_step``.

    Whatever else is missing is NaN, so an integer grab is float64 if a point has none, and a grab
    whose shape differs between configs is padded with NaN to the largest. A run without any result
    gives a dataset of missing points.

    Raises:
        UserError: a grab is not numeric, or its number of dimensions differs between packs.
    """
    schema = scan(layout, source)
    return assemble(schema, source, schema.variables)


def partial_dataset(layout: Layout, source: ResultSource, names: Collection[str]) -> xr.Dataset:
    """Return the dataset, in memory, with the values of few traces and large grabs.

    Args:
        names: of those that are read; the others have their dimensions, and fill values which take
            no memory. All that is small is read, too.
    """
    schema = scan(layout, source)
    small, streamed = schema.small_and_streamed()
    wanted = [variable for variable in streamed if variable.name in names]
    dataset = assemble(schema, source, [*small, *wanted], ResultsHash(layout.size))
    for variable in streamed:
        if variable.name not in names:
            empty = np.broadcast_to(variable.fill, (*layout.shape, *variable.shape))
            dims = (*sweep_dims(layout), *variable.dims)
            dataset[variable.name] = (dims, empty, variable.attributes)
    return dataset


def results_hash(layout: Layout, source: ResultSource) -> str:
    """Return the attribute ``results_hash`` of the dataset, with one pack in memory at a time."""
    schema = scan(layout, source)
    small, streamed = schema.small_and_streamed()
    found = ResultsHash(layout.size)
    assemble(schema, source, small, found)
    for point, variable, values in schema.rows(source, streamed):
        found.add_row(variable, point, values)
    return found.hexdigest()


def assemble(
    schema: Schema,
    source: ResultSource,
    variables: Sequence[Variable],
    hashes: ResultsHash | None = None,
) -> xr.Dataset:
    """Return the dataset with these of the schema's variables, and all its coordinates.

    Args:
        hashes: takes those of these variables, for the case that they are not all of them: the
            attribute ``results_hash`` is then left out.
    """
    import xarray as xr

    layout = schema.layout
    dims = sweep_dims(layout)
    (_, status), *filled = _filled(schema, source, [STATUS, *variables])
    codes = _codes(layout, source, status)
    errors = _errors(source, codes)
    coordinates = _coordinates(schema)
    attributes = _attributes(layout, codes)
    hashed = hashes or ResultsHash(layout.size)
    hashed.add_coordinates({name: values for name, (_, values, _, _) in coordinates.items()})
    hashed.add_status(codes)
    for variable, values in filled:
        hashed.add(variable, values)
    if hashes is None:
        attributes[RESULTS_HASH] = hashed.hexdigest()
    data_vars: dict[str, Any] = {
        variable.name: (
            (*dims, *variable.dims),
            values.reshape((*layout.shape, *variable.shape)),
            variable.attributes,
            variable.encoding,
        )
        for variable, values in filled
    }
    texts = np.array(STATUSES)[codes].reshape(layout.shape)
    data_vars["status"] = (dims, texts, STATUS.attributes)
    if errors is not None:
        data_vars["error"] = (dims, errors.reshape(layout.shape), ERROR.attributes)
    return xr.Dataset(data_vars, coordinates, attributes)


def load_empty(dataset: xr.Dataset) -> xr.Dataset:
    """Load the variables without elements of a dataset that is read lazily, and return it.

    Until then, xarray cannot select from them along several dimensions at once.
    """
    for name, variable in dataset.variables.items():
        if variable.size == 0:
            dataset[name].load()
    return dataset


def _filled(
    schema: Schema, source: ResultSource, variables: Sequence[Variable]
) -> list[tuple[Variable, Array]]:
    """Return every variable with its values, shape (layout.size, *variable.shape)."""
    size = schema.layout.size
    filled = [(v, np.full((size, *v.shape), v.fill, dtype=v.dtype)) for v in variables]
    for pack, rows, points in schema.owned(source):
        arrays = pack.arrays()
        for variable, values in filled:
            if variable.array in arrays:
                values[points] = schema.read(variable, pack, rows)
    return filled


def _codes(layout: Layout, source: ResultSource, status: Array) -> npt.NDArray[np.uint8]:
    """Return every point's index into STATUSES, shape (layout.size,), given that of the results."""
    codes = np.where(layout.included_points(), MISSING, EXCLUDED).astype(np.uint8)
    for failure in source.failures():
        codes[failure.indices] = FAILED
    return np.where(status == MISSING, codes, status)


def _errors(source: ResultSource, codes: npt.NDArray[np.uint8]) -> Array | None:
    """Return the error of every failed point and "" for the others, or None if none has failed."""
    failed = codes == FAILED
    if not failed.any():
        return None
    # Objects, not fixed-width text, which would take the longest message's length for every point.
    errors = np.full(codes.shape, "", dtype=object)
    for failure in source.failures():
        errors[failure.indices] = clean_text(failure.error)
    errors[~failed] = ""
    return errors


def _coordinates(schema: Schema) -> dict[str, tuple[Dims, Array, dict[str, str], dict[str, None]]]:
    """Return the dimensions, values, attributes and encoding of every coordinate."""
    layout = schema.layout
    names = coordinate_names(layout)
    found: dict[str, tuple[Dims, Array, Text]] = {
        names[name]: (names[dimension.name], coordinate_values(values), _axis_text(name, layout))
        for dimension in layout.dimensions
        for name, values in dimension.coordinates.items()
    }
    for thresholds in layout.all_thresholds:
        found |= _threshold_coordinates(thresholds, names)
    for dim, own in schema.coordinates.items():
        found[dim] = (dim, coordinate_values(own), _grab_dim_text(dim, layout))
    found |= {dim: (dim, steps, CLOCK_TEXTS[dim]) for dim, steps in schema.clocks.items()}
    hashes = {
        names[name]: hash_attributes(values, dimension.hashes.get(name, [""] * len(values)))
        for dimension in layout.dimensions
        for name, values in dimension.coordinates.items()
    }
    no_fill = {"_FillValue": None}  # CF: the coordinates along a dimension are never missing
    return {
        name: (
            dims,
            own,
            text.attributes | hashes.get(name, {}),
            no_fill if isinstance(dims, str) else {},
        )
        for name, (dims, own, text) in found.items()
    }


def _grab_dim_text(dim: str, layout: Layout) -> Text:
    """Return what the coordinates along a dimension of some grabs are."""
    grabs = [name for name, labels in layout.labels.items() if dim in labels.all_dims]
    name = dim.removeprefix(f"{prefix_of(grabs[0])}_") if len(grabs) == 1 else dim
    name, listed = spaced(name), ", ".join(map(repr, grabs))
    have = f"the grab {listed} has" if len(grabs) == 1 else f"grabs ({listed}) have"
    return Text(name, clean_text(f"{name} along which {have} values"))


def _axis_text(name: str, layout: Layout) -> Text:
    text = clean_text(name)
    return layout.texts.get(name) or Text(spaced(text), f"axis {text} of the sweep")


def _threshold_coordinates(
    thresholds: Thresholds, names: Mapping[str, str]
) -> dict[str, tuple[Dims, Array, Text]]:
    """Return the thresholds; if they are an axis, their positions, and their values on that."""
    along = thresholds.named("threshold")
    of = thresholds.of or "train_loss"
    long_name = f"{of.replace('_', ' ')} threshold"
    value = f"threshold on {of}; with PERCENT_THRESHOLDS on its ratio to the first loss"
    value = value if of == "train_loss" else f"threshold on {of}"
    own = np.array(thresholds.values, dtype=np.float64)
    if thresholds.axis is None:
        return {along: (along, own, Text(long_name, value))}
    dimension, lists = thresholds.axis
    values = np.full((len(lists), len(thresholds.values)), np.nan)
    for row, of_point in zip(values, lists, strict=True):
        row[: len(of_point)] = of_point
    by_value = thresholds.named("threshold_value")
    number = Text(f"number of the {long_name}", f"position among the thresholds in {by_value}")
    return {
        along: (along, own, number),
        by_value: (
            (names[dimension], along),
            values,
            Text(long_name, f"{value}; NaN where a config has fewer"),
        ),
    }


def _attributes(layout: Layout, codes: npt.NDArray[np.uint8]) -> dict[str, str | int | float]:
    """Return the layout's attributes, how many points there are of each status, and settings."""
    attributes: dict[str, str | int | float] = {"Conventions": CONVENTIONS}
    for name, value in layout.attributes.items():
        plain = plain_value(value)
        attributes[name] = int(plain) if isinstance(plain, bool) else plain
    counts = np.bincount(codes, minlength=len(STATUSES))
    attributes["n_configs"] = int(counts.sum() - counts[EXCLUDED])
    attributes.update({f"n_{name}": int(n) for name, n in zip(STATUSES, counts, strict=True)})
    return attributes | setting_attributes(layout.settings, attributes)
