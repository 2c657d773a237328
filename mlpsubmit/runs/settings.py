"""The settings of a run, as its dataset shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlpsubmit.results.source import Text
from mlpsubmit.spec.hyperparameters import Hyperparameters

__all__ = ["axis_texts"]

#: What names of settings stand for, where these are no words.
_LONG_NAMES = {
    "lr": "learning rate",
    "lr_schedule": "learning rate schedule",
    "lr_final_factor": "final factor of the learning rate",
    "lr_factors": "factors of the learning rate",
    "gamma": r"richness $\gamma$",
    "n_samples": "samples",
    "n_train": "training samples that exist",
    "n_test": "test samples",
    "max_iter": "most gradient steps",
    "betas": r"$\beta_1, \beta_2$",
    "eps": r"$\epsilon$",
    "d_out": "outputs",
    "trial": "trial",
    "monomials": "target monomials",
    "loss_checkpoints": "loss thresholds",
    "onlythresholds": "final values only",
    "ema_smoother": "smoothing of the losses",
}
_DESCRIPTIONS = {
    "trial": "number of the trial; trials differ in their random draws only",
    "monomials": "the monomials that the target is a sum of",
}


def axis_texts(sweep: Mapping[str, Any]) -> dict[str, Text]:
    """Return what the settings on the axes of a sweep.json are, by name."""
    return {name: _text(name) for axis in sweep["axes"] for name in axis["names"]}


def _text(name: str) -> Text:
    field = Hyperparameters.model_fields.get(name)
    if field is not None:
        description = f"{name.upper()}: {field.description}"
    else:
        description = _DESCRIPTIONS.get(name, f"argument {name} of the functions of the spec")
    return Text(_LONG_NAMES.get(name, name.replace("_", " ")), description)
