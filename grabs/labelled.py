"""The decorator with which a grab names its dimensions, coordinates and units."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast, overload

import numpy as np

from mlpsubmit.errors import SpecError, collected, shown
from mlpsubmit.results.labels import (
    MOST_COORDS,
    Coordinates,
    LabelledGrab,
    Labels,
    Scalar,
    labels_of,
    unlabelled,
)
from mlpsubmit.results.names import RESERVED, clean_text

__all__ = ["grab", "labelled"]

F = TypeVar("F", bound=Callable[..., Any])

#: Units that xarray takes for those of times, and their symbols, which it leaves alone.
_TIMES = {
    "days": "d",
    "hours": "h",
    "minutes": "min",
    "seconds": "s",
    "milliseconds": "ms",
    "microseconds": "us",
    "nanoseconds": "ns",
}


@overload
def grab(function: F, /) -> F: ...


@overload
def grab(
    *,
    dims: str | Sequence[str] | Mapping[Any, str | Sequence[str]] | None = None,
    coords: Mapping[str, Any] | Sequence[Any] | None = None,
    units: str | Mapping[Any, str] | None = None,
    long_name: str | Mapping[Any, str] | None = None,
) -> Callable[[F], F]: ...


def grab(
    function: Any = None,
    /,
    *,
    dims: str | Sequence[str] | Mapping[Any, str | Sequence[str]] | None = None,
    coords: Mapping[str, Any] | Sequence[Any] | None = None,
    units: str | Mapping[Any, str] | None = None,
    long_name: str | Mapping[Any, str] | None = None,
) -> Any:
    """Return a decorator that names what a grab measures, in the dataset of the results.

    The grab itself stays as it is: it is called as before, and the keys of configs do not change,
    so that finished results are reused under new names.

    Args:
        function: the grab, where the decorator is written without arguments.
        dims: one name per dimension of the returned array; instead of ``<grab>_dim0`` and so on.
            Grabs that share a name share the dimension. For a grab that returns a dictionary these
            are those of all keys, or a mapping from key to names.
        coords: the values along dimensions by name, as ``coords={"layer": ["in", "out"]}``; a mere
            list where there is one dimension. Numbers or texts; anything else by its text.
            Where the size differs between configs, those of the largest.
        units: the attribute ``units`` of the variable, or a mapping from key to units.
        long_name: the attribute ``long_name``, or a mapping from key to names. By default the first
            line of the docstring, without "Return the" and the full stop.

    Returns:
        A decorator of functions, lambdas, partials and other callables.

    Raises:
        SpecError: listing every bad name, coordinate and unit.

    Example:
        >>> norms = grab(dims=("layer",))(lambda model: [p.norm() for p in model.parameters()])
        >>> len(norms(nn.Linear(3, 5)))
        2
    """

    def decorate(function: F) -> F:
        if not callable(function):
            raise SpecError(
                f"grab: got {shown(function)}; should decorate a function; a grab of the library "
                "by its name is mlpsubmit.grabs.by_name(...)"
            )
        labels = _labels(labels_of(function), dims, coords, units, long_name)
        return cast(F, LabelledGrab(function, _with_long_name(labels, function)))

    return decorate if function is None else decorate(function)


def _labels(inner: Labels, dims: Any, coords: Any, units: Any, long_name: Any) -> Labels:
    """Return checked labels; what is not given is that of the grab within.

    Raises:
        SpecError: listing every error.
    """
    errors: list[str] = []
    own_dims = inner.dims if dims is None else _dims(dims, errors)
    own_coords = inner.coords if dims is None else {}
    with collected(errors):
        own_coords = {**own_coords, **_coords(coords, Labels(own_dims).all_dims)}
    own_units = inner.units if units is None else _texts("units", units, errors)
    own_name = inner.long_name if long_name is None else _texts("long_name", long_name, errors)
    for unit in own_units.values() if isinstance(own_units, Mapping) else [own_units]:
        if unit in _TIMES or re.search(r"\bsince\b", unit):
            hint = f"try {_TIMES[unit]!r}" if unit in _TIMES else "try another text"
            errors.append(
                f"units: got {unit!r}, which xarray reads back as times and no numbers; {hint}"
            )
    if errors:
        raise SpecError([f"grab: {text}" for text in errors])
    rest = (inner.optional, inner.coordinates) if dims is None else ()
    return Labels(own_dims, own_coords, own_units, own_name, *rest)


def labelled(
    *dims: str,
    long_name: str,
    coords: Mapping[str, tuple[Scalar, ...]] | Coordinates | None = None,
    optional: int = 0,
) -> Callable[[F], F]:
    """Return a decorator for the grabs of this package, which stay plain functions.

    Args:
        dims, long_name, optional: see :class:`~mlpsubmit.results.labels.Labels`.
        coords: the values along some of the dimensions, or how they follow from the arguments.
    """

    def decorate(function: F) -> F:
        fixed, follow = ({}, coords) if callable(coords) else (coords or {}, None)
        labels = Labels(dims, fixed, "", long_name, optional, follow)
        function.labels = labels  # type: ignore[attr-defined]
        return function

    return decorate


def _with_long_name(labels: Labels, function: Callable[..., Any]) -> Labels:
    """Return labels whose long name, if there is none, is from the docstring."""
    if labels.long_name:
        return labels
    doc = inspect.getdoc(function) if inspect.isroutine(unlabelled(function)) else None
    line = (doc or "").strip().partition("\n")[0].strip().removesuffix(".")
    line = re.sub(r"^Returns? (the |a |an )?", "", line)
    return replace(labels, long_name=clean_text(line))


def _dims(given: Any, errors: list[str]) -> tuple[str, ...] | dict[str, tuple[str, ...]] | None:
    if given is None:
        return None
    if isinstance(given, Mapping):
        return {str(key): _names(own, errors) for key, own in given.items()}
    return _names(given, errors)


def _names(given: Any, errors: list[str]) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, (tuple, list)) or not all(
        isinstance(name, str) and name.isidentifier() for name in names
    ):
        errors.append(
            f"dims: got {shown(given)}; should be names such as dims=('layer',), one per dimension "
            "of the array: letters, digits and underscores"
        )
        return ()
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        errors.append(
            f"dims: got {name!r} twice; name each dimension differently, as in "
            f"dims=({name!r}, '{name}2')"
        )
    for name in sorted(RESERVED.intersection(names)):
        errors.append(
            f"dims: got {name!r}, which the results have already; choose another name, such as "
            f"'{name}_of_grab'"
        )
    return tuple(names)


def _coords(given: Any, dims: Sequence[str]) -> dict[str, tuple[Scalar, ...]]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        if len(dims) != 1:
            raise SpecError(
                f"coords: got {shown(given)} for {len(dims)} dims; should be a mapping of their "
                "names to lists, as in coords={'layer': ['in', 'out']}"
            )
        given = {dims[0]: given}
    errors = [
        f"coords: got {name!r}, which is none of the dims ({', '.join(dims) or 'none are given'})"
        for name in given
        if name not in dims
    ]
    found = {}
    for name, values in given.items():
        with collected(errors):
            found[name] = _values(name, values)
    if errors:
        raise SpecError(errors)
    return found


def _values(name: str, values: Any) -> tuple[Scalar, ...]:
    listed = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(listed, (list, tuple, range)) or any(
        isinstance(value, (list, tuple)) for value in listed
    ):
        raise SpecError(f"coords: got {shown(values)} along {name!r}; should be a list of values")
    if not 0 < len(listed) <= MOST_COORDS:
        raise SpecError(
            f"coords: got {len(listed):,} values along {name!r}; should be 1 to {MOST_COORDS:,}"
        )
    scalars = tuple(_scalar(value) for value in listed)
    if any(isinstance(value, float) and not np.isfinite(value) for value in scalars):
        raise SpecError(f"coords: got {shown(values)} along {name!r}; should be finite")
    return scalars


def _scalar(value: Any) -> Scalar:
    value = value.item() if isinstance(value, np.generic) else value
    return value if type(value) in (bool, int, float, str) else str(value)


def _texts(name: str, given: Any, errors: list[str]) -> str | dict[str, str]:
    if given is None:
        return ""
    texts = given if isinstance(given, Mapping) else {"": given}
    wrong = [text for text in texts.values() if not isinstance(text, str) or not text.strip()]
    if wrong:
        errors.append(f"{name}: got {shown(wrong[0])}; should be a text, as in {name}='nats'")
        return ""
    clean = {str(key): clean_text(text.strip()) for key, text in texts.items()}
    return clean if isinstance(given, Mapping) else clean[""]
