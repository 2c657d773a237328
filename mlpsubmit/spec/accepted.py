"""The names that axes and settings may have: hyperparameters, and what functions declare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlpsubmit.arguments import (
    declared,
    function_name,
    further_arguments,
    most_by_position,
    takes_all,
)
from mlpsubmit.errors import SpecError, collected
from mlpsubmit.protocol import LOSS_PARAMS, SUPPLIED
from mlpsubmit.spec import hyperparameters as hp
from mlpsubmit.spec.hyperparameters import Hyperparameters

__all__ = ["AXIS_OF", "POSITIONAL", "Accepted", "accepted_names", "position_errors"]

#: The axes that settings make: {hyperparameter: axis}.
AXIS_OF = {"n_samples": "n_samples", "num_trials": "trial", "target_monomials": "monomials"}

#: The arguments that functions get by position; all others they get by name.
POSITIONAL = {
    "parametrization": ("model", "optimizer"),
    "loss": ("output", "y"),
    "lr_schedule": ("step",),
}


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
        further = accepted_names(functions, {})
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
        if name in SUPPLIED:
            raise SpecError(
                f"{name}: functions get this argument from the training, so it cannot be set; "
                "choose another name for it in your function and in the spec"
            )
        known = {*Hyperparameters.model_fields, *self.declared, *self.of_mlp, "trial"}
        raise SpecError(
            f"{name}: neither a hyperparameter nor an argument that a function of the spec "
            f"declares{hp.suggested(name, known)}"
        )


def accepted_names(
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


def position_errors(by_position: Mapping[str, Sequence[Callable[..., Any]]]) -> list[str]:
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
