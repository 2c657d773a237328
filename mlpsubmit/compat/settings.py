"""What of a script's global_config are hyperparameters, and what is for its functions alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlpsubmit.compat.choices import CHOICES, INSTANCES, MODEL_FILES, OPTIMIZER_SETTINGS
from mlpsubmit.compat.iterators import Iterated
from mlpsubmit.compat.script import Script
from mlpsubmit.compat.tensors import on_device
from mlpsubmit.errors import SpecError
from mlpsubmit.spec import hyperparameters as hp
from mlpsubmit.spec.hyperparameters import Hyperparameters

__all__ = ["CODE", "READ_APART", "Settings", "read_settings"]

#: Hyperparameters that MLPscape's train loop does not know: they are for the script itself.
_FOR_THE_SCRIPT = frozenset(
    {"datasethps", "target_monomials", "num_trials"}
    | {"other_model_grabs", "other_model_kwargs", "other_model_gram"}
)

#: What chooses code; :mod:`mlpsubmit.compat.choices` reads it.
CODE = ("model", "optimizer", "loss", "parametrization")

#: What is read apart from all other names.
READ_APART = frozenset(
    {
        "otherreturns",
        "X_te",
        "y_te",
        *CHOICES,
        *INSTANCES,
        *(k for pair in MODEL_FILES for k in pair),
    }
)

#: What results do not depend on, although functions may ask for it.
_QUIET = frozenset(
    {"EXPT_NAME", "TARGET_MONOMIALS", "NUM_TRIALS", "datasethps_path", "target_monomials_path"}
    | {"other_model_grabs", "other_model_kwargs", "other_model_gram", "W_source", "concat_outside"}
)


@dataclass(frozen=True)
class Settings:
    """What global_config comes to.

    Attributes:
        hyperparameters: those that it sets, by the sweep's names.
        optimizer: those of them that are arguments of optimizers.
        script: what functions get by name.
        errors: what is wrong.
    """

    hyperparameters: dict[str, Any]
    optimizer: dict[str, Any]
    script: Script
    errors: list[str]


def read_settings(config: Mapping[str, Any], iterated: Sequence[Iterated]) -> Settings:
    """Sort what stands in global_config.

    What an iterator runs over is left out, whatever its value; what is no hyperparameter is for
    functions to ask for.
    """
    axes = [one.axis for one in iterated]
    settings = {one.name: one.axis for one in iterated if one.axis not in CODE}
    others = {
        name: v for name, v in config.items() if name not in READ_APART and name not in settings
    }
    spelt = _take_hyperparameters(others)
    settings |= {name: axis for axis in axes if axis in spelt for name in spelt.pop(axis)}
    values, errors = _agreed(spelt)
    _yield_thresholds(values, axes)
    errors += _trial_errors(config, axes)
    optimizer = {name: values.pop(name) for name in OPTIMIZER_SETTINGS if name in values}
    for canonical, given in spelt.items():
        if canonical in optimizer:  # these go where their optimizer goes
            others |= dict.fromkeys(given, optimizer[canonical])
        else:
            settings |= dict.fromkeys(given, canonical)
    quiet = {name: v for name, v in others.items() if name in _QUIET or _is_iterated(v, iterated)}
    constants = {name: on_device(v, "cpu") for name, v in others.items() if name not in quiet}
    _name_inputs(settings, constants)
    return Settings(values, optimizer, Script(settings, constants, quiet), errors)


def _take_hyperparameters(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Take the hyperparameters out of a configuration: {canonical name: {as it is spelt: value}}.

    Those that choose code are read elsewhere, and those for the script itself stay.
    """
    spelt: dict[str, dict[str, Any]] = {}
    for name in list(config):
        canonical = hp.canonical_name(name)
        if canonical is None or canonical in _FOR_THE_SCRIPT:
            continue
        value = config.pop(name)
        if canonical not in CODE:
            spelt.setdefault(canonical, {})[name] = value
    return spelt


def _is_iterated(value: Any, iterated: Sequence[Iterated]) -> bool:
    """Tell whether a value is the very list that an iterator runs over."""
    return any(value is one.source for one in iterated)


def _agreed(spelt: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Return the one value of each hyperparameter that a script spells in one or several ways."""
    values: dict[str, Any] = {}
    errors: list[str] = []
    for canonical, given in spelt.items():
        try:
            values[canonical] = _agreed_value(canonical, given)
        except SpecError as error:
            errors += error.errors
    return values, errors


def _agreed_value(canonical: str, given: Mapping[str, Any]) -> Any:
    """Return the one value of a hyperparameter: a spelling that is at its default yields."""
    default = Hyperparameters.model_fields[canonical].default
    values: dict[str, Any] = {}
    errors: list[str] = []
    for name, value in given.items():
        only = canonical == "n_samples" and isinstance(value, (list, tuple)) and len(value) == 1
        try:
            values[name] = hp.validate_one(canonical, value[0] if only else value)
        except SpecError as error:
            listed = isinstance(value, (list, tuple, range)) or getattr(value, "ndim", 0) > 0
            errors += [_unused_list(name, value)] if listed else error.errors
    changed = {name: value for name, value in values.items() if value != default}
    kept = next(iter(changed.values()), default)
    if any(value != kept for value in changed.values()):
        told = " and ".join(f"{name}={value!r}" for name, value in changed.items())
        errors.append(f"{told} are two spellings of one hyperparameter; keep one")
    if errors:
        raise SpecError(errors)
    return kept


def _unused_list(name: str, value: Any) -> str:
    return (
        f"{name}: got {value!r}, but no iterator is called {name}; add it to iterators and "
        "iterator_names, or give one value"
    )


def _yield_thresholds(hyperparameters: dict[str, Any], axes: Sequence[str]) -> None:
    """Let PERCENT_THRESHOLDS stand in for LOSS_CHECKPOINTS that are at their default."""
    default = Hyperparameters.model_fields["loss_checkpoints"].default
    relative = hyperparameters.get("percent_thresholds") is not None or "percent_thresholds" in axes
    if relative and hyperparameters.get("loss_checkpoints") == default:
        del hyperparameters["loss_checkpoints"]


def _trial_errors(config: Mapping[str, Any], axes: Sequence[str]) -> list[str]:
    """Return an error where there are repetitions that nobody iterates over."""
    trials = config.get("NUM_TRIALS", 1)
    if "trial" in axes or trials == 1:
        return []
    return [
        f"NUM_TRIALS: got {trials!r}, but no iterator is called trial; add range(args.NUM_TRIALS) "
        "to iterators, or leave NUM_TRIALS at 1"
    ]


def _name_inputs(settings: dict[str, str], constants: dict[str, Any]) -> None:
    """Give functions the input dimension as ``d_in`` too, where the script says it."""
    for name in ("DIM", "dim"):
        if name in settings:
            settings["d_in"] = settings[name]
            return
        if name in constants:
            constants["d_in"] = constants[name]
            return
