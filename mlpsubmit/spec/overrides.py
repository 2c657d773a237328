"""Replace settings of a spec, and extend its axes, as arguments of the command line do.

KEY=VALUE replaces a setting or an axis; KEY+=VALUE appends to an axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from mlpsubmit.errors import SpecError, collected, shown
from mlpsubmit.spec import hyperparameters as hp
from mlpsubmit.spec.accepted import AXIS_OF, Accepted
from mlpsubmit.spec.axes import is_list
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.random_search import SearchNames, distinct
from mlpsubmit.spec.read import Spec, as_override
from mlpsubmit.spec.setting_types import python_number

__all__ = ["override"]

AxesAndSettings: TypeAlias = tuple[dict[Any, Any], dict[str, Any]]


def override(spec: Spec, overrides: Mapping[str, Any]) -> tuple[AxesAndSettings, frozenset[str]]:
    """Return axes and settings with some of them changed, and all names replaced so far.

    Args:
        overrides: by name; ``"noise+"`` appends to the axis ``noise``.

    Raises:
        SpecError: for an unknown name, a name that is given twice, or one name of a zipped axis.
    """
    given = dict(spec.axes), dict(spec.settings)
    replaced: set[str] = set()
    seen: set[str] = set()
    errors: list[str] = []
    for key, value in overrides.items():
        with collected(errors):
            name = key.removesuffix("+")
            canonical = spec.accepted.canonical(name)
            if canonical in seen:
                raise SpecError(f"{name}: is given twice; keep one")
            seen.add(canonical)
            if name != key:
                given = _appended(*given, name, value, spec.accepted)
            else:
                given = _replaced(*given, canonical, value, spec.accepted)
                replaced.add(canonical)
    if errors:
        raise SpecError(errors)
    return given, spec.replaced | replaced


def _replaced(
    axes: dict[Any, Any], settings: dict[str, Any], name: str, value: Any, accepted: Accepted
) -> AxesAndSettings:
    """Return axes and settings in which one setting has another value, wherever it was before."""
    if (zipped := _zipped(axes, name, accepted)) is not None:
        if not isinstance(zipped, SearchNames):
            raise SpecError(
                f"{name}: is part of the zipped axis ({', '.join(zipped)}); "
                "change that axis in the spec"
            )
        axes = _without(axes, zipped, name, accepted)
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


def _zipped(axes: Mapping[Any, Any], name: str, accepted: Accepted) -> tuple[str, ...] | None:
    """Return the names of the zipped axis that has a setting; None if there is none."""
    keys = (key for key in axes if isinstance(key, tuple))
    return next((key for key in keys if name in map(accepted.canonical, key)), None)


def _without(
    axes: dict[Any, Any], search: SearchNames, name: str, accepted: Accepted
) -> dict[Any, Any]:
    """Return axes in which a random search has one setting less, and no point twice.

    The draws of the others do not depend on it.
    """
    kept = [n for n, own in enumerate(search) if accepted.canonical(own) != name]
    names = SearchNames.of((search[n] for n in kept), search.dimension)
    points = distinct(tuple(point[n] for n in kept) for point in axes[search])
    changed = ((names, points) if key is search else (key, old) for key, old in axes.items())
    return {key: values for key, values in changed if key != ()}


def _appended(
    axes: dict[Any, Any], settings: dict[str, Any], name: str, value: Any, accepted: Accepted
) -> AxesAndSettings:
    """Return axes and settings in which an axis has further values at its end."""
    canonical = accepted.canonical(name)
    if (zipped := _zipped(axes, canonical, accepted)) is not None:
        kind = "random search" if isinstance(zipped, SearchNames) else "zipped axis"
        raise SpecError(
            f"{name}+=: {name} is part of the {kind} ({', '.join(zipped)}), whose points have a "
            "value of each; add points in the spec"
        )
    if canonical == "num_trials":
        raise SpecError(
            f"{name}+=: is a number of trials, not an axis; write {name}=5 for five trials, or "
            "trial+=[3, 4] for further ones"
        )
    axis = AXIS_OF.get(canonical, canonical)
    values = value if _means_axis(axis, value) else [value]
    for key, old in axes.items():
        if isinstance(key, str) and _same(accepted.canonical(key), axis):
            _check_appended(name, value, old)
            return {**axes, key: [*old, *values]}, settings
    given = next((key for key in settings if _same(accepted.canonical(key), axis)), None)
    old = None if given is None else settings[given]
    if axis == "trial" and given is not None:  # the trials of NUM_TRIALS
        rest = {key: own for key, own in settings.items() if key != given}
        return {**axes, "trial": [*range(hp.validate_one("num_trials", old)), *values]}, rest
    if (
        given is not None
        and axis in AXIS_OF.values()
        and old is not None
        and (axis == "monomials" or is_list(old))
    ):
        listed = [*old] if is_list(old) else [old]
        return axes, {**settings, given: [*listed, *values]}
    further = value if isinstance(value, tuple) else values
    raise SpecError(_no_axis(name, canonical, old, further))


def _no_axis(name: str, canonical: str, old: Any, values: Iterable[Any]) -> str:
    """Return the message for values that are to be appended to a setting that is no axis."""
    field = Hyperparameters.model_fields.get(canonical)
    first = field.default if old is None and field is not None else old
    listed = as_override(name, [*([] if first is None else [first]), *values])
    return f"{name}+=: {name} is not an axis of the spec; write {listed} to make it one"


def _check_appended(name: str, value: Any, old: Any) -> None:
    """Refuse a tuple, as a command line makes of ``noise+=0.1,0.2``, beside none."""
    if isinstance(value, tuple) and not any(isinstance(one, (tuple, list)) for one in old):
        raise SpecError(f"{name}+=: got {shown(value)}; write {as_override(f'{name}+', value)}")


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
