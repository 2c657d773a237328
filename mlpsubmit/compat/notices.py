"""What a script may have meant otherwise: no error, so it runs, but its user should know."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mlpsubmit.arguments import declared, function_name
from mlpsubmit.compat.arguments import base_args
from mlpsubmit.compat.functions import ByName, SqueezedLoss
from mlpsubmit.compat.iterators import Iterated
from mlpsubmit.compat.settings import READ_APART
from mlpsubmit.spec import hyperparameters as hp
from mlpsubmit.spec.hyperparameters import Hyperparameters

__all__ = ["Heard", "notices"]

#: What each role is, and the name that tells it.
_ROLES = {"n_samples": ("the sample size", "ntrain"), "trial": ("the trial", "trial")}

#: How alike a name and a hyperparameter's are, from 0 to 1, for the one to be a slip of the other.
_ALIKE = 0.8


@dataclass(frozen=True)
class Heard:
    """What the functions of a script ask for.

    Attributes:
        names: the arguments that they declare.
        axes: what these are in the sweep, of those that are there.
        passed: whatever ``**kwargs`` gets besides, {name in the sweep: names of the functions}.
    """

    names: set[str]
    axes: set[str]
    passed: dict[str, list[str]]

    @classmethod
    def by(cls, functions: Iterable[Any]) -> Heard:
        """Return what functions ask for; what is none, such as "sgd", asks for nothing."""
        heard = cls(set(), set(), {})
        for function in filter(callable, functions):
            inner = function.func if isinstance(function, (ByName, SqueezedLoss)) else function
            asked = declared(type(inner) if isinstance(inner, nn.Module) else inner)
            heard.names.update(asked)
            if isinstance(function, ByName):
                for name, axis in function.settings.items():
                    if name in asked:
                        heard.axes.add(axis)
                    else:
                        heard.passed.setdefault(axis, []).append(function_name(inner))
        return heard


def notices(config: Mapping[str, Any], iterated: Sequence[Iterated], heard: Heard) -> list[str]:
    """Return a line for everything that looks like a slip.

    Args:
        config: global_config.
    """
    return [*_guessed(iterated), *_unheard(iterated, heard), *_misspelt(config, iterated, heard)]


def _guessed(iterated: Sequence[Iterated]) -> list[str]:
    """Name the iterators that have their meaning from where they stand."""
    guessed = [(one.name, *_ROLES[one.axis]) for one in iterated if one.by_place]
    if not guessed:
        return []
    took = " and ".join(f"{name!r} for {meaning}" for name, meaning, _ in guessed)
    sure = " and ".join(name for _, _, name in guessed)
    several = len(guessed) > 1
    return [
        f"took iterator {took}, by {'their places' if several else 'its place'}; "
        f"name {'them' if several else 'it'} {sure} to be sure"
    ]


def _unheard(iterated: Sequence[Iterated], heard: Heard) -> list[str]:
    """Name the iterators that mean nothing to the train loop, and that no function declares."""
    known = {*Hyperparameters.model_fields, "trial"} - {"n_train"} | heard.axes
    told = []
    for one in iterated:
        if one.axis in known or len(one.values) < 2:
            continue
        passed = list(dict.fromkeys(heard.passed.get(one.axis, [])))
        told.append(
            f"no function declares iterator {one.name!r}: its values change nothing"
            + (f" unless {' or '.join(passed)} looks for it in **kwargs" if passed else "")
        )
    return told


def _misspelt(config: Mapping[str, Any], iterated: Sequence[Iterated], heard: Heard) -> list[str]:
    """Name what nobody asks for in global_config, and looks like a hyperparameter."""
    known = {*READ_APART, *vars(base_args()), *heard.names, *(one.name for one in iterated)}
    fields = {name.replace("_", ""): name for name in Hyperparameters.model_fields}
    told = []
    for key in config:
        if key in known or hp.canonical_name(key) is not None:
            continue
        spelt = key.lower().replace("_", "")
        if close := difflib.get_close_matches(spelt, fields, n=1, cutoff=_ALIKE):
            told.append(
                f"global_config has {key!r}, which is no hyperparameter and which no function "
                f"declares; did you mean {fields[close[0]].upper()}?"
            )
    return told
