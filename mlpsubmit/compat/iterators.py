"""The iterators of a script, and the axes that they are in a sweep."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlpsubmit import hyperparameters as hp
from mlpsubmit.compat.choices import CHOICES
from mlpsubmit.errors import SpecError
from mlpsubmit.results.expt_trace import RESERVED
from mlpsubmit.sweep import SUPPLIED

__all__ = ["Iterated", "read_iterators"]

#: What iterators over sample sizes and over repetitions are called, in small letters.
_SIZES = ("n_samples", "nsamples", "ntrain", "n")
_TRIALS = ("trial", "trials")

#: Names under which MLPscape hands functions something else.
_TAKEN = ("bsz", "gen", "X", "y", "X_tr", "y_tr", "X_te", "y_te", "opt", "otherreturns")


@dataclass(frozen=True)
class Iterated:
    """One iterator.

    Attributes:
        name: what the script calls it.
        axis: what the sweep calls it: ``n_samples``, ``trial``, a hyperparameter, or a name of its
            own.
        values: what it runs over.
        source: the iterable that the script gives.
    """

    name: str
    axis: str
    values: list[Any]
    source: Any


def read_iterators(
    iterators: Any, names: Any, reserved: Iterable[str]
) -> tuple[list[Iterated], list[str]]:
    """Return the iterators of a script, and what is wrong with them.

    The one over sample sizes and the one over repetitions are found by their names, or else stand
    first and second, as in MLPscape.

    Args:
        iterators: the iterables, in any order.
        names: as many names; None for ``iter_0``, ``iter_1`` and so on.
        reserved: names that bfn_config gives values to.
    """
    if isinstance(iterators, (str, bytes, Mapping)) or not isinstance(iterators, Iterable):
        return [], [f"iterators: got {iterators!r}; should be a list of lists"]
    columns = list(iterators)
    if names is None:
        names = [f"iter_{place}" for place in range(len(columns))]
    names = list(names)
    if len(names) != len(columns):
        return [], [
            f"iterator_names: got {len(names)} names for {len(columns)} iterators; give one each"
        ]
    mistakes = _name_mistakes(names, set(reserved))
    values = []
    for name, column in zip(names, columns, strict=True):
        listed, mistake = _values(name, column)
        values.append(listed)
        mistakes += mistake
    if mistakes:
        return [], mistakes
    roles = _roles(names, values)
    found = [
        Iterated(name, roles.get(place) or _axis(name, column, place), column, columns[place])
        for place, (name, column) in enumerate(zip(names, values, strict=True))
    ]
    return found, _shared_axes(found)


def _name_mistakes(names: Sequence[Any], reserved: set[str]) -> list[str]:
    mistakes = []
    for name in dict.fromkeys(map(str, names)):
        if names.count(name) > 1:
            mistakes.append(f"iterator_names: {name!r} stands more than once; keep one")
        if name in reserved:
            mistakes.append(f"{name}: is an iterator and also in bfn_config; keep one of the two")
        if name in _TAKEN:
            mistakes.append(
                f"iterator_names: {name!r} means something else to the functions that get it; "
                "give it another name"
            )
        if name in RESERVED:
            mistakes.append(
                f"iterator_names: {name!r} is a name that ExptTrace reserves; give it another"
            )
    odd = [name for name in names if not isinstance(name, str)]
    return mistakes + [f"iterator_names: got {name!r}; a name should be a string" for name in odd]


def _values(name: str, column: Any) -> tuple[list[Any], list[str]]:
    if isinstance(column, (str, bytes, Mapping)) or not isinstance(column, Iterable):
        return [], [f"iterator {name}: got {column!r}; should be a list of values"]
    values = list(column)
    if not values:
        return [], [f"iterator {name}: has no values; give at least one or leave it out"]
    return values, []


def _roles(names: Sequence[str], values: Sequence[list[Any]]) -> dict[int, str]:
    """Return which iterators run over sample sizes and repetitions, {place: axis}."""
    roles = {}
    for place, (axis, known) in enumerate((("n_samples", _SIZES), ("trial", _TRIALS))):
        called = [p for p, name in enumerate(names) if name.lower() in known]
        if called:
            roles[called[0]] = axis
        elif place < len(names) and _may_be(axis, names[place], values[place]):
            roles.setdefault(place, axis)
    return roles


def _may_be(axis: str, name: str, values: list[Any]) -> bool:
    """Tell whether an iterator that stands where MLPscape has such values holds them."""
    # N_TRAIN is a hyperparameter of its own, but a likely name for what stands first.
    unnamed = (None, "n_train") if axis == "n_samples" else (None,)
    if hp.canonical_name(name) not in unnamed or name.lower() in (*_SIZES, *_TRIALS):
        return False
    try:
        for value in values:
            hp.validate_one("n_samples" if axis == "n_samples" else "seed", value)
    except SpecError:
        return False
    return True


def _axis(name: str, values: list[Any], place: int) -> str:
    """Return what a sweep is to call an iterator."""
    if name in CHOICES:
        return CHOICES[name]
    canonical = hp.canonical_name(name)
    if canonical == "target_monomials" or name.lower() == "monomials":
        # An axis of that name turns its values into monomials; what is none stays what it is.
        plain = all(isinstance(value, Mapping) for value in values)
        return "monomials" if plain else f"iterator_{place}"
    if canonical is not None:
        return canonical
    if name in SUPPLIED or not name.isidentifier() or keyword.iskeyword(name):
        return f"iterator_{place}"
    return name


def _shared_axes(found: Sequence[Iterated]) -> list[str]:
    axes = [one.axis for one in found]
    shared = [axis for axis in dict.fromkeys(axes) if axes.count(axis) > 1]
    return [
        f"iterator_names: {' and '.join(one.name for one in found if one.axis == axis)} are the "
        "same setting; keep one"
        for axis in shared
    ]
