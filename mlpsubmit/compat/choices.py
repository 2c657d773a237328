"""The classes a script chooses: of its model, its optimizer, its loss, and how it initialises.

modelscape has several names for each, and calls a class with whatever of global_config it takes.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from mlpsubmit.arguments import declared, function_name
from mlpsubmit.compat.functions import Model, PostInit, SqueezedLoss, as_built
from mlpsubmit.compat.modules import load_from_file
from mlpsubmit.compat.script import Script
from mlpsubmit.compat.tensors import on_device
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.spec import hyperparameters as hp
from mlpsubmit.training.models import MLP

__all__ = [
    "CHOICES",
    "INSTANCES",
    "MODEL_FILES",
    "OPTIMIZER_SETTINGS",
    "Chosen",
    "choose",
    "is_own_model",
    "losses",
    "models",
    "optimizers",
    "parametrizations",
]

#: What stands for a hyperparameter under another name; the first that is there counts.
CHOICES = {
    "MODEL_CLASS": "model",
    "model_class": "model",
    "OPTIMIZER_CLASS": "optimizer",
    "optimizer_class": "optimizer",
    "OPTIMIZER_FN": "optimizer",
    "optimizer_fn": "optimizer",
    "LOSS_INSTANCE": "loss",
    "loss_instance": "loss",
    "LOSS_CLASS": "loss",
    "loss_class": "loss",
    "LOSS_FN": "loss",
    "loss_fn": "loss",
    "POST_INIT_FN": "parametrization",
    "post_init_fn": "parametrization",
}

#: The file and the name of a MODEL_CLASS.
MODEL_FILES = (("MODEL_FILE", "MODEL_NAME"), ("model_file", "model_name"))

#: Optimizers that are bound to the parameters of a model: none is there yet.
INSTANCES = ("OPTIMIZER_INSTANCE", "optimizer_instance")

#: Hyperparameters that are arguments of optimizers.
OPTIMIZER_SETTINGS = ("momentum", "nesterov", "weight_decay", "betas", "eps")

_PACKED = {torch.optim.SGD: "sgd", torch.optim.Adam: "adam", torch.optim.AdamW: "adamw"}


class Chosen(NamedTuple):
    """What a script chooses for one hyperparameter.

    Attributes:
        place: under which name, for messages.
        values: one, or those that an iterator runs over.
    """

    place: str
    values: list[Any]


def choose(config: Mapping[str, Any], hyperparameter: str) -> Chosen | None:
    """Return what global_config chooses for a hyperparameter, or None where it leaves it open.

    Raises:
        SpecError: where a file that it names has no such class.
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


def is_own_model(chosen: Chosen | None) -> bool:
    """Tell whether a script brings a model of its own."""
    return chosen is not None and [str(value).lower() for value in chosen.values] != ["mlp"]


def models(chosen: Chosen | None, script: Script) -> list[Any]:
    """Return values of MODEL; that of a script that chooses none is our own MLP."""
    if chosen is not None and is_own_model(chosen):
        return [_model(chosen.place, cls, script) for cls in chosen.values]
    further = {"bias", "nonlinearity"} & {*script.settings, *script.constants}
    return [_model("MODEL", MLP, script, own_outputs=False)] if further else ["mlp"]


def _model(place: str, cls: Any, script: Script, own_outputs: bool = True) -> Model:
    if not callable(cls):
        raise SpecError(f"{place}: got {cls!r}; should be a class or function that makes a network")
    supplied = {"d_in", "input_shape"} - {*script.settings, *script.constants}
    # A class with a d_out of its own keeps it unless the script says otherwise, as in modelscape.
    d_out = inspect.signature(cls).parameters.get("d_out")
    if d_out is not None and not (own_outputs and d_out.default is not d_out.empty):
        supplied |= {"d_out"} - {*script.settings}
    return Model(*script.match(place, cls, sorted(supplied), declared_only=True))


def parametrizations(chosen: Chosen | None, script: Script, own_model: bool) -> list[Any]:
    """Return values of PARAMETRIZATION.

    Without any, our MLP is trained in mup, as in MLPscape, and a model of the script's own stays as
    it was built, as in modelscape.
    """
    if chosen is None:
        return [as_built if own_model else "mup"]
    if chosen.place not in CHOICES:
        return [hp.validate_one("parametrization", value) for value in chosen.values]
    supplied = ("model", "opt", "optimizer", "lr", "gamma")
    for function in chosen.values:
        if not callable(function):
            raise SpecError(f"{chosen.place}: got {function!r}; should be a function of model, opt")
    return [PostInit(*script.match(chosen.place, f, supplied)) for f in chosen.values]


def losses(chosen: Chosen | None, script: Script) -> list[Any]:
    """Return values of LOSS: those that train in packs by name, others as callables."""
    if chosen is None:
        return ["mse"]
    return [_loss(chosen.place, value, script) for value in chosen.values]


def _loss(place: str, value: Any, script: Script) -> Any:
    if isinstance(value, str):
        if value.lower() in hp.LOSSES:
            return value.lower()
        value = _of_torch(place, value, nn, "loss", "MSELoss or CrossEntropyLoss")
    if not callable(value):
        raise SpecError(f"{place}: got {value!r}; should be a loss of torch.nn or its name")
    if isinstance(value, nn.Module):
        return _packed_loss(value)
    parameters = inspect.signature(value).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty and p.kind in positional]
    if not isinstance(value, type) and len(needed) >= 2:
        return SqueezedLoss(value)  # a function of output and targets, and no class
    own = {name: script.constants[name] for name in declared(value) if name in script.constants}
    made = value(**own)
    if not callable(made):
        raise SpecError(f"{place}: {function_name(value)} made {made!r}; should make a loss")
    return _packed_loss(made)


def _packed_loss(loss: Any) -> Any:
    """Return the name of a loss that a pack computes at once, or a callable."""
    if type(loss) is nn.MSELoss and loss.reduction == "mean":
        return "mse"
    if type(loss) is nn.CrossEntropyLoss and loss.weight is None:
        plain, names = nn.CrossEntropyLoss(), ("reduction", "ignore_index", "label_smoothing")
        if all(getattr(loss, name) == getattr(plain, name) for name in names):
            return "cross_entropy"
    return SqueezedLoss(on_device(loss, "cpu"))


def optimizers(
    chosen: Chosen | None, script: Script, given: Mapping[str, Any], iterated: Iterable[str]
) -> tuple[list[Any], dict[str, Any]]:
    """Return values of OPTIMIZER, and the hyperparameters that go with them.

    SGD, Adam and AdamW train in packs, with the arguments that hyperparameters are; any other
    class, and these with other arguments, carry theirs along.

    Args:
        given: those of OPTIMIZER_SETTINGS that the script sets.
        iterated: those that are axes.
    """
    place, values = chosen or ("optimizer", ["sgd"])
    classes = [_optimizer(place, value) for value in values]
    bound = [_arguments(cls, script, given, set(iterated)) for cls in classes]
    merged = {name: value for own in bound for name, value in own.items()}
    pairs = list(zip(classes, bound, strict=True))
    if all(_trains_in_packs(cls, own, merged) for cls, own in pairs):
        settings = {name: value for name, value in merged.items() if name not in iterated}
        return [_PACKED[cls] for cls in classes], settings
    return [functools.partial(cls, **own) if own else cls for cls, own in pairs], {}


def _optimizer(place: str, value: Any) -> Any:
    if isinstance(value, str):
        known = {name: cls for cls, name in _PACKED.items()}.get(value.lower())
        return known or _of_torch(place, value, torch.optim, "optimizer", "SGD, Adam or AdamW")
    if not callable(value):
        raise SpecError(f"{place}: got {value!r}; should be a class of torch.optim or its name")
    return value


def _arguments(
    cls: Any, script: Script, given: Mapping[str, Any], iterated: set[str]
) -> dict[str, Any]:
    """Return the arguments that an optimizer takes out of global_config, by name."""
    parameters = inspect.signature(cls).parameters
    takes = set(parameters) - {"params", "lr"}
    own = {name: value for name, value in script.constants.items() if name in takes}
    if "lr" in parameters and parameters["lr"].default is inspect.Parameter.empty:
        own["lr"] = 1.0  # of no effect: every group of parameters brings its own
    for name in OPTIMIZER_SETTINGS:
        if name not in takes:
            continue
        ours, theirs = hp.Hyperparameters.model_fields[name].default, parameters[name].default
        if name in given:
            own[name] = given[name]
        elif name in iterated:
            own[name] = ours  # what an axis leaves at our default, nobody hands to the class
        elif cls in _PACKED and theirs != ours:
            own[name] = theirs
    return own


def _trains_in_packs(cls: Any, own: Mapping[str, Any], merged: Mapping[str, Any]) -> bool:
    """Tell whether an optimizer can be given by name, with hyperparameters for its arguments."""
    if cls not in _PACKED or set(own) - set(OPTIMIZER_SETTINGS):
        return False
    takes = set(inspect.signature(cls).parameters)
    return all(own.get(name) == value for name, value in merged.items() if name in takes)


def _of_torch(place: str, name: str, module: Any, what: str, example: str) -> Callable[..., Any]:
    """Return the class that a script names.

    Raises:
        SpecError: where torch has none of that name.
    """
    kind = nn.Module if module is nn else torch.optim.Optimizer
    classes = {n: c for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, kind)}
    if name not in classes:
        raise SpecError(
            f"{place}: got {name!r}{did_you_mean(name, classes)}; should be the name of a {what} "
            f"of {module.__name__}, such as {example}, or a class"
        )
    found: Callable[..., Any] = classes[name]
    return found
