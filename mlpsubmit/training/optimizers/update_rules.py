"""By whose updates the learning rates of an optimizer are scaled."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from mlpsubmit.arguments import function_name
from mlpsubmit.spec.hyperparameters import OPTIMIZERS, Hyperparameters

__all__ = ["known_update", "update_rule", "warn_of_missing_theory"]

#: The optimizers whose learning-rate factors are known, and whose updates they share.
_UPDATES: dict[Any, str] = {
    "sgd": "sgd",
    "adam": "adam",
    "adamw": "adam",
    "lion": "adam",
    "rmsprop": "adam",
    "muon": "muon",
    torch.optim.SGD: "sgd",
    torch.optim.Adam: "adam",
    torch.optim.AdamW: "adam",
    torch.optim.RMSprop: "adam",
}

#: Those whose weight decay is a penalty that enters the gradient before it is normalised.
_COUPLED = ("adam", "rmsprop", torch.optim.Adam, torch.optim.RMSprop)


def update_rule(hyperparameters: Hyperparameters) -> str:
    """Return ``"sgd"``, ``"adam"`` or ``"muon"``, by whose updates learning rates are scaled.

    Callable parametrizations set factors of SGD's learning rates. These serve, for lack of theory,
    any optimizer that is not known here.
    """
    if callable(hyperparameters.parametrization):
        return "sgd"
    return known_update(hyperparameters.optimizer) or "sgd"


def known_update(optimizer: Any) -> str | None:
    """Return by whose updates the learning rates of OPTIMIZER are scaled; None if unknown."""
    cls = getattr(optimizer, "func", optimizer)
    return _UPDATES.get(cls) if isinstance(cls, (str, type)) else None


def warn_of_missing_theory(hyperparameters: Sequence[Hyperparameters]) -> None:
    """Warn of settings of a pack for which no scaling with the width is known."""
    common = hyperparameters[0]
    parametrization, optimizer = common.parametrization, common.optimizer
    named = f"OPTIMIZER={optimizer if isinstance(optimizer, str) else function_name(optimizer)}"
    update, text = known_update(optimizer), ""
    if callable(parametrization):
        takes_it = "optimizer" in [*inspect.signature(parametrization).parameters][2:]
        if update != "sgd" and not takes_it:
            text = (
                f"PARAMETRIZATION {function_name(parametrization)} with {named}: the learning-rate "
                "factors that it sets, and that of GAMMA, are used as for SGD, so the best LR may "
                "change with WIDTH and GAMMA; if it takes an argument `optimizer`, it gets this "
                "setting, and can set other factors"
            )
    elif update is None and (parametrization != "sp" or any(h.gamma != 1 for h in hyperparameters)):
        text = (
            f"PARAMETRIZATION={parametrization!r} with {named}: mlpsubmit has no learning-rate "
            "factors for it and uses those of SGD, so the best LR may change with WIDTH and GAMMA; "
            f"use one of {', '.join(OPTIMIZERS)}"
        )
    elif update == "adam" and parametrization != "sp" and _has_penalty(hyperparameters):
        text = (
            f"WEIGHT_DECAY with {named}: a penalty in the gradient, which is then normalised, does "
            f"not scale with the width as PARAMETRIZATION={parametrization!r} should; use "
            "OPTIMIZER='adamw', whose decay is decoupled"
        )
    if text:
        # From this line whoever calls, so that Python shows the same text once.
        warnings.warn(text, stacklevel=1)


def _has_penalty(hyperparameters: Sequence[Hyperparameters]) -> bool:
    """Return whether a weight decay enters gradients that Adam normalises."""
    optimizer = hyperparameters[0].optimizer
    bound = {**getattr(optimizer, "keywords", {}), **hyperparameters[0].optimizer_kwargs}
    own = [
        bound.get("weight_decay") if h.weight_decay is None else h.weight_decay
        for h in hyperparameters
    ]
    return getattr(optimizer, "func", optimizer) in _COUPLED and any(own)
