"""Which configs are exported: those with the selected values on the axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlpsubmit.errors import SpecError
from mlpsubmit.results.figures.selection import checked, parse, select
from mlpsubmit.results.names import coordinate_names, sweep_dims
from mlpsubmit.results.source import Layout
from mlpsubmit.results.values import coordinate_values

__all__ = ["parsed", "selected"]


def parsed(entries: Sequence[str]) -> dict[str, str]:
    """Return ``NAME=VALUE`` texts as a dictionary.

    Raises:
        SpecError: some are none, or name an axis twice.
    """
    selection, errors = parse(entries)
    if errors:
        raise SpecError(errors)
    return selection


def selected(layout: Layout, selection: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Return which points of the product are configs with the selected values, (size,).

    Args:
        selection: as :func:`mlpsubmit.results.figures.selection.select` takes it.

    Raises:
        SpecError: a name is no axis, or no config has a value.
    """
    errors: list[str] = []
    selection, included = checked(selection, errors), layout.included_points()
    if errors:
        raise SpecError(errors)
    if not selection:
        return included
    import xarray as xr

    names, dims = coordinate_names(layout), sweep_dims(layout)
    coordinates = {
        names[name]: (names[dimension.name], coordinate_values(values))
        for dimension in layout.dimensions
        for name, values in dimension.coordinates.items()
    }
    points = np.arange(layout.size).reshape(layout.shape)
    chosen, _ = select(xr.Dataset({" ": (dims, points)}, coordinates), selection, errors)
    if errors:
        raise SpecError(errors)
    mask = np.zeros(layout.size, dtype=np.bool_)
    mask[chosen[" "].values.reshape(-1)] = True
    mask &= included
    if not mask.any():
        raise SpecError("sel: where= leaves out all the selected configs; select others")
    return mask
