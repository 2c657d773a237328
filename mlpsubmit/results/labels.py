"""How a grab names its results: their dimensions with coordinates, their unit and long name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from mlpsubmit.errors import did_you_mean

__all__ = ["NO_LABELS", "LabelledGrab", "Labels", "Scalar", "labels_of", "mismatch", "unlabelled"]

Scalar: TypeAlias = int | float | bool | str

#: One name per dimension of an array.
Dims: TypeAlias = tuple[str, ...]


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
    """

    dims: Dims | Mapping[str, Dims] | None = None
    coords: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)
    units: str | Mapping[str, str] = ""
    long_name: str | Mapping[str, str] = ""

    def dims_of(self, key: str | None) -> Dims | None:
        """Return the dimensions of what a key holds, or for None of a grab without keys."""
        found: Dims | None = _of(self.dims, key, None)
        return found

    def of_grab(self, name: str) -> Labels:
        """Return the labels under which a grab has a name: its own dimensions begin with that."""

        def own(dims: Iterable[str]) -> Dims:
            return tuple(f"{name}{dim}" if dim.startswith("_") else dim for dim in dims)

        if not any(dim.startswith("_") for dim in self.all_dims) or not name.isidentifier():
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
        return cls(dims, coords, content["units"], content["long_name"])


NO_LABELS = Labels()


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


def labels_of(grab: Any) -> Labels:
    """Return the labels of a grab; those of the function inside of a partial or a decorator."""
    seen: list[Any] = []
    while grab is not None and not any(grab is one for one in seen) and len(seen) < 100:
        labels = getattr(grab, "labels", None)
        if isinstance(labels, Labels):
            return labels
        seen.append(grab)
        grab = getattr(grab, "func", None) or getattr(grab, "__wrapped__", None)
    return NO_LABELS


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
        dims = labels.dims_of(own_key)
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
