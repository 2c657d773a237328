"""The optimizers that train a whole pack at once, and the settings that each of them has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlpsubmit.errors import did_you_mean, shown
from mlpsubmit.spec.setting_types import Flag, Fraction, NsCoefficients, NsSteps

__all__ = ["OPTIMIZERS", "OPTIMIZER_DEFAULTS", "default_of", "kwargs_errors", "kwargs_of"]

_ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}

#: The settings that each optimizer uses besides LR and WEIGHT_DECAY, with their defaults.
OPTIMIZER_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "sgd": {"momentum": 0.0, "nesterov": False},
    "adam": _ADAM,
    "adamw": _ADAM,
    "muon": {"momentum": 0.95, "nesterov": True, **_ADAM},
    "lion": {"betas": (0.9, 0.99)},
    "rmsprop": {"momentum": 0.0, "eps": 1e-8},
}

#: Optimizers that train a whole pack at once.
OPTIMIZERS = tuple(OPTIMIZER_DEFAULTS)

#: The arguments that each takes in OPTIMIZER_KWARGS, with their types and defaults: named as those
#: of the class of torch.optim.
_KWARGS: Mapping[str, Mapping[str, tuple[Any, Any]]] = {
    "muon": {
        "ns_steps": (NsSteps, 5),
        "ns_coefficients": (NsCoefficients, (3.4445, -4.775, 2.0315)),
    },
    "rmsprop": {"alpha": (Fraction, 0.99), "centered": (Flag, False)},
}


#: The defaults of WEIGHT_DECAY that are not 0: as of the class of torch.optim.
_WEIGHT_DECAYS = {"adamw": 0.01}


def default_of(optimizer: Any, name: str) -> Any:
    """Return an optimizer's default of a setting; that of sgd for a class of torch.optim."""
    known = optimizer if isinstance(optimizer, str) and optimizer in OPTIMIZER_DEFAULTS else "sgd"
    if name == "weight_decay":
        return _WEIGHT_DECAYS.get(known, 0.0)
    return OPTIMIZER_DEFAULTS[known].get(name)


def kwargs_of(optimizer: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all further arguments of an optimizer, those of OPTIMIZER_KWARGS parsed."""
    known = _KWARGS.get(optimizer, {})
    return {
        name: _parsed(type_, given[name]) if name in given else default
        for name, (type_, default) in known.items()
    }


def kwargs_errors(optimizer: Any, optimizer_kwargs: Mapping[str, Any]) -> list[str]:
    """Return an error for each entry of OPTIMIZER_KWARGS that the optimizer does not take.

    Args:
        optimizer: the value of OPTIMIZER; for a class of torch.optim there are none here.
    """
    if not (optimizer_kwargs and isinstance(optimizer, str) and optimizer in OPTIMIZERS):
        return []
    known = _KWARGS.get(optimizer, {})
    errors = []
    for name, value in optimizer_kwargs.items():
        if name not in known:
            valid = f"it takes {' and '.join(known)}" if known else "it takes none"
            settings = ", ".join(
                n.upper() for n in ("weight_decay", *OPTIMIZER_DEFAULTS[optimizer])
            )
            errors.append(
                f"OPTIMIZER_KWARGS: got {name!r} with OPTIMIZER={optimizer!r}"
                f"{did_you_mean(name, known)}; {valid}, and has the settings {settings}; for a "
                "class of torch.optim with all of its arguments give the class itself, as in "
                "OPTIMIZER=torch.optim.Adam"
            )
            continue
        try:
            _parsed(known[name][0], value)
        except ValueError as error:
            errors.append(f"OPTIMIZER_KWARGS: got {name}={shown(value)}; {error}")
    return errors


def _parsed(of: Any, value: Any) -> Any:
    (validator,) = of.__metadata__
    return validator.func(value)
