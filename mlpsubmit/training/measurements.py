"""Grabs, the user's measurements: when they are called, with what, and their results."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlpsubmit.arguments import pick
from mlpsubmit.errors import error_text
from mlpsubmit.protocol import GRAB_ARGUMENTS, Grab
from mlpsubmit.results.grab_arrays import result_name
from mlpsubmit.results.labels import labels_of
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.training.batches import Batch, Batches, latest
from mlpsubmit.training.culprits import FAILURES, raise_attributed
from mlpsubmit.training.grab_results import (
    Entry,
    GrabError,
    Shapes,
    check_exact,
    check_shapes,
    entries_of,
    read_back,
    storable,
)
from mlpsubmit.training.guard import Guard, WriteError, arrays_of
from mlpsubmit.training.loss_history import Finished
from mlpsubmit.training.oom import ran_out_of_memory
from mlpsubmit.training.optimizers.view import OptimizerView
from mlpsubmit.training.outer_broadcasts import OuterBroadcasts
from mlpsubmit.training.parts import Part, resized
from mlpsubmit.training.precision import full_precision_matmul
from mlpsubmit.training.result import Array
from mlpsubmit.training.schedules import Schedule
from mlpsubmit.training.stack import Stack
from mlpsubmit.training.undisturbed import undisturbed

__all__ = ["GrabError", "Grabber", "resolve"]

#: Bytes of results on the device from which on they are read back before the next block ends.
_PENDING_BYTES = 2**28


#: The arguments of a grab that are not the same tensors at every call.
_BATCH = ("X_tr", "y_tr", "X_te", "y_te")


def resolve(
    grabs: Mapping[str, Grab], contexts: Sequence[Mapping[str, Any]]
) -> list[dict[str, frozenset[str]]]:
    """Return, per config and grab, the names of the arguments that the grab takes.

    Raises:
        SpecError: where a grab needs an argument that nothing provides.
    """
    reserved = dict.fromkeys(GRAB_ARGUMENTS)
    return [
        {
            name: frozenset(pick(grab, {**context, **reserved}, f"grab {name!r}"))
            for name, grab in grabs.items()
        }
        for context in contexts
    ]


class Grabber(Part):
    """Calls the grabs of K configs when they are due, and keeps their results.

    Args:
        grabs: per name, a function that is given by name what it declares of ``model`` (the
            uncentred network: its parameters are views of the weights in training, which a grab
            must not modify), ``X_tr``, ``y_tr``, ``X_te``, ``y_te``, ``opt``, ``model0`` (at
            initialisation) and its config's context; and returns a number, an array, a tensor or
            a list of these, or a dictionary of these, which has the same keys at every step.
        contexts: K times, further arguments by name.
        arguments: the result of :func:`resolve`.
        common: the hyperparameters that decide when grabs are due.
        stack: the networks.
        opts: K times, the argument ``opt``.
        show_initial: from a row to the argument ``model0``; None where no grab takes it.
        train, test: the batches; ``test`` is None where there is no test set.

    Attributes:
        grabs: as given.
        schedule: the steps of a trace; None where grabs are called once, at the end.
    """

    PER_ROW = ("_last_batch",)
    SAVED = ("_shapes", "_last_column", "_dtypes")
    ON_HOST = ("_arrays",)

    def __init__(
        self,
        grabs: Mapping[str, Grab],
        contexts: Sequence[Mapping[str, Any]],
        arguments: list[dict[str, frozenset[str]]],
        common: Hyperparameters,
        stack: Stack,
        opts: Sequence[OptimizerView],
        show_initial: Callable[[int], nn.Module] | None,
        train: Batches,
        test: Batches | None,
    ) -> None:
        self.grabs, self._contexts, self._arguments = grabs, contexts, arguments
        self._stack, self._opts, self._show_initial = stack, opts, show_initial
        self._train, self._test, self._max_iter = train, test, common.max_iter
        traced, K = not common.onlythresholds, len(contexts)
        self.schedule = Schedule(common.grab_every, common.max_iter) if traced else None
        columns = 0 if self.schedule is None else self.schedule.count
        # Without thresholds, the configs of a trace that do not diverge end at its last grab.
        ends_between = columns != common.max_iter and common.stops
        shows_batch = any({"X_tr", "y_tr"} & names for one in arguments for names in one.values())
        self._keeps_last = common.online and shows_batch and (ends_between or not traced)
        self._last_batch: tuple[Tensor, Tensor] | None = None
        #: Per entry, results that have not been read back: config, column of the trace, value.
        self._pending: dict[Entry, list[tuple[int, int, Tensor | Array]]] = {}
        self._pending_bytes = 0
        # Results: (K, ...) or (K, columns, ...) per entry, and the shapes of each config's by key.
        self._leading = (K, columns) if traced else (K,)
        self._arrays: dict[Entry, Array] = {}
        #: Per entry, the type of its values: arrays have one that can hold NaN.
        self._dtypes: dict[Entry, str] = {}
        self._shapes: dict[str, dict[int, Shapes]] = {name: {} for name in grabs}
        self._labels = {name: labels_of(grab).of_grab(name) for name, grab in grabs.items()}
        self._calls = 0
        #: Per config, the parameters and entries that its grabs can reach at every call, by name.
        self._reachable: dict[int, dict[str, Tensor]] = {}
        #: Per config, the last column that has a result.
        self._last_column = [-1] * K

    def keep_batch(self, batch: Batch, active: Tensor) -> None:
        """Keep the batch of each config's last step, where a grab will need it.

        In place, so that a CUDA graph can replay it.
        """
        if self._keeps_last:
            self._last_batch = latest(self._last_batch, batch, active)

    def next_look(self, step: int) -> int:
        """Return the first step from this one on after which grabs are called in a trace."""
        if not self.grabs or self.schedule is None:
            return self._max_iter
        return self.schedule.next_from(step)

    def measure(
        self, step: int, batch: Batch, active: Tensor, finished: Sequence[Finished]
    ) -> None:
        """Call the grabs where they are due. Gradients are enabled.

        In a trace that is at its steps, for the configs (K,) that have made this step; and once
        for each config that has stopped, with its final weights and last batch, unless the trace
        already has that. Each is K calls of every grab, and a GPU-CPU sync point.

        Args:
            batch: the batch of this step.
            finished: configs that have been found to have stopped.

        Raises:
            GrabError: for a grab that fails, or whose result cannot be stored.
            WriteError: for a grab that changes what it is given.
        """
        if not self.grabs:
            return
        calls: list[tuple[int, int, Batch | None]] = []
        if self.schedule is not None and step in self.schedule:
            calls += [(step, row, batch) for row, made in enumerate(active.tolist()) if made]
        for one in finished:
            traced = self.schedule is not None and one.last_step in self.schedule
            if not one.diverged and not traced:
                kept = self._last_batch and Batch(*self._last_batch, shared=False)
                calls.append((one.last_step, one.row, kept or _fixed_set(self._train)))
        self._call_all(calls)

    def call(self, step: int, rows: Sequence[int], batch: Batch | None) -> None:
        """Call every grab for rows of the stack, as after this step on this batch."""
        self._call_all([(step, row, batch) for row in rows])

    def _call_all(self, calls: Sequence[tuple[int, int, Batch | None]]) -> None:
        """Call every grab after these steps, for rows of the stack and batches."""
        errors: dict[int, BaseException] = {}
        for step, row, train in calls:
            try:
                self._call_row(step, row, train)
            except FAILURES as error:  # the rest is called too: all that raise here are found
                errors[self._stack.configs[row]] = error
                if ran_out_of_memory(error):
                    break
        if errors:
            raise_attributed(errors)
        if self._pending_bytes > _PENDING_BYTES:
            self.flush()

    def _call_row(self, step: int, row: int, train: Batch | None) -> None:
        """Call every grab for one row of the stack, after this step."""
        # The column of the step, or the next one: every schedule has the last step of all.
        column = 0 if self.schedule is None else int(self.schedule.steps.searchsorted(step))
        config = self._stack.configs[row]
        offered = self._offer(step, row, config, train)
        self._last_column[config] = column
        self._calls += 1
        # By checksums (a GPU-CPU sync point) at the calls 1, 2, 4, 8, ...
        guard = Guard(self._shown(config, offered), sampled=not self._calls & (self._calls - 1))
        for name in self.grabs:
            where = f"grab {name!r} of model {config} at step {step}"
            with self._stack.measuring(row), _undisturbed(offered["model0"]):
                values = self._call(name, config, offered, where)
            for module in (offered["model"], offered["model0"]):
                if module is not None:
                    module.zero_grad()
            _check_writes(guard, offered["opt"], where)
            if values is None:
                continue
            shapes: Shapes = {key: tuple(value.shape) for key, value in values.items()}
            if check_shapes(self._shapes, self._labels, name, config, shapes, where):
                self._shapes[name][config] = shapes
            for key, value in values.items():
                self._pending.setdefault((name, key), []).append((config, column, value))
                self._pending_bytes += value.nbytes

    def _shown(self, config: int, offered: dict[str, Any]) -> dict[str, Tensor]:
        """Return the tensors that the grabs of a config must not change, by name."""
        if config not in self._reachable:
            given = {name: None if name in _BATCH else one for name, one in offered.items()}
            self._reachable[config] = _reachable(given)
        batch = {name: offered[name] for name in _BATCH if offered[name] is not None}
        return {**self._reachable[config], **batch}

    def _call(
        self, name: str, config: int, offered: dict[str, Any], where: str
    ) -> dict[str | None, Tensor | Array] | None:
        taken = {key: offered[key] for key in self._arguments[config][name]}
        # The first call alone, as it takes some time per operation.
        watch = (
            OuterBroadcasts(offered["y_tr"], offered["y_te"])
            if self._calls == 1
            else contextlib.nullcontext()
        )
        try:
            with torch.enable_grad(), full_precision_matmul(), watch:
                result = self.grabs[name](**taken)
        except FAILURES as error:
            # In the update before a divergence, whose loss was still finite.
            if _overflowed(offered["model"], offered["X_tr"]):
                return None
            raise GrabError(f"{where} failed: {error_text(error)}") from error
        if isinstance(watch, OuterBroadcasts) and watch.found:
            _warn_of_pairs(name, *watch.found)
        return entries_of(result, where)

    def _offer(self, step: int, row: int, config: int, train: Batch | None) -> dict[str, Any]:
        test = _fixed_set(self._test)
        X_tr, y_tr = train.of(row) if train else (None, None)
        X_te, y_te = test.of(row) if test else (None, None)
        model0 = self._show_initial(row) if self._show_initial is not None else None
        model, opt = self._stack.models[config], self._opts[config].at(step)
        values = (model, X_tr, y_tr, X_te, y_te, opt, model0)
        return {**self._contexts[config], **dict(zip(GRAB_ARGUMENTS, values, strict=True))}

    def flush(self) -> None:
        """Read back the results since the last flush (a GPU-CPU sync point)."""
        for entry, pending in self._pending.items():
            values = read_back([value for _, _, value in pending])
            for (config, column, _), value in zip(pending, values, strict=True):
                check_exact(entry[0], value)
                index = (config, column)[: len(self._leading)]
                inner = tuple(slice(size) for size in value.shape)
                self._array_for(entry, value)[index + inner] = value
                known = np.dtype(self._dtypes.get(entry, value.dtype))
                self._dtypes[entry] = np.result_type(known, value.dtype).str
            pending.clear()
        self._pending_bytes = 0

    def _array_for(self, entry: Entry, value: Array) -> Array:
        """Return the array of an entry, enlarged and converted where the next value needs it."""
        array = self._arrays.get(entry)
        if array is None:
            self._check_memory(entry[0], value)
            array = np.full(self._leading + value.shape, np.nan, storable(value.dtype))
        old = array.shape[len(self._leading) :]
        size = tuple(max(pair) for pair in zip(old, value.shape, strict=True))
        dtype = np.result_type(array.dtype, storable(value.dtype))
        if size != old or dtype != array.dtype:
            larger = np.full(self._leading + size, np.nan, dtype)
            larger[tuple(slice(n) for n in array.shape)] = array
            array = larger
        self._arrays[entry] = array
        return array

    def _check_memory(self, name: str, value: Array) -> None:
        """Refuse a trace that does not fit into RAM, before the process is killed for it."""
        needed = math.prod(self._leading) * value.size * storable(value.dtype).itemsize
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > installed:
            raise GrabError(
                f"grab {name!r} returns shape {value.shape}: {' x '.join(map(str, self._leading))} "
                f"of these take {needed / 2**30:,.0f} GiB, and this machine has "
                f"{installed / 2**30:,.0f}; try GRAB_EVERY='log:100', or ONLYTHRESHOLDS=True"
            )

    @property
    def entries(self) -> dict[str, tuple[str, str]]:
        """The grab and the key of each result that is of a dictionary, by its name."""
        keyed = [(grab, key) for grab, key in self._arrays if key is not None]
        return {result_name(*entry): entry for entry in keyed}

    def results(self, diverged: Sequence[bool]) -> dict[str, Array]:
        """Return (K, ...) or (K, G, ...) per name: traces keep their final value to the end.

        Integers and booleans are such if none is missing, else float64.
        Those of a diverged config are NaN from the step at which it diverged, or from the one
        before where the grab raised because that update had made the weights overflow.
        """
        self.flush()
        # Of a grab that was never called, as every config diverged, the keys are not known.
        missing: list[Entry] = [(name, None) for name, known in self._shapes.items() if not known]
        arrays = self._arrays | {entry: np.full(self._leading, np.nan) for entry in missing}
        for array in arrays.values() if len(self._leading) == 2 else ():
            for config, column in enumerate(self._last_column):
                if column >= 0 and not diverged[config]:
                    array[config, column + 1 :] = array[config, column]
        order = list(self.grabs)
        entries = sorted(arrays, key=lambda entry: order.index(entry[0]))
        return {result_name(*entry): self._as_returned(entry, arrays[entry]) for entry in entries}

    def _as_returned(self, entry: Entry, array: Array) -> Array:
        dtype = self._dtypes.get(entry, array.dtype)
        return array if np.isnan(array).any() else array.astype(dtype, copy=False)

    def extend(self) -> None:
        """Make room for the further steps of a longer training than the state is of."""
        if len(self._leading) == 2:
            self._arrays = {
                name: resized(array, self._leading[1], np.nan)
                for name, array in self._arrays.items()
            }

    def state_dict(self) -> dict[str, Any]:
        """Return the state for :meth:`load_state_dict` (a GPU-CPU sync point)."""
        self.flush()
        return super().state_dict()


def _reachable(offered: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the parameters and arrays that a grab can reach, by name."""
    found = arrays_of(offered)
    for name in ("model", "model0"):
        if offered[name] is not None:
            found |= {f"{name}.{path}": p for path, p in offered[name].named_parameters()}
    return found


def _undisturbed(model: nn.Module | None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if model is None else undisturbed(model)


def _check_writes(guard: Guard, opt: OptimizerView, where: str) -> None:
    """Refuse a grab that has changed what others read."""
    if written := guard.changed():
        raise WriteError(
            f"{where} changes {written[0]} in place, which the training and other grabs read too; "
            "try .clone(), or copy.deepcopy(model), before the change"
        )
    if opt.changed:
        raise WriteError(
            f"{where} changes opt.param_groups, which shows the learning rates to grabs and does "
            "not set them; try a callable PARAMETRIZATION, or an OPTIMIZER of your own"
        )


def _warn_of_pairs(name: str, one: tuple[int, ...], other: tuple[int, ...]) -> None:
    warnings.warn(
        f"grab {name!r}: an operation on shapes {one} and {other} gives a number for each pair of "
        f"samples, {(one[0], one[0])}; the model returns a column and y_tr, y_te are as the batch "
        "function returns them, so try model(X).flatten(), or y[:, None]; if pairs are meant, "
        "write x[:, None] and y[None, :]",
        stacklevel=2,
    )


def _fixed_set(batches: Batches | None) -> Batch | None:
    return batches.draw(0) if batches is not None and batches.fixed else None


@torch.no_grad()
def _overflowed(model: nn.Module, X: Tensor | None) -> bool:
    """Return whether the squares of a network's weights or outputs are not finite."""
    values = [*model.parameters(), *([] if X is None else [model(X)])]
    return not all(bool(value.square().sum().isfinite()) for value in values)
