"""Replace settings of a spec, as KEY=VALUE arguments of the command line do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from mlpsubmit.errors import SpecError, collected
from mlpsubmit.spec import hyperparameters as hp
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.read import AXIS_OF, Accepted, Spec
from mlpsubmit.spec.setting_types import python_number

__all__ = ["override"]

AxesAndSettings: TypeAlias = tuple[dict[Any, Any], dict[str, Any]]


def override(spec: Spec, overrides: Mapping[str, Any]) -> tuple[AxesAndSettings, frozenset[str]]:
    """Return axes and settings with some settings replaced, and all names replaced so far.

    Raises:
        SpecError: for an unknown name, a name that is given twice, or one name of a zipped axis.
    """
    given = dict(spec.axes), dict(spec.settings)
    replaced: set[str] = set()
    errors: list[str] = []
    for name, value in overrides.items():
        with collected(errors):
            canonical = spec.accepted.canonical(name)
            if canonical in replaced:
                raise SpecError(f"{name}: is given twice; keep one")
            given = _replaced(*given, canonical, value, spec.accepted)
            replaced.add(canonical)
    if errors:
        raise SpecError(errors)
    return given, spec.replaced | replaced


def _replaced(
    axes: dict[Any, Any], settings: dict[str, Any], name: str, value: Any, accepted: Accepted
) -> AxesAndSettings:
    """Return axes and settings in which one setting has another value, wherever it was before."""
    for names in [key for key in axes if isinstance(key, tuple)]:
        if name in map(accepted.canonical, names):
            raise SpecError(
                f"{name}: is part of the zipped axis ({', '.join(names)}); "
                "change that axis in the spec"
            )
    given = [key for key in (*axes, *settings) if isinstance(key, str)]
    found = {key for key in given if _same(accepted.canonical(key), name)}
    counted = any(accepted.canonical(key) == "num_trials" for key in found)
    if name == "trial" and (counted or found & set(axes)):
        _check_trial(value)
    settings = {key: old for key, old in settings.items() if key not in found}
    for key in settings:
        if accepted.canonical(key) == "datasethps":
            settings[key] = {k: v for k, v in settings[key].items() if k != name}
    if _means_axis(name, value):  # in the place of the axis that it replaces, else last
        axes = {name if key in found else key: old for key, old in axes.items()}
        return {**axes, name: value}, settings
    axes = {key: old for key, old in axes.items() if key not in found}
    return axes, {**settings, name: value}


def _check_trial(value: Any) -> None:
    """Refuse one number for an axis of trials: how many, or which one?

    For other axes there is one meaning: WIDTH=64 trains width 64 alone.
    """
    number = python_number(value)
    if isinstance(number, (int, float)) and not isinstance(number, bool) and number >= 1:
        raise SpecError(
            f"trial: got {number}, and trial is an axis; write NUM_TRIALS={number} for that many "
            f"trials, or trial=[{number}] for trial number {number} alone"
        )


def _same(one: str, other: str) -> bool:
    """Return whether two names set the same, as NUM_TRIALS and trial do."""
    return AXIS_OF.get(one, one) == AXIS_OF.get(other, other)


def _means_axis(name: str, value: Any) -> bool:
    if name == "target_monomials" or not isinstance(value, (list, range)):
        return False  # read() makes an axis of a list of TARGET_MONOMIALS
    if name not in Hyperparameters.model_fields:
        return True
    try:
        hp.validate_one(name, value)
    except SpecError:
        return True
    return False
