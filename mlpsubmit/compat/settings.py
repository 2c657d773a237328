"""The entries of a script's global_config: hyperparameters, and values for its functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mlpsubmit.compat.choices import CHOICES, INSTANCES, MODEL_FILES, OPTIMIZER_SETTINGS
from mlpsubmit.compat.functions import Context
from mlpsubmit.compat.iterators import Iterated
from mlpsubmit.compat.tensors import on_device
from mlpsubmit.errors import SpecError
from mlpsubmit.spec import hyperparameters as hp
from mlpsubmit.spec.hyperparameters import Hyperparameters

__all__ = ["read_settings"]

#: Hyperparameters that only the script itself uses: MLPscape's train loop does not take them.
_FOR_THE_SCRIPT = frozenset(
    {"datasethps", "target_monomials", "num_trials"}
    | {"other_model_grabs", "other_model_kwargs", "other_model_gram"}
)

#: Hyperparameters that are code; :mod:`mlpsubmit.compat.choices` reads them.
_CODE = ("model", "optimizer", "loss", "parametrization")

#: Entries that other modules read.
_READ_APART = frozenset(
    {"otherreturns", "X_te", "y_te", *CHOICES, *INSTANCES}
    | {name for pair in MODEL_FILES for name in pair}
)

#: Entries that change no result, although functions may declare them. The data that a script makes
#: of datasethps are in bfn_config, but its functions may use datasethps too.
_HIDDEN = (_FOR_THE_SCRIPT - {"datasethps"}) | frozenset(
    {"EXPT_NAME", "W_source", "concat_outside", "datasethps_path", "target_monomials_path"}
)


def read_settings(
    config: Mapping[str, Any], iterated: Sequence[Iterated]
) -> tuple[dict[str, Any], Context, list[str]]:
    """Return the hyperparameters in global_config, the values for functions, and the errors.

    An entry that an iterator varies is dropped, whatever its value. The arguments of optimizers are
    among the constants of the context, instead of the hyperparameters.
    """
    names = {one.name: one.axis for one in iterated if one.axis not in _CODE}
    axes = [one.axis for one in iterated]
    given: dict[str, dict[str, Any]] = {}
    others: dict[str, Any] = {}
    for name, value in config.items():
        canonical = hp.canonical_name(name)
        if name in _READ_APART or name in names or canonical in _CODE:
            continue
        if canonical is None or canonical in _FOR_THE_SCRIPT:
            others[name] = value
        elif canonical in axes:
            names[name] = canonical
        else:
            given.setdefault(canonical, {})[name] = value
    values, errors = _agreed(given, axes)
    technical: dict[str, Any] = {}
    for canonical, spellings in given.items():
        if canonical in OPTIMIZER_SETTINGS:
            others |= dict.fromkeys([canonical, *spellings], values.pop(canonical))
        elif canonical in hp.TECHNICAL:
            technical |= dict.fromkeys([canonical, *spellings], values.get(canonical))
        else:
            names |= dict.fromkeys(spellings, canonical)
    sources = [one.source for one in iterated]
    hidden = {
        name: value
        for name, value in others.items()
        if {name, hp.canonical_name(name)} & _HIDDEN or any(value is source for source in sources)
    }
    constants = {name: on_device(v, "cpu") for name, v in others.items() if name not in hidden}
    for name in ("dim", "DIM"):  # names of the input dimension; models call it d_in
        if name in names:
            names["d_in"] = names[name]
        elif name in constants:
            constants["d_in"] = constants[name]
    return values, Context(names, constants, hidden | technical), errors


def _agreed(
    given: Mapping[str, Mapping[str, Any]], axes: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the values of hyperparameters that a script sets in one or more spellings, and errors.

    A spelling at the default yields to another.
    """
    values: dict[str, Any] = {}
    errors: list[str] = []
    for canonical, spellings in given.items():
        default = Hyperparameters.model_fields[canonical].default
        changed: dict[str, Any] = {}
        for name, value in spellings.items():
            if canonical == "n_samples" and isinstance(value, (list, tuple)) and len(value) == 1:
                value = value[0]  # as parse_args has it
            try:
                parsed = hp.validate_one(canonical, value)
            except SpecError as error:
                listed = isinstance(value, (list, tuple, range)) or getattr(value, "ndim", 0) > 0
                hint = "; to vary it, add it to iterators and iterator_names" if listed else ""
                errors += [message + hint for message in error.errors]
            else:
                changed |= {name: parsed} if parsed != default else {}
        kept = values[canonical] = next(iter(changed.values()), default)
        if any(value != kept for value in changed.values()):
            shown = " and ".join(f"{name}={value!r}" for name, value in changed.items())
            errors.append(f"{shown} are two spellings of one hyperparameter; keep one")
    default = Hyperparameters.model_fields["loss_checkpoints"].default
    relative = values.get("percent_thresholds") is not None or "percent_thresholds" in axes
    if relative and values.get("loss_checkpoints") == default:
        del values["loss_checkpoints"]  # parse_args set it
    return values, errors
