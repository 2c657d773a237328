"""What the packs of a run have in common: their names, and the shapes and types of their arrays.

A checksum shows that bytes are as they were written, not that they are of this run, or make sense.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpsubmit.jobs.store.npz import ArrayHeader
from mlpsubmit.protocol import DIVERGED, DONE

__all__ = ["CHECKED", "MOST_ARRAYS", "PackSchema"]

#: The most arrays of a pack: a dozen, and one for each grab.
MOST_ARRAYS = 4096

_MEMBER = re.compile(r"(?:([0-9]{7,12})|reused-[0-9]{7,12})(\.npz|\.partial\.npz|\.failed\.json)")

#: The kinds of the types (K,) of the arrays that every pack has, but for its timekeys and losses.
_PER_CONFIG = {"index": "iu", "key": "S", "status": "iu", "steps": "iu", "seconds": "f"}
_SHARED = ("step", "eval_step", "grab_step")
#: The arrays whose values are checked.
CHECKED = ("index", "key", "status", *_SHARED)
_NUMBERS = "biufc"


@dataclass(frozen=True)
class PackSchema:
    """What the packs of a run have in common.

    Attributes:
        points: of the product of the axes.
        thresholds: how many there are.
        packs: of the plan.
    """

    points: int
    thresholds: int
    packs: int

    @property
    def most_members(self) -> int:
        """The most members of a shard: a partial and a failed one of each pack."""
        return 2 * max(self.packs, self.points) + 2

    def has(self, member: str) -> bool:
        """Return whether a member of a shard has the name of a pack of the run."""
        match = _MEMBER.fullmatch(member)
        return match is not None and (match[1] is None or int(match[1]) < self.packs)

    def fits(self, headers: Mapping[str, ArrayHeader]) -> bool:
        """Return whether arrays of these shapes and types can be those of a pack."""
        if not {*_PER_CONFIG, "timekeys", "train_loss"} <= headers.keys():
            return False
        configs = headers["index"].shape
        lengths = {name: headers[name].shape for name in _SHARED if name in headers}
        own = {name: headers[name] for name in headers.keys() - lengths.keys()}
        return (
            len(configs) == 1
            and len(headers) <= MOST_ARRAYS
            and all(
                len(shape) == 1 and headers[n].dtype.kind == "i" for n, shape in lengths.items()
            )
            and all(header.shape[:1] == configs for header in own.values())
            and all(
                own[name].shape == configs and own[name].dtype.kind in kinds
                for name, kinds in _PER_CONFIG.items()
            )
            and own["key"].dtype == np.dtype("S32")
            and own["timekeys"].shape == (*configs, self.thresholds)
            and own["timekeys"].dtype.kind == "i"
            and all(self._fits_clock(name, header, lengths) for name, header in own.items())
        )

    def _fits_clock(
        self, name: str, header: ArrayHeader, lengths: Mapping[str, tuple[int, ...]]
    ) -> bool:
        """Return whether a loss or a grab is one number per config, or one per recorded step."""
        inner = header.shape[1:]
        if name.startswith("grab."):
            steps = lengths.get("grab_step", ())
            return inner[: len(steps)] == steps
        if name in ("train_loss", "test_loss"):
            steps = lengths.get("step", ())
            steps = lengths.get("eval_step", steps) if name == "test_loss" else steps
            return header.dtype.kind in _NUMBERS and inner in ((), steps)
        return name != "trained_together" or (not inner and header.dtype.kind in "iuf")

    def fits_values(self, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Return whether index, key, status and the recorded steps have possible values."""
        index, status = arrays["index"], arrays["status"]
        steps = [arrays[name] for name in _SHARED if name in arrays]
        keys = arrays["key"].tobytes()
        return bool(
            ((index >= 0) & (index < self.points)).all()
            and len(np.unique(index)) == len(index)
            and np.isin(status, (DONE, DIVERGED)).all()
            and not keys.translate(None, b"0123456789abcdef")
            and all((own[:1] >= 0).all() and (np.diff(own) > 0).all() for own in steps)
        )
