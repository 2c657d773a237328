"""Configs of a run by the values of its axes, as ``ds.sel`` selects them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.display.text import counted
from mlpsubmit.errors import SpecError, UserError, did_you_mean, shown
from mlpsubmit.jobs.store.masks import decode_mask
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.results.shown_values import equals_label, matching
from mlpsubmit.results.values import identity
from mlpsubmit.runs.value_labels import axis_label, value_hash
from mlpsubmit.spec.hyperparameters import canonical_name

__all__ = [
    "axis_values",
    "included",
    "point",
    "point_hashes",
    "point_text",
    "select",
    "select_one",
]

#: The most configs, and values of an axis, that a message lists.
_LISTED = 6


def axis_values(run: RunDirectory) -> dict[str, list[Any]]:
    """Return the values of every axis of a run, by name, as its results label them.

    Those of a zipped axis are its positions, too, by the name of its dimension.
    """
    return {name: values for axis in run.sweep["axes"] for name, values in _labels(axis).items()}


def _labels(axis: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the values by which a point of an axis can be selected, by name."""
    positions = {axis["dimension"]: list(range(len(axis["values"][0])))}
    return positions | dict(zip(axis["names"], map(list, axis["values"]), strict=True))


def _shape(run: RunDirectory) -> tuple[int, ...]:
    return tuple(len(axis["values"][0]) for axis in run.sweep["axes"])


def included(run: RunDirectory) -> NDArray[np.int64]:
    """Return the flat indices of the configs that ``where`` keeps."""
    size, mask = math.prod(_shape(run)), run.sweep["included"]
    return np.arange(size) if mask is None else np.flatnonzero(decode_mask(mask, size))


def point(run: RunDirectory, index: int) -> dict[str, Any]:
    """Return the values of a config on the axes, by name."""
    shape = _shape(run)
    at = np.unravel_index(index, shape) if shape else ()
    return {
        name: values[int(place)]
        for axis, place in zip(run.sweep["axes"], at, strict=True)
        for name, values in zip(axis["names"], axis["values"], strict=True)
    }


def point_hashes(run: RunDirectory, index: int) -> dict[str, str]:
    """Return the hashes of these values, empty where the label identifies one."""
    shape = _shape(run)
    at = np.unravel_index(index, shape) if shape else ()
    return {
        name: hashes[int(place)] if hashes else ""
        for axis, place in zip(run.sweep["axes"], at, strict=True)
        for name, hashes in zip(axis["names"], axis["hashes"], strict=True)
    }


def point_text(run: RunDirectory, index: int) -> str:
    """Return the values of a config on the axes as text."""
    values = point(run, index)
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "the only config"


def _identities(axis: Mapping[str, Any], name: str) -> list[str]:
    """Return the hashes of the values by which a point of an axis can be selected."""
    labels = _labels(axis)[name]
    hashes = dict(zip(axis["names"], axis["hashes"], strict=True)).get(name) or [""] * len(labels)
    return [identity(*pair) for pair in zip(labels, hashes, strict=True)]


def _fitting(axis: Mapping[str, Any], name: str, wanted: Any, exact: bool) -> NDArray[np.bool_]:
    """Return which points of an axis have a value; if none has, those with its text.

    Also as tables and legends show it, with fewer digits.
    """
    own = ""
    with contextlib.suppress(TypeError, SpecError):  # it has no content to compare
        own = value_hash(wanted)
    same = np.array([one == own for one in _identities(axis, name)])
    if exact or same.any():
        return same
    return matching(_labels(axis)[name], wanted)


def select(
    run: RunDirectory, selection: Mapping[str, Any], exact: Collection[str] = ()
) -> NDArray[np.int64]:
    """Return the flat indices of the configs with some values on axes.

    Args:
        selection: one value for each of some axes, by name in any spelling; also as tables and
            legends show it, with fewer digits.
        exact: the names of which the value counts, and its text does not.

    Raises:
        UserError: listing each name that is no axis, and each value that no config has.
    """
    known, errors = axis_values(run), list[str]()
    by_lower = {name.lower(): name for name in known}
    axes = {name: axis for axis in run.sweep["axes"] for name in _labels(axis)}
    fitting: dict[str, NDArray[np.bool_]] = {}
    for given, value in selection.items():
        lower = given.lower()
        name = given if given in known else canonical_name(given) or by_lower.get(lower, lower)
        if name not in known:
            errors.append(
                f"{given}: is not an axis of run {run.id}{did_you_mean(given, known)}; its axes "
                f"are {', '.join(known) or 'none'}"
            )
            continue
        fitting[name] = _fitting(axes[name], name, value, name in exact)
        if not fitting[name].any():
            got = axis_label(value) if callable(value) else shown(value)
            text = f"{name}: got {got}; valid are {_nearest(known[name], value)}"
            if namesakes := [label for label in known[name] if equals_label(label, value)]:
                text = (
                    f"{name}: got {got}, whose code or content is another one in run {run.id}; "
                    f"give the same, or take that one with sel={ {name: namesakes[0]}!r}"
                )
            errors.append(text)
    if errors:
        raise UserError("; ".join(errors))
    indices, shape = included(run), _shape(run)
    chosen = np.ones(len(indices), dtype=bool)
    places = np.unravel_index(indices, shape) if shape else ()
    for axis, at in zip(run.sweep["axes"], places, strict=True):
        for name in _labels(axis):
            if name in fitting:
                chosen &= fitting[name][at]
    return np.asarray(indices[chosen], dtype=np.int64)


def select_one(
    run: RunDirectory, selection: Mapping[str, Any], what: str, exact: Collection[str] = ()
) -> int:
    """Return the flat index of the one config with some values on axes.

    Args:
        what: a name for messages.
        exact: as of :func:`select`.

    Raises:
        UserError: none matches, or several do.
    """
    found = select(run, selection, exact)
    if len(found) == 1:
        return int(found[0])
    given = ", ".join(f"{name}={value}" for name, value in selection.items()) or "no selection"
    if not len(found):
        raise UserError(
            f"{what}: {given} matches no config of run {run.id}: no config has these values "
            "together (a zipped axis, or where= leaves it out)"
        )
    points = [point(run, int(index)) for index in found]
    free = [name for name in points[0] if len({str(one[name]) for one in points}) > 1]
    texts = [", ".join(f"{name}={one[name]}" for name in free) for one in points[:_LISTED]]
    more = "; ..." if len(found) > _LISTED else ""
    raise UserError(
        f"{what}: {given} matches {counted(len(found), 'config')} of run {run.id} "
        f"({'; '.join(texts)}{more}); select one of them: add {free[0]}=..."
    )


def _nearest(labels: Sequence[Any], wanted: Any) -> str:
    """Return the values of an axis, for a message; of many numbers those next to a wanted one."""
    values = [*dict.fromkeys(labels)]
    try:
        near = sorted(values, key=lambda label: abs(float(label) - float(wanted)))[:_LISTED]
    except (TypeError, ValueError):
        return _listed(values)
    return _listed(values) if len(values) <= _LISTED else f"{_listed(sorted(near))}, ..."


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:_LISTED])) + (", ..." if len(values) > _LISTED else "")
