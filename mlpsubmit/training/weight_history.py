"""SAVE_WEIGHTS: the weights that are kept with the results, at the end or along the training."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpsubmit.errors import SpecError
from mlpsubmit.training.loss_history import Finished
from mlpsubmit.training.parts import Part, resized
from mlpsubmit.training.result import Array
from mlpsubmit.training.schedules import Schedule
from mlpsubmit.training.stack import Stack

__all__ = ["MOST_TENSORS", "WeightHistory", "weight_schedule"]

#: Bytes of copies on the device from which on they are read back before the block ends.
_PENDING_BYTES = 2**28

#: The most tensors of a model whose weights are kept: each is an array of the pack's results.
MOST_TENSORS = 1 << 15


def weight_schedule(save: int | str | None, max_iter: int) -> Schedule | None:
    """Return the schedule of SAVE_WEIGHTS; None where the final weights are kept, or none."""
    return None if save in (None, "final") else Schedule(save, max_iter)


class WeightHistory(Part):
    """Copies of the weights of K configs: parameters, and the buffers of the model itself.

    Args:
        save: SAVE_WEIGHTS.
        stack: the networks.
        max_iter: number of steps.

    Attributes:
        schedule: the steps after which weights are copied; None where the final ones are, or none.
    """

    SAVED = ("_last_column",)
    ON_HOST = ("_arrays",)

    def __init__(self, save: int | str | None, stack: Stack, max_iter: int) -> None:
        self._stack, self._max_iter = stack, max_iter
        self.schedule = weight_schedule(save, max_iter)
        self._names = [] if save is None else stack.own_names
        self._leading: tuple[int, ...] = (len(stack.models),)
        if self.schedule is not None:
            self._leading += (self.schedule.count,)
        #: Per name, (K, ...) or (K, S, ...).
        self._arrays: dict[str, Array] = {}
        #: Per config, the last column that has its weights.
        self._last_column = [-1] * len(stack.models)
        #: Copies that have not been read back: column, configs of the rows, which of them count
        #: (rows,), and by name (rows, ...).
        self._pending: list[tuple[int, list[int], Tensor, dict[str, Tensor]]] = []
        self._pending_bytes = 0
        self._check()

    def _check(self) -> None:
        """Refuse what cannot be stored, before the training.

        Raises:
            SpecError: for more tensors or bytes than can be kept.
        """
        if len(self._names) > MOST_TENSORS:
            raise SpecError(
                f"SAVE_WEIGHTS: the model has {len(self._names)} tensors, and at most "
                f"{MOST_TENSORS} can be kept; leave SAVE_WEIGHTS out"
            )
        tensors = [self._stack.tensors[name] for name in self._names]
        each = sum(t[0].numel() * t.element_size() for t in tensors)
        needed = math.prod(self._leading) * each
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > installed:
            raise SpecError(
                f"SAVE_WEIGHTS: {' x '.join(map(str, self._leading))} copies of the weights of a "
                f"pack take {needed / 2**30:,.0f} GiB, and this machine has "
                f"{installed / 2**30:,.0f}; try SAVE_WEIGHTS='final', fewer steps ('log:20'), or a "
                "smaller PACK_SIZE"
            )

    def next_look(self, step: int) -> int:
        """Return the first step from this one on after which weights are copied."""
        return self._max_iter if self.schedule is None else self.schedule.next_from(step)

    def record(self, step: int, active: Tensor, finished: Sequence[Finished]) -> None:
        """Copy the weights after this step, where they are to be kept; on the device.

        At the steps of the schedule those of the configs (K,) that have made this step; and of
        each config that has stopped its final ones, unless the schedule has copied them.
        """
        if not self._names:
            return
        if self.schedule is not None and step in self.schedule:
            self._copy(self._column(step), list(range(len(self._stack))), active.clone())
        for one in finished:
            traced = self.schedule is not None and one.last_step in self.schedule
            if one.diverged or not traced:
                self._copy(self._column(one.last_step), [one.row], active.new_ones(1))
        if self._pending_bytes > _PENDING_BYTES:
            self.flush()

    def _column(self, step: int) -> int:
        """Return the column of a step, or the next one: every schedule has the last step of all."""
        return 0 if self.schedule is None else int(self.schedule.steps.searchsorted(step))

    def _copy(self, column: int, rows: list[int], counts: Tensor) -> None:
        part = slice(rows[0], rows[-1] + 1)
        copies = {name: self._stack.tensors[name].detach()[part].clone() for name in self._names}
        configs = [self._stack.configs[row] for row in rows]
        self._pending.append((column, configs, counts, copies))
        self._pending_bytes += sum(copy.nbytes for copy in copies.values())

    def flush(self) -> None:
        """Read back the copies since the last flush (a GPU-CPU sync point)."""
        for column, configs, counts, copies in self._pending:
            rows = counts.nonzero().flatten().tolist()
            kept = [configs[row] for row in rows]
            for config in kept:
                self._last_column[config] = column
            index: Any = (kept, column)[: len(self._leading)]
            for name, copy in copies.items():
                self._array(name, copy)[index] = _numpy(copy)[rows]
        self._pending, self._pending_bytes = [], 0

    def _array(self, name: str, like: Tensor) -> Array:
        if name not in self._arrays:
            dtype = _numpy(like[:0]).dtype
            self._arrays[name] = np.zeros((*self._leading, *like.shape[1:]), dtype)
        return self._arrays[name]

    def results(self) -> dict[str, Array]:
        """Return (K, ...) or (K, S, ...) per name: at later steps a config keeps its last weights.

        Those of a diverged config are the ones with which it diverged.
        """
        self.flush()
        for array in self._arrays.values() if self.schedule is not None else ():
            for config, column in enumerate(self._last_column):
                array[config, column + 1 :] = array[config, column]
        return self._arrays

    def extend(self) -> None:
        """Make room for the further steps of a longer training than the state is of."""
        if len(self._leading) == 2:
            self._arrays = {
                name: resized(array, self._leading[1], 0) for name, array in self._arrays.items()
            }

    def state_dict(self) -> dict[str, Any]:
        """Return the state for :meth:`load_state_dict` (a GPU-CPU sync point)."""
        self.flush()
        return super().state_dict()


def _numpy(tensor: Tensor) -> Array:
    """Return a tensor as an array; NumPy has no bfloat16."""
    tensor = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
    array: Array = tensor.resolve_conj().resolve_neg().cpu().numpy()
    return array
