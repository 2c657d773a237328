"""From what a script hands to ``run_job_iterator`` to a sweep."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlpsubmit.arguments import declared, function_name, takes_all
from mlpsubmit.compat import choices
from mlpsubmit.compat.arguments import DEFAULT_EXPT_NAME
from mlpsubmit.compat.choices import Chosen
from mlpsubmit.compat.functions import BatchFunction, Grab, Model, PostInit
from mlpsubmit.compat.iterators import Iterated, read_iterators
from mlpsubmit.compat.modules import load_from_file
from mlpsubmit.compat.notices import Heard, notices
from mlpsubmit.compat.script import Script
from mlpsubmit.compat.settings import Settings, read_settings
from mlpsubmit.compat.tensors import on_device
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.spec import hyperparameters as hp
from mlpsubmit.spec.hyperparameters import STACKED, Hyperparameters
from mlpsubmit.spec.sweep import Sweep

__all__ = ["Study", "read_study"]

#: How bfn_config says which function is meant.
_FUNCTION_KEYS = ("base_bfn", "bfn_file", "bfn_name")

#: What batch functions and grabs get of the train loop: in MLPscape, and if they ask for more.
_OF_BATCHES = ("bsz", "gen", "X", "y")
_OF_BATCHES_ALSO = ("split", "device")
_OF_GRABS = ("model", "X_tr", "y_tr", "X_te", "y_te", "opt")
_OF_GRABS_ALSO = ("model0", "gen", "bsz", "device")


@dataclass(frozen=True)
class Study:
    """A script's study.

    Attributes:
        sweep: what is to be trained.
        names: what the script calls each axis of it, in order.
        grabs: the names of the measurements.
        notices: what the script may have meant otherwise, a line each.
    """

    sweep: Sweep
    names: dict[str, str]
    grabs: tuple[str, ...]
    notices: tuple[str, ...]


def read_study(
    iterators: Any, iterator_names: Any, global_config: Any, bfn_config: Any, name: str | None
) -> Study:
    """Return the study that a script describes.

    Args:
        name: what its run is called; else EXPT_NAME, else the name of the script.

    Raises:
        SpecError: listing every error.
    """
    config, batches = _mappings(global_config=global_config, bfn_config=bfn_config)
    arguments = {key: value for key, value in batches.items() if key not in _FUNCTION_KEYS}
    iterated, errors = read_iterators(iterators, iterator_names, arguments)
    errors += _config_errors(config)
    with _collected(errors):
        base_bfn = _base_function(batches, arguments)
    if errors:
        raise SpecError(errors)
    settings = read_settings(config, iterated)
    errors = settings.errors
    with _collected(errors):
        code = _code(config, iterated, settings)
    with _collected(errors):
        grabs = _grabs(config.get("otherreturns") or {}, settings.script)
    with _collected(errors):
        batchfn = _batch_function(base_bfn, arguments, config, iterated)
    if errors:
        raise SpecError(errors)
    axes = {one.axis: on_device(code.get(one.axis, one.values), "cpu") for one in iterated}
    fixed = {axis: values[0] for axis, values in code.items() if axis not in axes}
    takers: list[Callable[..., Any]] = [batchfn, *grabs.values()]
    takers += [model for model in code["model"] if callable(model)]
    sweep = Sweep(
        _run_name(name, config),
        axes,
        batchfn=replace(batchfn, idle=_idle(axes, takers)),
        grabs=grabs,
        **{**settings.hyperparameters, **fixed},
    )
    heard = Heard.by([batchfn, *grabs.values(), *(v for values in code.values() for v in values)])
    told = notices(config, iterated, heard)
    return Study(sweep, {one.axis: one.name for one in iterated}, tuple(grabs), tuple(told))


@contextlib.contextmanager
def _collected(errors: list[str]) -> Iterator[None]:
    """Add what is wrong to a list, and go on."""
    try:
        yield
    except SpecError as error:
        errors += error.errors


def _mappings(**given: Any) -> list[dict[str, Any]]:
    """Return configurations as dictionaries; what parse_args returned is one too."""
    plain = {name: vars(v) if isinstance(v, argparse.Namespace) else v for name, v in given.items()}
    odd = [
        f"{name}: got {value!r}; should be a dictionary, or what parse_args returned"
        for name, value in plain.items()
        if not (value is None or isinstance(value, Mapping))
    ]
    if odd:
        raise SpecError(odd)
    return [dict(value or {}) for value in plain.values()]


def _config_errors(config: Mapping[str, Any]) -> list[str]:
    errors = [
        f"{name}: an optimizer that exists already belongs to a model that exists already, and "
        "every config makes its own; give OPTIMIZER_CLASS, and its arguments by name"
        for name in choices.INSTANCES
        if config.get(name) is not None
    ]
    given = [name for name in ("X_te", "y_te") if config.get(name) is not None]
    if len(given) == 1:
        errors.append(f"{given[0]}: is only half of a test set; give both X_te and y_te")
    if not isinstance(config.get("otherreturns") or {}, Mapping):
        errors.append(
            f"otherreturns: got {config['otherreturns']!r}; should be a dictionary of functions"
        )
    keys = {key for key, name in choices.CHOICES.items() if name == "parametrization"}
    keys |= {key for key in config if hp.canonical_name(key) == "parametrization"}
    if len(both := sorted(key for key in keys if config.get(key) is not None)) > 1:
        errors.append(f"{' and '.join(both)}: both initialise the model; keep one")
    return errors


def _base_function(batches: Mapping[str, Any], arguments: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function that bfn_config names.

    Raises:
        SpecError: where there is none, or it does not take what bfn_config gives it.
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
    takes = declared(function)
    errors = [
        f"bfn_config: {key!r} is what the train loop gives {function_name(function)}; leave it out"
        for key in arguments
        if key in _OF_BATCHES
    ]
    if not takes_all(function):
        errors += [
            f"bfn_config: {function_name(function)} takes no {key!r}{did_you_mean(key, takes)}; "
            f"it takes {', '.join(sorted(takes))}"
            for key in arguments
            if key not in takes
        ]
    if errors:
        raise SpecError(errors)
    return function  # type: ignore[no-any-return]


def _batch_function(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    config: Mapping[str, Any],
    iterated: Sequence[Iterated],
) -> BatchFunction:
    """Return the batch function, with what bfn_config gives it and the iterators that it takes.

    ``**kwargs`` gets no iterator over a hyperparameter: a function that only lets them pass would
    draw batches of its own for every value of GAMMA.
    """
    takes = declared(function)
    of_data = [one for one in iterated if one.axis not in {*Hyperparameters.model_fields, "trial"}]
    settings = {one.name: one.axis for one in iterated if one.name in takes or one in of_data}
    script = Script(settings, on_device(dict(arguments), "cpu"))
    supplied = [*_OF_BATCHES, *(name for name in _OF_BATCHES_ALSO if name in takes)]
    match = script.match("base_bfn", function, supplied)
    test_set = None
    if config.get("X_te") is not None:
        test_set = on_device((config["X_te"], config["y_te"]), "cpu")
    return BatchFunction(*match, test_set, ())


def _idle(axes: Iterable[str], takers: Iterable[Callable[..., Any]]) -> tuple[str, ...]:
    """Return the axes that no function takes, of those that mean nothing to the train loop."""
    known = set().union(*(declared(function) for function in takers))
    known |= {*Hyperparameters.model_fields, "trial", "monomials"} - {"n_train"}
    return tuple(axis for axis in axes if axis not in known)


def _grabs(functions: Mapping[str, Any], script: Script) -> dict[str, Grab]:
    """Return the grabs that otherreturns holds.

    Raises:
        SpecError: listing those that are no functions, or need what nobody gives.
    """
    grabs: dict[str, Grab] = {}
    errors: list[str] = []
    for alias, function in functions.items():
        place = f"otherreturns[{alias!r}]"
        with _collected(errors):
            if not callable(function):
                raise SpecError(f"{place}: got {function!r}; should be a function")
            further = [name for name in _OF_GRABS_ALSO if name in declared(function)]
            grabs[alias] = Grab(*script.match(place, function, [*_OF_GRABS, *further]))
    if errors:
        raise SpecError(errors)
    return grabs


def _code(
    config: Mapping[str, Any], iterated: Sequence[Iterated], settings: Settings
) -> dict[str, list[Any]]:
    """Return the values of the hyperparameters that are code, and of those that go with them."""
    script, axes = settings.script, {one.axis: one for one in iterated}

    def chosen(name: str) -> Chosen | None:
        one = axes.get(name)
        return choices.choose(config, name) if one is None else Chosen(one.name, one.values)

    own = choices.is_own_model(chosen("model"))
    optimizers, further = choices.optimizers(chosen("optimizer"), script, settings.optimizer, axes)
    code = {
        "model": choices.models(chosen("model"), script),
        "loss": choices.losses(chosen("loss"), script),
        "parametrization": choices.parametrizations(chosen("parametrization"), script, own),
        "optimizer": optimizers,
        **{name: [value] for name, value in further.items()},
    }
    outputs = {*settings.hyperparameters, *axes}
    if "cross_entropy" in code["loss"] and "d_out" not in outputs and _know_outputs(code["model"]):
        code["d_out"] = [1]  # nobody reads it, but labels alone would not tell how many there are
    if _differ_in_code(code["parametrization"], axes):
        code["pack_size"] = [1]
    return code


def _know_outputs(models: Sequence[Any]) -> bool:
    return all(isinstance(model, Model) and "d_out" not in model.supplied for model in models)


def _differ_in_code(parametrizations: Sequence[Any], axes: Mapping[str, Any]) -> bool:
    """Tell whether what a POST_INIT_FN binds to a model may differ between configs of a pack.

    A pack calls the functions of one model for all of its configs.
    """
    taken = set()
    for function in parametrizations:
        if isinstance(function, PostInit):
            taken |= {*function.settings.values(), *function.supplied}
    taken |= {"gamma"} if "lr" in taken else set()  # it is in the step size that they get
    max_concurrent = {a for a in axes if a in STACKED or a not in Hyperparameters.model_fields}
    return bool(taken & (max_concurrent - {"trial", "seed"}))


def _run_name(name: str | None, config: Mapping[str, Any]) -> str:
    """Return what the run is called: as it is told, else like the script."""
    if name is not None:
        return name
    name = config.get("EXPT_NAME")
    if not isinstance(name, str) or name == DEFAULT_EXPT_NAME:
        script = getattr(sys.modules.get("__main__"), "__file__", None)
        name = Path(script).stem if script else "notebook"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "script"
