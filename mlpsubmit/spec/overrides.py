"""Replace settings of a spec, as KEY=VALUE arguments of the command line do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mlpsubmit.errors import SpecError
from mlpsubmit.spec import hyperparameters as hp
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.read import Accepted, RawSpec, Spec

__all__ = ["override"]

#: Names that set the same thing.
_SAME = ({"monomials", "target_monomials"}, {"trial", "num_trials"})


def override(spec: Spec, overrides: Mapping[str, Any]) -> RawSpec:
    """Return the raw spec with some settings replaced; a list becomes an axis.

    The new values of an axis take its place; a new axis comes last. A list that is itself a valid
    value (LOSS_CHECKPOINTS) stays one value; a list of such lists is an axis.

    Raises:
        SpecError: for an unknown name, a name that is given twice, or one name of a zipped axis.
    """
    raw = spec.raw
    errors: list[str] = []
    replaced: set[str] = set()
    for name, value in overrides.items():
        try:
            canonical = spec.accepted.canonical(name)
            raw = _replaced(raw, canonical, value, spec.accepted)
        except SpecError as error:
            errors += error.errors
            continue
        if canonical in replaced:
            errors.append(f"{name}: is given twice; keep one")
        replaced.add(canonical)
    if errors:
        raise SpecError(errors)
    return dataclasses.replace(raw, overridden=raw.overridden | replaced)


def _replaced(raw: RawSpec, name: str, value: Any, accepted: Accepted) -> RawSpec:
    """Return a raw spec in which one setting has another value, wherever it stood before."""
    for names in [key for key in raw.axes if isinstance(key, tuple)]:
        if name in map(accepted.canonical, names):
            raise SpecError(
                f"{name}: is part of the zipped axis ({', '.join(names)}); "
                "change that axis in the spec"
            )
    same = next((names for names in _SAME if name in names), {name})
    found = {
        key
        for key in (*raw.axes, *raw.settings)
        if isinstance(key, str) and accepted.canonical(key) in same
    }
    settings = {key: old for key, old in raw.settings.items() if key not in found}
    for key in settings:
        if accepted.canonical(key) == "datasethps":
            settings[key] = {k: v for k, v in settings[key].items() if k != name}
    if _means_axis(name, value):
        # An axis that is replaced keeps its place.
        axes = {name if key in found else key: old for key, old in raw.axes.items()}
        axes[name] = value
    else:
        axes = {key: old for key, old in raw.axes.items() if key not in found}
        settings[name] = value
    return dataclasses.replace(raw, axes=axes, settings=settings)


def _means_axis(name: str, value: Any) -> bool:
    if not isinstance(value, (list, range)):
        return False
    if name not in Hyperparameters.model_fields or name in ("n_samples", "target_monomials"):
        return name != "target_monomials"
    try:
        hp.validate_one(name, value)
    except SpecError:
        return True
    return False
