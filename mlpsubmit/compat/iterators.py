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

#: The axes of the first two iterators, as in MLPscape, and the hyperparameters whose names these
#: iterators may have.
_FIRST = {"n_samples": ("n_samples", "n_train"), "trial": ("num_trials", "seed")}


@dataclass(frozen=True)
class Iterated:
    """One iterator.

    Attributes:
        name: its name in the script.
        axis: its name in the sweep: ``n_samples``, ``trial``, a hyperparameter, or its own.
        values: the values of the axis.
        source: the iterable that the script passed.
    """

    name: str
    axis: str
    values: list[Any]
    source: Any


def read_iterators(iterators: Any, names: Any, bfn_arguments: Iterable[str]) -> list[Iterated]:
    """Return the iterators of a script: the sample sizes, the trials, and any others.

    Args:
        iterators: the iterables.
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
    for place, (name, column) in enumerate(zip(names, columns, strict=True)):
        values = list(column) if _is_list(column) else []
        if not _is_list(column):
            errors.append(f"iterator {name}: got {column!r}; should be a list of values")
        elif not values:
            errors.append(f"iterator {name}: has no values; give at least one or leave it out")
        axis = list(_FIRST)[place] if place < len(_FIRST) else _axis(name, values, place)
        found.append(Iterated(name, axis, values, column))
    if errors := errors + _name_errors(found, set(bfn_arguments)):
        raise SpecError(errors)
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))


def _hyperparameter(name: str) -> str | None:
    return CHOICES.get(name) or hp.canonical_name(name)


def _axis(name: str, values: Sequence[Any], place: int) -> str:
    """Return the name of an iterator after the first two in the sweep."""
    hyperparameter = _hyperparameter(name)
    if hyperparameter == "target_monomials" or name.lower() == "monomials":
        # A sweep turns the values of its axis monomials into monomials; others keep their type.
        plain = all(isinstance(value, Mapping) for value in values)
        return "monomials" if plain else f"iterator_{place}"
    if hyperparameter is not None:
        return hyperparameter
    valid = name.isidentifier() and not keyword.iskeyword(name) and name not in SUPPLIED
    return name if valid else f"iterator_{place}"


def _name_errors(found: Sequence[Iterated], bfn_arguments: set[str]) -> list[str]:
    errors = [
        f"iterator_names: {one.name!r} takes the place of {axis}; the first iterator is the sample "
        "size and the second the trial; put all others after them"
        for one, (axis, known) in zip(found, _FIRST.items(), strict=False)
        if _hyperparameter(one.name) not in (None, *known)
    ]
    for one in found:
        if one.name in bfn_arguments:
            errors.append(f"{one.name}: is an iterator and also in bfn_config; keep one of the two")
        if one.name in RESERVED:
            errors.append(
                f"iterator_names: {one.name!r} is a name that ExptTrace reserves; give it another"
            )
        same = [other.name for other in found if one.axis == other.axis or one.name == other.name]
        if len(same) > 1:
            errors.append(f"iterator_names: {' and '.join(same)} are the same setting; keep one")
    return list(dict.fromkeys(errors))
