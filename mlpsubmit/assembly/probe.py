"""Find errors of a spec by training one step: at launch, and before a long training."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mlpsubmit.arguments import call, declared, further_arguments, pick
from mlpsubmit.assembly.assemble import (
    assemble,
    bound_lr_schedule,
    named_grabs,
    refuse_without_test_set,
)
from mlpsubmit.assembly.batch_streams import (
    data_arguments,
    make_batches,
    offered_settings,
    settings_of,
)
from mlpsubmit.assembly.probe_packing import warn_of_single_configs
from mlpsubmit.assembly.resumability import check_resumable
from mlpsubmit.errors import SpecError, UserError, collected, did_you_mean, error_text
from mlpsubmit.protocol import SUPPLIED
from mlpsubmit.spec.accepted import POSITIONAL
from mlpsubmit.spec.guard import EndOfSpec
from mlpsubmit.spec.hyperparameters import OPTIMIZERS, Hyperparameters
from mlpsubmit.spec.keys import values_of
from mlpsubmit.spec.libraries import missing_file, user_frames
from mlpsubmit.spec.metrics import crossing_order, with_asked_for
from mlpsubmit.spec.product import Product
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.global_state import global_state_kept
from mlpsubmit.training.lr_factors import check_lr_factors
from mlpsubmit.training.lr_schedules import check_lr_schedule
from mlpsubmit.training.models import MLP
from mlpsubmit.training.optimizers.torch_optimizer import optimizer_class
from mlpsubmit.training.optimizers.update_rules import warn_of_missing_theory
from mlpsubmit.training.precision import functions_dtype

__all__ = ["probe", "smoke_test", "smoke_test_grabs"]

#: Settings of which every value is probed: each runs different code.
PROBED = ("optimizer", "loss", "metrics", "model", "parametrization", "lr_schedule")

#: Settings that decide how learning rates are scaled, and which of their values are alike.
SCALED: dict[str, Callable[[Any], Any]] = {
    "optimizer": lambda value: value if isinstance(value, str) else id(value),
    "parametrization": lambda value: value if isinstance(value, str) else id(value),
    "weight_decay": bool,
    "gamma": lambda value: value == 1,
}

#: The most samples that the probe draws, and the most units of its layers.
PROBE_SIZES = {"n_samples": 4096, "n_test": 4096, "width": 64}

#: Sizes up to which the probe calls grabs too: beyond these, some take too long for a launch.
PROBE_GRABS = {"width": 256, "n_samples": 2048, "n_test": 10_000}

#: The most values of an argument that are probed where it is a name, a flag or a function.
MOST_CHOICES = 8

#: The most combinations of arguments of the library's own functions that the probe checks.
PROBED_ARGUMENTS = 64

#: Trainings of this length or more start with a step that finds out whether all grabs work.
SMOKE_TEST_STEPS = 1000

#: Settings for one step of training.
ONE_STEP: dict[str, Any] = {"max_iter": 1, "compile": "auto"}


def probe(sweep: Sweep) -> None:
    """Train one step of a few configs on the CPU, so that errors show at launch.

    The global generators and the number of threads are restored.

    A data function runs on workers only. If batches need its entries, only names are checked, and
    the arguments of the library's own recipes.

    Raises:
        SpecError: where functions and settings do not fit together, or a function raises.
        GrabError: from a grab that fails on the initial networks.
    """
    errors: list[str] = []
    with global_state_kept():
        for check in (_probe_lr_factors, _probe_arguments, _probe_configs):
            with collected(errors):
                check(sweep)
        if errors:
            # The training meets a pattern of LR_FACTORS that matches nothing, too.
            told = [
                error for error in errors if any(one.startswith(f"{error} (at ") for one in errors)
            ]
            raise SpecError(error for error in dict.fromkeys(errors) if error not in told)
        for hyperparameters in _scaled_differently(sweep):
            warn_of_missing_theory([hyperparameters])
    _warn_of_early_stops(sweep)


def _probe_configs(sweep: Sweep) -> None:
    """Train one step of the probed configs, or check names where batches need the data."""
    _probe_initial_weights(sweep)
    measured = named_grabs(sweep)
    given = dict.fromkeys(name for values in values_of(sweep, "datasethps") for name in values)
    _warn_of_unused(sweep, given)
    if 0 in values_of(sweep, "n_test"):
        refuse_without_test_set(measured)
    for config in _probed(sweep):
        hyperparameters = config.hyperparameters
        if hyperparameters.optimizer not in OPTIMIZERS:
            optimizer_class(hyperparameters.optimizer)
        entry = _entry(sweep, config)
        with _errors_of_functions(config):
            _check_lr_schedule(sweep, config, entry or {})
        if entry is None:
            continue
        offered = {**offered_settings(sweep, config), **entry, **dict.fromkeys(SUPPLIED)}
        for name, grab in measured.items():
            pick(grab, offered, f"grab {name!r}")
        small = all(getattr(hyperparameters, name) <= most for name, most in PROBE_GRABS.items())
        with_grabs = bool(measured) and small
        sizes: dict[str, Any] = {} if with_grabs else _smaller(hyperparameters)
        sizes["init_weights"] = None  # of the sizes of the training
        with _errors_of_functions(config):
            _train_one_step(sweep, config.replaced(**ONE_STEP, **sizes), entry, with_grabs)
            called = [*measured] if with_grabs else []
            check_resumable(sweep, config.replaced(**sizes), entry, torch.device("cpu"), called)
            warn_of_single_configs(sweep, config.replaced(**ONE_STEP, **sizes), entry)


def _check_lr_schedule(sweep: Sweep, config: Config, entry: Mapping[str, Any]) -> None:
    """Call a callable LR_SCHEDULE for the last step, too, which the probe does not train.

    Raises:
        SpecError: where it returns no finite number >= 0.
    """
    context = settings_of(sweep, config, entry, torch.device("cpu"))
    schedule = bound_lr_schedule(sweep, config, context)
    if sweep.data is None or entry or not callable(schedule) or not _needs_more(schedule):
        check_lr_schedule(config.hyperparameters.model_copy(update={"lr_schedule": schedule}))


def _needs_more(schedule: Callable[..., Any]) -> bool:
    """Return whether a function needs arguments after its first: entries of data."""
    first = len(POSITIONAL["lr_schedule"])
    further = further_arguments(schedule, first).values()
    return any(p.default is p.empty for p in further)


def _probe_lr_factors(sweep: Sweep) -> None:
    """Check LR_FACTORS against the parameters of each model that it is used with.

    Raises:
        SpecError: listing patterns that match no parameter, with the first point that has them.
    """
    if not any(values_of(sweep, "lr_factors")):
        return
    errors: dict[str, str] = {}
    points = _points_of(sweep, {"lr_factors", "model", "depth"})
    for config in itertools.islice(points, PROBED_ARGUMENTS):
        with _errors_of_functions(config):
            names = _parameter_names(sweep, config)
        try:
            if names is not None:
                check_lr_factors(config.hyperparameters.lr_factors, names)
        except SpecError as error:
            place = f" (at {config!r})" if config.point else ""
            errors.update({message: message + place for message in error.errors})
    if errors:
        raise SpecError(errors.values())


def _parameter_names(sweep: Sweep, config: Config) -> list[str] | None:
    """Return the names of the trained parameters; None if they depend on data of the workers."""
    if config.hyperparameters.model == "mlp":
        model = call(MLP, {**config.settings, "d_in": 1, "d_out": 1, "width": 1})
    elif (entry := _entry(sweep, config)) is not None:
        smaller = config.replaced(init_weights=None, **_smaller(config.hyperparameters))
        model = assemble(sweep, [smaller], [entry], torch.device("cpu"))[0].models[0]
    else:
        return None
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _probe_initial_weights(sweep: Sweep) -> None:
    """Check that the first config with INIT_WEIGHTS can begin from its networks.

    Of the size that it trains with; where its data is computed by workers, they check it.
    """
    if sweep.initial is None:
        return
    config = next(one for one in sweep if one.hyperparameters.init_weights is not None)
    if (entry := _entry(sweep, config)) is not None:
        with _errors_of_functions(config):
            assemble(sweep, [config], [entry], torch.device("cpu"))


def _entry(sweep: Sweep, config: Config) -> Mapping[str, Any] | None:
    """Return the data entries of a config, or None if only workers compute them."""
    arguments = data_arguments(sweep, config)  # checks them, too
    if sweep.data is None:
        return {}
    if not _is_cheap(sweep):
        return None
    with functions_dtype(config.hyperparameters.precision):
        entries: Mapping[str, Any] = call(sweep.data, arguments)
    return entries


def _is_cheap(sweep: Sweep) -> bool:
    """Return whether a launch may call the data function."""
    return bool(getattr(getattr(sweep.data, "func", None), "cheap", False))


def _warn_of_unused(sweep: Sweep, given: Collection[str]) -> None:
    """Warn once of all keys of datasethps that no function takes: some may be misspelt.

    A dictionary that serves several data functions, as in MLPscape, is taken whole.
    """
    known = sweep.accepted.declared
    unused = sorted(name for name in given if not sweep.accepted.takes(name))
    if unused:
        free = known - set(given)
        hints = ", ".join(f"{name!r}{did_you_mean(name, free)}" for name in unused)
        warnings.warn(
            f"datasethps: no function of the spec takes {hints}; they take "
            f"{', '.join(sorted(known))}",
            stacklevel=2,
        )


def _warn_of_early_stops(sweep: Sweep) -> None:
    """Warn where the default thresholds on the train loss may stop configs before others are met.

    Then the steps to those would be "never", of a training that nobody meant to end.
    """
    given = sweep.base.model_fields_set.union(*(axis.names for axis in sweep.product.axes))
    asked = {
        name: own
        for values in values_of(sweep, "metric_thresholds")
        for name, own in values.items()
        if own
    }
    if not asked or not given.isdisjoint({"loss_checkpoints", "percent_thresholds", "stop_on"}):
        return
    name, thresholds = next(iter(asked.items()))
    measured = with_asked_for(sweep.base.metrics, asked)
    furthest = crossing_order(measured, name, thresholds)[-1]
    last = min(sweep.base.thresholds)
    warnings.warn(
        f"METRIC_THRESHOLDS: a config stops once its train loss is below {last:g}, the default of "
        f"LOSS_CHECKPOINTS, even if {name} has not crossed {furthest:g}; write "
        f"LOSS_CHECKPOINTS=[] to train on, STOP_ON={name!r} to stop there, or "
        "STOP_ON='train_loss' if this is meant",
        stacklevel=2,
    )


def _smaller(hyperparameters: Hyperparameters) -> dict[str, int]:
    """Return the sizes of a probe without grabs: those of the config, up to a limit."""
    names = [*PROBE_SIZES] if hyperparameters.model == "mlp" else ["n_samples", "n_test"]
    return {name: min(getattr(hyperparameters, name), PROBE_SIZES[name]) for name in names}


def _probed(sweep: Sweep) -> Iterator[Config]:
    first = next(iter(sweep))
    yield first
    for axis in sweep.product.axes:
        for name in axis.names:
            values: Sequence[Any] = axis.values(name)
            if name not in PROBED:
                taken = name in sweep.accepted.declared | sweep.accepted.of_mlp
                values = _choices(values) if taken else []
            for point in axis.points[1 : len(values)]:  # whole: values that are zipped may not fit
                yield first.replaced(**dict(zip(axis.names, point, strict=True)))


def _scaled_differently(sweep: Sweep) -> Iterator[Hyperparameters]:
    """Yield settings with every combination of what decides how learning rates are scaled."""
    choices = []
    for axis in sweep.product.axes:
        found: dict[Any, dict[str, Any]] = {}
        for point in axis.points:
            own = {n: v for n, v in zip(axis.names, point, strict=True) if n in SCALED}
            kinds = [(n, SCALED[n](value)) for n, value in own.items()]
            found.setdefault(tuple(kinds), own)
        choices.append(found.values())
    first = next(iter(sweep))
    for combination in itertools.product(*choices):
        settings = {name: value for own in combination for name, value in own.items()}
        yield first.replaced(**settings).hyperparameters


def _choices(values: Sequence[Any]) -> Sequence[Any]:
    """Return the first values of an axis that choose what a function does, and are no amounts."""
    few = values[:MOST_CHOICES]
    return few if all(isinstance(one, (str, bool)) or callable(one) for one in few) else []


def _probe_arguments(sweep: Sweep) -> None:
    """Check every combination of values on axes that the library's own functions are given.

    The user's functions are not called for each: they may read files.

    Raises:
        SpecError: listing each distinct error of the functions with the first point that has it.
    """
    check = getattr(getattr(sweep.data, "func", None), "check", None)
    functions = [f for f in (sweep.data, sweep.batchfn) if f is not None and _of_library(f)]
    names = set().union({"n_samples"}, *map(declared, functions))  # they declare it as bsz
    errors: dict[str, str] = {}
    points = _points_of(sweep, names) if functions else iter(())
    for config in itertools.islice(points, PROBED_ARGUMENTS):
        try:
            if check is not None:
                check({**_defaults(functions[0]), **data_arguments(sweep, config)})
            entry = _entry(sweep, config)
            if entry is not None and sweep.batchfn in functions:
                make_batches(sweep, config, entry)
        except SpecError as error:
            place = f" (at {config!r})" if config.point else ""
            for message in error.errors:
                errors.setdefault(message, message + place)
    if errors:
        raise SpecError(errors.values())


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the arguments of a function that is called without any: bound ones and defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _of_library(function: Callable[..., Any]) -> bool:
    inner = getattr(function, "func", function)
    return str(getattr(inner, "__module__", "")).startswith("mlpsubmit.batchfns")


def _points_of(sweep: Sweep, names: set[str]) -> Iterator[Config]:
    """Yield a config for each point of the axes with these names that ``where`` keeps."""
    axes, first = sweep.product.axes, next(iter(sweep))
    own = [number for number, axis in enumerate(axes) if names & set(axis.names)]
    product = Product(tuple(axes[number] for number in own))
    points = product.points()
    if sweep.included is not None and own:
        columns = np.unravel_index(np.flatnonzero(sweep.included), sweep.product.shape)
        indices = np.ravel_multi_index([columns[number] for number in own], product.shape)
        points = map(product.point, np.unique(indices).tolist())
    for point in points:
        yield first.replaced(**point)


def smoke_test_grabs(
    sweep: Sweep, config: Config, entry: Mapping[str, Any], device: torch.device
) -> None:
    """Train one step of a config before a long training, to find a grab that fails.

    Where whole traces are kept, grabs are called after the first step anyway.

    Raises:
        GrabError: from the grab.
    """
    hyperparameters = config.hyperparameters
    long = hyperparameters.onlythresholds and hyperparameters.max_iter >= SMOKE_TEST_STEPS
    if long and named_grabs(sweep):
        for stack in assemble(sweep, [config.replaced(**ONE_STEP)], [entry], device):
            stack.train()


def smoke_test(
    sweep: Sweep,
    config: Config,
    entry: Mapping[str, Any],
    device: torch.device,
    checked: set[tuple[int, ...]],
) -> None:
    """Find errors of a config's functions on a worker, before its training.

    Besides a grab that fails, functions that keep state, where a launch could not: their data are
    computed on a worker.

    Args:
        checked: the functions for which this was done; they are added.

    Raises:
        GrabError: from the grab.
        SpecError: for a function that keeps state.
    """
    smoke_test_grabs(sweep, config, entry, device)
    settings = config.hyperparameters
    chosen = [getattr(settings, name) for name in PROBED if name != "metrics"]
    chosen += [metric.function for metric in settings.metrics.values()]
    functions = tuple(map(id, chosen))
    if sweep.data is not None and not _is_cheap(sweep) and functions not in checked:
        check_resumable(sweep, config, entry, device)
        checked.add(functions)


def _train_one_step(
    sweep: Sweep, config: Config, entry: Mapping[str, Any], with_grabs: bool
) -> None:
    for stack in assemble(sweep, [config], [entry], torch.device("cpu")):
        if not with_grabs:
            stack.grabs = {}
        stack.train()


@contextlib.contextmanager
def _errors_of_functions(config: Config) -> Iterator[None]:
    """Report an error of a function of the spec with the place in the user's file."""
    try:
        yield
    except (UserError, KeyboardInterrupt, EndOfSpec):
        raise
    except BaseException as error:
        text = error_text(error) + missing_file(error)
        place = ""
        for frame in user_frames(error.__traceback__):
            place = f" at {frame.filename}, line {frame.lineno}"
        raise SpecError(f"a function of the spec raised {text}{place}: {config!r}") from error
