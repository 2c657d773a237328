"""Read a spec: from what the user wrote to a checked, typed spec, or to all of its errors at once.

Pure functions: they call no function of the user and change nothing that the user gave.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlpsubmit.arguments import (
    declared,
    function_name,
    further_arguments,
    most_by_position,
    takes_all,
)
from mlpsubmit.batchfns.recipe import as_recipe
from mlpsubmit.errors import SpecError, collected, did_you_mean, shown
from mlpsubmit.protocol import LOSS_PARAMS, SUPPLIED
from mlpsubmit.results.labels import Labels, labels_of
from mlpsubmit.spec import hyperparameters as hp
from mlpsubmit.spec.fingerprint import setting_digest
from mlpsubmit.spec.hints import hints
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.initial_weights import InitialWeights
from mlpsubmit.spec.limits import MOST_BITS, MOST_CONFIGS, MOST_VALUES, check_length
from mlpsubmit.spec.mlp_settings import mlp_setting, settings_of_mlp
from mlpsubmit.spec.numbers import one_kind_of_number, plain_number
from mlpsubmit.spec.process import ProcessSettings
from mlpsubmit.spec.product import Axis, Product
from mlpsubmit.spec.rules import RULES, unused

__all__ = [
    "AXIS_OF",
    "NO_CONTENT",
    "POSITIONAL",
    "VALID_NAME",
    "Accepted",
    "Spec",
    "grab_labels",
    "is_list",
    "misfits",
    "read",
]

#: The message for a value that has no content to hash; the reason takes the place of ``{}``.
NO_CONTENT = (
    "cannot be hashed by its content ({}); settings and functions may hold arrays, numbers and "
    "functions, but no open files, locks or generators: make those inside a function"
)

#: The axes that settings make: {hyperparameter: axis}.
AXIS_OF = {"n_samples": "n_samples", "num_trials": "trial", "target_monomials": "monomials"}

#: The arguments that functions get by position; all others they get by name.
POSITIONAL = {
    "parametrization": ("model", "optimizer"),
    "loss": ("output", "y"),
    "lr_schedule": ("step",),
}

#: What a setting is of, if not of an optimizer.
_USERS = {"lr_final_factor": "LR_SCHEDULE"}

VALID_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

#: Errors after which no further points are checked, of settings that have to fit together.
_LISTED = 10


@dataclass(frozen=True, eq=False)
class Accepted:
    """The names that axes and settings may have.

    Attributes:
        declared: arguments that functions of the spec declare and the train loop does not supply.
        takes_any: whether a function of the spec has ``**kwargs``.
        errors: one for each function whose signature cannot be read.
        of_mlp: settings of the built-in MLP, if a config uses it.
    """

    declared: frozenset[str]
    takes_any: bool
    errors: tuple[str, ...]
    of_mlp: frozenset[str] = frozenset()

    def with_functions(self, functions: Iterable[Callable[..., Any]]) -> Accepted:
        """Return the names that these functions declare too."""
        further = _accepted(functions, {})
        return Accepted(
            self.declared | further.declared,
            self.takes_any or further.takes_any,
            (*self.errors, *further.errors),
            self.of_mlp,
        )

    def takes(self, name: str) -> bool:
        """Return whether any function of the spec takes an argument of this name."""
        return self.takes_any or name in self.declared

    def canonical(self, name: Any) -> str:
        """Return the name under which results carry a setting.

        Raises:
            SpecError: if it is neither a hyperparameter nor an argument of any function.
        """
        if not isinstance(name, str):
            raise SpecError(f"axis {name!r}: a name should be a string")
        canonical = hp.canonical_name(name)
        if canonical is not None:
            return canonical
        if self.errors:  # some names are unknown
            raise SpecError(self.errors)
        if name in self.declared:
            return name
        if name.lower() in (*AXIS_OF.values(), *self.of_mlp):
            return name.lower()
        known = {*Hyperparameters.model_fields, *self.declared, *self.of_mlp, "trial"}
        raise SpecError(
            f"{name}: neither a hyperparameter nor an argument that a function of the spec "
            f"declares{did_you_mean(name, known)}"
        )


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
    errors = _name_errors(name) + _function_errors(batchfn, data, grabs, where)
    own = grabs.items() if isinstance(grabs, Mapping) else ()
    all_grabs = _named_grabs(settings, errors) | {n: g for n, g in own if isinstance(n, str)}
    candidates = [batchfn, data, *all_grabs.values()]
    candidates += _values(axes, settings, "model")
    functions = [function for function in candidates if callable(function)]
    by_position = {
        name: [value for value in _values(axes, settings, name) if callable(value)]
        for name in POSITIONAL
    }
    of_mlp = settings_of_mlp(_values(axes, settings, "model"))
    errors += _position_errors(by_position)
    accepted = _accepted(functions, by_position, of_mlp)
    errors += accepted.errors or hints(batchfn, data, settings)
    fixed, listed = _split_listed(settings)
    given = [*axes.items(), *listed.items()]
    product = Product(tuple(_axes(given, accepted, _unused(axes, settings), errors)))
    unread = _names(given) - product.names
    errors += _repeated_names(product.axes)
    labels: dict[str, Labels] = {}
    with collected(errors):
        labels = grab_labels(all_grabs, product)
    hyperparameters, arguments = _split_settings(fixed, product, accepted, errors)
    first = {**hyperparameters, **_at_first(product)}
    with collected(errors):
        base = _base(first, product, unread)
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


def _function_errors(batchfn: Any, data: Any, grabs: Any, where: Any) -> list[str]:
    errors: list[str] = []
    if batchfn is None:
        errors.append(
            "batchfn: missing; give the function that yields batches, for example "
            "batchfn=mlpsubmit.batchfns.polynomial"
        )
    for place, function in {"batchfn": batchfn, "data": data, "where": where}.items():
        if function is not None and not callable(function):
            errors.append(f"{place}: got {function!r}; should be a function")
    return errors + _grab_errors(grabs)


def _grab_errors(grabs: Any) -> list[str]:
    if not isinstance(grabs, Mapping):
        return [
            f"grabs: got {grabs!r:.80}; should be a mapping of names to functions, as in "
            "grabs={'sharpness': sharpness}"
        ]
    errors: list[str] = []
    for name, grab in grabs.items():
        if not isinstance(name, str):
            errors.append(f"grabs: got the name {shown(name)}; a name should be a string")
        if not callable(grab):
            by_name = f" (by its name: OTHER_MODEL_GRABS={{'mine': {grab!r}}})"
            hint = by_name if isinstance(grab, str) else ""
            errors.append(f"grabs[{name!r}]: got {grab!r}; should be a function{hint}")
    return errors


def _named_grabs(settings: Mapping[str, Any], errors: list[str]) -> dict[str, Callable[..., Any]]:
    """Return the grabs of OTHER_MODEL_GRABS; the errors of all others go into a list."""
    from mlpsubmit.grabs import by_name

    grabs = {}
    for mapping in _given(settings, "other_model_grabs"):
        for alias, grab in mapping.items() if isinstance(mapping, Mapping) else ():
            with collected(errors, f"OTHER_MODEL_GRABS[{alias!r}]: "):
                grabs[alias] = grab if callable(grab) else by_name(grab)
    return grabs


def grab_labels(grabs: Mapping[str, Any], product: Product) -> dict[str, Labels]:
    """Return the labels of grabs, by name.

    Raises:
        SpecError: with an error for each dimension of a grab whose name something else has.
    """
    labels = {name: labels_of(grab) for name, grab in grabs.items()}
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


def _accepted(
    functions: Iterable[Callable[..., Any]],
    by_position: Mapping[str, Iterable[Callable[..., Any]]],
    of_mlp: frozenset[str] = frozenset(),
) -> Accepted:
    """Return the names that functions declare.

    Args:
        functions: those that get all of their arguments by name.
        by_position: by hyperparameter, those that get their first ones by position.
        of_mlp: those of the built-in MLP, if it is used.
    """
    names: set[str] = set()
    takes_any = False
    errors: list[str] = []
    for function in functions:
        with collected(errors):
            names |= declared(function)
            takes_any = takes_any or takes_all(function)
    for name, others in by_position.items():
        for function in others:
            names |= set(further_arguments(function, len(POSITIONAL[name]))) - {LOSS_PARAMS}
    return Accepted(frozenset(names - SUPPLIED), takes_any, tuple(errors), of_mlp)


def _position_errors(by_position: Mapping[str, Sequence[Callable[..., Any]]]) -> list[str]:
    """Return an error for each function that cannot be called with what it gets by position."""
    errors = []
    for setting, functions in by_position.items():
        names = POSITIONAL[setting]
        for function in functions:
            if (most := most_by_position(function)) < len(names):
                errors.append(
                    f"{setting.upper()}: {function_name(function)} takes {most} of its arguments "
                    f"by position; valid is a function that is called as f({', '.join(names)})"
                )
    return errors


# ---- axes ----------------------------------------------------------------------------------------


def _split_listed(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate the settings that make axes: N_SAMPLES, NUM_TRIALS and TARGET_MONOMIALS."""
    fixed: dict[str, Any] = {}
    axes: dict[str, Any] = {}
    for name, value in settings.items():
        axis = AXIS_OF.get(hp.canonical_name(name) or "")
        if axis == "trial":
            fixed[name] = value
            with contextlib.suppress(SpecError):  # raised again with the other settings
                axes[axis] = range(hp.validate_one("num_trials", value))
        elif axis is not None and is_list(value):
            axes[axis] = value
        elif axis == "monomials" and value is not None:
            axes[axis] = [value]
        else:
            fixed[name] = value
    return fixed, {axis: axes[axis] for axis in AXIS_OF.values() if axis in axes}


def is_list(values: Any) -> bool:
    """Return whether values have an order, so that they can be an axis."""
    unordered = isinstance(values, (str, bytes, Mapping, set, frozenset))
    return isinstance(values, Iterable) and not unordered and getattr(values, "ndim", 1) > 0


def _unused(axes: Mapping[Any, Any], settings: Mapping[str, Any]) -> frozenset[str]:
    """Return the hyperparameters that no optimizer and no schedule of the spec uses."""
    users = []
    for name in ("optimizer", "lr_schedule"):
        default = Hyperparameters.model_fields[name].default
        given = _values(axes, settings, name) or [default]
        users.append([value.lower() if isinstance(value, str) else value for value in given])
    return unused(*users)


def _names(given: Iterable[tuple[Any, Any]]) -> frozenset[str]:
    """Return the hyperparameters on axes, whether these are valid or not."""
    names = (name for key, _ in given for name in (key if isinstance(key, tuple) else (key,)))
    return frozenset(filter(None, map(hp.canonical_name, map(str, names))))


def _axes(
    given: Iterable[tuple[Any, Any]], accepted: Accepted, unused: Collection[str], errors: list[str]
) -> list[Axis]:
    """Return the axes that are valid; the errors of all others go into a list.

    Where their product is too large, of their first values only: to convert all takes long.
    """
    unparsed: list[tuple[str, Axis]] = []
    for key, values in given:
        names = key if isinstance(key, tuple) else (key,)
        if not names:
            errors.append(
                f"axis (): got {values!r:.40} without a name; a zipped axis has names, as in "
                "('WIDTH', 'LR'): [(64, 0.1), (256, 0.03)]"
            )
            continue
        with collected(errors):
            known = map(accepted.canonical, names)
            canonical = tuple("monomials" if n == "target_monomials" else n for n in known)
            prefix = f"axis {', '.join(names)}: "
            with collected(errors, prefix):
                _check_results_depend(canonical, accepted, unused)
                points = _points(values, names, isinstance(key, tuple))
                zipped_as = getattr(key, "dimension", "")  # of a random search
                unparsed.append((prefix, Axis(canonical, tuple(points), zipped_as)))
    too_large = _size_errors(Product(tuple(axis for _, axis in unparsed)))
    errors += too_large
    axes: list[Axis] = []
    for prefix, axis in unparsed:
        with collected(errors, prefix):
            axes.append(_axis(axis, axis.points[: 1 if too_large else None], accepted))
    return axes


def _points(values: Any, names: Sequence[str], zipped: bool) -> list[tuple[Any, ...]]:
    """Return the points of an axis as given, each with one value per name."""
    if not is_list(values):
        raise SpecError(f"got {values!r}; should be a list of values")
    check_length(values)  # of NUM_TRIALS, and of overrides
    beyond = len(names) + 1
    points = [
        tuple(itertools.islice(v, beyond)) if zipped and is_list(v) else (v,)
        for v in itertools.islice(values, MOST_VALUES)
    ]
    if not points:
        raise SpecError("has no values; give at least one or leave it out")
    for point in points:
        if len(point) != len(names):
            raise SpecError(
                f"got {point!r}; each point of this zip should have {len(names)} values"
            )
    return points


def _check_results_depend(
    names: Sequence[str], accepted: Accepted, unused: Collection[str]
) -> None:
    """Refuse an axis along which all results would be equal."""
    if idle := [name for name in names if name in hp.UNSWEPT]:
        raise SpecError(f"no result depends on {idle[0].upper()}; give it as one value")
    if idle := [name for name in names if name in unused]:
        user = _USERS.get(idle[0], "optimizer")
        raise SpecError(f"no {user} of the spec uses {idle[0].upper()}, so no result depends on it")
    if "n_train" in names and not accepted.errors and not accepted.takes("n_train"):
        raise SpecError(
            "no function of the spec takes N_TRAIN, so no result depends on it; data recipes such "
            "as images do"
        )


def _axis(given: Axis, points: Iterable[tuple[Any, ...]], accepted: Accepted) -> Axis:
    """Return an axis, or a zip of several, with these points, converted to their types."""
    names = given.names
    errors: list[str] = []
    parsed = []
    for point in points:
        with collected(errors):
            parsed.append(tuple(_parsed(n, v, accepted) for n, v in zip(names, point, strict=True)))
    columns = []
    for name, values in zip(names, zip(*parsed, strict=True), strict=False):
        with collected(errors):
            columns.append(
                values if name in Hyperparameters.model_fields else one_kind_of_number(values)
            )
    if errors:
        raise SpecError(errors)
    axis = Axis(names, tuple(zip(*columns, strict=True)), given.zipped_as)
    try:
        repeats = axis.repeats()
    except TypeError as error:
        raise SpecError(f"a value {NO_CONTENT.format(error)}") from error
    if repeats:
        shown = repeats[0] if len(names) > 1 else repeats[0][0]
        raise SpecError(f"the value {shown!r} appears more than once; keep one")
    return axis


def _size_errors(product: Product) -> list[str]:
    if product.size <= MOST_CONFIGS:
        return []
    lengths = " x ".join(f"{axis.dimension:.60}[{len(axis)}]" for axis in product.axes)
    return [
        f"axes: their product {lengths} has {product.size:.3g} points, and a sweep may have "
        f"{MOST_CONFIGS:,}; give fewer values, zip axes that vary together, or divide it into "
        "several sweeps"
    ]


#: How to change the dimension of a zipped axis, and of a random search.
_RENAME = (
    "change the order of its names, or rename an argument",
    "give it another one: random_search(..., dimension='draw')",
)


def _repeated_names(axes: Sequence[Axis]) -> list[str]:
    names = [name for axis in axes for name in axis.names]
    errors = [
        f"axis {name}: is given more than once; keep one"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    zipped = [axis for axis in axes if len(axis.names) > 1]
    taken = [*names, *(axis.dimension for axis in zipped)]
    return errors + [
        f"axis ({', '.join(axis.names)}): its dimension in results would be {axis.dimension}, the "
        f"name of another axis; {_RENAME[bool(axis.zipped_as)]}"
        for axis in zipped
        if taken.count(axis.dimension) > 1
    ]


def _parsed(name: str, value: Any, accepted: Accepted) -> Any:
    """Return a value converted to the type of its name: a hyperparameter, trial or monomials."""
    if name == "trial":
        return _trial(value)
    if name == "monomials":
        return _monomial(value)
    if name in Hyperparameters.model_fields:
        return hp.validate_one(name, value)
    if name in accepted.of_mlp:
        return mlp_setting(name, value)
    if type(value) is int and value.bit_length() > MOST_BITS:
        raise SpecError(f"got an integer of {value.bit_length():,} bits; at most {MOST_BITS:,}")
    return plain_number(value)


def _trial(value: Any) -> int:
    try:
        return int(hp.validate_one("seed", value))  # what is valid for one is for the other
    except SpecError:
        raise SpecError(f"got {value!r}; should be an integer >= 0") from None


def _monomial(value: Any) -> Any:
    from mlpsubmit.batchfns.monomial import Monomial

    try:
        if isinstance(value, Mapping):
            return Monomial(value)
        if isinstance(value, str):
            return Monomial.from_repr(value)
        if isinstance(value, (list, tuple)):
            return tuple(_monomial(entry) for entry in value)
    except ValueError as error:
        raise SpecError(f"got {value!r}; {error}") from None
    return value


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
                    f"{name}: is an axis and also fixed to {value!r}; keep one of the two"
                )
            elif canonical in Hyperparameters.model_fields:
                hyperparameters[name] = value
            else:
                with collected(errors, f"{name}: "):
                    arguments[canonical] = _parsed(canonical, value, accepted)
    return hyperparameters, arguments


def _at_first(product: Product) -> dict[str, Any]:
    """Return the hyperparameters on axes at the first point of the product."""
    fields = Hyperparameters.model_fields
    return {name: value for name, value in product.point(0).items() if name in fields}


def _base(values: Mapping[str, Any], product: Product, unread: Collection[str]) -> Hyperparameters:
    """Return the hyperparameters at the first point of the product.

    Args:
        values: those that the spec sets, at this point.
        unread: names on axes that have errors.
    """
    on_axes = {name: axis.values(name) for axis in product.axes for name in axis.names}
    try:
        return hp.validate(values, {**dict.fromkeys(unread, ()), **on_axes})
    except SpecError as error:
        raise SpecError([_with_axis_hint(message, values) for message in error.errors]) from None


def _with_axis_hint(message: str, values: Mapping[str, Any]) -> str:
    """Add how to write an axis, where the error is a list in the place of a single value."""
    for name, value in values.items():
        canonical = hp.canonical_name(name)
        listed = isinstance(value, (list, tuple, range, np.ndarray))
        if listed and canonical and message.startswith(f"{canonical.upper()}: "):
            return f"{message}; to sweep over it, write axes={{{name!r}: {value!r}}}"
    return message


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
