"""The metrics of a pack, and the thresholds on them: measured, compared, recorded, read back.

The rules, for one config:

- ``train_<metric>`` is measured on the batch of a step, with the outputs before its update, at the
  steps of RECORD_EVERY and at the config's last step. ``test_<metric>`` is measured on the test
  set after the update, where the test loss is evaluated. Values are raw: only losses are smoothed.
- A threshold of METRIC_THRESHOLDS is crossed at the first of these steps at which the metric is at
  least as good: not smaller than it where "max" is better, not larger where "min" is. One of
  ``test_loss`` is crossed where the smoothed test loss is below it.
- At the step that crosses the last threshold of STOP_ON the update has been made, and the config
  stops.
- After the last step of a config its traces keep their final values, those of its last step. From
  the step at which it has diverged, they are NaN.

Values, and what has been crossed, are on the device, with a row per config of the stack, updated in
place. Where not every step is measured, the outputs of each config's last step are kept for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.training.batches import Batch, BatchError, column
from mlpsubmit.training.loss_history import Finished, LossHistory
from mlpsubmit.training.metric_functions import ByCallable, stacked_metric
from mlpsubmit.training.parts import Part, extended
from mlpsubmit.training.result import Array
from mlpsubmit.training.schedules import Schedule
from mlpsubmit.training.stack import Stack

__all__ = ["MetricHistory", "Outputs"]

#: Outputs (K, n, ...) of the configs, and their targets (1 or K, n, ...).
Outputs = tuple[Tensor, Tensor]


class MetricHistory(Part):
    """The metrics of K configs.

    Args:
        hyperparameters: K, equal but for what may differ in a pack.
        history: their losses, which know when what is recorded, and which configs are active.
        stack: the networks.

    Attributes:
        measured: whether there are metrics.
        timekeys: per name in METRIC_THRESHOLDS, as in :class:`mlpsubmit.training.result.Trained`.
    """

    PER_ROW = ("_values", "_thresholds", "_uncrossed", "_crossed_after", "_kept")
    SAVED = ("_recorded",)
    ON_HOST = ("timekeys", "_final", "_traces")

    def __init__(
        self, hyperparameters: Sequence[Hyperparameters], history: LossHistory, stack: Stack
    ) -> None:
        common, K = hyperparameters[0], len(hyperparameters)
        self._history, self._stack, self._stop_on = history, stack, common.stop_on
        self._max_iter = common.max_iter
        self._metrics = {
            name: stacked_metric(name, metric, stack.draws.showing)
            for name, metric in common.measured.items()
        }
        self._better = {name: metric.better for name, metric in common.measured.items()}
        self.measured = bool(self._metrics)
        self._schedules = {"train": history.record_at}
        if history.tested:
            self._schedules["test"] = history.eval_at
        self._records_always = history.record_at.count == common.max_iter
        names = [f"{one}_{name}" for one in self._schedules for name in self._metrics]

        # On the device, a row per config of the stack. Apple's devices have no float64.
        device = stack.device
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        new: dict[str, Any] = {"dtype": self._dtype, "device": device}
        self._values = {name: torch.full((K,), torch.nan, **new) for name in names}
        self._thresholds: dict[str, Tensor] = {}
        self._uncrossed: dict[str, Tensor] = {}
        self._crossed_after: dict[str, Tensor] = {}
        for key, thresholds in common.ordered_thresholds.items():
            self._thresholds[key] = torch.tensor([thresholds] * K, **new)
            shape = self._thresholds[key].shape
            self._uncrossed[key] = torch.ones(shape, dtype=torch.bool, device=device)
            self._crossed_after[key] = torch.zeros(shape, dtype=torch.int64, device=device)
        #: Outputs and targets (K, n, ...) of each config's last step, where not all are measured.
        self._kept: Outputs | None = None
        self._columns: dict[str, list[Tensor]] = {name: [] for name in names}

        # On the host, a row per config.
        self._final = {name: np.full(K, np.nan) for name in names}
        lengths = {n: len(self._schedule(n).steps) if history.traced else 0 for n in names}
        self._traces = {name: np.full((K, lengths[name]), np.nan) for name in names}
        self._recorded = dict.fromkeys(names, 0)  # columns read back
        self.timekeys: dict[str, Array] = {
            key: np.full((K, len(t)), -1, np.int64) for key, t in common.ordered_thresholds.items()
        }

    def _schedule(self, name: str) -> Schedule:
        return self._schedules[name.partition("_")[0]]

    @property
    def functions(self) -> list[Any]:
        """The functions that measure, the user's among them."""
        return [*self._metrics.values()]

    @property
    def obstacle(self) -> str | None:
        """Why a step that measures cannot be recorded as a CUDA graph."""
        if not self._records_always:
            return None
        drawing = (n for n, m in self._metrics.items() if isinstance(m, ByCallable) and m.draws)
        return next((f"METRICS {name!r} draws random numbers" for name in drawing), None)

    # In a step, or after it

    def next_look(self, step: int) -> int:
        """Return the first step from this one on after which metrics of the batch are measured.

        Those of the test set are, where its loss is evaluated.
        """
        if not self.measured or self._records_always:
            return self._max_iter
        return self._schedules["train"].next_from(step)

    def update_train(self, outputs: Sequence[Tensor], batch: Batch, active: Tensor) -> None:
        """Measure on the batch of this step; or keep the outputs, where that is not at every step.

        Its operations are the same at every step, so that a CUDA graph can replay them.

        Args:
            outputs: (K, n, ...) those before the update; nothing where there are no metrics.
            active: (K,) bool, the configs that have made the step.
        """
        for f in outputs:
            if self._records_always:
                self._measure("train", (f, batch.targets), active)
            else:
                self._kept = _latest(self._kept, (f, batch.targets), active)

    def measure_train(self, step: int, active: Tensor) -> None:
        """Measure on the batch of this step, where that is not at every step."""
        if self._kept is not None and step in self._schedules["train"]:
            self._measure("train", self._kept, active)

    def update_test(self, outputs: Outputs, active: Tensor) -> None:
        """Measure on the test set, after its losses have been smoothed."""
        self._measure("test", outputs, active)
        if "test_loss" in self._thresholds:
            self._compare("test_loss", self._history.test_loss, active)

    @torch.no_grad()
    def _measure(self, which: str, outputs: Outputs, active: Tensor) -> None:
        for name, metric in self._metrics.items():
            key, values = f"{which}_{name}", metric(*outputs).detach()
            last = self._values[key]
            torch.where(active, values.to(self._dtype), last, out=last)
            if key in self._thresholds:
                self._compare(key, values, active)

    def _compare(self, key: str, values: Tensor, active: Tensor) -> None:
        """Compare values (K,) with the thresholds of a key, and stop where these are STOP_ON's."""
        uncrossed = self._uncrossed[key]
        reached = self._reached(key, values)
        self._history.note_crossings(reached, active, uncrossed, self._crossed_after[key])
        if key == self._stop_on:
            self._history.stop(uncrossed)

    def _reached(self, key: str, values: Tensor) -> Tensor:
        """Return which thresholds of a key values (K,) reach, (K, T)."""
        # In the precision of the values: 9 of 10 as float32 is below 0.9 as float64.
        thresholds, values = self._thresholds[key].to(values.dtype), values.unsqueeze(1)
        if key == "test_loss":
            return values < thresholds
        is_max = self._better[key.partition("_")[2]] == "max"
        return values >= thresholds if is_max else values <= thresholds

    def record(self, step: int) -> None:
        """Append the values of this step to the traces, at the steps that these have."""
        for name in self._values if self._history.traced else ():
            if step in self._schedule(name):
                self._columns[name].append(self._values[name].clone())

    # At the end of a block

    def flush(self) -> None:
        """Read back the columns recorded since the last flush (a GPU-CPU sync point)."""
        for name, columns in self._columns.items():
            start = self._recorded[name]
            self._recorded[name] = self._history.write(self._traces[name], start, columns)
            columns.clear()

    def read(self) -> None:
        """Read a block that has ended, before its configs that have stopped are closed."""
        self.flush()
        tables = [*(v.unsqueeze(1) for v in self._values.values()), *self._crossed_after.values()]
        if not tables:
            return
        # One transfer for all (a GPU-CPU sync point).
        table = torch.cat([t.to(self._dtype) for t in tables], 1).cpu().double().numpy()
        rows = self._history.open
        configs, columns = np.take(self._stack.configs, rows), iter(table.T)
        for final in self._final.values():
            final[configs] = next(columns)[rows]
        for timekeys in self.timekeys.values():
            for threshold in range(timekeys.shape[1]):
                timekeys[configs, threshold] = next(columns)[rows] - 1  # -1: never

    def close(self, finished: Sequence[Finished], test: Outputs | None) -> None:
        """Set the final values of these configs, and extend their traces with them to the end.

        Args:
            finished: configs that have stopped; their losses are closed.
            test: of the test set, with the final weights; needed where one of them has stopped
                between two evaluations.
        """
        for which, outputs in (("train", self._kept), ("test", test)):
            late = [one for one in finished if self._is_between(which, one)]
            if late and outputs is not None:
                self._measure_late(which, outputs, late)
        for one in finished:
            for name, final in self._final.items():
                if one.diverged:
                    final[one.config] = np.nan
                if self._history.traced:
                    recorded = self._schedule(name).steps >= one.last_step
                    self._traces[name][one.config, recorded] = final[one.config]

    def _is_between(self, which: str, one: Finished) -> bool:
        schedule = self._schedules.get(which)
        return schedule is not None and not one.diverged and one.last_step not in schedule

    @torch.no_grad()
    def _measure_late(self, which: str, outputs: Outputs, late: Sequence[Finished]) -> None:
        """Measure at the last steps of configs that are between two steps of the schedule."""
        values = {f"{which}_{name}": metric(*outputs) for name, metric in self._metrics.items()}
        for key, found in values.items():
            self._set_late(key, found, late)
        if which == "test" and "test_loss" in self._thresholds:
            losses = self._history.test_loss.clone()
            for one in late:
                losses[one.row] = float(self._history.final_test[one.config])
            self._set_late("test_loss", losses, late)

    def _set_late(self, key: str, values: Tensor, late: Sequence[Finished]) -> None:
        found = values.to(self._dtype).cpu().double().numpy()
        reached = self._reached(key, values).cpu().numpy() if key in self._thresholds else None
        for one in late:
            if key in self._final:
                self._final[key][one.config] = found[one.row]
            if reached is not None:
                timekeys = self.timekeys[key][one.config]
                timekeys[(timekeys < 0) & reached[one.row]] = one.last_step

    def extend(self) -> None:
        """Make room for the further steps of a longer training than the state is of."""
        stopped = self._history.status != 0
        for name in self._traces if self._history.traced else ():
            columns, final = self._schedule(name).count, self._final[name]
            self._traces[name] = extended(self._traces[name], columns, final, stopped)

    @property
    def results(self) -> dict[str, Array]:
        """Per name of a value, (K,), or (K, R) with traces."""
        return self._traces if self._history.traced else self._final

    def state_dict(self) -> dict[str, Any]:
        """Return the state for :meth:`load_state_dict` (a GPU-CPU sync point)."""
        self.flush()
        return super().state_dict()


def _latest(kept: Outputs | None, outputs: Outputs, active: Tensor) -> Outputs:
    """Return outputs and targets (K, n, ...) of each config's last step, changed in place.

    Raises:
        BatchError: where these have another shape than those kept.
    """
    K = len(active)
    f, y = (t.detach().expand(K, *t.shape[1:]) for t in outputs)
    if kept is None:
        return f.clone(), y.clone()
    if f.shape != kept[0].shape or y.shape != kept[1].shape:
        raise BatchError(
            f"batch function: its outputs changed their shape from {tuple(kept[0].shape[1:])} to "
            f"{tuple(f.shape[1:])}; METRICS at some of the steps need batches of equal shapes; "
            "try RECORD_EVERY=1, which measures them at every step"
        )
    for new, old in zip((f, y), kept, strict=True):
        torch.where(column(active, old), new, old, out=old)
    return kept
