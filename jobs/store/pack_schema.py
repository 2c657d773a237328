"""What the packs of a run have in common: their names, and the shapes and types of their arrays.

A checksum shows that bytes are as they were written, not that they are of this run, or make sense.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.jobs.store.npz import ArrayHeader
from mlpsubmit.protocol import DIVERGED, DONE
from mlpsubmit.results.grab_arrays import grab_of
from mlpsubmit.results.names import TOGETHER, TRAINED_BY, TRAINED_ON
from mlpsubmit.spec.limits import MOST_CONFIGS

__all__ = [
    "ANY_PACKS",
    "CHECKED",
    "MOST_ARRAYS",
    "SHARED",
    "WEIGHTS",
    "WEIGHT_SHAPES",
    "PackSchema",
    "reused_configs",
]

#: The most arrays of a pack: with a tensor of weights in each, and without those, some dozens and
#: one for each grab or key of its dictionaries. An npz without extensions has at most 65,535.
MOST_ARRAYS = 60_000
MOST_BESIDES_WEIGHTS = 4096

#: Prefixes of the arrays with the weights that SAVE_WEIGHTS keeps, and with their shapes where
#: these differ within the pack.
WEIGHTS = "weights."
WEIGHT_SHAPES = "weights_shape."

_MEMBER = re.compile(r"([0-9]{7,12})(\.npz|\.partial\.npz|\.failed\.json)")
#: With or without the suffix.
_REUSED = re.compile(r"reused-[0-9]{7,12}\.([0-9]{1,12})(\.npz)?")

#: The kinds of the types (K,) of the arrays that every pack has, but for its timekeys and losses.
_PER_CONFIG = {"index": "iu", "key": "S", "status": "iu", "steps": "iu", "seconds": "f"}
#: Those that packs have only where they were trained on several devices, or by an earlier run.
_ORIGIN = {TRAINED_ON: "S", TRAINED_BY: "S"}
#: The arrays that all configs of a pack share; every other has one row per config.
SHARED = ("step", "eval_step", "grab_step", "weights_step")
#: The arrays whose values are checked.
CHECKED = ("index", "key", "status", *SHARED)


@dataclass(frozen=True)
class PackSchema:
    """What the packs of a run have in common.

    Attributes:
        points: of the product of the axes.
        thresholds: how many there are of the train loss; if they are an axis, the most.
        metric_thresholds: the same of each name in METRIC_THRESHOLDS; None where that is unknown.
        packs: of the plan.
        reused: configs whose results come from earlier runs.
    """

    points: int
    thresholds: int
    packs: int
    reused: int
    metric_thresholds: tuple[tuple[str, int], ...] | None = ()

    @property
    def most_members(self) -> int:
        """The most members of a shard: a partial and a failed one of each pack."""
        return 2 * max(self.packs, self.points) + 2

    def has(self, member: str, *, reused: bool) -> bool:
        """Return whether a member of a shard has the name of a pack of the run.

        Args:
            reused: whether it is the shard of results from earlier runs.
        """
        if reused:
            match = _REUSED.fullmatch(member)
            return match is not None and match[2] is not None and int(match[1]) <= self.reused
        match = _MEMBER.fullmatch(member)
        # No two names are of the same pack.
        return (
            match is not None and f"{int(match[1]):07d}" == match[1] and int(match[1]) < self.packs
        )

    def fits(self, pack: str, headers: Mapping[str, ArrayHeader]) -> bool:
        """Return whether arrays of these shapes and types can be those of a pack of this name."""
        if not _fits(self.thresholds, self.metric_thresholds, tuple(headers.items())):
            return False
        return _REUSED.fullmatch(pack) is None or headers["index"].shape == (reused_configs(pack),)

    def fits_values(self, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Return whether index, key, status and the recorded steps have possible values."""
        # As lists: most packs are small, and each call of numpy costs as much as all of this.
        index, status = arrays["index"].tolist(), arrays["status"].tolist()
        steps = [arrays[name].tolist() for name in SHARED if name in arrays]
        return (
            len(set(index)) == len(index)
            and min(index, default=0) >= 0
            and max(index, default=0) < self.points
            and set(status) <= {DONE, DIVERGED}
            and not arrays["key"].tobytes().translate(None, b"0123456789abcdef")
            and all(own == sorted(set(own)) and min(own, default=0) >= 0 for own in steps)
        )


#: Of a run whose sweep.json or plan.json is damaged.
ANY_PACKS = PackSchema(
    points=MOST_CONFIGS,
    thresholds=MOST_CONFIGS,
    packs=MOST_CONFIGS,
    reused=MOST_CONFIGS,
    metric_thresholds=None,
)


def reused_configs(pack: str) -> int:
    """Return how many configs a pack of reused results has, by its name; 0 for any other pack."""
    match = _REUSED.fullmatch(pack)
    return 0 if match is None else int(match[1])


@functools.lru_cache(maxsize=1024)
def _fits(
    thresholds: int,
    of_metrics: tuple[tuple[str, int], ...] | None,
    described: tuple[tuple[str, ArrayHeader], ...],
) -> bool:
    """Return whether arrays can be those of a pack; most packs of a run have equal ones."""
    headers = dict(described)
    if not {*_PER_CONFIG, "timekeys", "train_loss"} <= headers.keys():
        return False
    weights = sum(name.startswith((WEIGHTS, WEIGHT_SHAPES)) for name in headers)
    if len(headers) > MOST_ARRAYS or len(headers) - weights > MOST_BESIDES_WEIGHTS:
        return False
    configs, timekeys = headers["index"].shape, {"timekeys": thresholds}
    prefix = "timekeys."
    if of_metrics is None:
        unknown = [name for name in headers if name.startswith(prefix)]
        timekeys |= dict.fromkeys(unknown, MOST_CONFIGS)
    else:
        timekeys |= {f"{prefix}{name}": most for name, most in of_metrics}
    shared = {name: headers[name] for name in SHARED if name in headers}
    own = {name: headers[name] for name in headers.keys() - shared.keys()}
    return (
        len(configs) == 1
        and all(len(header.shape) == 1 and header.dtype.kind == "i" for header in shared.values())
        and all(header.shape[:1] == configs for header in own.values())
        and all(
            own[name].shape == configs and own[name].dtype.kind in kinds
            for name, kinds in {**_PER_CONFIG, **_ORIGIN}.items()
            if name in own
        )
        and own["key"].dtype == np.dtype("S32")
        and all(
            header.dtype.kind == "i"
            and len(header.shape) == 2
            and header.shape[1] <= timekeys.get(name, -1)
            for name, header in own.items()
            if name == "timekeys" or name.startswith(prefix)
        )
        and all(_fits_clock(name, header, shared) for name, header in own.items())
    )


def _fits_clock(name: str, header: ArrayHeader, clocks: Mapping[str, ArrayHeader]) -> bool:
    """Return whether losses, metrics, grabs or weights are one per config, or per recorded step."""
    inner = header.shape[1:]
    if name.startswith(WEIGHTS):
        return "weights_step" not in clocks or inner[:1] == clocks["weights_step"].shape
    if name.startswith(WEIGHT_SHAPES):
        return len(inner) == 1 and header.dtype.kind == "i"
    if grab_of(name) is not None:
        return "grab_step" not in clocks or inner[:1] == clocks["grab_step"].shape
    if name in ("train_loss", "test_loss") or name.startswith("metric."):
        of_test = name.removeprefix("metric.").startswith("test_")
        clock = "eval_step" if of_test and "eval_step" in clocks else "step"
        traced = clock in clocks and inner == clocks[clock].shape
        return header.dtype.kind in "iuf" and (traced or not inner)
    return name != TOGETHER or (not inner and header.dtype.kind in "iuf")
