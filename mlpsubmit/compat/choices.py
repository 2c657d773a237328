"""The code that a script chooses: its model, optimizer, loss and initialisation.

modelscape has several names for each, and calls a class with the entries of global_config that it
declares.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from mlpsubmit.arguments import function_name
from mlpsubmit.compat.files import load_from_file
from mlpsubmit.compat.functions import ByName, Context, Model, PostInit, SqueezedLoss, as_built
from mlpsubmit.compat.tensors import on_device
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.spec import hyperparameters as hp
from mlpsubmit.spec.hyperparameters import STACKED, Hyperparameters
from mlpsubmit.spec.optimizer_settings import OPTIMIZERS, default_of
from mlpsubmit.training.models import MLP
from mlpsubmit.training.optimizers.torch_optimizer import optimizer_class

__all__ = [
    "CHOICES",
    "INSTANCES",
    "MLP",
    "MODEL_FILES",
    "OPTIMIZER_SETTINGS",
    "Chosen",
    "read_code",
]

#: modelscape's names of hyperparameters that are code; the first that is there counts.
CHOICES = {
    spelling: hyperparameter
    for name, hyperparameter in (
        ("MODEL_CLASS", "model"),
        ("OPTIMIZER_CLASS", "optimizer"),
        ("OPTIMIZER_FN", "optimizer"),
        ("LOSS_INSTANCE", "loss"),
        ("LOSS_CLASS", "loss"),
        ("LOSS_FN", "loss"),
        ("POST_INIT_FN", "parametrization"),
    )
    for spelling in (name, name.lower())
}

#: The file and the name of a MODEL_CLASS.
MODEL_FILES = (("MODEL_FILE", "MODEL_NAME"), ("model_file", "model_name"))

#: Names of optimizers bound to the parameters of an existing model, which no config has.
INSTANCES = ("OPTIMIZER_INSTANCE", "optimizer_instance")

#: Hyperparameters that are arguments of optimizers.
OPTIMIZER_SETTINGS = ("momentum", "nesterov", "weight_decay", "betas", "eps")

_STACKED_OPTIMIZERS = {
    torch.optim.SGD: "sgd",
    torch.optim.Adam: "adam",
    torch.optim.AdamW: "adamw",
}

_STACKED_LOSSES = {nn.MSELoss: "mse", nn.CrossEntropyLoss: "cross_entropy"}

_LOSS_ARGUMENTS = ("reduction", "weight", "ignore_index", "label_smoothing")


class Chosen(NamedTuple):
    """The values of a hyperparameter that is code.

    Attributes:
        place: the setting that holds them, for messages.
        values: one, or those of an iterator.
    """

    place: str
    values: list[Any]


def read_code(
    config: Mapping[str, Any], varied: Mapping[str, Chosen], context: Context, has_d_out: bool
) -> dict[str, list[Any]]:
    """Return the values of the hyperparameters that are code, and of those that depend on them.

    Args:
        config: global_config.
        varied: the values of each iterator, by the sweep's names.
        context: the values that functions get by name.
        has_d_out: whether the script sets D_OUT.

    Raises:
        SpecError: for the first choice that is not valid.
    """
    model, loss, parametrization, optimizer = (
        varied.get(name) or _choice(config, name)
        for name in ("model", "loss", "parametrization", "optimizer")
    )
    custom = model is not None and [str(value).lower() for value in model.values] != ["mlp"]
    optimizers, arguments = _optimizers(optimizer, context, varied)
    code = {
        "model": _models(model if custom else None, context),
        "loss": [_loss(loss.place, value, context) for value in loss.values] if loss else ["mse"],
        "parametrization": _parametrizations(parametrization, context, custom),
        "optimizer": optimizers,
        **{name: [value] for name, value in arguments.items()},
    }
    sized = all(isinstance(made, Model) and "d_out" not in made.supplied for made in code["model"])
    if "cross_entropy" in code["loss"] and sized and not has_d_out:
        code["d_out"] = [1]  # no model takes it, but it cannot be inferred from class labels
    if _differ_in_code(code["parametrization"], varied):
        code["pack_size"] = [1]
    return code


def _choice(config: Mapping[str, Any], hyperparameter: str) -> Chosen | None:
    """Return the value of a hyperparameter in global_config, or None if it has none.

    Raises:
        SpecError: if a file that it names has no such class.
    """
    keys = [key for key, name in CHOICES.items() if name == hyperparameter]
    keys += [key for key in config if hp.canonical_name(key) == hyperparameter]
    for key in keys:
        if config.get(key) is not None:
            return Chosen(key, [config[key]])
    for file, name in MODEL_FILES if hyperparameter == "model" else ():
        if config.get(file) is not None and config.get(name) is not None:
            return Chosen(file, [load_from_file(file, config[file], config[name])])
    return None


def _models(chosen: Chosen | None, context: Context) -> list[Any]:
    """Return the values of MODEL; by default it is the library's MLP."""
    if chosen is not None:
        return [_model(chosen.place, cls, context) for cls in chosen.values]
    if {"bias", "nonlinearity"} & {*context.settings, *context.constants}:
        return [_model("MODEL", MLP, context)]
    return ["mlp"]


def _model(place: str, cls: Any, context: Context) -> Model:
    if not callable(cls):
        raise SpecError(f"{place}: got {cls!r}; should be a class or function that makes a model")
    supplied = {"d_in", "d_out", "input_shape"} - {*context.settings, *context.constants}
    d_out = inspect.signature(cls).parameters.get("d_out")
    if cls is not MLP and d_out is not None and d_out.default is not d_out.empty:
        supplied.discard("d_out")  # its own default, unless the script sets D_OUT: as in modelscape
    return context.bind(Model, place, cls, sorted(supplied), declared_only=True)


def _parametrizations(chosen: Chosen | None, context: Context, custom: bool) -> list[Any]:
    """Return the values of PARAMETRIZATION.

    By default the library's MLP is trained in muP, as in MLPscape, and a custom model stays as it
    was built, as in modelscape.
    """
    if chosen is None:
        return [as_built if custom else "mup"]
    if chosen.place not in CHOICES:
        return [hp.validate_one("parametrization", value) for value in chosen.values]
    supplied = ("model", "opt", "optimizer", "lr", "gamma")
    for function in chosen.values:
        if not callable(function):
            raise SpecError(f"{chosen.place}: got {function!r}; should be a function of model, opt")
    return [context.bind(PostInit, chosen.place, f, supplied) for f in chosen.values]


def _loss(place: str, value: Any, context: Context) -> Any:
    """Return a value of LOSS: a name if the loss trains in packs, else a callable."""
    if isinstance(value, str):
        if value.lower() in hp.LOSSES:
            return value.lower()
        value = _torch_loss(place, value)
    if not callable(value):
        raise SpecError(f"{place}: got {value!r}; should be a loss of torch.nn or its name")
    if not (isinstance(value, nn.Module) or place.upper() == "LOSS_INSTANCE"):
        made = value(**context.bind(ByName, place, value, declared_only=True).constants)
        if not callable(made):
            raise SpecError(f"{place}: {function_name(value)} made {made!r}; should make a loss")
        value = made
    if type(value) in _STACKED_LOSSES and _has_defaults(value):
        return _STACKED_LOSSES[type(value)]
    return SqueezedLoss(on_device(value, "cpu"))


def _torch_loss(place: str, name: str) -> Any:
    known = {n: c for n, c in vars(nn).items() if isinstance(c, type) and issubclass(c, nn.Module)}
    if name not in known:
        raise SpecError(
            f"{place}: got {name!r}{did_you_mean(name, known)}; should be the name of a loss of "
            "torch.nn, such as MSELoss or CrossEntropyLoss, or a class"
        )
    return known[name]


def _has_defaults(loss: nn.Module) -> bool:
    plain = type(loss)()
    return all(getattr(loss, n, None) == getattr(plain, n, None) for n in _LOSS_ARGUMENTS)


def _optimizers(
    chosen: Chosen | None, context: Context, axes: Collection[str]
) -> tuple[list[Any], dict[str, Any]]:
    """Return the values of OPTIMIZER, and the hyperparameters that are their arguments.

    SGD, Adam and AdamW train in packs if all of their arguments are hyperparameters, as those of
    mlpsubmit's own optimizers are. Otherwise each class carries its arguments.

    Args:
        axes: names of hyperparameters that vary.
    """
    place, values = chosen or ("optimizer", ["sgd"])
    classes = [_optimizer(place, value) for value in values]
    arguments = [_optimizer_arguments(cls, context, axes) for cls in classes]
    merged = {name: value for own in arguments for name, value in own.items()}
    pairs = list(zip(classes, arguments, strict=True))
    if all(_is_stacked(cls, own, merged) for cls, own in pairs):
        return [cls if isinstance(cls, str) else _STACKED_OPTIMIZERS[cls] for cls in classes], {
            name: value for name, value in merged.items() if name not in axes
        }
    bound = [functools.partial(cls, **own) if own and callable(cls) else cls for cls, own in pairs]
    by_name = [own for cls, own in pairs if isinstance(cls, str)]
    return bound, {name: value for own in by_name for name, value in own.items()}


def _optimizer(place: str, value: Any) -> Any:
    if isinstance(value, str):
        stacked = {name: cls for cls, name in _STACKED_OPTIMIZERS.items()}
        if value in OPTIMIZERS and value not in stacked:  # of our own: "rmsprop", not "RMSprop"
            return value
        return stacked.get(value.lower()) or optimizer_class(value)
    if not callable(value):
        raise SpecError(f"{place}: got {value!r}; should be a class of torch.optim or its name")
    return value


def _optimizer_arguments(cls: Any, context: Context, axes: Collection[str]) -> dict[str, Any]:
    """Return the arguments of an optimizer class other than its parameters and lr, by name."""
    if isinstance(cls, str):  # of our own: it is an error to give what it does not use
        return {n: context.constants[n] for n in OPTIMIZER_SETTINGS if n in context.constants}
    parameters = inspect.signature(cls).parameters
    own: dict[str, Any] = {}
    if "lr" in parameters and parameters["lr"].default is inspect.Parameter.empty:
        own["lr"] = 1.0  # without effect: each group of parameters has its own
    for name in [name for name in OPTIMIZER_SETTINGS if name in parameters]:
        if name in axes or cls not in _STACKED_OPTIMIZERS:
            continue  # the train loop passes what is set, and nothing else
        theirs = parameters[name].default
        if theirs != default_of(_STACKED_OPTIMIZERS[cls], name):
            own[name] = theirs
    taken = set(parameters) - {"params", "lr"}
    return own | {name: value for name, value in context.constants.items() if name in taken}


def _is_stacked(cls: Any, own: Mapping[str, Any], merged: Mapping[str, Any]) -> bool:
    """Return whether an optimizer can train packs, with hyperparameters for its arguments."""
    if isinstance(cls, str):
        return True
    if cls not in _STACKED_OPTIMIZERS or not set(own) <= set(OPTIMIZER_SETTINGS):
        return False
    taken = inspect.signature(cls).parameters
    return all(own.get(name) == value for name, value in merged.items() if name in taken)


def _differ_in_code(parametrizations: Sequence[Any], axes: Collection[str]) -> bool:
    """Return whether a POST_INIT_FN may bind different values to the models of one pack.

    A pack calls the functions of one model for all of its configs.
    """
    taken = set()
    for function in parametrizations:
        if isinstance(function, PostInit):
            taken |= {*function.settings.values(), *function.supplied}
    taken |= {"gamma"} if "lr" in taken else set()  # the lr that it gets depends on gamma
    within_packs = {a for a in axes if a in STACKED or a not in Hyperparameters.model_fields}
    return bool(taken & (within_packs - {"trial", "seed"}))
