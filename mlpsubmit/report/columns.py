"""The table of configs: a row for each, a column for each axis and each number of the results."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlpsubmit.display.notation import plain
from mlpsubmit.display.output import inline
from mlpsubmit.display.text import cut
from mlpsubmit.report.numerals import DIGITS, digits_apart, numeral
from mlpsubmit.results.axes import has_threshold, threshold_suffixes
from mlpsubmit.results.entries import MOST_ENTRIES, entry_name
from mlpsubmit.results.names import (
    TOGETHER,
    TRAINED_BY,
    TRAINED_ON,
    coordinate_names,
    spaced,
    sweep_dims,
    threshold_label,
)
from mlpsubmit.results.source import Layout

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "Column",
    "axis_columns",
    "encoded",
    "result_columns",
    "run_column",
]

Indices = npt.NDArray[np.int64]

#: The longest error and value of an axis: there may be one for each config.
LONGEST_TEXT = 200

#: The longest title of an axis of a figure; longer ones are explanations.
LONGEST_TITLE = 40

#: The name of the column of runs, which no axis can have: it is that of an option of the page.
RUN = "(run)"

#: The most values of a zipped axis that get labels together.
MOST_ZIPPED = 12


@dataclass
class Column:
    """One column of the table of configs.

    Attributes:
        name: as the dataset has it; of an entry of an array, with its position.
        label: at the head of the table.
        title: along an axis of a figure; may be empty.
        role: ``axis``, ``run`` (of several), ``result``, ``timekey`` (steps to a threshold),
            ``status`` or ``error``.
        values: one for each config: numbers, texts, or None for nothing.
        categories: of texts, in the order of the axis.
        description: of the variable.
        expected: of timekeys, which configs have the threshold.
        members: of a zipped axis as a whole, the columns of its members.
        digits: significant ones of its numbers; along an axis as many as tell its values apart.
        whole: whether its numbers are integers, all of whose digits are shown.
        infinite: by row, what is infinite and has no value: ``inf`` or ``-inf``.
    """

    name: str
    label: str
    role: str
    values: list[Any]
    categories: list[str] | None = None
    title: str = ""
    description: str = ""
    expected: list[bool] = field(default_factory=list)
    members: list[str] = field(default_factory=list)
    digits: int = DIGITS
    whole: bool = False
    infinite: dict[int, str] = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        """Whether the values are texts."""
        return self.categories is not None

    def text(self, row: int) -> str:
        """Return the cell of a config."""
        value = self.values[row]
        if value is None or self.is_text:
            return self.infinite.get(row, "–") if value is None else str(value)
        return numeral(value, self.digits, whole=self.whole)

    def to_json(self) -> dict[str, Any]:
        """Return it for the page; texts as their positions in the categories."""
        found: dict[str, Any] = {"name": self.name, "label": self.label, "role": self.role}
        if self.digits != DIGITS:
            found["digits"] = self.digits
        if self.whole:
            found["whole"] = True
        if self.infinite:
            found["infinite"] = self.infinite
        if self.title and len(self.title) <= LONGEST_TITLE:
            found["title"] = self.title
        if self.description:
            found["description"] = self.description
        if self.members:
            found["members"] = self.members
        if self.categories is None:
            return {**found, "values": [self._short(value) for value in self.values]}
        places = {text: place for place, text in enumerate(self.categories)}
        codes = [None if value is None else places[value] for value in self.values]
        return {**found, "categories": self.categories, "values": codes}

    def _short(self, value: Any) -> Any:
        """Return a number with no more digits than are shown; those of an axis are exact."""
        if not isinstance(value, float):
            return value
        if self.role != "axis" and not self.whole:
            value = float(f"{value:.6g}")
        return int(value) if value.is_integer() and abs(value) < 1e15 else value


def of_texts(name: str, label: str, role: str, texts: Sequence[str | None]) -> Column:
    """Return a column of texts."""
    categories = list(dict.fromkeys(text for text in texts if text is not None))
    return Column(name, label, role, list(texts), categories)


def of_values(name: str, label: str, role: str, values: npt.NDArray[Any]) -> Column:
    """Return a column of numbers."""
    own = [number(value) for value in values.tolist()]
    at = np.flatnonzero(np.isinf(values)).tolist()
    infinite = {row: f"{values[row]:g}" for row in at}
    return Column(name, label, role, own, whole=values.dtype.kind in "iu", infinite=infinite)


def number(value: float) -> float | int | None:
    """Return a number for JSON: None for what is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def axis_columns(dataset: xr.Dataset, layout: Layout, points: Indices) -> list[Column]:
    """Return a column for each coordinate of an axis, and for each zipped axis as a whole.

    Args:
        points: (n,) the indices of the configs in the product.
    """
    names, found = coordinate_names(layout), []
    places = np.unravel_index(points, layout.shape) if layout.shape else ()
    for dimension, at in zip(layout.dimensions, places, strict=True):
        coordinates = [dataset.coords[names[name]] for name in dimension.coordinates]
        members = [_axis_column(coordinate, at) for coordinate in coordinates]
        found += members
        if len(members) > 1 and dimension.size <= MOST_ZIPPED:
            values = zip(*(coordinate.values.tolist() for coordinate in coordinates), strict=True)
            zipped = list(values)
            labels = distinct(
                *([", ".join(map(f, own)) for own in zipped] for f in (_label, _exact))
            )
            title = ", ".join(member.label for member in members)
            column = of_texts(names[dimension.name], title, "axis", [labels[i] for i in at])
            own = [member.name for member in members]
            found.append(replace(column, categories=_in_order(labels, column), members=own))
    return found


def run_column(runs: Sequence[tuple[str, ...]]) -> Column:
    """Return the column of the runs that configs are of.

    Args:
        runs: of each config, the ids of those that have its result.
    """
    column = of_texts(RUN, "run", "run", [", ".join(ids) for ids in runs])
    text = "the run that has the result of the config, or that is to train it; several have equal"
    return replace(column, description=f"{text} results")


def _axis_column(coordinate: xr.DataArray, at: Indices) -> Column:
    name, values = str(coordinate.name), coordinate.values
    if values.dtype.kind in "iu" or (values.dtype.kind == "f" and np.isfinite(values).all()):
        column = of_values(name, plain(name), "axis", values[at])
        column.digits = digits_apart(values.tolist())
        return _described(column, coordinate.attrs)
    # Numbers of which some are not finite, too: JSON has none for these.
    every = values.tolist()
    labels = distinct([_label(value) for value in every], [_exact(value) for value in every])
    column = of_texts(name, plain(name), "axis", [labels[i] for i in at])
    return replace(_described(column, coordinate.attrs), categories=_in_order(labels, column))


def _label(value: Any) -> str:
    """Return a value of an axis as text that can be seen."""
    text = cut(plain(f"{value:g}" if isinstance(value, float) else value), LONGEST_TEXT)
    return text if text.strip() else f'"{text}"'


def _exact(value: Any) -> str:
    """Return a value of an axis as it is written."""
    return cut(inline(value), LONGEST_TEXT)


def distinct(labels: Sequence[str], exact: Sequence[str] | None = None) -> list[str]:
    """Return labels of which no two are equal, as those of different values must not be.

    Args:
        exact: for labels that are not distinct, such as formulas that Unicode writes like others.
    """
    found: list[str] = []
    seen: set[str] = set()
    count = Counter(labels)
    for label, other in zip(labels, exact or labels, strict=True):
        text = name = label if count[label] == 1 else other
        number = 1
        while name in seen:
            number += 1
            name = f"{text} ({number})"
        seen.add(name)
        found.append(name)
    return found


def _in_order(labels: Sequence[str], column: Column) -> list[str]:
    """Return the texts of a column in the order of an axis."""
    present = set(column.values)
    return [label for label in dict.fromkeys(labels) if label in present]


def _described(column: Column, attributes: Mapping[str, Any]) -> Column:
    """Return a column with the title and the description that its variable's attributes have."""
    title, description = (plain(attributes.get(name, "")) for name in ("long_name", "description"))
    return replace(column, title=title, description=description or title)


def result_columns(
    dataset: xr.Dataset, layout: Layout, points: Indices, finals: Mapping[str, npt.NDArray[Any]]
) -> list[Column]:
    """Return the columns of results.

    Args:
        points: (n,) the indices of the configs in the product.
        finals: by variable with a trace, (n,) its last value.
    """
    dims = sweep_dims(layout)
    status = dataset["status"].transpose(*dims).values.reshape(-1)[points]
    columns = _timekey_columns(dataset, dims, points)
    for name, variable in dataset.data_vars.items():
        if name not in ("status", "error") and not str(name).startswith(("timekeys", "crossed")):
            columns += _entries(str(name), variable, dims, points)
    for name, values in finals.items():
        label = f"final {SHORT.get(name) or plain(name)}"
        columns.append(of_values(name, label, "result", values))
    for column in columns:
        if column.name in ("train_loss", "test_loss"):  # that of a diverged config is arbitrary
            pairs = zip(status, column.values, strict=True)
            column.values = [None if s == "diverged" else value for s, value in pairs]
            column.infinite = {}
    columns = [of_texts("status", "status", "status", status.tolist()), *sorted(columns, key=_rank)]
    for name in [own for own in (TRAINED_ON, TRAINED_BY) if own in dataset]:
        texts = dataset[name].transpose(*dims).values.reshape(-1)[points].tolist()
        columns.append(of_texts(name, spaced(name), "run", [plain(t) or None for t in texts]))
    if "error" in dataset:
        errors = dataset["error"].transpose(*dims).values.reshape(-1)[points]
        texts = [cut(plain(error), LONGEST_TEXT) if error else None for error in errors.tolist()]
        columns.append(of_texts("error", "error", "error", texts))
    return columns


def _rank(column: Column) -> int:
    """Return the place of a column of results: what people look for comes first."""
    if column.role == "timekey":
        return _PLACES["timekeys"]
    return _PLACES.get(column.name, _PLACES["others"])


_ORDER = ("train_loss", "test_loss", "timekeys", "steps", "others", "seconds", TOGETHER)
_PLACES = {name: place for place, name in enumerate(_ORDER)}


def _entries(
    name: str, variable: xr.DataArray, dims: Sequence[str], points: Indices
) -> Iterator[Column]:
    """Yield a column for each entry of a variable; none if it has too many."""
    values = variable.transpose(*dims, ...)
    own = [str(dim) for dim in values.dims[len(dims) :]]
    shape = values.shape[len(dims) :]
    if math.prod(shape) > MOST_ENTRIES or variable.dtype.kind not in "biuf":
        return
    flat = values.values.reshape(-1, *shape)[points]
    flat = flat.astype(np.int64) if flat.dtype.kind == "b" else flat
    units = plain(variable.attrs.get("units", ""))
    for position in itertools.product(*map(range, shape)):
        full = entry_name(name, variable.coords, own, position)
        label = SHORT.get(name) or plain(full) + (f" ({units})" if units not in ("", "1") else "")
        at: tuple[Any, ...] = (..., *position)
        column = of_values(full, label, "result", flat[at])
        yield _described(column, variable.attrs) if not shape else column


#: The labels of variables that every run has.
SHORT = {"train_loss": "train loss", "test_loss": "test loss", "seconds": "training time (s)"}


def _timekey_columns(dataset: xr.Dataset, dims: Sequence[str], points: Indices) -> list[Column]:
    """Return a column of steps for each threshold."""
    found = []
    for suffix in threshold_suffixes(dataset):
        along, of = f"threshold{suffix}", suffix[1:].replace("_", " ")
        timekeys = dataset[f"timekeys{suffix}"].transpose(*dims, along).values
        expected = has_threshold(dataset, suffix).transpose(*dims, along).values
        own = f"threshold_value{suffix}" in dataset.coords
        for place, threshold in enumerate(dataset[along].values):
            text = f"number {place}" if own else threshold_label(float(threshold))
            column = of_values(
                f"timekeys{suffix} [{text}]",
                f"steps to {of} {text}".replace("  ", " "),
                "timekey",
                timekeys[..., place].reshape(-1)[points],
            )
            column.whole = True
            column.expected = expected[..., place].reshape(-1)[points].tolist()
            found.append(column)
    return found


def encoded(content: Any) -> str:
    """Return JSON that is inert within a script element: without <, >, & and beyond ASCII."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def varied(columns: Iterable[Column]) -> list[Column]:
    """Return the axes along which configs differ."""
    return [c for c in columns if c.role == "axis" and len(set(c.values)) > 1]
