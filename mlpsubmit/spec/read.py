"""Read a spec: from what the user wrote to a checked, typed spec, or to all of its errors at once.

Pure functions: they call no function of the user and change nothing that the user gave.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlpsubmit.arguments import function_name, parse_bool
from mlpsubmit.batchfns.recipe import as_recipe
from mlpsubmit.errors import SpecError, collected, shown, uncalled
from mlpsubmit.results.labels import ON_AXIS, Labels, labels_of
from mlpsubmit.spec import hyperparameters as hp
from mlpsubmit.spec.accepted import POSITIONAL, Accepted, accepted_names, position_errors
from mlpsubmit.spec.axes import (
    is_list,
    names_on,
    parsed_value,
    read_axes,
    repeated_names,
    split_listed,
)
from mlpsubmit.spec.fingerprint import setting_digest
from mlpsubmit.spec.hints import hints, kind_errors
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.initial_weights import InitialWeights
from mlpsubmit.spec.mlp_settings import settings_of_mlp
from mlpsubmit.spec.process import ProcessSettings
from mlpsubmit.spec.product import Product
from mlpsubmit.spec.rules import RULES, untraced, unused

__all__ = [
    "VALID_NAME",
    "Spec",
    "as_override",
    "grab_labels",
    "misfits",
    "read",
]

VALID_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

#: Errors after which no further points are checked, of settings that have to fit together.
_LISTED = 10


@dataclass(frozen=True, eq=False)
class Spec:
    """A checked spec: the arguments of a :class:`~mlpsubmit.spec.sweep.Sweep` and their content.

    Attributes:
        axes: as the user gave them, like ``settings``.
        replaced: settings that overrides replaced: functions may bind other values of them.
        product: the axes, in the order in which the user gave them.
        base: the hyperparameters at the first point of the product.
        arguments: the fixed arguments of functions, by name.
        accepted: the names that settings may have.
        labels: of the grabs, by name.
        process: the settings of the process that it was read in; None until it is launched, where
            no spec file was read.
        initial: the networks that INIT_WEIGHTS refers to; None before a launch, and without any.
        overrides: what replaced settings of the spec since, as text, by KEY, or KEY+ where values
            were appended; part of nothing but descriptions.
    """

    name: str
    axes: Mapping[Any, Any]
    settings: Mapping[str, Any]
    batchfn: Callable[..., Any]
    data: Callable[..., Any] | None
    grabs: Mapping[str, Callable[..., Any]]
    where: Callable[[Any], bool] | None
    replaced: frozenset[str]
    product: Product
    base: Hyperparameters
    arguments: Mapping[str, Any]
    accepted: Accepted
    labels: Mapping[str, Labels]
    process: ProcessSettings | None = None
    initial: InitialWeights | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)


def read(
    name: str,
    axes: Mapping[Any, Any],
    settings: Mapping[str, Any],
    batchfn: Any,
    data: Any,
    grabs: Any,
    where: Any,
    replaced: frozenset[str],
    process: ProcessSettings | None = None,
) -> Spec:
    """Check a spec and convert its values to their types.

    Raises:
        SpecError: listing every error at once.
    """
    data = as_recipe(data)
    errors = _name_errors(name) + _function_errors(batchfn, data, where)
    grabs = _own_grabs(grabs, errors)
    all_grabs = _named_grabs(settings, errors) | grabs
    candidates = [batchfn, data, *all_grabs.values()]
    candidates += _values(axes, settings, "model")
    functions = [function for function in candidates if callable(function)]
    by_position = {
        name: [value for value in _values(axes, settings, name) if callable(value)]
        for name in POSITIONAL
    }
    of_mlp = settings_of_mlp(_values(axes, settings, "model"))
    errors += position_errors(by_position)
    accepted = accepted_names(functions, by_position, of_mlp)
    errors += accepted.errors or hints(batchfn, data, settings)
    kinds = ("loss", "lr_schedule", "model")
    errors += kind_errors({name: _values(axes, settings, name) for name in kinds})
    fixed, listed = split_listed(settings)
    given = [*axes.items(), *listed.items()]
    product = Product(tuple(read_axes(given, accepted, _unused(axes, settings), errors)))
    unread = names_on(given) - product.names
    errors += repeated_names(product.axes)
    hyperparameters, arguments = _split_settings(fixed, product, accepted, errors)
    labels: dict[str, Labels] = {}
    with collected(errors):
        labels = grab_labels(all_grabs, product, arguments)
    first = {**hyperparameters, **_at_first(product)}
    with collected(errors):
        base = _base(first, product, unread, replaced)
        errors += _conflicts(functions, replaced, base, arguments, product)
    if where is None:  # else the sweep checks what it keeps
        errors += misfits(product, *hp.parsed(first), unread)
    if errors:
        raise SpecError(dict.fromkeys(errors))
    inputs = (name, axes, settings, batchfn, data, grabs, where, replaced)
    return Spec(*inputs, product, base, arguments, accepted, labels, process)


# ---- the name and the functions ------------------------------------------------------------------


def _name_errors(name: Any) -> list[str]:
    if isinstance(name, str) and VALID_NAME.fullmatch(name):
        return []
    return [
        f"name: got {shown(name)}; should be letters, digits, '.', '_' and '-', as in "
        "'staircase-2', and not longer than 100 characters"
    ]


def _function_errors(batchfn: Any, data: Any, where: Any) -> list[str]:
    errors: list[str] = []
    if batchfn is None:
        errors.append(
            "batchfn: missing; give the function that yields batches, for example "
            "batchfn=mlpsubmit.batchfns.polynomial"
        )
    for place, function in {"batchfn": batchfn, "data": data, "where": where}.items():
        if function is not None and not callable(function):
            hint = uncalled(function, f"{place}={_EXAMPLES[place]}")
            errors.append(f"{place}: got {shown(function)}; should be a function{hint}")
    return errors


_EXAMPLES = {"batchfn": "my_batches", "data": "load", "where": "kept"}


def _own_grabs(grabs: Any, errors: list[str]) -> dict[str, Callable[..., Any]]:
    """Return the functions of grabs=; the errors of all others go into a list."""
    if not isinstance(grabs, Mapping):
        errors.append(
            f"grabs: got {shown(grabs)}; should be a mapping of names to functions, as in "
            "grabs={'sharpness': sharpness}"
        )
        return {}
    errors += [
        f"grabs: got the name {shown(name)}; a name should be a string"
        for name in grabs
        if not isinstance(name, str)
    ]
    named = {name: grab for name, grab in grabs.items() if isinstance(name, str)}
    return _functions("grabs", named, errors)


def _named_grabs(settings: Mapping[str, Any], errors: list[str]) -> dict[str, Callable[..., Any]]:
    """Return the grabs of OTHER_MODEL_GRABS; the errors of all others go into a list."""
    found: dict[str, Callable[..., Any]] = {}
    for mapping in _given(settings, "other_model_grabs"):
        if isinstance(mapping, Mapping):
            found |= _functions("OTHER_MODEL_GRABS", mapping, errors)
    return found


def _functions(
    place: str, grabs: Mapping[Any, Any], errors: list[str]
) -> dict[str, Callable[..., Any]]:
    """Return grabs of which some are given by the names of the library's."""
    from mlpsubmit.grabs import by_name

    functions = {}
    for name, grab in grabs.items():
        with collected(errors, f"{place}[{shown(name)}]: "):
            functions[name] = grab if callable(grab) else by_name(grab)
    return functions


def grab_labels(
    grabs: Mapping[str, Any], product: Product, arguments: Mapping[str, Any]
) -> dict[str, Labels]:
    """Return the labels of grabs, by name.

    Args:
        arguments: the fixed arguments of functions.

    Raises:
        SpecError: with an error for each dimension of a grab whose name something else has.
    """
    settings = {**arguments, **dict.fromkeys(product.names, ON_AXIS)}
    labels = {name: labels_of(grab, settings).of_grab(name) for name, grab in grabs.items()}
    axes = {name: name for axis in product.axes for name in (axis.dimension, *axis.names)}
    errors: list[str] = []
    coords: dict[str, tuple[str, tuple[Any, ...]]] = {}
    for grab, own in labels.items():
        for dim in own.all_dims:
            axis = axes.get(dim) or axes.get(hp.canonical_name(dim) or "")
            if axis is not None:
                errors.append(
                    f"grab {grab!r}: its dimension {dim!r} and the axis {axis!r} have one name; "
                    f"give the dimension another one: grab(dims=('{dim}_of_{grab}',))(...)"
                )
            elif dim in labels:
                errors.append(
                    f"grab {grab!r}: its dimension {dim!r} has the name of the grab {dim!r}; "
                    "rename one of them"
                )
            if dim in own.coords:
                other, values = coords.setdefault(dim, (grab, own.coords[dim]))
                if values != own.coords[dim]:
                    errors.append(
                        f"grabs {other!r} and {grab!r}: their coords along {dim!r} differ, "
                        f"{shown(list(values))} and {shown(list(own.coords[dim]))}; dimensions of "
                        "one name have the same coordinates: give them different names"
                    )
    if errors:
        raise SpecError(errors)
    return labels


def _given(settings: Mapping[str, Any], name: str) -> list[Any]:
    """Return the values of a hyperparameter among the settings: one for each spelling."""
    return [value for key, value in settings.items() if hp.canonical_name(key) == name]


def _values(axes: Mapping[Any, Any], settings: Mapping[str, Any], name: str) -> list[Any]:
    """Return the values of a hyperparameter in a spec that has not been checked."""
    found = _given(settings, name)
    for key, values in axes.items():
        names = key if isinstance(key, tuple) else (key,)
        columns = [n for n, own in enumerate(names) if hp.canonical_name(str(own)) == name]
        for point in values if columns and is_list(values) else ():
            entries = point if isinstance(key, tuple) and is_list(point) else (point,)
            found += [entries[column] for column in columns if column < len(entries)]
    return found


def _unused(axes: Mapping[Any, Any], settings: Mapping[str, Any]) -> frozenset[str]:
    """Return the hyperparameters that no result depends on, with the other settings of the spec."""
    users = []
    for name in ("optimizer", "lr_schedule"):
        default = Hyperparameters.model_fields[name].default
        given = _values(axes, settings, name) or [default]
        users.append([value.lower() if isinstance(value, str) else value for value in given])
    if not all(map(parse_bool, _values(axes, settings, "onlythresholds"))):  # True by default
        return unused(*users)
    of_metrics = ("metrics", "metric_thresholds")
    measures = any(bool(_values(axes, settings, name)) for name in of_metrics)
    return unused(*users) | untraced(measures)


# ---- settings ------------------------------------------------------------------------------------


def _split_settings(
    settings: Mapping[str, Any], product: Product, accepted: Accepted, errors: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate hyperparameters from the arguments of functions, which are converted.

    Args:
        errors: takes an error for each unknown name, bad argument and name that is an axis too.
    """
    hyperparameters: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    axis_names = product.names
    for name, value in settings.items():
        with collected(errors):
            canonical = accepted.canonical(name)
            if canonical in axis_names:
                errors.append(
                    f"{name}: is an axis and also fixed to {shown(value)}; keep one of the two"
                )
            elif canonical in Hyperparameters.model_fields:
                hyperparameters[name] = value
            else:
                with collected(errors, f"{name}: "):
                    arguments[canonical] = parsed_value(canonical, value, accepted)
    return hyperparameters, arguments


def _at_first(product: Product) -> dict[str, Any]:
    """Return the hyperparameters on axes at the first point of the product."""
    fields = Hyperparameters.model_fields
    return {name: value for name, value in product.point(0).items() if name in fields}


def _base(
    values: Mapping[str, Any], product: Product, unread: Collection[str], replaced: Collection[str]
) -> Hyperparameters:
    """Return the hyperparameters at the first point of the product.

    Args:
        values: those that the spec sets, at this point.
        unread: names on axes that have errors.
        replaced: names of settings that overrides replaced.
    """
    on_axes = {name: axis.values(name) for axis in product.axes for name in axis.names}
    try:
        return hp.validate(values, {**dict.fromkeys(unread, ()), **on_axes})
    except SpecError as error:
        errors = [_with_axis_hint(message, values, replaced) for message in error.errors]
        raise SpecError(errors) from None


def _with_axis_hint(message: str, values: Mapping[str, Any], replaced: Collection[str]) -> str:
    """Add how to write an axis, where the error is a list of values in the place of one."""
    for name, value in values.items():
        canonical = hp.canonical_name(name)
        listed = isinstance(value, (list, tuple, range, np.ndarray)) and len(value) > 0
        if not (listed and canonical and message.startswith(f"{canonical.upper()}: ")):
            continue
        if not _is_valid(canonical, value) and all(_is_valid(canonical, one) for one in value):
            axes = f"axes={{{name!r}: {shown(value)}}}"
            how = as_override(canonical.upper(), value) if canonical in replaced else axes
            return f"{message}; to sweep over it, write {how}"
    return message


def as_override(name: str, values: Iterable[Any]) -> str:
    """Return how a list is written on a command line, where spaces part arguments."""
    return f"{name}=[{','.join(map(shown, values))}]"


def _is_valid(name: str, value: Any) -> bool:
    try:
        hp.validate_one(name, value)
    except SpecError:
        return False
    return True


def _conflicts(
    functions: Iterable[Callable[..., Any]],
    replaced: frozenset[str],
    base: Hyperparameters,
    arguments: Mapping[str, Any],
    product: Product,
) -> list[str]:
    """Return an error for each value that is set twice: by a function, and by the spec."""
    in_datasethps = [("datasethps", name, value) for name, value in base.datasethps.items()]
    bound = [
        (function_name(function), name, value)
        for function in functions
        for name, value in getattr(function, "keywords", {}).items()
    ]
    errors = {
        name: f"axis {name}: {source} already fixes {name}; leave it out there or drop the axis"
        for source, name, _ in reversed(in_datasethps + bound)
        if name in product.names - replaced
    }
    fixed = {**base.datasethps, **arguments}
    for source, name, value in bound + [entry for entry in in_datasethps if entry[1] in arguments]:
        if name not in fixed.keys() - replaced or value is fixed[name]:
            continue
        if setting_digest(value) != setting_digest(fixed[name]):
            errors[name] = (
                f"{name}: {source} fixes it to {value!r:.40}, and the spec to "
                f"{fixed[name]!r:.40}; keep one of the two"
            )
    return [errors[name] for name in sorted(errors)]


def misfits(
    product: Product,
    values: Mapping[str, Any],
    bad: Mapping[str, Any],
    unread: Collection[str] = (),
    is_kept: Callable[[Mapping[int, int]], bool] = lambda _: True,
) -> list[str]:
    """Return the errors of settings on axes that do not fit together, each with its first point.

    Args:
        values: the other settings, those that are valid by themselves; those on axes do not matter.
        bad: the other settings that are not, as given.
        unread: names on axes that have errors.
        is_kept: whether ``where`` keeps a config with a combination, given as numbers of points by
            numbers of axes.
    """
    found: list[str] = []
    for rule in RULES:
        numbers = [n for n, axis in enumerate(product.axes) if {*axis.names} & {*rule.reads}]
        if not numbers or {*rule.reads} & {*unread}:
            continue
        first: dict[str, str] = {}  # by message, the point
        axes = Product(tuple(product.axes[n] for n in numbers))
        fixed = {name: values[name] for name in rule.reads if name in values}
        for index, point in enumerate(axes.points()):
            errors = rule.errors({**fixed, **point}, bad)
            if errors and is_kept(dict(zip(numbers, axes.numbers(index), strict=True))):
                own = {name: value for name, value in point.items() if name in rule.reads}
                at = ", ".join(f"{name.upper()}={shown(value)}" for name, value in own.items())
                first = {**first, **{error: at for error in errors if error not in first}}
            if len(first) >= _LISTED:
                break
        found += [f"at {at}: {message}" for message, at in first.items()]
    return found
