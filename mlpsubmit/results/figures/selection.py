"""What a figure is restricted to: values of axes, several of them, or a range."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpsubmit.errors import did_you_mean, shown
from mlpsubmit.results.figures.text import title_of
from mlpsubmit.results.shown_values import matching, value_text
from mlpsubmit.results.source import Array

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["checked", "parse", "select"]

#: The most values that a message lists.
_LISTED = 8


def parse(entries: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return ``name=value`` texts as a dictionary, and what is wrong with the others."""
    selection: dict[str, str] = {}
    errors = []
    for entry in entries:
        name, equals, text = (part.strip() for part in entry.partition("="))
        if not (name and equals and text):
            errors.append(
                f"sel: got {entry!r}; should be NAME=VALUE, as in width=64, width=64,128 or "
                "lr=0.01:0.1"
            )
        elif name in selection:
            errors.append(f"sel: {name} is given twice; write {name}={selection[name]},{text}")
        else:
            selection[name] = text
    return selection, errors


def checked(selection: Any, errors: list[str]) -> dict[str, Any]:
    """Return a selection from Python as a dictionary, without what is wrong in it."""
    if not isinstance(selection or {}, Mapping):
        errors.append(
            f"sel: got {shown(selection)}; should be a dictionary, as in {{'width': 64}} or "
            "{'lr': '0.01:0.1'}"
        )
        return {}
    found = dict(selection or {})
    for name in [name for name in found if not isinstance(name, str)]:
        errors.append(f"sel: got the name {shown(name)}; should be a string")
        del found[name]
    return found


def select(
    dataset: xr.Dataset, selection: Mapping[str, Any], errors: list[str]
) -> tuple[xr.Dataset, dict[str, str]]:
    """Return the dataset with the selected positions of its dimensions, and what a title says.

    That is, by name, each coordinate of which one value is left.

    A dimension of which one position is left is dropped. Values are compared exactly; where none is
    equal, with the digits that are shown.

    Args:
        selection: for names of coordinates a value, a list of values, a slice (whose ends are
            included), or a text as on the command line: ``"64"``, ``"64,128"`` or ``"64:256"``.
        errors: gets a message for each name that is no coordinate, and for each value that none
            has.
    """
    chosen: dict[str, Array] = {}
    facts: dict[str, str] = {}
    known = [str(name) for name, own in dataset.coords.items() if own.ndim == 1]
    known += [str(dim) for dim in dataset.sizes if str(dim) not in known]
    for name, wanted in selection.items():
        if name not in known:
            errors.append(
                f"sel: {name!r} is not an axis{did_you_mean(name, known)}; {_valid(known)}"
            )
            continue
        positions = np.arange(dataset.sizes[name]) if name not in dataset.coords else None
        values = dataset[name].values if positions is None else positions
        dim = name if positions is not None else str(dataset[name].dims[0])
        found = np.zeros(len(values), dtype=bool)
        for part in _parts(wanted, values):
            mask = _matches(values, part)
            if not mask.any():
                errors.append(f"sel: {name} has no value {_shown(part)}; {_values(values, part)}")
            found |= mask
        chosen[dim] = found & chosen.get(dim, True)
        distinct = np.unique(values[found])
        if len(distinct) == 1:
            attributes = dataset[name].attrs if positions is None else {}
            facts[name] = f"{title_of(name, attributes)} = {value_text(distinct[0].item())}"
    for dim, mask in chosen.items():
        if not mask.any() and not errors:
            errors.append(f"sel: no position of {dim} has all the selected values together")
    if errors:
        return dataset, {}
    indexers = {dim: np.flatnonzero(mask) for dim, mask in chosen.items()}
    single = {dim: int(at[0]) if len(at) == 1 else at for dim, at in indexers.items()}
    return dataset.isel(single), facts


def _parts(wanted: Any, values: Array) -> list[Any]:
    """Return the values and ranges that are wanted; a text that is a value of its own is one."""
    if isinstance(wanted, str):
        if _matches(values, wanted).any():
            return [wanted]
        return [_range(part) or part for part in _listed(wanted, values)]
    if isinstance(wanted, (list, tuple, range, set, np.ndarray)):
        return list(wanted)
    return [wanted]


def _listed(text: str, values: Array) -> list[str]:
    """Return the values that are listed with commas between them; a value may have commas, too."""
    pieces = text.split(",")
    found = []
    while pieces:
        longest = 1 if values.dtype.kind in "iufb" else len(pieces)
        candidates = [",".join(pieces[:count]).strip() for count in range(longest, 0, -1)]
        own = next((one for one in candidates if _matches(values, one).any()), pieces[0].strip())
        found.append(own)
        del pieces[: own.count(",") + 1]
    return found


def _range(text: str) -> slice | None:
    low, colon, high = text.partition(":")
    try:
        ends = [float(end) if end.strip() else None for end in (low, high)]
    except ValueError:
        return None
    return slice(*ends) if colon and ends != [None, None] else None


def _matches(values: Array, wanted: Any) -> Array:
    """Return which values are the wanted one, or lie in the wanted range."""
    if isinstance(wanted, slice):
        ends = [end for end in (wanted.start, wanted.stop) if end is not None]
        if values.dtype.kind not in "iuf" or any(isinstance(end, str) for end in ends):
            return np.zeros(len(values), dtype=bool)
        low = -np.inf if wanted.start is None else wanted.start
        high = np.inf if wanted.stop is None else wanted.stop
        inside: Array = (values >= low) & (values <= high)
        for end in (low, high):  # as it is shown, a value may lie just outside
            inside = inside | matching(values.tolist(), end)
        return inside
    return matching(values.tolist(), wanted)


def _shown(part: Any) -> str:
    if not isinstance(part, slice):
        return str(part)
    low, high = ("" if end is None else value_text(end) for end in (part.start, part.stop))
    return f"in {low}:{high}"


def _values(values: Array, near: Any) -> str:
    """Return the values there are; of many numbers the nearest."""
    distinct = list(dict.fromkeys(values.tolist()))
    more = len(distinct) > _LISTED
    if more and values.dtype.kind in "iuf":
        try:
            nearest = sorted(distinct, key=lambda value: abs(value - float(near)))[:4]
        except (TypeError, ValueError):
            pass
        else:
            listed = ", ".join(map(value_text, sorted(nearest)))
            least, most = (value_text(end) for end in (min(distinct), max(distinct)))
            return f"the nearest are {listed}; a range is {least}:{most}"
    return _valid([value_text(value) for value in distinct])


def _valid(names: Sequence[str]) -> str:
    if not names:
        return "there are none"
    return f"valid are {', '.join(names[:_LISTED])}" + (", ..." if len(names) > _LISTED else "")
