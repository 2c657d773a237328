"""Replace settings of a spec, as KEY=VALUE arguments of the command line do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlpsubmit.errors import SpecError
from mlpsubmit.spec import hyperparameters as hp
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.read import Accepted, RawSpec, Spec, fields

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
    axes, settings = dict(spec.axes), dict(spec.settings)
    errors: list[str] = []
    replaced: set[str] = set()
    for name, value in overrides.items():
        try:
            canonical = spec.accepted.canonical(name)
            axes, settings = _replaced(axes, settings, canonical, value, spec.accepted)
        except SpecError as error:
            errors += error.errors
            continue
        if canonical in replaced:
            errors.append(f"{name}: is given twice; keep one")
        replaced.add(canonical)
    if errors:
        raise SpecError(errors)
    changed = {"axes": axes, "settings": settings, "replaced": spec.replaced | replaced}
    return RawSpec(**fields(spec) | changed)


def _replaced(
    axes: dict[Any, Any], settings: dict[str, Any], name: str, value: Any, accepted: Accepted
) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Return axes and settings in which one setting has another value, wherever it was before."""
    for names in [key for key in axes if isinstance(key, tuple)]:
        if name in map(accepted.canonical, names):
            raise SpecError(
                f"{name}: is part of the zipped axis ({', '.join(names)}); "
                "change that axis in the spec"
            )
    same = next((names for names in _SAME if name in names), {name})
    given = [key for key in (*axes, *settings) if isinstance(key, str)]
    found = {key for key in given if accepted.canonical(key) in same}
    settings = {key: old for key, old in settings.items() if key not in found}
    for key in settings:
        if accepted.canonical(key) == "datasethps":
            settings[key] = {k: v for k, v in settings[key].items() if k != name}
    if _means_axis(name, value):  # in the place of the axis that it replaces, else last
        axes = {name if key in found else key: old for key, old in axes.items()}
        return {**axes, name: value}, settings
    axes = {key: old for key, old in axes.items() if key not in found}
    return axes, {**settings, name: value}


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
