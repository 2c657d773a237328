"""Configs of a run by the values of its axes, as ``ds.sel`` selects them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.display.text import counted
from mlpsubmit.errors import UserError, did_you_mean, shown
from mlpsubmit.jobs.store.masks import decode_mask
from mlpsubmit.jobs.store.run_directory import RunDirectory
from mlpsubmit.results.shown_values import equals_label, matching
from mlpsubmit.spec.hyperparameters import canonical_name

__all__ = ["axis_values", "included", "point", "point_text", "select", "select_one"]

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


def point_text(run: RunDirectory, index: int) -> str:
    """Return the values of a config on the axes as text."""
    values = point(run, index)
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "the only config"


def select(
    run: RunDirectory, selection: Mapping[str, Any], exact: Collection[str] = ()
) -> NDArray[np.int64]:
    """Return the flat indices of the configs with some values on axes.

    Args:
        selection: one value for each of some axes, by name in any spelling; also as tables and
            legends show it, with fewer digits.
        exact: names of which no fewer digits count.

    Raises:
        UserError: listing each name that is no axis, and each value that no config has.
    """
    known, errors, wanted = axis_values(run), list[str](), dict[str, NDArray[np.bool_]]()
    by_lower = {name.lower(): name for name in known}
    for given, value in selection.items():
        lower = given.lower()
        name = given if given in known else canonical_name(given) or by_lower.get(lower, lower)
        if name not in known:
            errors.append(
                f"{given}: is not an axis of run {run.id}{did_you_mean(given, known)}; its axes "
                f"are {', '.join(known) or 'none'}"
            )
            continue
        wanted[name] = _fitting(known[name], value, exact=given in exact)
        if not wanted[name].any():
            errors.append(f"{name}: got {shown(value)}; valid are {_nearest(known[name], value)}")
    if errors:
        raise UserError("; ".join(errors))
    indices, shape = included(run), _shape(run)
    chosen = np.ones(len(indices), dtype=bool)
    places = np.unravel_index(indices, shape) if shape else ()
    for axis, at in zip(run.sweep["axes"], places, strict=True):
        for name in _labels(axis):
            if name in wanted:
                chosen &= wanted[name][at]
    return np.asarray(indices[chosen], dtype=np.int64)


def _fitting(labels: Sequence[Any], value: Any, *, exact: bool) -> NDArray[np.bool_]:
    if not exact:
        return matching(labels, value)
    return np.array([equals_label(label, value) for label in labels], dtype=bool)


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
