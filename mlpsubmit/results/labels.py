"""How a grab names its results: their dimensions with coordinates, their unit and long name."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeAlias

from mlpsubmit.errors import did_you_mean

__all__ = [
    "MOST_COORDS",
    "NO_LABELS",
    "ON_AXIS",
    "Coordinates",
    "LabelledGrab",
    "Labels",
    "Scalar",
    "common_start",
    "labels_of",
    "mismatch",
    "prefix_of",
    "unlabelled",
]

#: The most coordinates along one dimension: they are in sweep.json.
MOST_COORDS = 100_000

Scalar: TypeAlias = int | float | bool | str

#: In the place of an argument that differs between configs.
ON_AXIS = object()

#: One name per dimension of an array.
Dims: TypeAlias = tuple[str, ...]

#: From the arguments of a grab to the values along some of its dimensions, as far as these tell.
Coordinates: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, tuple[Scalar, ...]]]


def common_start(coordinates: Sequence[tuple[Scalar, ...]]) -> tuple[Scalar, ...] | None:
    """Return the longest of coordinates, if it begins with each of the others; else None."""
    longest = max(coordinates, key=len)
    return longest if all(longest[: len(own)] == own for own in coordinates) else None


@dataclass(frozen=True)
class Labels:
    """The names that a grab gives to what it returns.

    A grab that returns a dictionary may have different ones per key; what is no mapping is that of
    every key.

    Args:
        dims: names of the dimensions of its array, or a mapping of its keys to these; None for
            ``<grab>_dim0`` and so on. A name that begins with ``_`` follows that of the grab: see
            :meth:`of_grab`.
        coords: the values along some of the dimensions.
        units: the unit of its values, or a mapping of its keys to units.
        long_name: what is measured, or a mapping of its keys to that.
        optional: how many of the last dimensions an array may lack: a kernel of all pairs of
            outputs has two more than their mean.
        coordinates: of a grab whose coordinates follow from its arguments; see :meth:`given`.
    """

    dims: Dims | Mapping[str, Dims] | None = None
    coords: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)
    units: str | Mapping[str, str] = ""
    long_name: str | Mapping[str, str] = ""
    optional: int = 0
    coordinates: Coordinates | None = field(default=None, compare=False, repr=False)

    def dims_of(self, key: str | None, count: int) -> Dims | None:
        """Return the dimensions of what a key holds, or for None of a grab without keys.

        Args:
            count: how many the array has; without those of the optional ones that it lacks.
        """
        found: Dims | None = _of(self.dims, key, None)
        if found is None or not len(found) - self.optional <= count:
            return found
        return found[:count]

    def given(self, arguments: Mapping[str, Any]) -> Labels:
        """Return the labels of a grab with some arguments: with the coordinates that follow."""
        if self.coordinates is None:
            return self
        own = {d: v for d, v in self.coordinates(arguments).items() if 0 < len(v) <= MOST_COORDS}
        return replace(self, coords={**self.coords, **own})

    def of_grab(self, name: str) -> Labels:
        """Return the labels under which a grab has a name: its own dimensions begin with that."""

        word = prefix_of(name)

        def own(dims: Iterable[str]) -> Dims:
            return tuple(f"{word}{dim}" if dim.startswith("_") else dim for dim in dims)

        if not any(dim.startswith("_") for dim in self.all_dims):
            return self
        dims = self.dims
        named = (
            {k: own(v) for k, v in dims.items()} if isinstance(dims, Mapping) else own(dims or ())
        )
        coords = dict(zip(own(self.coords), self.coords.values(), strict=True))
        return replace(self, dims=named, coords=coords)

    def attributes_of(self, key: str | None) -> dict[str, str]:
        """Return the attributes ``long_name`` and ``units``, as far as they are given."""
        given = {"long_name": _of(self.long_name, key, ""), "units": _of(self.units, key, "")}
        return {name: text for name, text in given.items() if text}

    @property
    def all_dims(self) -> tuple[str, ...]:
        """All dimensions, each once."""
        several = self.dims.values() if isinstance(self.dims, Mapping) else [self.dims or ()]
        return tuple(dict.fromkeys(dim for dims in several for dim in dims))

    @property
    def keys(self) -> set[str]:
        """The keys that have labels of their own."""
        parts = (self.dims, self.units, self.long_name)
        return {key for part in parts if isinstance(part, Mapping) for key in part}

    def as_json(self) -> dict[str, Any]:
        """Return the content for a JSON file."""
        dims: Any = self.dims
        if isinstance(dims, Mapping):
            dims = {key: list(own) for key, own in dims.items()}
        elif dims is not None:
            dims = list(dims)
        coords = {dim: list(values) for dim, values in self.coords.items()}
        return {
            "dims": dims,
            "coords": coords,
            "units": self.units,
            "long_name": self.long_name,
            "optional": self.optional,
        }

    @classmethod
    def of_json(cls, content: Mapping[str, Any]) -> Labels:
        """Return the labels of a JSON file."""
        dims = content["dims"]
        if isinstance(dims, Mapping):
            dims = {key: tuple(own) for key, own in dims.items()}
        elif dims is not None:
            dims = tuple(dims)
        coords = {dim: tuple(values) for dim, values in content["coords"].items()}
        texts = content["units"], content["long_name"]
        return cls(dims, coords, *texts, content["optional"])


NO_LABELS = Labels()


def prefix_of(grab: str) -> str:
    """Return what the dimensions of a grab's own begin with: its name as an identifier."""
    word = re.sub(r"\W", "_", grab)
    return word if word.isidentifier() else f"grab_{word}"


class LabelledGrab:
    """A grab with the names of what it returns; otherwise the function itself.

    Attributes:
        func: the function.
        labels: of its results.
    """

    def __init__(self, func: Callable[..., Any], labels: Labels) -> None:
        functools.update_wrapper(self, func, updated=())
        self.func, self.labels = func, labels

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.func(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind a method."""
        if instance is None:
            return self
        return LabelledGrab(self.func.__get__(instance, owner), self.labels)

    def __repr__(self) -> str:
        return repr(self.func)

    @property
    def keywords(self) -> dict[str, Any]:
        """The arguments that a partial inside fixes."""
        return dict(getattr(self.func, "keywords", {}))


def labels_of(grab: Any, settings: Mapping[str, Any] = MappingProxyType({})) -> Labels:
    """Return the labels of a grab; those of the function inside of a partial or a decorator.

    Args:
        settings: arguments that it is called with, besides those that a partial fixes.
    """
    seen: list[Any] = []
    found: Labels | None = None
    fixed: dict[str, Any] = {}
    while grab is not None and not any(grab is one for one in seen) and len(seen) < 100:
        labels, keywords = getattr(grab, "labels", None), getattr(grab, "keywords", None)
        if isinstance(keywords, Mapping):
            fixed = {**keywords, **fixed}
        if found is None and isinstance(labels, Labels):
            found = labels
        seen.append(grab)
        grab = getattr(grab, "func", None) or getattr(grab, "__wrapped__", None)
    return NO_LABELS if found is None else found.given({**settings, **fixed})


def unlabelled(value: Any) -> Any:
    """Return the function of a labelled grab; anything else as it is."""
    while isinstance(value, LabelledGrab):
        value = value.func
    return value


def mismatch(labels: Labels, shapes: Mapping[str | None, Sequence[int]]) -> str:
    """Return in what a result does not fit its labels; nothing if it does.

    Args:
        shapes: of the arrays by key; that of a grab without keys by None.
    """
    if labels.keys and None in shapes:
        return (
            f"no dictionary, but its labels are given for the keys {_listed(labels.keys)}; "
            "give dims=('layer',) and not a mapping"
        )
    returned = {key for key in shapes if key is not None}
    for key in sorted(labels.keys - returned):
        # Another config may return it; a typing error is close to a key without labels.
        if hint := did_you_mean(key, returned - labels.keys):
            return f"the keys {_listed(returned)}, and its labels name {key!r}{hint}"
    sizes: dict[str, int] = {}
    for own_key, shape in shapes.items():
        what = "" if own_key is None else f" under {own_key!r}"
        dims = labels.dims_of(own_key, len(shape))
        if dims is None:
            continue
        if len(dims) != len(shape):
            return (
                f"shape {tuple(shape)}{what}, which has {len(shape)} dimensions, but its dims "
                f"{dims} name {len(dims)}; name each dimension of the array once"
            )
        for dim, size in zip(dims, shape, strict=True):
            named = len(labels.coords.get(dim, ())) if dim in labels.coords else None
            if named is not None and size > named:
                return (
                    f"shape {tuple(shape)}{what}, {size} values along {dim!r}, but its coords name "
                    f"{named} of them; give a coordinate for each"
                )
            if sizes.setdefault(dim, size) != size:
                return (
                    f"{size} values along {dim!r}{what}, and {sizes[dim]} elsewhere; dimensions of "
                    "one name have one size: give them different names"
                )
    return ""


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(keys)))


def _of(value: Any, key: str | None, default: Any) -> Any:
    """Return the label of a key: its own, or that of every key."""
    return value.get(key, default) if isinstance(value, Mapping) else value
