"""The train loop.

:func:`train_step` is one gradient step of K configs, :func:`train` the loop around it. Both are to
be read from top to bottom, in the order of the mathematics.
"""

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
from mlpsubmit.training.kept_states import KeptSteps
from mlpsubmit.training.loss_history import Finished
from mlpsubmit.training.monitor import Monitor, Progress
from mlpsubmit.training.pack import Pack, Parametrized, per_config
from mlpsubmit.training.precision import arithmetic, keep_freed_memory
from mlpsubmit.training.result import Trained
from mlpsubmit.training.seeds import global_stream, streams

__all__ = ["BLOCK", "train"]

#: Steps from one read-back to the next. Fixed, so that no result depends on time.
BLOCK = 64


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


def _evaluate(pack: Pack, step: int, active: Tensor) -> None:
    """Smooth the test losses (K,), and measure, after the update: a pass over the test set."""
    losses, outputs = pack.evaluate_test()
    pack.history.update_test(step, losses, active)
    pack.metrics.update_test(outputs, active)


def _progress(pack: Pack, step: int, max_iter: int) -> Progress:
    active = len(pack.history.open)
    return Progress(
        step=step,
        made=int(pack.history.steps.sum()),
        max_iter=max_iter,
        active=active,
        rows=len(pack.stack),
        finished=len(pack.stack.models) - active,
        losses=pack.history.final_train.copy(),
        stopped=frozenset(pack.history.status.nonzero()[0].tolist()),
    )


def _next_look(pack: Pack, kept: KeptSteps, step: int, max_iter: int) -> int:
    """Return the first step from this one on after which more is to be done than the next step.

    That is the end of a block, or the first after which losses are evaluated or recorded, grabs
    called, or weights or a state kept.
    """
    end = (step // BLOCK + 1) * BLOCK - 1
    parts = (pack.history, pack.metrics, pack.grabber, pack.weight_history, kept)
    return min(end, max_iter - 1, *(part.next_look(step) for part in parts))


def train_step(pack: Pack, step: int) -> tuple[Batch, Tensor]:
    """Make one step of K configs. A CUDA graph can record it: it works in place, and never waits.

    Returns:
        the batch, and (K,) bool, the configs that made the step.
    """
    # Draw: X (n, ...) for all configs or (K, n, ...) for each, and f0(X): online that is a forward
    # pass. Offline both are always the same.
    batch, initial_output = pack.draw(step)

    # Losses (K,) of f(X) - f0(X), and their gradients, clipped: a forward and a backward pass.
    outputs: list[Tensor] = []  # where metrics need them
    losses, gradients = pack.objective(batch, initial_output, outputs)

    # Smooth and compare with thresholds: a config that has stopped is no longer active (K,).
    active = pack.history.update(step, losses)

    # Step: one pass over weights and optimizer state, with lr = 0 where a config is not active.
    scale = pack.lr_schedule.next()
    objective = partial(pack.objective, batch, initial_output)
    pack.optimizer.step(gradients, active, objective, scale)
    pack.stack.keep_buffers(active)

    # Measure: metrics of the outputs before the update.
    pack.metrics.update_train(outputs, batch, active)

    # Keep each config's last batch, if a grab will need it: a pass over the batch.
    pack.grabber.keep_batch(batch, active)

    # Evaluate, if at every step: a forward pass over the test set.
    if pack.history.evaluates_always:
        del gradients  # memory that the evaluation can use
        _evaluate(pack, step, active)
    return batch, active


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
    known: Parametrized | None = None,
) -> Trained:
    """Train K models together, each on its own batches, until its thresholds or MAX_ITER.

    One step of one config: ``X, y = batch_fn(step)``; the loss of f(X) - f0(X), with f0 the network
    at initialisation (unless CENTERED is off); its gradient; the optimizer's update. What is
    recorded, and when a config stops, is defined in :mod:`mlpsubmit.training.loss_history`; how
    multipliers, learning rates and initial weights scale in
    :mod:`mlpsubmit.training.parametrizations`.

    Args:
        models: K modules of equal structure and shapes. They are given multipliers and initial
            weights (under PARAMETRIZATION="sp" they keep theirs), moved to the device and trained
            in place: afterwards ``models[k](X)`` is the final network, uncentred. A diverged
            config keeps the weights with which it diverged.
        batch_fns: K functions from a step to X (n, ...) and y (n,) or (n, d_out). The same object
            may occur several times: it is called once per step and its batch shared. Functions
            that draw random numbers each need a generator of their own. Offline each is called
            once, with step 0.
        hyperparameters: one for all, or K that differ at most in
            :data:`mlpsubmit.spec.hyperparameters.STACKED`.
        trials: K; with SEED they determine the initial weights. By default 0, ..., K - 1.
        test_fns: K functions as ``batch_fns``; the test set is ``test_fn(0)``. Without them, the
            test loss is NaN. Online it is evaluated only if EVAL_EVERY is set.
        grabs: per name, a measurement; see :class:`mlpsubmit.training.measurements.Grabber`. With
            ONLYTHRESHOLDS it is called once, with the final weights and the batch of the config's
            last step, else at the steps of GRAB_EVERY, after the update, and at the step at which
            a config stops.
        contexts: K mappings of further arguments for the grabs, by name.
        generators: every generator that the batch functions draw from, so that their states are
            saved and restored.
        device: where to train.
        monitor: receives the progress, saves and restores the state. By default nothing does.
        known: of models that are parametrized and compared already; None to do both here.

    Returns:
        the results, in the order of ``models``.

    Raises:
        SpecError: for arguments that do not fit together, before anything is trained.
        StackingError: for models that can be trained in smaller groups only.
        BatchError: for batches that do not fit the model or the loss.
        GrabError: for a grab that fails, or whose result cannot be stored.
        WriteError: for a function that writes into a batch, a data entry or a model's weights.
        StateError: for a saved state that cannot be continued from.
        Interrupted: from ``monitor.save``.
    """
    K = len(models)
    settings = per_config(hyperparameters, K)
    trials = range(K) if trials is None else trials
    contexts = [{}] * K if contexts is None else contexts
    _check_lengths(
        K,
        batch_fns=batch_fns,
        hyperparameters=settings,
        trials=trials,
        test_fns=test_fns,
        contexts=contexts,
    )
    monitor = Monitor() if monitor is None else monitor
    common, device = settings[0], torch.device(device)
    max_iter = common.max_iter
    with (
        arithmetic(common.precision, common.deterministic, device),
        keep_freed_memory(device),
        torch.enable_grad(),
        # What a model alone, a loss or an optimizer of the user's draws from.
        global_stream(streams(common.seed, trials[0]).draws, device),
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
            known=known,
            state=monitor.restore(),
        )
        history, metrics, grabber = pack.history, pack.metrics, pack.grabber
        shared = monitor.shares_device
        make_steps = replayed(partial(train_step, pack), pack, common, shared=shared)
        kept = KeptSteps(common.keep_state, max_iter, BLOCK)
        following = pack.start

        # Of what follows, only phases with a comment "sync" wait for the device.
        while following < max_iter:
            # Upload what a block of steps needs: rows of minibatches, and the factors of the
            # learning rates where they change.
            if following == pack.start or following % BLOCK == 0:
                pack.train.load(following, BLOCK)
                pack.lr_schedule.load(following, BLOCK, history.open)

            # One step, queued on the device. On a GPU several are replayed at once, but none after
            # one that is looked at below.
            step, batch, active = make_steps(following, _next_look(pack, kept, following, max_iter))
            following = step + 1
            ends_block = following % BLOCK == 0 or following == max_iter

            # Measure and evaluate, if not at every step: a forward pass over the test set.
            metrics.measure_train(step, active)
            if history.evaluates(step) and not history.evaluates_always:
                _evaluate(pack, step, active)

            # Record: copies (K,) for the traces, on the device.
            history.record(step)
            metrics.record(step)

            # Read back the losses of a block, and which configs have stopped (sync). Those that
            # stopped between two evaluations are evaluated now.
            finished: list[Finished] = []
            if ends_block:
                monitor.before_wait()
                finished = history.read(step)
                metrics.read()
                lacking = history.lacks_test(finished)
                losses, outputs = pack.evaluate_test() if lacking else (None, None)
                history.close(finished, losses)
                metrics.close(finished, outputs)

            # Measure: K calls of every grab (sync) at the steps of a trace, and one call per config
            # that has stopped.
            grabber.measure(step, batch, active, finished)
            del batch  # memory that the next step can use

            # Keep weights: copies on the device, at the steps of SAVE_WEIGHTS or of those that have
            # stopped.
            pack.weight_history.record(step, active, finished)

            # Report (sync), refuse writes into data, and leave out configs that have stopped: the
            # next steps cost less.
            if ends_block:
                grabber.flush()
                pack.weight_history.flush()
                pack.end_block()
                monitor.progress(_progress(pack, following, max_iter))
                if not history.open:
                    break
                pack.shrink()

            # Save: a copy of the whole state (sync).
            if monitor.due(step):
                monitor.save(pack.state_dict(start=following))

            # Keep a state for a longer training, now and then: another copy (sync).
            if following in kept:
                monitor.keep(pack.state_dict(start=following))
        return pack.results()
