"""The iterators of a script, and the axes that they are in a sweep."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlpsubmit.compat.choices import CHOICES
from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import SUPPLIED
from mlpsubmit.results.expt_trace import RESERVED
from mlpsubmit.spec import hyperparameters as hp

__all__ = ["Iterated", "read_iterators"]

#: What iterators over sample sizes and over repetitions are called, in small letters; of several in
#: one script, the first here counts. ``n_train`` and ``seed`` are hyperparameters of their own.
_NAMES = {
    "n_samples": (
        *("ntrain", "n_samples", "nsamples", "n", "num_samples", "samples", "sample_size"),
        *("batch_size", "batchsize", "bsz"),
    ),
    "trial": (
        *("trial", "trials", "num_trials", "n_trials", "ntrials", "trial_index", "trial_idx"),
        *("rep", "reps", "repeat", "repeats", "repetition", "repetitions", "replicate"),
        *("replicates", "replica", "replicas", "seed_index", "seed_idx"),
    ),
}

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
        by_place: it runs over sample sizes or repetitions because of where it stands, not because
            of its name.
    """

    name: str
    axis: str
    values: list[Any]
    source: Any
    by_place: bool = False


def read_iterators(
    iterators: Any, names: Any, reserved: Iterable[str]
) -> tuple[list[Iterated], list[str]]:
    """Return the iterators of a script, and what is wrong with them.

    The one over sample sizes and the one over repetitions are found by their names. Whichever has
    none of these names stands first or second, as in MLPscape, unless what stands there is
    something else by its name.

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
    named = _named(names)
    errors = _name_errors(names, set(reserved), {names[place] for place in named})
    values = []
    for name, column in zip(names, columns, strict=True):
        listed, message = _values(name, column)
        values.append(listed)
        errors += message
    if errors:
        return [], errors
    placed = _placed(names, values, named)
    found = []
    for place, (name, column) in enumerate(zip(names, values, strict=True)):
        axis = named.get(place) or placed.get(place) or _axis(name, column, place)
        found.append(Iterated(name, axis, column, columns[place], by_place=place in placed))
    return found, _shared_axes(found)


def _name_errors(names: Sequence[Any], reserved: set[str], roles: set[Any]) -> list[str]:
    errors = []
    for name in dict.fromkeys(map(str, names)):
        if names.count(name) > 1:
            errors.append(f"iterator_names: {name!r} stands more than once; keep one")
        if name in reserved:
            errors.append(f"{name}: is an iterator and also in bfn_config; keep one of the two")
        if name in _TAKEN and name not in roles:
            errors.append(
                f"iterator_names: {name!r} means something else to the functions that get it; "
                "give it another name"
            )
        if name in RESERVED:
            errors.append(
                f"iterator_names: {name!r} is a name that ExptTrace reserves; give it another"
            )
    odd = [name for name in names if not isinstance(name, str)]
    return errors + [f"iterator_names: got {name!r}; a name should be a string" for name in odd]


def _values(name: str, column: Any) -> tuple[list[Any], list[str]]:
    if isinstance(column, (str, bytes, Mapping)) or not isinstance(column, Iterable):
        return [], [f"iterator {name}: got {column!r}; should be a list of values"]
    values = list(column)
    if not values:
        return [], [f"iterator {name}: has no values; give at least one or leave it out"]
    return values, []


def _named(names: Sequence[Any]) -> dict[int, str]:
    """Return the iterators over sample sizes and repetitions that names tell, {place: axis}."""
    spelt = {str(name).lower(): place for place, name in reversed(list(enumerate(names)))}
    firsts = {
        axis: next((spelt[name] for name in known if name in spelt), None)
        for axis, known in _NAMES.items()
    }
    return {place: axis for axis, place in firsts.items() if place is not None}


def _placed(
    names: Sequence[str], values: Sequence[list[Any]], named: Mapping[int, str]
) -> dict[int, str]:
    """Return those that stand where MLPscape has them, and that no name tells, {place: axis}."""
    return {
        place: axis
        for place, axis in enumerate(_NAMES)
        if axis not in named.values()
        and place < len(names)
        and place not in named
        and _may_be(axis, names[place], values[place])
    }


def _may_be(axis: str, name: str, values: list[Any]) -> bool:
    """Tell whether an iterator that stands where MLPscape has such values holds them."""
    # N_TRAIN is a hyperparameter of its own, but a likely name for what stands first.
    unnamed = (None, "n_train") if axis == "n_samples" else (None,)
    recognised = name in CHOICES or any(name.lower() in known for known in _NAMES.values())
    if recognised or hp.canonical_name(name) not in unnamed:
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
