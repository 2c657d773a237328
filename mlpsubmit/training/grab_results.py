"""The results of grabs: what is accepted, and copies of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mlpsubmit.errors import UserError, unreturned
from mlpsubmit.masked import is_masked, with_nan
from mlpsubmit.results.grab_arrays import result_name
from mlpsubmit.results.labels import Labels, mismatch
from mlpsubmit.training.result import Array

__all__ = [
    "Entry",
    "GrabError",
    "Shapes",
    "check_exact",
    "check_shapes",
    "entries_of",
    "read_back",
    "storable",
]

#: Up to here every integer has a float64 of its own.
_EXACT = 2**53

#: The most arrays of all grabs together: packs may have a few more (store.pack_schema).
_MOST_ARRAYS = 4000

#: A grab, and a key of its dictionaries, or None where it returns no dictionaries.
Entry: TypeAlias = tuple[str, str | None]

#: The shapes of what a grab has returned, by key.
Shapes: TypeAlias = dict[str | None, tuple[int, ...]]


class GrabError(UserError):
    """A grab that failed, or whose result cannot be stored."""


def check_shapes(
    known: Mapping[str, Mapping[int, Shapes]],
    labels: Mapping[str, Labels],
    name: str,
    config: int,
    shapes: Shapes,
    where: str,
) -> bool:
    """Check a result of a grab against earlier ones, its labels, and other grabs.

    Args:
        known: per grab and config, the shapes of what it has returned.
        labels: per grab.
        name, config: of the grab and the config of the result.
        shapes: of the result.

    Returns:
        Whether it is the first one of the config.

    Raises:
        GrabError: for a result that does not fit.
    """
    if config in known[name]:
        _check_as_before(known[name][config], shapes, where)
        return False
    for other, before in known[name].items():
        for key in shapes.keys() & before.keys():
            if len(before[key]) != len(shapes[key]):
                raise GrabError(
                    f"{where} returned shape {shapes[key]}{_under(key)}, but {before[key]} for "
                    f"model {other}; configs trained together need results of as many dimensions"
                )
    if problem := mismatch(labels[name], shapes):
        raise GrabError(f"{where} returned {problem}")
    _check_names(known, name, shapes, where)
    sizes = _sizes(labels[name], shapes)
    for other_grab, own in known.items():
        for dim, size in _sizes(labels[other_grab], own.get(config, {})).items():
            if sizes.get(dim, size) != size:
                raise GrabError(
                    f"{where} has {sizes[dim]} values along {dim!r}, and the grab {other_grab!r} "
                    f"{size}; dimensions of one name have one size: give them different names"
                )
    return True


def _check_names(
    known: Mapping[str, Mapping[int, Shapes]], name: str, shapes: Shapes, where: str
) -> None:
    """Refuse two results of one name, and more than a pack can have."""
    entries = {(n, key) for n, own in known.items() for one in own.values() for key in one}
    entries |= {(name, key) for key in shapes}
    by_name: dict[str, Entry] = {}
    for entry in sorted(entries, key=lambda entry: (entry[0], entry[1] or "")):
        other = by_name.setdefault(result_name(*entry), entry)
        if other != entry:
            raise GrabError(
                f"{where} makes two results of the name {result_name(*entry)!r}: of "
                f"{_described(other)} and of {_described(entry)}; rename one of them"
            )
    if len(entries) > _MOST_ARRAYS:
        raise GrabError(
            f"{where} makes {len(entries):,} results, with all others; at most {_MOST_ARRAYS:,} "
            "are possible: try an array with a dimension instead of a dictionary"
        )


def _check_as_before(before: Shapes, shapes: Shapes, where: str) -> None:
    """Refuse a result of other keys or shapes than that of an earlier step."""
    if before.keys() != shapes.keys():
        raise GrabError(
            f"{where} returned {_form(shapes)}, but {_form(before)} before; a grab needs the same "
            "keys at every step; try NaN for what is missing at a step"
        )
    for key, shape in shapes.items():
        if before[key] != shape:
            raise GrabError(
                f"{where} returned shape {shape}{_under(key)}, but {before[key]} before; a grab "
                "needs the same shape at every step; try padding, or a separate grab per part"
            )


def _form(shapes: Shapes) -> str:
    if None in shapes:
        return "no dictionary"
    return f"a dictionary of {', '.join(map(repr, shapes)) or 'nothing'}"


def _under(key: str | None) -> str:
    return "" if key is None else f" under {key!r}"


def _described(entry: Entry) -> str:
    return f"the grab {entry[0]!r}" + (f" with the key {entry[1]!r}" if entry[1] else "")


def _sizes(labels: Labels, shapes: Shapes) -> dict[str, int]:
    """Return the sizes of the dimensions that a grab names."""
    return {
        dim: size
        for key, shape in shapes.items()
        for dim, size in zip(labels.dims_of(key, len(shape)) or (), shape, strict=False)
    }


def entries_of(result: Any, where: str) -> dict[str | None, Tensor | Array]:
    """Return copies of what a grab has returned, by key; by None if it is no dictionary."""
    if not isinstance(result, Mapping):
        return {None: _copied(result, where)}
    entries: dict[str | None, Tensor | Array] = {}
    for key, value in result.items():
        text = str(key)
        valid = isinstance(key, (str, int, np.integer)) and not isinstance(key, bool)
        if not valid or not text.strip():
            raise GrabError(
                f"{where} returned a dictionary with the key {key!r:.80}; valid are strings and "
                "integers, which the names of its results end in"
            )
        if text in entries:
            raise GrabError(f"{where} returned a dictionary with two keys {text!r}; rename one")
        if isinstance(value, Mapping):
            raise GrabError(
                f"{where} returned a dictionary within a dictionary, under {key!r}; valid is one "
                f"level: try the key '{text}_{next(iter(value), 'x')}'"
            )
        entries[text] = _copied(value, where, _under(text))
    return entries


def _copied(result: Any, where: str, under: str = "") -> Tensor | Array:
    """Return a copy of a result, tensors on their device: it may be a view of the weights."""
    if isinstance(result, Tensor):
        return result.detach().to_dense().clone()
    cause, described = None, "None" if result is None else f"{type(result).__name__} {result!r:.80}"
    try:
        array = _array(result)
        if array.dtype.char in "gG":  # longer than what results hold
            array = array.astype(complex if array.dtype.kind == "c" else float)
        if array.dtype.kind in "biufc":
            return array
    except (TypeError, ValueError) as error:
        cause = error
    raise GrabError(
        f"{where} returned {described}{under}; valid are numbers, arrays, tensors, lists of these "
        f"in equal shapes, and dictionaries of these{unreturned(result)}"
    ) from cause


def _array(result: Any) -> Array:
    if isinstance(result, Tensor):
        return _numpy(result.detach().to_dense())
    if isinstance(result, (list, tuple)):
        return np.stack([_array(entry) for entry in result]) if result else np.zeros(0)
    if is_masked(result):
        return with_nan(result)
    return np.array(result)


def _numpy(tensor: Tensor) -> Array:
    tensor = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    array: Array = tensor.resolve_conj().resolve_neg().cpu().numpy()
    return array


def read_back(values: list[Tensor | Array]) -> list[Array]:
    """Return values as arrays; tensors of equal shape and type are copied in one transfer."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) == len(values) and len({(t.shape, t.dtype, t.device) for t in tensors}) == 1:
        return list(_numpy(torch.stack(tensors)))
    return [_numpy(value) if isinstance(value, Tensor) else value for value in values]


def check_exact(name: str, value: Array) -> None:
    """Refuse integers that results would round: they pass through float64, which has NaN.

    Raises:
        GrabError: one is larger than 2**53.
    """
    if value.dtype.kind in "iu" and value.size and (value > _EXACT).any() | (value < -_EXACT).any():
        largest = max(abs(int(value.max())), abs(int(value.min())))
        raise GrabError(
            f"grab {name!r} returned the integer {largest}; results hold integers up to 2**53 in "
            "size; return it in parts, such as n >> 32 and n & 0xFFFFFFFF"
        )


def storable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a type that can hold NaN."""
    return dtype if dtype.kind in "fc" else np.dtype(np.float64)
