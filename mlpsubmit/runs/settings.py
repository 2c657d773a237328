"""The settings of a run, as its dataset shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlpsubmit.results.names import spaced
from mlpsubmit.results.source import FixedSetting, Text
from mlpsubmit.spec.hyperparameters import UNSWEPT, Hyperparameters

__all__ = ["axis_hashes", "fixed_settings", "grab_functions", "setting_texts"]

#: Settings that axes take the place of.
_AXES = ("num_trials", "target_monomials")

_FUNCTIONS = ("batchfn", "data", "where")
#: Settings that no result depends on.
_NOT_COUNTING = UNSWEPT | {"where"}

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
    "batchfn": "batch function",
    "data": "data function",
    "monomials": "target monomials",
    "loss_checkpoints": "loss thresholds",
    "onlythresholds": "final values only",
    "ema_smoother": "smoothing of the losses",
}
_DESCRIPTIONS = {
    "trial": "number of the trial; trials differ in their random draws only",
    "monomials": "the monomials that the target is a sum of",
    "batchfn": "batch function",
    "data": "function of data=",
}


def fixed_settings(sweep: Mapping[str, Any]) -> dict[str, FixedSetting]:
    """Return all settings of a sweep.json that are on no axis, by name."""
    functions = sweep["functions"]
    hashes, own = functions.get("hashes", {}), functions.get("arguments", {})
    named = {name: functions[name] for name in _FUNCTIONS if name in functions}
    found = {**sweep["hyperparameters"], **own, **sweep["arguments"], **named, "trial": 0}
    on_axes = {name for axis in sweep["axes"] for name in axis["names"]}
    return {
        name: FixedSetting(value, hashes.get(name, ""), name not in _NOT_COUNTING)
        for name, value in found.items()
        if name not in {*on_axes, *_AXES}
    }


def axis_hashes(axis: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the hashes of the values on an axis of a sweep.json, of names that have any."""
    pairs = zip(axis["names"], axis["hashes"], strict=True)
    return {name: tuple(hashes) for name, hashes in pairs if hashes}


def grab_functions(sweep: Mapping[str, Any]) -> dict[str, FixedSetting]:
    """Return the functions of the grabs of a sweep.json, by the names of these."""
    of_code = sweep["functions"].get("hashes", {})
    return {
        name: FixedSetting(function, of_code.get(f"grab[{name}]", ""))
        for name, function in sweep["functions"].get("grabs", {}).items()
    }


def setting_texts(sweep: Mapping[str, Any]) -> dict[str, Text]:
    """Return what the settings of a sweep.json are, those on axes and the fixed ones, by name."""
    on_axes = [name for axis in sweep["axes"] for name in axis["names"]]
    return {name: _text(name) for name in (*on_axes, *fixed_settings(sweep))}


def _text(name: str) -> Text:
    field = Hyperparameters.model_fields.get(name)
    if field is not None:
        description = f"{name.upper()}: {field.description}"
    else:
        description = _DESCRIPTIONS.get(name, f"argument {name} of the functions of the spec")
    return Text(_LONG_NAMES.get(name, spaced(name)), description)
