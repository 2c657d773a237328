"""The train loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import BatchFn
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.training.accel.replay import replayed
from mlpsubmit.training.batches import Batch
from mlpsubmit.training.monitor import Monitor, Progress, SilentMonitor
from mlpsubmit.training.pack import Pack
from mlpsubmit.training.precision import arithmetic, freed_memory_kept
from mlpsubmit.training.result import Trained
from mlpsubmit.training.settings import per_config

__all__ = ["BLOCK", "train"]

#: Steps between two read-backs. Fixed step numbers, so that no arithmetic depends on time.
BLOCK = 64


def train(
    models: Sequence[nn.Module],
    batch_fns: Sequence[BatchFn],
    hyperparameters: Hyperparameters | Mapping[str, Any] | Sequence[Hyperparameters],
    *,
    trials: Sequence[int] | None = None,
    test_fns: Sequence[BatchFn] | None = None,
    grabs: Mapping[str, Callable[..., Any]] | None = None,
    contexts: Sequence[Mapping[str, Any]] | None = None,
    generators: Sequence[torch.Generator] = (),
    device: torch.device | str = "cpu",
    monitor: Monitor | None = None,
) -> Trained:
    """Train K models together, each on its own batches, until its thresholds or MAX_ITER.

    One step of one config: ``X, y = batch_fn(step)``; the loss of f(X) - f0(X), with f0 the network
    at initialisation (unless CENTERED is off); its gradient; the optimizer's update. What is
    recorded, and when a config stops, stands in :mod:`mlpsubmit.training.loss_history`; how
    multipliers, step sizes and initial weights scale in :mod:`mlpsubmit.training.parametrizations`.

    Args:
        models: K modules of equal structure and shapes. They are given multipliers and initial
            weights (under PARAMETRIZATION="sp" they keep theirs), moved to the device and trained
            in place: afterwards ``models[k](X)`` is the final network, uncentred. A diverged
            config keeps the weights with which it diverged.
        batch_fns: K functions from a step to X (n, ...) and y (n,) or (n, d_out). The same object
            may stand several times: it is called once per step and its batch shared. Functions
            that draw random numbers each need a generator of their own. Offline each is called
            once, with step 0.
        hyperparameters: one for all, or K that differ in what
            :data:`mlpsubmit.spec.hyperparameters.STACKED` names at most.
        trials: K; with SEED they determine the initial weights. By default 0, ..., K - 1.
        test_fns: K functions as ``batch_fns``; the test set is ``test_fn(0)``. Without them, the
            test loss offline is NaN. Online the test loss is the train loss.
        grabs: per name, a measurement; see :class:`mlpsubmit.training.measurements.Grabber`. With
            ONLYTHRESHOLDS it is called once, with the final weights and the batch of the config's
            last step, else at the steps of GRAB_EVERY, after the update, and at the step at which
            a config stops.
        contexts: K mappings of further arguments for the grabs, by name.
        generators: every generator that the batch functions draw from, so that their states are
            saved and restored.
        device: where to train.
        monitor: how the outside sees the training. By default it does not.

    Returns:
        the results, in the order of ``models``.

    Raises:
        SpecError: for arguments that do not fit together, before anything is trained.
        BatchError: for batches that do not fit the model or the loss.
        GrabError: from a grab that raised, or returned what cannot be stored.
        StateError: for a saved state that cannot be continued from.
        Interrupted: from ``monitor.save``.
    """
    settings = per_config(hyperparameters, len(models))
    trials = range(len(models)) if trials is None else trials
    contexts = [{}] * len(models) if contexts is None else contexts
    _check_lengths(
        len(models), batch_fns=batch_fns, trials=trials, test_fns=test_fns, contexts=contexts
    )
    common, device = settings[0], torch.device(device)
    monitor = SilentMonitor() if monitor is None else monitor
    with (
        arithmetic(common.precision, common.deterministic, device),
        freed_memory_kept(device),
        torch.enable_grad(),
    ):
        pack = Pack(
            models,
            batch_fns,
            settings,
            trials=trials,
            test_fns=test_fns,
            grabs=grabs or {},
            contexts=contexts,
            generators=generators,
            device=device,
            state=monitor.restore(),
        )
        _run(pack, common, monitor)
        return pack.results()


def _run(pack: Pack, common: Hyperparameters, monitor: Monitor) -> None:
    """Train a pack to its end. Nothing here waits for the device but what says so."""
    history, last, max_iter = pack.history, pack.last, common.max_iter
    grab_at = pack.grab_at if pack.grabber.grabs else None
    step_fn, always = replayed(partial(train_step, pack), pack, common), history.evaluates_always

    for step in range(pack.start, max_iter):
        # One step: its batch, and (K,) bool, who makes it. On a GPU it may be a recorded one.
        batch, active = step_fn(step)
        if history.evaluates(step) and not always:
            _evaluate(pack, step, active)
        history.record(step)

        # The measurements. In a trace, this is a GPU-CPU sync point and K calls of every grab; the
        # final ones come when a config has stopped, and want its last batch.
        if grab_at is not None and step in grab_at:
            pack.measure(step, batch, active)
        if last is not None:
            last.update(batch, active)

        # Once per block the host looks (a GPU-CPU sync point): who has stopped is measured, closed
        # and, once they are half of the stack, left out of it.
        if (step + 1) % BLOCK == 0 or step + 1 == max_iter:
            pack.close_finished(step)
            monitor.progress(_progress(pack, step + 1, max_iter))
            if not history.open:
                return
            pack.shrink()

        if monitor.due():
            monitor.save(pack.state_dict(start=step + 1))
        del batch  # or the next step would hold two


def train_step(pack: Pack, step: int) -> tuple[Batch, Tensor]:
    """Make one step; what it changes but for its results, it changes in place."""
    # The batch of this step, (n, ...) for all configs or (K, n, ...). Offline always the same.
    batch = pack.train.draw(step)

    # The losses (K,) of the centred outputs before the update, and their gradients. Online the
    # initial network is evaluated as well: a second forward pass.
    losses, gradients = pack.objective(batch)

    # Smoothed losses and thresholds, on the device: (K,) bool, who makes this step.
    active = pack.history.update(step, losses)

    # The update, of size zero for a config that has stopped.
    pack.optimizer.step(gradients, active, partial(pack.objective, batch))
    if pack.history.evaluates_always:
        del gradients  # memory that the evaluation can have
        _evaluate(pack, step, active)
    return batch, active


def _evaluate(pack: Pack, step: int, active: Tensor) -> None:
    """Take in the test losses (K,) after the update: a forward pass over the test set."""
    pack.history.update_test(step, pack.test_losses(), active)


def _progress(pack: Pack, step: int, max_iter: int) -> Progress:
    active = len(pack.history.open)
    return Progress(
        step=step,
        made=int(pack.history.steps.sum()),
        max_iter=max_iter,
        active=active,
        rows=len(pack.stack),
        finished=len(pack.stack.models) - active,
        losses=pack.history.last_losses.copy(),
    )


def _check_lengths(count: int, **given: Sequence[Any] | None) -> None:
    if count == 0:
        raise SpecError("models: got none; give at least one")
    errors = [
        f"{name}: got {len(values)} for {count} models; give {count}"
        for name, values in given.items()
        if values is not None and len(values) != count
    ]
    if errors:
        raise SpecError(errors)
