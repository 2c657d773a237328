"""Find out at launch which configs would train one at a time, and why."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from mlpsubmit.arguments import function_name
from mlpsubmit.assembly.assemble import assemble
from mlpsubmit.spec.hyperparameters import OPTIMIZERS, Hyperparameters
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.comparison import StackingError

__all__ = ["warn_of_single_configs"]

#: Samples per batch, where the model and the batch function can do with so few.
_SAMPLES = 32


def warn_of_single_configs(sweep: Sweep, config: Config, entry: Mapping[str, Any]) -> None:
    """Train one step of two configs as a pack; warn if that is not possible.

    Args:
        config: both of them, with the sizes of a probe.
        entry: the entries of the data function.
    """
    settings = config.hyperparameters
    packed = settings.optimizer in OPTIMIZERS and settings.pack_size != 1
    if len(sweep) == 1 or not packed or not any(map(callable, _functions(settings))):
        return
    few = {name: min(getattr(settings, name), _SAMPLES) for name in ("n_samples", "n_test")}
    reason = _reason(sweep, config.replaced(**few), entry) or ""
    if reason:
        # From this line whoever calls, so that Python shows the same text once.
        warnings.warn(
            f"configs{_named(sweep, settings)} train one at a time, not together: {reason}",
            stacklevel=1,
        )


def _functions(settings: Hyperparameters) -> list[Any]:
    return [settings.model, settings.loss, settings.parametrization]


def _reason(sweep: Sweep, config: Config, entry: Mapping[str, Any]) -> str | None:
    """Return why two configs do not train as one stack; None if they do."""
    try:
        stacks = assemble(sweep, [config, config], [entry, entry], torch.device("cpu"))
        if len(stacks) > 1:
            return stacks[1].reason
        stacks[0].grabs = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the training of one config gives the same
            stacks[0].train()
    except StackingError as error:
        return error.reason
    except Exception:  # of few samples, or of the memory: one config was trained before
        return None
    return None


def _named(sweep: Sweep, settings: Hyperparameters) -> str:
    """Return which configs these are, where functions are on an axis."""
    names = [name for axis in sweep.product.axes for name in axis.names]
    chosen = [n for n in ("model", "loss", "parametrization") if n in names]
    values = [(n, getattr(settings, n)) for n in chosen]
    texts = [f"{n.upper()}={v if isinstance(v, str) else function_name(v)}" for n, v in values]
    return f" with {', '.join(texts)}" if texts else ""
