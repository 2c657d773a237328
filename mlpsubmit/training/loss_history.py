"""The losses of a pack: smoothed (an EMA), compared with thresholds, recorded, read back in blocks.

The rules, for one config, with the exponential moving average ``e <- s e + (1 - s) l`` of losses l,
s = EMA_SMOOTHER:

- The smoothed train loss starts at the first loss and is updated with that of every step, computed
  before the step's update. It is recorded at the steps of RECORD_EVERY.
- A threshold is crossed at the first step whose smoothed train loss is below it. At the step that
  crosses the last one the update is still made, and then the config stops (if STOP_ON is
  train_loss; see :mod:`mlpsubmit.training.metrics` for the others).
- A train loss that is not finite stops the config before that step's update, as diverged, and
  crosses no threshold. Its train loss stays the one of that step (infinite or NaN); its test loss
  is NaN from there on.
- The test loss is evaluated after the update, on the fixed test set, at the steps of EVAL_EVERY and
  at the config's last step: offline, and online if EVAL_EVERY is set. The smoothed test loss starts
  at the first. Each later one counts for the g steps since the one before, as if it had been the
  loss of each: ``e <- s^g e + (1 - s^g) l``. So its lag in steps does not depend on EVAL_EVERY, and
  with or without ONLYTHRESHOLDS the final test loss includes the final weights. Without a test set
  it is NaN.
- After its last step a config's traces keep their final values: entries at later steps are the
  smoothed train loss of the last step, and the smoothed test loss of the last step.

On the device there is a row per config of the stack, updated in place and never waited for; a
config that has stopped keeps its values. The host reads once per block, at fixed step numbers, so
that no result depends on time. It has a row per config, 0 to K - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpsubmit.protocol import DIVERGED, DONE
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.training.accel.step_kernels import LossStep, fused_loss_step
from mlpsubmit.training.parts import Part, extended, resized
from mlpsubmit.training.result import Array
from mlpsubmit.training.schedules import Schedule
from mlpsubmit.training.stack import Stack

__all__ = ["Finished", "LossHistory"]


@dataclass(frozen=True)
class Finished:
    """A config that has been found to have stopped.

    Attributes:
        row: its row in the stack.
        config: its number, 0 to K - 1.
        last_step: the step that crossed the last threshold, or diverged, or the last of all.
        diverged: whether its loss was not finite.
    """

    row: int
    config: int
    last_step: int
    diverged: bool


class LossHistory(Part):
    """The losses of K configs.

    Args:
        hyperparameters: K, equal but for what may differ in a pack.
        stack: the networks: a row of the stack is one of the smoothed losses too.
        tested: whether test losses are evaluated: they are scheduled, and there is a test set.

    Attributes:
        tested: as given.
        traced: whether there are traces.
        record_at, eval_at: the steps of the traces of train and test losses.
        evaluates_always: whether the test loss is evaluated at every step.
        status, steps, timekeys: as in :class:`mlpsubmit.training.result.Trained`; a status of 0
            is that of a config in training.
        final_train, final_test: (K,) float64, the smoothed losses last read.
        train_trace, test_trace: (K, R) and (K, E) float64; (K, 0) with ONLYTHRESHOLDS. Without a
            test set, the test losses are NaN.
    """

    PER_ROW = (
        *("_smoother", "_thresholds", "_active", "_steps"),
        *("_train_loss", "_test_loss", "_uncrossed", "_crossed_after", "_first_loss"),
    )
    SAVED = ("_recorded", "_evaluated")
    ON_HOST = (
        *("status", "steps", "timekeys", "final_train", "final_test"),
        *("train_trace", "test_trace"),
    )

    def __init__(
        self, hyperparameters: Sequence[Hyperparameters], stack: Stack, tested: bool
    ) -> None:
        common, K, T = hyperparameters[0], len(hyperparameters), len(hyperparameters[0].thresholds)
        self._max_iter, self.tested, self._given = common.max_iter, tested, common.thresholds
        self.traced, self._relative = not common.onlythresholds, common.loss_checkpoints is None
        self._stops = bool(common.thresholds) and common.stop_on == "train_loss"
        fused = common.compile is not False and fused_loss_step(stack.device, _loss_step)
        self._loss_step: LossStep = fused or _loss_step
        self._stack, device = stack, stack.device
        self.record_at = Schedule(common.record_every, common.max_iter)
        self.eval_at = Schedule(common.test_every, common.max_iter)
        self.evaluates_always = tested and self.eval_at.count == common.max_iter

        # On the device, a row per config of the stack. Apple's devices have no float64.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        new: dict[str, Any] = {"dtype": self._dtype, "device": device}
        self._smoother = torch.tensor([h.ema_smoother for h in hyperparameters], **new)
        self._thresholds = torch.tensor([common.thresholds] * K, **new).view(K, T)
        self._active = torch.ones(K, dtype=torch.bool, device=device)
        self._steps = torch.zeros(K, dtype=torch.int64, device=device)
        self._train_loss = torch.full((K,), torch.nan, **new)
        self._first_loss = torch.full((K,), torch.nan, **new)
        self._test_loss = torch.full((K,), torch.nan, **new)
        # Per threshold, whether it has not been crossed, and after how many steps it was.
        self._uncrossed = torch.ones(K, T, dtype=torch.bool, device=device)
        self._crossed_after = torch.zeros(K, T, dtype=torch.int64, device=device)
        # Columns of the traces that have not been read back, each (K,).
        self._train_columns: list[Tensor] = []
        self._test_columns: list[Tensor] = []

        # On the host, a row per config. Steps are listed for traces only: there may be many.
        schedules = (self.record_at, self.eval_at)
        R, E = (len(one.steps) if self.traced else 0 for one in schedules)
        self.status = np.zeros(K, np.uint8)
        self.steps = np.zeros(K, np.int64)
        self.timekeys = np.full((K, T), -1, np.int64)
        self.final_train, self.final_test = np.full(K, np.nan), np.full(K, np.nan)
        self.train_trace, self.test_trace = np.full((K, R), np.nan), np.full((K, E), np.nan)
        self._recorded, self._evaluated = 0, 0  # columns read back

    @property
    def open(self) -> list[int]:
        """The rows of the stack whose configs have not been found to have stopped."""
        rows: list[int] = np.flatnonzero(self.status[self._stack.configs] == 0).tolist()
        return rows

    def evaluates(self, step: int) -> bool:
        """Return whether the test loss is evaluated at this step."""
        return self.tested and step in self.eval_at

    def next_look(self, step: int) -> int:
        """Return the first step from this one on after which losses are evaluated or recorded."""
        looks = [self._max_iter]
        if self.tested and (self.traced or not self.evaluates_always):
            looks.append(self.eval_at.next_from(step))
        if self.traced:
            looks.append(self.record_at.next_from(step))
        return min(looks)

    def update(self, step: int, losses: Tensor) -> Tensor:
        """Smooth the train losses (K,) before this step's update; compare them with thresholds.

        Its operations are the same at every step but step 0, so that a CUDA graph can replay them.

        Returns:
            (K,) bool, which configs make this step's update.
        """
        losses = losses.detach()
        state = (self._active, self._steps, self._thresholds, self._uncrossed, self._crossed_after)
        if step > 0:
            return self._loss_step(losses, self._train_loss, self._smoother, *state, self._stops)
        self._train_loss.copy_(losses)
        self._first_loss.copy_(losses)
        if self._relative:
            self._thresholds.mul_(self._first_loss.unsqueeze(1))
        return _counted(self._train_loss, *state, self._stops)

    def note_crossings(
        self, reached: Tensor, active: Tensor, uncrossed: Tensor, crossed_after: Tensor
    ) -> None:
        """Note which thresholds were crossed at the last step: in place, on the device.

        Args:
            reached: (K, T) bool, the thresholds that the values of the step reach.
            active: (K,) bool, the configs that made the step.
            uncrossed: (K, T) bool, changed: the thresholds that have not been crossed.
            crossed_after: (K, T) changed: the steps made when one was crossed, 0 if it was not.
        """
        _note_crossings(reached, active, self._steps, uncrossed, crossed_after)

    def stop(self, uncrossed: Tensor) -> None:
        """Let configs make no further step that have crossed the last of thresholds (K, T)."""
        self._active &= uncrossed[:, -1]

    @property
    def test_loss(self) -> Tensor:
        """The smoothed test losses (K,), on the device."""
        return self._test_loss

    def update_test(self, step: int, losses: Tensor, active: Tensor) -> None:
        """Smooth the test losses (K,) after this step's update, of the configs that made it."""
        smoothed = losses.detach().to(self._dtype)
        if step > 0:
            smoother = self._smoother ** self.eval_at.since_previous(step)
            smoothed = _smoothed(self._test_loss, smoothed, smoother)
        torch.where(active, smoothed, self._test_loss, out=self._test_loss)

    def record(self, step: int) -> None:
        """Append the smoothed losses of this step to the traces, at the steps that these have."""
        if self.traced and step in self.record_at:
            self._train_columns.append(self._train_loss.clone())
        if self.traced and self.evaluates(step):
            self._test_columns.append(self._test_loss.clone())

    def flush(self) -> None:
        """Read back the columns recorded since the last flush (a GPU-CPU sync point)."""
        self._recorded = self.write(self.train_trace, self._recorded, self._train_columns)
        self._evaluated = self.write(self.test_trace, self._evaluated, self._test_columns)
        self._train_columns, self._test_columns = [], []

    def write(self, trace: Array, start: int, columns: list[Tensor]) -> int:
        """Write columns of the open configs into a trace, from ``start`` on; return the next."""
        stop = start + len(columns)
        if columns:
            rows = self.open
            values = torch.stack(columns, dim=1).cpu().numpy()
            trace[np.take(self._stack.configs, rows), start:stop] = values[rows]
        return stop

    def read(self, step: int) -> list[Finished]:
        """Read the block that ends with this step, and return the configs that stopped in it.

        This is a GPU-CPU sync point: the device finishes all queued work first.
        """
        self.flush()
        vectors = [self._train_loss, self._test_loss, self._steps, self._active]
        vectors += self._crossed_after.unbind(1)
        # One transfer for all.
        table = torch.stack([v.to(self._dtype) for v in vectors]).cpu().double().numpy()
        train_loss, test_loss, steps, active = table[:4]
        rows = self.open
        configs = np.take(self._stack.configs, rows)
        self.final_train[configs] = train_loss[rows]
        self.final_test[configs] = test_loss[rows]
        self.steps[configs] = steps[rows]
        self.timekeys[configs] = table[4:].T[rows] - 1  # -1: never
        stopped = rows
        if step < self._max_iter - 1:
            stopped = np.asarray(rows)[active[rows] == 0].tolist()
        finished = []
        for row in stopped:
            diverged = not np.isfinite(train_loss[row])
            last_step = int(steps[row]) - (not diverged)
            finished.append(Finished(row, self._stack.configs[row], last_step, diverged))
        return finished

    def lacks_test(self, finished: Sequence[Finished]) -> bool:
        """Return whether one of these has stopped between two evaluations of the test loss."""
        return self.tested and any(
            not one.diverged and one.last_step not in self.eval_at for one in finished
        )

    def close(self, finished: Sequence[Finished], test_losses: Tensor | None) -> None:
        """Set the final values of these configs, and extend their traces with them to the end.

        Args:
            finished: the result of :meth:`read`.
            test_losses: (K,), with the final weights; needed where :meth:`lacks_test` is true.
        """
        for one in finished:
            config, last_step = one.config, one.last_step
            self.status[config] = DIVERGED if one.diverged else DONE
            if one.diverged:
                self.final_test[config] = np.nan
            elif test_losses is not None and last_step not in self.eval_at:
                s, loss = float(self._smoother[one.row]), float(test_losses[one.row])
                s **= self.eval_at.since_previous(last_step)
                self.final_test[config] = s * self.final_test[config] + (1 - s) * loss
            if self.traced:
                recorded, evaluated = (s.steps >= last_step for s in (self.record_at, self.eval_at))
                self.train_trace[config, recorded] = self.final_train[config]
                self.test_trace[config, evaluated] = self.final_test[config]

    def extend(self) -> None:
        """Go on from a state of a shorter training, or of one with fewer thresholds.

        No config has crossed the last of those: the further ones are below it.
        """
        if given := self._given[self._thresholds.shape[1] :]:
            new: dict[str, Any] = {"dtype": self._dtype, "device": self._thresholds.device}
            further = torch.tensor([given] * len(self._thresholds), **new)
            if self._relative:
                further = further * self._first_loss.unsqueeze(1)
            self._thresholds = torch.cat([self._thresholds, further], dim=1)
            more = torch.ones_like(further, dtype=torch.bool)
            self._uncrossed = torch.cat([self._uncrossed, more], dim=1)
            never = torch.zeros_like(further, dtype=torch.int64)
            self._crossed_after = torch.cat([self._crossed_after, never], dim=1)
            self.timekeys = resized(self.timekeys, len(self._given), -1)
        if self.traced:
            stopped = self.status != 0
            train, test = self.record_at.count, self.eval_at.count
            self.train_trace = extended(self.train_trace, train, self.final_train, stopped)
            self.test_trace = extended(self.test_trace, test, self.final_test, stopped)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for :meth:`load_state_dict` (a GPU-CPU sync point)."""
        self.flush()
        return super().state_dict()


def _loss_step(losses: Tensor, smoothed: Tensor, smoother: Tensor, *state: Any) -> Tensor:
    """Smooth losses (K,), of the active configs, and go on as :func:`_counted`."""
    new = _smoothed(smoothed, losses.to(smoothed.dtype), smoother)
    torch.where(state[0], new, smoothed, out=smoothed)
    return _counted(smoothed, *state)


def _counted(
    smoothed: Tensor,
    active: Tensor,
    steps: Tensor,
    thresholds: Tensor,
    uncrossed: Tensor,
    crossed_after: Tensor,
    stops: bool,
) -> Tensor:
    """Count a step of the configs whose smoothed losses are finite; compare with thresholds.

    Args:
        smoothed: train losses (K,).
        active: (K,) bool, changed.
        steps: (K,) int64, changed.
        thresholds: (K, T).
        uncrossed, crossed_after: (K, T), changed; see :meth:`LossHistory.note_crossings`.
        stops: whether a config stops that crosses the last threshold.

    Returns:
        (K,) bool, which configs make the step.
    """
    # Not isfinite(), which makes four passes: a difference that is not finite is NaN.
    made = active & (smoothed - smoothed == 0)
    steps += made
    active.copy_(made)
    if thresholds.shape[1]:
        # A loss of -inf is below every threshold, but its config has diverged.
        below = smoothed.unsqueeze(1) < thresholds
        _note_crossings(below, made, steps, uncrossed, crossed_after)
        if stops:
            active &= uncrossed[:, -1]
    return made


def _note_crossings(
    reached: Tensor, made: Tensor, steps: Tensor, uncrossed: Tensor, crossed_after: Tensor
) -> None:
    newly = reached & made.unsqueeze(1) & uncrossed
    torch.where(newly, steps.unsqueeze(1), crossed_after, out=crossed_after)
    uncrossed ^= newly


def _smoothed(average: Tensor, loss: Tensor, smoother: Tensor) -> Tensor:
    return torch.addcmul(average * smoother, loss, 1 - smoother)
