"""Measure saved networks, as grabs measure them in the training that saved them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mlpsubmit.protocol import DIVERGED, BatchFn
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.training.batches import Batch
from mlpsubmit.training.measurements import resolve
from mlpsubmit.training.pack import Pack, Parametrized
from mlpsubmit.training.precision import arithmetic
from mlpsubmit.training.result import Array, Trained
from mlpsubmit.training.weight_history import weight_schedule

__all__ = ["SavedNetworks", "load_weights", "measure"]


@dataclass(frozen=True)
class SavedNetworks:
    """The networks that a training of K configs has saved.

    Attributes:
        steps: (K,) gradient steps made.
        status: (K,) DONE or DIVERGED.
        weights: from a config, 0 to K - 1, and the position of a step in the schedule of
            SAVE_WEIGHTS to arrays by the names of parameters and buffers.
    """

    steps: Array
    status: Array
    weights: Callable[[int, int], Mapping[str, Array]]


def load_weights(model: nn.Module, weights: Mapping[str, Array]) -> nn.Module:
    """Copy weights into the parameters and buffers of a model; return it."""
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for name, array in weights.items():
        tensors[name].detach().copy_(torch.from_numpy(np.array(array)))
    return model


def measure(
    models: Sequence[nn.Module],
    batch_fns: Sequence[BatchFn],
    settings: Sequence[Hyperparameters],
    saved: SavedNetworks,
    *,
    trials: Sequence[int],
    test_fns: Sequence[BatchFn] | None,
    grabs: Mapping[str, Callable[..., Any]],
    contexts: Sequence[Mapping[str, Any]],
    generators: Sequence[torch.Generator],
    device: torch.device,
    known: Parametrized,
) -> Trained:
    """Call grabs on saved networks; the results have no losses, and grabs (K, ...) or (K, S, ...).

    They get the arguments that they would have had in the training after the same step: online
    X_tr and y_tr are that step's batch, for which all batches up to it are drawn again, if a grab
    takes one. Those of a diverged config are NaN from the step at which it diverged.

    Args:
        models, ..., known: as :func:`mlpsubmit.training.train` takes them.
        saved: the networks.

    Raises:
        GrabError: for a grab that fails, or whose result cannot be stored.
        WriteError: for a grab that changes what it is given.
    """
    common = settings[0]
    schedule = weight_schedule(common.save_weights, common.max_iter)
    # Losses are not evaluated: neither f0, nor a closed form, nor a test set for them is needed.
    plain: dict[str, Any] = {"compile": False, "centered": False, "save_weights": None}
    plain |= {"eval_every": None} if common.online else {}
    plain["onlythresholds"] = schedule is None
    plain["grab_every"] = 1 if schedule is None else common.save_weights
    with arithmetic(common.precision, common.deterministic, device), torch.enable_grad():
        pack = Pack(
            models,
            batch_fns,
            [one.model_copy(update=plain) for one in settings],
            trials=trials,
            test_fns=test_fns,
            grabs=grabs,
            contexts=contexts,
            generators=generators,
            device=device,
            known=known,
            state=None,
        )
        taken = {name for one in resolve(grabs, contexts) for own in one.values() for name in own}
        draws = common.online and not taken.isdisjoint({"X_tr", "y_tr"})
        drawn = 0
        for step, configs in _calls(saved, None if schedule is None else schedule.steps):
            batch: Batch | None = None if common.online else pack.train.draw(0)
            while draws and drawn <= step:
                batch, drawn = pack.train.draw(drawn), drawn + 1
            column = 0 if schedule is None else int(schedule.steps.searchsorted(step))
            for config in configs:
                own = {name: tensor[config] for name, tensor in pack.stack.tensors.items()}
                for name, array in saved.weights(config, column).items():
                    own[name].detach().copy_(torch.from_numpy(np.array(array)))
            pack.grabber.call(step, configs, batch)
        grabbed = pack.grabber.results((saved.status == DIVERGED).tolist())
        pack.stack.release()
        K, none = len(models), np.zeros(0, np.int64)
        return Trained(
            status=saved.status,
            steps=saved.steps,
            timekeys=np.zeros((K, 0), np.int64),
            train_loss=np.full(K, np.nan),
            test_loss=np.full(K, np.nan),
            step=none,
            eval_step=none,
            grab_step=none if schedule is None else schedule.steps,
            grabs=grabbed,
            entries=pack.grabber.entries,
        )


def _calls(saved: SavedNetworks, scheduled: Array | None) -> list[tuple[int, list[int]]]:
    """Return the steps, ascending, after which grabs are called, and for which configs.

    As in a training: at the scheduled steps for the configs that have made them, and once for each
    that stopped between two.
    """
    calls: dict[int, list[int]] = {}
    for step in [] if scheduled is None else scheduled.tolist():
        calls[step] = [config for config, steps in enumerate(saved.steps) if steps > step]
    for config, (steps, status) in enumerate(zip(saved.steps, saved.status, strict=True)):
        last = int(steps) - 1
        if status != DIVERGED and config not in calls.setdefault(last, []):
            calls[last].append(config)
    return sorted((step, configs) for step, configs in calls.items() if configs)
