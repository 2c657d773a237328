"""The iterators of a script, and the axes that they are in a sweep."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from mlpsubmit.compat.choices import CHOICES
from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import SUPPLIED
from mlpsubmit.results.expt_trace import RESERVED
from mlpsubmit.spec import hyperparameters as hp
from mlpsubmit.spec.hyperparameters import Hyperparameters

__all__ = ["Iterated", "place_notices", "read_iterators"]

#: The names of iterators over sample sizes and over trials, in the singular and in lower case.
_NAMES = {
    "n_samples": ("ntrain", "n", "n_sample", "sample", "sample_size", "batch_size", "bsz"),
    "trial": ("trial", "num_trial", "rep", "repeat", "repetition", "seed_index"),
}


@dataclass(frozen=True)
class Iterated:
    """One iterator.

    Attributes:
        name: its name in the script.
        axis: its name in the sweep: ``n_samples``, ``trial``, a hyperparameter, or its own.
        values: the values of the axis.
        source: the iterable that the script passed.
        by_place: whether it is the sample size or the trial because of its place, not its name.
    """

    name: str
    axis: str
    values: list[Any]
    source: Any
    by_place: bool = False


def read_iterators(iterators: Any, names: Any, bfn_arguments: Iterable[str]) -> list[Iterated]:
    """Return the iterators of a script.

    The sample size and the trial are found by their names. Where no iterator has such a name, they
    are the first and the second, as in MLPscape, unless that is a hyperparameter by its name or
    its values are not integers.

    Args:
        iterators: the iterables, in any order.
        names: a name for each; None for ``iter_0``, ``iter_1`` and so on.
        bfn_arguments: names that bfn_config gives values to.

    Raises:
        SpecError: listing every error.
    """
    if not _is_list(iterators):
        raise SpecError(f"iterators: got {iterators!r}; should be a list of lists")
    columns = list(iterators)
    names = [f"iter_{i}" for i in range(len(columns))] if names is None else list(names)
    if len(names) != len(columns):
        raise SpecError(
            f"iterator_names: got {len(names)} names for {len(columns)} iterators; give one each"
        )
    found = []
    errors = []
    for name, column in zip(names, columns, strict=True):
        values = list(column) if _is_list(column) else []
        if not _is_list(column):
            errors.append(f"iterator {name}: got {column!r}; should be a list of values")
        elif not values:
            errors.append(f"iterator {name}: has no values; give at least one or leave it out")
        found.append(Iterated(name, _axis(name, values, names.index(name)), values, column))
    for place, (role, one) in enumerate(zip(_NAMES, tuple(found), strict=False)):
        if role not in [other.axis for other in found] and _may_be(role, one):
            found[place] = replace(one, axis=role, by_place=True)
    if errors := errors + _name_errors(found, set(bfn_arguments)):
        raise SpecError(errors)
    return found


def place_notices(iterated: Sequence[Iterated]) -> list[str]:
    """Return a line for each iterator whose meaning was guessed from its place."""
    meanings = {"n_samples": "sample size", "trial": "trial"}
    return [
        f"iterator {one.name!r} is taken for the {meanings[one.axis]} because of its place; name "
        f"it {_NAMES[one.axis][0]} to be sure"
        for one in iterated
        if one.by_place
    ]


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))


def _axis(name: str, values: Sequence[Any], place: int) -> str:
    """Return the name of an iterator in the sweep."""
    for role, known in _NAMES.items():
        if name.lower().removesuffix("s") in known:
            return role
    if name in CHOICES:
        return CHOICES[name]
    canonical = hp.canonical_name(name)
    if canonical == "target_monomials" or name.lower() == "monomials":
        # A sweep turns the values of its axis monomials into monomials; others keep their type.
        plain = all(isinstance(value, Mapping) for value in values)
        return "monomials" if plain else f"iterator_{place}"
    if canonical is not None:
        return canonical
    valid = name.isidentifier() and not keyword.iskeyword(name) and name not in SUPPLIED
    return name if valid else f"iterator_{place}"


def _may_be(role: str, one: Iterated) -> bool:
    """Return whether the iterator in the place of a role may have that role."""
    # N_TRAIN is a hyperparameter, but also a likely name for the sample size.
    likely = one.axis == "n_train" and role == "n_samples"
    named = one.axis in {*Hyperparameters.model_fields, *_NAMES}
    return (likely or not named) and all(isinstance(value, Integral) for value in one.values)


def _name_errors(found: Sequence[Iterated], bfn_arguments: set[str]) -> list[str]:
    errors = []
    for one in found:
        if one.name in bfn_arguments:
            errors.append(f"{one.name}: is an iterator and also in bfn_config; keep one of the two")
        if one.name in RESERVED:
            errors.append(
                f"iterator_names: {one.name!r} is a name that ExptTrace reserves; give it another"
            )
    axes = [one.axis for one in found]
    return errors + [
        f"iterator_names: {' and '.join(one.name for one in found if one.axis == axis)} are the "
        "same setting; keep one"
        for axis in dict.fromkeys(axes)
        if axes.count(axis) > 1
    ]
