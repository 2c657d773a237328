"""The losses of a pack: smoothed, compared with the thresholds, recorded, and read back in blocks.

The rules, for one config, where ``smooth(e, l) = s e + (1 - s) l`` with s = EMA_SMOOTHER:

- The smoothed train loss starts at the first loss and takes in that of every step, computed before
  the step's update. It is recorded at the steps of RECORD_EVERY.
- A threshold is crossed at the first step whose smoothed train loss is below it. At the step that
  crosses the last one the update is still made, and then the config stops.
- A train loss that is not finite stops the config before that step's update, as diverged, and
  crosses no threshold. Its train loss stays the one of that step (infinite or NaN); its test loss
  is NaN from there on.
- Offline, the test loss is evaluated after the update, at the steps of EVAL_EVERY and at the
  config's last step. The smoothed test loss starts at the first. Each later one stands for the g
  steps since the one before, as if it had been the loss of each: ``s^g e + (1 - s^g) l``. So it
  lags by as many steps whatever EVAL_EVERY, and with or without ONLYTHRESHOLDS the final test loss
  includes the final weights. Online it is the smoothed train loss, recorded at the same steps;
  without a test set, NaN.
- After its last step a config's traces keep their final values: entries at later steps are the
  smoothed train loss of the last step, and the smoothed test loss of the last step.

On the device everything is a vector (K,), updated in place and without looking at it; a config
that has stopped keeps its values. The host reads a block at a time, at step numbers that are fixed,
so that what is computed never depends on time.
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
from mlpsubmit.training.result import Array
from mlpsubmit.training.schedules import Schedule

__all__ = ["Finished", "LossHistory"]


@dataclass(frozen=True)
class Finished:
    """A config that is found to have stopped.

    Attributes:
        position: its row in the stack.
        config: its place among all K.
        last_step: the step that crossed the last threshold, or diverged, or the last of all.
        diverged: whether its loss was no longer finite.
    """

    position: int
    config: int
    last_step: int
    diverged: bool


class LossHistory:
    """Books of the losses of K configs.

    Args:
        hyperparameters: one per config, equal but for what a pack may hold per config.
        device: where the vectors live.
        tested: whether test losses are evaluated: offline, with a test set.
    """

    def __init__(
        self, hyperparameters: Sequence[Hyperparameters], device: torch.device, tested: bool
    ) -> None:
        common, K = hyperparameters[0], len(hyperparameters)
        self._max_iter, self._online, self._tested = common.max_iter, common.online, tested
        self._traced = not common.onlythresholds
        self.record_at = Schedule(common.record_every, common.max_iter)
        every = common.record_every if common.online else common.eval_every
        self.eval_at = Schedule(every, common.max_iter)
        #: Whether the test loss is evaluated at every step.
        self.evaluates_always = tested and self.eval_at.count == common.max_iter
        # Apple's devices have no float64.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._relative = common.loss_checkpoints is None
        self._device = device
        self.configs = list(range(K))
        self._start([h.ema_smoother for h in hyperparameters], common.thresholds)
        self._rows: list[Tensor] = []
        self._test_rows: list[Tensor] = []
        self._start_results(K, len(common.thresholds))

    def _start(self, smoothers: list[float], thresholds: tuple[float, ...]) -> None:
        K, T = len(smoothers), len(thresholds)
        new: dict[str, Any] = {"device": self._device}
        self._smoother = torch.tensor(smoothers, dtype=self._dtype, **new)
        self._thresholds = torch.tensor([thresholds] * K, dtype=self._dtype, **new).view(K, T)
        self._active = torch.ones(K, dtype=torch.bool, **new)
        self._steps = torch.zeros(K, dtype=torch.int64, **new)
        self._smooth = torch.full((K,), torch.nan, dtype=self._dtype, **new)
        self._test = torch.full((K,), torch.nan, dtype=self._dtype, **new)
        # Per threshold, whether it is still to be crossed, and for how many steps it has been.
        self._waiting = torch.ones(K, T, dtype=torch.bool, **new)
        self._waited = torch.zeros(K, T, dtype=torch.int64, **new)

    def _start_results(self, K: int, T: int) -> None:
        # The steps are listed only for traces: there may be MAX_ITER of them.
        schedules = (self.record_at, self.eval_at)
        R, E = (len(one.steps) if self._traced else 0 for one in schedules)
        self.status = np.zeros(K, np.uint8)
        self.steps = np.zeros(K, np.int64)
        self.timekeys = np.full((K, T), -1, np.int64)
        self.final_train, self.final_test = np.full(K, np.nan), np.full(K, np.nan)
        self.train_trace, self.test_trace = np.full((K, R), np.nan), np.full((K, E), np.nan)
        self._recorded, self._evaluated = 0, 0  # columns written
        #: (K,) float64, the smoothed train losses last read.
        self.last_losses = np.full(K, np.nan)

    @property
    def open(self) -> list[int]:
        """The positions of the configs that have not been found to have stopped."""
        return [row for row, config in enumerate(self.configs) if self.status[config] == 0]

    def evaluates(self, step: int) -> bool:
        """Say whether the test loss is evaluated at this step."""
        return self._tested and step in self.eval_at

    def update(self, step: int, losses: Tensor) -> Tensor:
        """Take in the train losses (K,) before this step's update.

        After step 0 this does the same at every step, so that one can be replayed for another.

        Returns:
            (K,) bool, which configs make this step's update.
        """
        losses = losses.detach().to(self._dtype)
        if step == 0:
            self._smooth.copy_(losses)
            if self._relative:
                self._thresholds.mul_(losses.unsqueeze(1))
        else:
            smooth = _smoothed(self._smooth, losses, self._smoother)
            torch.where(self._active, smooth, self._smooth, out=self._smooth)
        active = self._active & self._smooth.isfinite()
        self._steps += active
        self._active.copy_(active)
        if self._thresholds.shape[1]:
            # A loss of -inf is below every threshold, but its config has diverged.
            below = self._smooth.unsqueeze(1) < self._thresholds
            self._waiting &= ~(below & active.unsqueeze(1))
            self._waited += self._waiting
            self._active &= self._waiting[:, -1]
        return active

    def update_test(self, step: int, losses: Tensor, active: Tensor) -> None:
        """Take in the test losses (K,) after this step's update, of the configs that made it."""
        smooth = losses.detach().to(self._dtype)
        if step > 0:
            smoother = self._smoother ** self.eval_at.since_previous(step)
            smooth = _smoothed(self._test, smooth, smoother)
        torch.where(active, smooth, self._test, out=self._test)

    def record(self, step: int) -> None:
        """Keep the smoothed losses of this step, once all are entered, where a trace has them."""
        if self._traced and step in self.record_at:
            self._rows.append(self._smooth.clone())
        if self._traced and (self._online or self._tested) and step in self.eval_at:
            self._test_rows.append((self._smooth if self._online else self._test).clone())

    @property
    def vectors(self) -> list[Tensor]:
        """What a step changes in place, each with one row per config of the stack."""
        return [getattr(self, name) for name in _VECTORS]

    def flush(self) -> None:
        """Read the rows recorded since the last time into the traces (a GPU-CPU sync point)."""
        self._recorded = self._write(self.train_trace, self._recorded, self._rows)
        self._evaluated = self._write(self.test_trace, self._evaluated, self._test_rows)
        self._rows, self._test_rows = [], []

    def _write(self, trace: Array, written: int, rows: list[Tensor]) -> int:
        """Append rows to the columns of a trace, of the open configs; return how many it has."""
        if rows:
            open_ = self.open
            configs = [self.configs[row] for row in open_]
            values = torch.stack(rows, dim=1).cpu().numpy()
            columns = slice(written, written + len(rows))
            trace[configs, columns] = values[open_]
        return written + len(rows)

    def read(self, step: int) -> list[Finished]:
        """Read the block that ends with this step, and return who has stopped in it.

        This is a GPU-CPU sync point: what the device has queued is finished first.
        """
        self.flush()
        T = self._thresholds.shape[1]
        vectors = [self._smooth, self._test, self._steps, self._active]
        vectors += [*self._waited.unbind(1), *self._waiting.unbind(1)]
        table = torch.stack([v.to(self._dtype) for v in vectors]).cpu().double().numpy()
        smooth, test, steps, active = table[:4]
        waited, waiting = table[4 : 4 + T].T, table[4 + T :].T
        finished = []
        for row in self.open:
            config = self.configs[row]
            self.last_losses[config] = self.final_train[config] = smooth[row]
            self.final_test[config] = smooth[row] if self._online else test[row]
            self.steps[config] = steps[row]
            self.timekeys[config] = np.where(waiting[row] > 0, -1, waited[row])
            diverged = not np.isfinite(smooth[row])
            if not active[row] or step == self._max_iter - 1:
                last_step = int(steps[row]) - (not diverged)
                finished.append(Finished(row, config, last_step, diverged))
        return finished

    def lacks_test(self, finished: Sequence[Finished]) -> bool:
        """Say whether one of these has stopped between two evaluations of the test loss."""
        return self._tested and any(
            not one.diverged and one.last_step not in self.eval_at for one in finished
        )

    def close(self, finished: Sequence[Finished], test_losses: Tensor | None) -> None:
        """Write the final values of these configs, and let their traces keep them to the end.

        Args:
            finished: what :meth:`read` returned.
            test_losses: (K,), of the final weights, where :meth:`lacks_test` asks for them.
        """
        for one in finished:
            config, last_step = one.config, one.last_step
            self.status[config] = DIVERGED if one.diverged else DONE
            if one.diverged and not self._online:
                self.final_test[config] = np.nan
            elif test_losses is not None and last_step not in self.eval_at:
                s, loss = float(self._smoother[one.position]), float(test_losses[one.position])
                s **= self.eval_at.since_previous(last_step)
                self.final_test[config] = s * self.final_test[config] + (1 - s) * loss
            self._keep_final(config, last_step)

    def _keep_final(self, config: int, last_step: int) -> None:
        if self._traced:
            kept, tested = (s.steps >= last_step for s in (self.record_at, self.eval_at))
            self.train_trace[config, kept] = self.final_train[config]
            self.test_trace[config, tested] = self.final_test[config]

    def shrink(self, keep: Sequence[int]) -> None:
        """Keep the configs at these positions. Only after :meth:`read`."""
        rows = torch.tensor(list(keep), device=self._device)
        self.configs = [self.configs[row] for row in keep]
        for name in _VECTORS:
            setattr(self, name, getattr(self, name)[rows])

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` takes (a GPU-CPU sync point)."""
        self.flush()
        results = {name: torch.from_numpy(getattr(self, name)) for name in _RESULTS}
        for trace, columns in _TRACES.items():
            results[trace] = torch.from_numpy(getattr(self, trace)[:, : getattr(self, columns)])
        return {
            "configs": list(self.configs),
            "vectors": {name: getattr(self, name) for name in _VECTORS},
            "results": results,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.configs = list(state["configs"])
        for name in _VECTORS:
            setattr(self, name, state["vectors"][name].to(self._device, copy=True))
        results = {name: value.numpy().copy() for name, value in state["results"].items()}
        for name in _RESULTS:
            setattr(self, name, results[name])
        for trace, columns in _TRACES.items():
            setattr(self, columns, results[trace].shape[1])
            getattr(self, trace)[:, : results[trace].shape[1]] = results[trace]
        for config in np.flatnonzero(self.status):
            last_step = int(self.steps[config]) - int(self.status[config] == DONE)
            self._keep_final(int(config), last_step)


def _smoothed(smooth: Tensor, loss: Tensor, smoother: Tensor) -> Tensor:
    return torch.addcmul(smooth * smoother, loss, 1 - smoother)


#: The vectors on the device, each with one row per config of the stack.
_VECTORS = (
    *("_smoother", "_thresholds", "_active", "_steps"),
    *("_smooth", "_test", "_waiting", "_waited"),
)
#: The results on the host, each with one row per config, and the traces with their columns so far.
_RESULTS = ("status", "steps", "timekeys", "final_train", "final_test", "last_losses")
_TRACES = {"train_trace": "_recorded", "test_trace": "_evaluated"}
