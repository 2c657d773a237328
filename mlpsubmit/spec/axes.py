"""Axes as the user wrote them, checked and with values of their types."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from mlpsubmit.display.text import counted
from mlpsubmit.errors import SpecError, collected, shown
from mlpsubmit.spec import hyperparameters as hp
from mlpsubmit.spec.accepted import AXIS_OF, Accepted
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.limits import MOST_BITS, MOST_CONFIGS, MOST_VALUES, check_length
from mlpsubmit.spec.mlp_settings import mlp_setting
from mlpsubmit.spec.numbers import one_kind_of_number, plain_number
from mlpsubmit.spec.product import Axis, Product

__all__ = [
    "NO_CONTENT",
    "is_list",
    "names_on",
    "parsed_value",
    "read_axes",
    "repeated_names",
    "split_listed",
]

#: The message for a value that has no content to hash; the reason takes the place of ``{}``.
NO_CONTENT = (
    "cannot be hashed by its content ({}); settings and functions may hold arrays, numbers and "
    "functions, but no open files, locks or generators: make those inside a function"
)

#: Why no result depends on a setting, if it is not one of optimizers.
_WHY_UNUSED = {
    "lr_final_factor": "no LR_SCHEDULE of the spec uses LR_FINAL_FACTOR",
    **dict.fromkeys(("record_every", "grab_every"), "ONLYTHRESHOLDS=True keeps final values alone"),
}


def split_listed(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate the settings that make axes: N_SAMPLES, NUM_TRIALS and TARGET_MONOMIALS."""
    fixed: dict[str, Any] = {}
    axes: dict[str, Any] = {}
    for name, value in settings.items():
        axis = AXIS_OF.get(hp.canonical_name(name) or "")
        if axis == "trial":
            fixed[name] = value
            with contextlib.suppress(SpecError):  # raised again with the other settings
                axes[axis] = range(hp.validate_one("num_trials", value))
        elif axis is not None and is_list(value):
            axes[axis] = value
        elif axis == "monomials" and value is not None:
            axes[axis] = [value]
        else:
            fixed[name] = value
    return fixed, {axis: axes[axis] for axis in AXIS_OF.values() if axis in axes}


def is_list(values: Any) -> bool:
    """Return whether values have an order, so that they can be an axis."""
    unordered = isinstance(values, (str, bytes, Mapping, set, frozenset))
    return isinstance(values, Iterable) and not unordered and getattr(values, "ndim", 1) > 0


def names_on(given: Iterable[tuple[Any, Any]]) -> frozenset[str]:
    """Return the hyperparameters on axes, whether these are valid or not."""
    names = (name for key, _ in given for name in (key if isinstance(key, tuple) else (key,)))
    return frozenset(filter(None, map(hp.canonical_name, map(str, names))))


def read_axes(
    given: Iterable[tuple[Any, Any]], accepted: Accepted, unused: Collection[str], errors: list[str]
) -> list[Axis]:
    """Return the axes that are valid; the errors of all others go into a list.

    Where their product is too large, of their first values only: to convert all takes long.
    """
    unparsed: list[tuple[str, Axis]] = []
    for key, values in given:
        names = key if isinstance(key, tuple) else (key,)
        if not names:
            errors.append(
                f"axis (): got {values!r:.40} without a name; a zipped axis has names, as in "
                "('WIDTH', 'LR'): [(64, 0.1), (256, 0.03)]"
            )
            continue
        with collected(errors):
            known = map(accepted.canonical, names)
            canonical = tuple("monomials" if n == "target_monomials" else n for n in known)
            prefix = f"axis {', '.join(names)}: "
            with collected(errors, prefix):
                _check_results_depend(canonical, accepted, unused)
                points = _points(values, names, isinstance(key, tuple))
                zipped_as = getattr(key, "dimension", "")  # of a random search
                unparsed.append((prefix, Axis(canonical, tuple(points), zipped_as)))
    too_large = _size_errors(Product(tuple(axis for _, axis in unparsed)))
    errors += too_large
    axes: list[Axis] = []
    for prefix, axis in unparsed:
        with collected(errors, prefix):
            axes.append(_axis(axis, axis.points[: 1 if too_large else None], accepted))
    return axes


def _points(values: Any, names: Sequence[str], zipped: bool) -> list[tuple[Any, ...]]:
    """Return the points of an axis as given, each with one value per name."""
    if not is_list(values):
        raise SpecError(f"got {shown(values)}; should be a list of values{_as_list(names, values)}")
    check_length(values)  # of NUM_TRIALS, and of overrides
    beyond = len(names) + 1
    points = [
        tuple(itertools.islice(v, beyond)) if zipped and is_list(v) else (v,)
        for v in itertools.islice(values, MOST_VALUES)
    ]
    if not points:
        raise SpecError("has no values; give at least one or leave it out")
    for point in points:
        if len(point) != len(names):
            raise SpecError(
                f"got {shown(point)}; each point of this zip should have {len(names)} values"
            )
    return points


def _as_list(names: Sequence[str], value: Any) -> str:
    """Return how one value is written as a list, as the end of a message."""
    if not isinstance(value, (int, float)):
        return ""
    if type(value) is int and [*map(str.lower, names)] == ["trial"]:
        count = counted(value, "trial")
        return f": for {count} range({value}), or NUM_TRIALS={value} instead of the axis"
    return f", as in [{value}]"


def _check_results_depend(
    names: Sequence[str], accepted: Accepted, unused: Collection[str]
) -> None:
    """Refuse an axis along which all results would be equal."""
    if idle := [name for name in names if name in hp.UNSWEPT]:
        raise SpecError(f"no result depends on {idle[0].upper()}; give it as one value")
    if idle := [name for name in names if name in unused]:
        of_optimizers = f"no optimizer of the spec uses {idle[0].upper()}"
        why = _WHY_UNUSED.get(idle[0], of_optimizers)
        raise SpecError(f"{why}, so no result depends on it")
    if "n_train" in names and not accepted.errors and not accepted.takes("n_train"):
        raise SpecError(
            "no function of the spec takes N_TRAIN, so no result depends on it; data recipes such "
            "as images do"
        )


def _axis(given: Axis, points: Iterable[tuple[Any, ...]], accepted: Accepted) -> Axis:
    """Return an axis, or a zip of several, with these points, converted to their types."""
    names = given.names
    errors: list[str] = []
    parsed = []
    for point in points:
        with collected(errors):
            parsed.append(
                tuple(parsed_value(n, v, accepted) for n, v in zip(names, point, strict=True))
            )
    columns = []
    for name, values in zip(names, zip(*parsed, strict=True), strict=False):
        with collected(errors):
            columns.append(
                values if name in Hyperparameters.model_fields else one_kind_of_number(values)
            )
    if errors:
        raise SpecError(_first(errors))
    axis = Axis(names, tuple(zip(*columns, strict=True)), given.zipped_as)
    try:
        repeats = axis.repeats()
    except TypeError as error:
        raise SpecError(f"a value {NO_CONTENT.format(error)}") from error
    if repeats:
        repeated = repeats[0] if len(names) > 1 else repeats[0][0]
        raise SpecError(f"the value {shown(repeated)} appears more than once; keep one")
    return axis


#: Values of an axis whose errors are listed: of a matrix, every row is one.
_LISTED = 3


def _first(errors: list[str]) -> list[str]:
    """Return the first of the errors of an axis, and how many there are further."""
    errors = [*dict.fromkeys(errors)]
    further = len(errors) - _LISTED
    more = [f"and {further} further errors of its values"] if further > 1 else []
    return [*errors[: _LISTED if more else None], *more]


def _size_errors(product: Product) -> list[str]:
    if product.size <= MOST_CONFIGS:
        return []
    lengths = " x ".join(f"{axis.dimension:.60}[{len(axis)}]" for axis in product.axes)
    return [
        f"axes: their product {lengths} has {product.size:.3g} points, and a sweep may have "
        f"{MOST_CONFIGS:,}; give fewer values, zip axes that vary together, or divide it into "
        "several sweeps"
    ]


#: How to change the dimension of a zipped axis, and of a random search.
_RENAME = (
    "change the order of its names, or rename an argument",
    "give it another one: random_search(..., dimension='draw')",
)


def repeated_names(axes: Sequence[Axis]) -> list[str]:
    """Return an error for each name that several axes, or an axis and a dimension, have."""
    names = [name for axis in axes for name in axis.names]
    errors = [
        f"axis {name}: is given more than once; keep one"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    zipped = [axis for axis in axes if len(axis.names) > 1]
    taken = [*names, *(axis.dimension for axis in zipped)]
    return errors + [
        f"axis ({', '.join(axis.names)}): its dimension in results would be {axis.dimension}, the "
        f"name of another axis; {_RENAME[bool(axis.zipped_as)]}"
        for axis in zipped
        if taken.count(axis.dimension) > 1
    ]


def parsed_value(name: str, value: Any, accepted: Accepted) -> Any:
    """Return a value converted to the type of its name: a hyperparameter, trial or monomials."""
    if name == "trial":
        return _trial(value)
    if name == "monomials":
        return _monomial(value)
    if name in Hyperparameters.model_fields:
        return hp.validate_one(name, value)
    if name in accepted.of_mlp:
        return mlp_setting(name, value)
    if type(value) is int and value.bit_length() > MOST_BITS:
        raise SpecError(f"got an integer of {value.bit_length():,} bits; at most {MOST_BITS:,}")
    return plain_number(value)


def _trial(value: Any) -> int:
    try:
        return int(hp.validate_one("seed", value))  # what is valid for one is for the other
    except SpecError:
        raise SpecError(f"got {shown(value)}; should be an integer >= 0") from None


def _monomial(value: Any) -> Any:
    from mlpsubmit.batchfns.monomial import Monomial

    try:
        if isinstance(value, Mapping):
            return Monomial(value)
        if isinstance(value, str):
            return Monomial.from_repr(value)
        if isinstance(value, (list, tuple)):
            return tuple(_monomial(entry) for entry in value)
    except ValueError as error:
        raise SpecError(f"got {shown(value)}; {error}") from None
    return value
