"""The axes of a sweep for tables, and what tables and figures read from a dataset alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlpsubmit.results.names import CLOCKS
from mlpsubmit.results.source import Array

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "TRIAL",
    "ShownAxis",
    "final_values",
    "finished",
    "has_threshold",
    "loss_clock",
    "shown_axes",
    "threshold_suffixes",
]

# Repetitions of one config, which differ in their seeds only.
TRIAL = "trial"


@dataclass(frozen=True)
class ShownAxis:
    """One dimension of the sweep, as a table shows it.

    Args:
        dim: in the dataset.
        columns: its coordinates' values as text, by name; a zipped axis has several.
    """

    dim: str
    columns: dict[str, tuple[str, ...]]


def shown_axes(dataset: xr.Dataset) -> list[ShownAxis]:
    """Return all axes but the trials."""
    return [_axis(dataset, str(dim)) for dim in dataset["status"].dims if dim != TRIAL]


def _axis(dataset: xr.Dataset, dim: str) -> ShownAxis:
    coordinates = {
        str(name): coordinate.values
        for name, coordinate in dataset.coords.items()
        if coordinate.dims == (dim,)
    }
    texts = {name: tuple(_text(value) for value in own) for name, own in coordinates.items()}
    return ShownAxis(dim, texts)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def finished(status: Array) -> npt.NDArray[np.bool_]:
    """Return the mask of points that have a result."""
    return np.isin(status, ("done", "diverged"))


def threshold_suffixes(dataset: xr.Dataset) -> list[str]:
    """Return what follows `timekeys` in the names of its variables: "", "_test_accuracy", ..."""
    names = sorted(map(str, dataset.data_vars))
    found = [name.removeprefix("timekeys") for name in names if name.startswith("timekeys")]
    return [suffix for suffix in found if f"threshold{suffix}" in dataset.dims]


def has_threshold(dataset: xr.Dataset, suffix: str = "") -> xr.DataArray:
    """Return where configs have a threshold, dims those of `timekeys`; an axis may set them."""
    value = f"threshold_value{suffix}"
    own = value if value in dataset.coords else f"threshold{suffix}"
    return dataset[own].notnull().broadcast_like(dataset[f"timekeys{suffix}"])


def loss_clock(loss: xr.Variable | xr.DataArray) -> str | None:
    """Return the dimension that a loss has its trace along, or None for a final value."""
    last = str(loss.dims[-1]) if loss.dims else ""
    return last if last in CLOCKS else None


def final_values(loss: xr.DataArray) -> Array:
    """Return final losses, shape that of the loss without steps: the last that is not missing."""
    values: Array = loss.values
    if loss_clock(loss) is None:
        return values
    recorded = ~np.isnan(values)
    last = values.shape[-1] - 1 - np.argmax(recorded[..., ::-1], axis=-1)
    final: Array = np.take_along_axis(values, last[..., None], axis=-1)[..., 0]
    return final
