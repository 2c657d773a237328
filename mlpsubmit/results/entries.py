"""The numbers and the curves of one config: entries of its arrays, traces until it stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MOST_ENTRIES", "entry_name", "made_steps", "shown"]

#: The most entries of an array of a config that are shown one by one, each with a name of its own.
MOST_ENTRIES = 8


def shown(value: Any) -> str:
    """Return a value as text, with the digits that are read."""
    if value is None:
        return "–"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def entry_name(
    name: str,
    coordinates: Mapping[Any, Sequence[Any] | Any],
    dims: Sequence[str],
    position: Sequence[int],
) -> str:
    """Return the name of one entry of an array: ``sharpness [layer=0]``.

    Args:
        coordinates: the values along those dimensions that have some.
        dims: of the array.
        position: of the entry.
    """
    at = ", ".join(_place(coordinates, dim, i) for dim, i in zip(dims, position, strict=True))
    return f"{name} [{at}]" if at else name


def _place(coordinates: Mapping[Any, Any], dim: str, i: int) -> str:
    name = dim.rpartition("_")[2] if "_dim" in dim else dim
    if dim not in coordinates:
        return f"{name}={i}"
    values = np.asarray(coordinates[dim]).tolist()
    texts = [shown(value) for value in values]
    # Names of different entries differ, however many digits that takes.
    return f"{name}={texts[i] if texts.count(texts[i]) == 1 else values[i]}"


def made_steps(clock: npt.NDArray[Any], taken: float) -> npt.NDArray[np.float64]:
    """Return the steps of a config's trace: the first ones of a clock, up to its last step.

    Args:
        clock: (n,) ascending, the steps at which its pack recorded.
        taken: how many steps it made.

    Returns:
        (m,) with m at most n: a trace keeps its last value, so that of the last step is at the next
        one at which the pack recorded.
    """
    clock = clock.astype(np.float64)
    stop = max(float(taken) - 1, 0.0)
    count = int(np.searchsorted(clock, stop, side="right"))
    steps = clock[:count]
    if count < len(clock) and (not count or clock[count - 1] < stop):
        return np.append(steps, stop)
    return steps
