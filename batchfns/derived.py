"""Data recipes that change the entries of another one: ``held_out``, ``label_noise``."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlpsubmit.arguments import call, declared, function_name
from mlpsubmit.batchfns._arrays import as_numpy
from mlpsubmit.batchfns.recipe import as_recipe
from mlpsubmit.errors import SpecError, collected

__all__ = ["Entries", "as_entry", "chosen_rows", "derived", "draws", "rows_of"]

#: Data entries by name.
Entries: TypeAlias = dict[str, Any]

_ROWS = frozenset({"X_train", "y_train", "X_test", "y_test"})

#: Settings that a derived recipe may read besides its own arguments: its draws follow from them.
_SEEDS = ("seed", "trial")


@dataclass(frozen=True)
class Derived:
    """A function of data entries that changes those of another one.

    Its arguments are those of both, so that an axis may have any of them.

    Attributes:
        source: returns the entries to change.
        change: a :func:`~mlpsubmit.batchfns.recipe.recipe` whose first argument is these entries.
        per_trial: whether the draws of the change differ between trials.
    """

    source: Callable[..., Any]
    change: Callable[..., Entries]
    per_trial: bool

    @property
    def __name__(self) -> str:
        """The public name of the change, for messages."""
        return self.change.__name__

    @property
    def cheap(self) -> bool:
        """Whether a launch may compute the entries."""
        return bool(getattr(self.source, "cheap", False))

    @property
    def own(self) -> dict[str, inspect.Parameter]:
        """The arguments of the change besides the entries; the trial only where it counts."""
        _, *parameters = inspect.signature(self.change).parameters.values()
        return {p.name: p for p in parameters if self.per_trial or p.name != "trial"}

    @property
    def __signature__(self) -> inspect.Signature:
        """The arguments of both functions, all by name."""
        merged = {**inspect.signature(self.source).parameters, **self.own}
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY) if p.kind in by_name else p
            for p in merged.values()
        ]
        return inspect.Signature(sorted(parameters, key=lambda p: p.kind))

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raise one error that lists every bad argument of both functions."""
        errors: list[str] = []
        for function in (self.source, self.change):
            with collected(errors):
                check = getattr(function, "check", None)
                if check is not None:
                    names = declared(function)
                    check({n: value for n, value in arguments.items() if n in names})
        if errors:
            raise SpecError(errors)

    def __call__(self, **given: Any) -> Entries:
        """Return the entries of the source after the change."""
        own = {name: value for name, value in given.items() if name in self.own}
        kept = declared(self.source)
        rest = {n: v for n, v in given.items() if n in kept or n not in own}
        entries = _checked(self.__name__, self.source, call(self.source, rest))
        return self.change(entries, **own)


def derived(
    change: Callable[..., Entries],
    source: Any,
    arguments: Mapping[str, Any],
    per_trial: bool = False,
) -> functools.partial[Entries]:
    """Return the recipe that changes the entries of another one.

    Args:
        change: a recipe whose first argument is the entries; its further ones may be axes.
        source: a data recipe, ``arrays(...)``, ``from_dataset(...)``, or a function of the user's
            that returns the entries X_train and y_train. What is bound to it stays bound.
        arguments: those of the change that are bound, unless they are None.

    Raises:
        SpecError: listing every error.
    """
    name = change.__name__
    source = as_recipe(source)
    if errors := _source_errors(name, source) + _flag_errors(name, per_trial):
        raise SpecError(errors)
    bound: Mapping[str, Any] = {}
    if isinstance(source, functools.partial) and not source.args:
        source, bound = source.func, source.keywords
    made = Derived(source, change, per_trial)
    if twice := sorted(made.own.keys() & declared(source) - {*_SEEDS}):
        raise SpecError(
            f"{name}: {function_name(source)} has the argument {', '.join(twice)}, too; "
            "one recipe can have it once"
        )
    given = {n: value for n, value in arguments.items() if value is not None}
    made.check({**bound, **given})
    return functools.partial(made, **bound, **given)


def _source_errors(name: str, source: Any) -> list[str]:
    example = f"try {name}(images('digits')) or {name}(arrays(X, y))"
    if not callable(source):
        return [f"{name}: got {source!r:.60}; should be a data recipe; {example}"]
    of_library = isinstance(source, types.FunctionType) and source.__module__.startswith(
        "mlpsubmit.batchfns"
    )
    if "bsz" in declared(source):
        return [f"{name}: got the batch function {function_name(source)}, not data; {example}"]
    if of_library:
        own = function_name(source)
        return [f"{name}: got the function {own} itself; call it: {name}({own}(...))"]
    return []


def _checked(name: str, source: Callable[..., Any], entries: Any) -> Entries:
    """Return what the source has returned, with the training rows as arrays of equal length."""
    if not isinstance(entries, Mapping) or not {"X_train", "y_train"} <= entries.keys():
        is_mapping = isinstance(entries, Mapping)
        shown = ", ".join(map(str, entries)) if is_mapping else type(entries).__name__
        raise SpecError(
            f"{name}: {function_name(source)} returned {shown:.80}; valid is a mapping with the "
            "entries X_train and y_train, as images and arrays return it"
        )
    found = dict(entries)
    for part in _ROWS & found.keys():
        if not isinstance(found[part], Tensor):
            found[part] = np.asarray(found[part])
    sizes = len(found["X_train"]), len(found["y_train"])
    if sizes[0] != sizes[1] or 0 in sizes:
        raise SpecError(
            f"{name}: X_train has {sizes[0]} rows and y_train has {sizes[1]}; they should have "
            "equally many, and at least one"
        )
    return found


def _flag_errors(name: str, per_trial: Any) -> list[str]:
    if isinstance(per_trial, bool):
        return []
    return [f"{name}: got per_trial={per_trial!r}; valid is True or False"]


# ---- what changes have in common -----------------------------------------------------------------


def draws(name: str, seed: int, trial: int | None) -> np.random.Generator:
    """Return a generator for one kind of draw, the same for all values of its arguments.

    Args:
        name: of the draw.
        seed: the setting SEED.
        trial: None for draws that all trials share.
    """
    words = [seed, 0 if trial is None else trial + 1, *name.encode()]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def chosen_rows(fraction: float, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the mask (n,) of that fraction of rows, those with the lowest scores (n,).

    So those of a smaller fraction are among those of a larger one.
    """
    mask = np.zeros(len(scores), dtype=bool)
    mask[np.argsort(scores, kind="stable")[: round(fraction * len(scores))]] = True
    return mask


def rows_of(entries: Entries, name: str) -> NDArray[Any]:
    """Return an entry, of torch or numpy, as a numpy array that may not be written to."""
    rows = as_numpy(entries[name]).view()
    rows.flags.writeable = False
    return rows


def as_entry(rows: NDArray[Any], like: Any) -> Tensor:
    """Return rows as a tensor of the dtype of an entry, of torch or numpy."""
    tensor = torch.from_numpy(np.ascontiguousarray(rows))
    return tensor.to(like.dtype) if isinstance(like, Tensor) else tensor
