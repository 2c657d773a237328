"""INIT_WEIGHTS: the trained networks of another run, as the networks that a training begins from.

A spec names the run and selects among its configs. A launch finds out which network each config
begins from, and keeps the hashes of their weights in the sweep, and their weights in the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.errors import SpecError

__all__ = ["FromRun", "InitialWeights", "Reader", "from_run"]

#: From the hash of weights to arrays by the names of parameters and buffers.
Reader = Callable[[str], Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class FromRun:
    """The trained networks of a run, as :func:`from_run` returns them.

    Attributes:
        run: its folder, the name of a sweep, or the start of a run id.
        sel: values of its axes.
        step: after which the weights were saved; None for the last ones.
    """

    run: str
    sel: Mapping[str, Any] = field(default_factory=dict)
    step: int | None = None

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        sel = f", sel={dict(self.sel)!r}" if self.sel else ""
        step = "" if self.step is None else f", step={self.step}"
        return f"from_run({self.run!r}{sel}{step})"


def from_run(run: str | Path, sel: Mapping[str, Any] | None = None, step: Any = None) -> FromRun:
    """Return the trained networks of a run, for ``INIT_WEIGHTS``; it has kept them (SAVE_WEIGHTS).

    Axes of that run which the new sweep has too are matched by value, config by config. Of the
    others, ``sel`` selects one value each.

    Args:
        run: its folder, the name of a sweep (for its latest run), or the start of a run id.
        sel: values of its axes, such as ``{"gamma": 1.0}``.
        step: the step after which the weights were saved; by default the last.

    Raises:
        SpecError: for arguments of other types.
    """
    errors = []
    if not isinstance(run, (str, Path)) or not str(run):
        errors.append(
            f"from_run: got {run!r:.80}; should be the name of a sweep, a run id or a path"
        )
    if not (sel is None or isinstance(sel, Mapping)):
        errors.append(
            f"from_run: got sel={sel!r:.80}; should be a mapping such as {{'gamma': 1.0}}"
        )
    if not (step is None or (isinstance(step, int) and step >= 0)):
        errors.append(f"from_run: got step={step!r:.80}; should be an integer >= 0")
    if errors:
        raise SpecError(errors)
    return FromRun(str(run), dict(sel or {}), step)


@dataclass(frozen=True)
class InitialWeights:
    """The networks that the configs of a sweep begin from.

    Attributes:
        axes: the axes of the product that decide, by number.
        shape: how many points each of these has.
        hashes: of the weights, at each point of their product in C order; empty without any.
        read: reads weights by their hash; not pickled.
    """

    axes: tuple[int, ...]
    shape: tuple[int, ...]
    hashes: tuple[str, ...]
    read: Reader | None = field(default=None, compare=False)

    def numbers(self, shape: tuple[int, ...], indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the position in ``hashes`` of configs at flat indices (n,) of a product."""
        if not self.axes:
            return np.zeros(len(indices), np.int64)
        columns = np.unravel_index(indices, shape)
        own = [columns[axis] for axis in self.axes]
        return np.asarray(np.ravel_multi_index(own, self.shape), dtype=np.int64)

    def weights(self, shape: tuple[int, ...], index: int) -> Mapping[str, NDArray[Any]]:
        """Return the weights of the config at a flat index of a product; empty if it has none."""
        assert self.read is not None
        found = self.hashes[int(self.numbers(shape, np.array([index]))[0])]
        return self.read(found) if found else {}

    def __post_init__(self) -> None:
        assert len(self.hashes) == math.prod(self.shape)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "read": None}
