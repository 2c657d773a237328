"""From the arguments of ``run_job_iterator`` to a sweep."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlpsubmit.arguments import declared, function_name, takes_all
from mlpsubmit.compat.arguments import DEFAULT_EXPT_NAME
from mlpsubmit.compat.choices import CHOICES, INSTANCES, Chosen, read_code
from mlpsubmit.compat.files import load_from_file
from mlpsubmit.compat.functions import (
    BatchFunction,
    ByName,
    Context,
    Grab,
    PostInit,
)
from mlpsubmit.compat.iterators import Iterated, read_iterators
from mlpsubmit.compat.settings import read_settings
from mlpsubmit.compat.tensors import on_device
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.protocol import FOR_BATCHES, FOR_GRABS
from mlpsubmit.spec import hyperparameters as hp
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.sweep import Sweep

__all__ = ["Study", "read_study"]

#: The entries of bfn_config that name the batch function.
_FUNCTION_KEYS = ("base_bfn", "bfn_file", "bfn_name")

#: What MLPscape's train loop passes to batch functions and to grabs.
_OF_BATCHES = ("bsz", "gen", "X", "y")
_OF_GRABS = ("model", "X_tr", "y_tr", "X_te", "y_te", "opt")

#: Axes that the train loop or the sweep itself uses.
_OF_THE_LOOP = {*Hyperparameters.model_fields, "trial", "monomials"} - {"n_train"}


@dataclass(frozen=True)
class Study:
    """A script's study.

    Attributes:
        sweep: what is trained.
        names: the script's name of each axis, in order.
    """

    sweep: Sweep
    names: dict[str, str]


def read_study(
    iterators: Any, iterator_names: Any, global_config: Any, bfn_config: Any, name: str | None
) -> Study:
    """Return the study that a script describes.

    Args:
        name: the name of its run; else EXPT_NAME, else the name of the script.

    Raises:
        SpecError: listing every error.
    """
    config = _mapping("global_config", global_config)
    batches = _mapping("bfn_config", bfn_config)
    arguments = {key: value for key, value in batches.items() if key not in _FUNCTION_KEYS}
    errors = _config_errors(config)
    with _collected(errors):
        iterated = read_iterators(iterators, iterator_names, arguments)
    with _collected(errors):
        base_bfn = _base_function(batches, arguments)
    _raise(errors)
    hyperparameters, context, errors = read_settings(config, iterated)
    varied = {one.axis: Chosen(one.name, one.values) for one in iterated}
    with _collected(errors):
        code = read_code(config, varied, context, "d_out" in {*hyperparameters, *varied})
    with _collected(errors):
        grabs = _grabs(config.get("otherreturns") or {}, context)
    with _collected(errors):
        batchfn = _batch_function(base_bfn, arguments, config, iterated)
    _raise(errors)

    functions = [batchfn, *grabs.values(), *(v for values in code.values() for v in values)]
    batchfn = replace(batchfn, idle=_untaken(iterated, functions))
    axes = {one.axis: on_device(code.get(one.axis, one.values), "cpu") for one in iterated}
    fixed = {name: values[0] for name, values in code.items() if name not in axes}
    sweep = Sweep(
        _run_name(name, config),
        axes,
        batchfn=batchfn,
        grabs=grabs,
        **{**hyperparameters, **fixed},
    )
    return Study(sweep, {one.axis: one.name for one in iterated})


@contextlib.contextmanager
def _collected(errors: list[str]) -> Iterator[None]:
    """Add the errors that are raised to a list."""
    try:
        yield
    except SpecError as error:
        errors += error.errors


def _raise(errors: list[str]) -> None:
    if errors:
        raise SpecError(errors)


def _mapping(place: str, given: Any) -> dict[str, Any]:
    """Return a configuration, a mapping or the namespace of parse_args, as a dictionary."""
    plain = vars(given) if isinstance(given, argparse.Namespace) else given
    if plain is not None and not isinstance(plain, Mapping):
        raise SpecError(
            f"{place}: got {given!r}; should be a dictionary, or what parse_args returned"
        )
    return dict(plain or {})


def _config_errors(config: Mapping[str, Any]) -> list[str]:
    given = {name for name, value in config.items() if value is not None}
    errors = [
        f"{name}: an existing optimizer belongs to an existing model, and every config makes its "
        "own; give OPTIMIZER_CLASS, and its arguments by name"
        for name in INSTANCES
        if name in given
    ]
    if len(half := given & {"X_te", "y_te"}) == 1:
        errors.append(f"{half.pop()}: is only half of a test set; give both X_te and y_te")
    if not isinstance(config.get("otherreturns") or {}, Mapping):
        errors.append(
            f"otherreturns: got {config['otherreturns']!r}; should be a dictionary of functions"
        )
    both = [
        name
        for name in sorted(given)
        if "parametrization" in (CHOICES.get(name), hp.canonical_name(name))
    ]
    if len(both) > 1:
        errors.append(f"{' and '.join(both)}: both initialise the model; keep one")
    return errors


def _base_function(batches: Mapping[str, Any], arguments: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function that bfn_config names.

    Raises:
        SpecError: if there is none, or it does not take what bfn_config gives it.
    """
    if batches.get("base_bfn") is not None:
        function = batches["base_bfn"]
    elif "bfn_file" in batches and "bfn_name" in batches:
        function = load_from_file("bfn_file", batches["bfn_file"], batches["bfn_name"])
    else:
        raise SpecError(
            "bfn_config: has no base_bfn; give it the batch function, as in "
            "bfn_config=dict(base_bfn=general_batch_fn, X_total=X, y_total=y)"
        )
    if not callable(function):
        raise SpecError(f"base_bfn: got {function!r}; should be a function")
    takes = declared(function) - {*_OF_BATCHES}
    errors = [
        f"bfn_config: {function_name(function)} takes no {key!r} out of it"
        f"{did_you_mean(key, takes)}; it takes {', '.join(sorted(takes))}, and the train loop "
        f"gives it {', '.join(_OF_BATCHES)}"
        for key in arguments
        if key in _OF_BATCHES or not (key in takes or takes_all(function))
    ]
    _raise(errors)
    return function  # type: ignore[no-any-return]


def _supplied(
    function: Callable[..., Any], always: Sequence[str], declarable: Collection[str]
) -> list[str]:
    """Return the arguments from the train loop: MLPscape's, and others that are declared."""
    return [*always, *sorted(declared(function).intersection(declarable).difference(always))]


def _batch_function(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    config: Mapping[str, Any],
    iterated: Sequence[Iterated],
) -> BatchFunction:
    """Return the batch function, with the arguments of bfn_config and the iterators that it takes.

    ``**kwargs`` gets no iterator over a hyperparameter: a function that only passes it on would
    draw its own batches for every value of GAMMA.
    """
    takes = declared(function)
    loop = {*Hyperparameters.model_fields, "trial"}
    settings = {one.name: one.axis for one in iterated if one.name in takes or one.axis not in loop}
    context = Context(settings, on_device(dict(arguments), "cpu"))
    supplied = _supplied(function, _OF_BATCHES, FOR_BATCHES)
    bound = context.bind(BatchFunction, "base_bfn", function, supplied)
    if config.get("X_te") is None:
        return bound
    return replace(bound, test_set=on_device((config["X_te"], config["y_te"]), "cpu"))


def _grabs(functions: Mapping[str, Any], context: Context) -> dict[str, Grab]:
    """Return the grabs in otherreturns.

    Raises:
        SpecError: listing each that is not a function, or needs an argument without a source.
    """
    grabs: dict[str, Grab] = {}
    errors: list[str] = []
    for alias, function in functions.items():
        place = f"otherreturns[{alias!r}]"
        if not callable(function):
            errors.append(f"{place}: got {function!r}; should be a function")
            continue
        with _collected(errors):
            supplied = _supplied(function, _OF_GRABS, FOR_GRABS)
            grabs[alias] = context.bind(Grab, place, function, supplied)
    _raise(errors)
    return grabs


def _untaken(iterated: Sequence[Iterated], functions: Sequence[Any]) -> tuple[str, ...]:
    """Return the axes that neither the train loop nor any function takes."""
    takers = [f for f in functions if isinstance(f, ByName) and not isinstance(f, PostInit)]
    taken = {axis for f in takers for axis in f.settings.values()} | _OF_THE_LOOP
    return tuple(one.axis for one in iterated if one.axis not in taken)


def _run_name(name: str | None, config: Mapping[str, Any]) -> str:
    """Return the name of the run: the given one, else EXPT_NAME, else that of the script."""
    if name is not None:
        return name
    name = config.get("EXPT_NAME")
    if not isinstance(name, str) or name == DEFAULT_EXPT_NAME:
        script = getattr(sys.modules.get("__main__"), "__file__", None)
        name = Path(script).stem if script else "notebook"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "script"
