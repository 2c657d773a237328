"""The functions of a script as parts of a sweep, which calls them as MLPscape does.

A sweep has canonical names for its axes and hyperparameters; a script's functions use the script's
own names, and further entries of its configuration. Each object here declares the sweep's names and
calls the function with the script's.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from mlpsubmit.arguments import declared, function_name, takes_all
from mlpsubmit.batchfns.fixed_batch import fixed
from mlpsubmit.compat.tensors import on_device, training_on
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.spec import hyperparameters as hp

__all__ = [
    "BatchFunction",
    "ByName",
    "Context",
    "Grab",
    "Model",
    "PostInit",
    "SqueezedLoss",
    "as_built",
]


@dataclass(frozen=True, eq=False)
class ByName:
    """A function of a script, and the sources of its arguments.

    Attributes:
        func: the function or class.
        supplied: its arguments that the train loop supplies.
        settings: its arguments that are settings of the sweep, {script's name: sweep's name}.
        constants: its arguments that are the same for every config, by name; tensors on the CPU.
    """

    func: Callable[..., Any]
    supplied: tuple[str, ...]
    settings: Mapping[str, str]
    constants: Mapping[str, Any]

    #: Arguments from the train loop that the object itself needs.
    needs: ClassVar[tuple[str, ...]] = ()

    @property
    def __signature__(self) -> inspect.Signature:
        """The arguments that the sweep and the train loop pass, by their names."""
        return _keyword_signature(*self.needs, *self.supplied, *self.settings.values())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_copies"}

    def arguments(
        self,
        offered: Mapping[str, Any],
        device: torch.device,
        supplied: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the arguments of the function, tensors on a device.

        Args:
            offered: the values of the sweep and of the train loop, by their names.
            supplied: values of the train loop that are not in ``offered``.
        """
        loop = offered if supplied is None else supplied
        settings = {name: on_device(offered[own], device) for name, own in self.settings.items()}
        return {
            **self._constants_on(device),
            **settings,
            **{name: loop[name] for name in self.supplied},
        }

    def _constants_on(self, device: torch.device) -> dict[str, Any]:
        """Return the constants; each tensor is copied to a device once."""
        copies: dict[torch.device, Any] = self.__dict__.setdefault("_copies", {})
        if device not in copies:
            copies[device] = on_device(dict(self.constants), device)
        moved: dict[str, Any] = copies[device]
        return moved


_Bound = TypeVar("_Bound", bound=ByName)


def _keyword_signature(*names: str) -> inspect.Signature:
    return inspect.Signature(
        [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in dict.fromkeys(names)]
    )


@dataclass(frozen=True)
class Context:
    """The values that a script gives its functions by name.

    Attributes:
        settings: iterators and hyperparameters, {script's name: sweep's name}.
        constants: the other entries of global_config.
        hidden: entries that change no result, passed only to functions that declare them.
    """

    settings: Mapping[str, str]
    constants: Mapping[str, Any]
    hidden: Mapping[str, Any] = field(default_factory=dict)

    def bind(
        self,
        kind: type[_Bound],
        place: str,
        function: Callable[..., Any],
        supplied: Sequence[str] = (),
        *,
        declared_only: bool = False,
    ) -> _Bound:
        """Return a function with the sources of the arguments that it takes.

        It takes those it declares, and with ``**kwargs`` all of the settings and constants.

        Args:
            place: the setting that holds the function, for messages.
            supplied: names from the train loop; they win over settings, and these over constants.
            declared_only: pass nothing to ``**kwargs``.

        Raises:
            SpecError: if an argument without a default has no source.
        """
        taken = declared(function)
        if takes_all(function) and not declared_only:
            taken = {*supplied, *self.settings, *self.constants, *taken}
        settings: dict[str, str] = {}
        constants: dict[str, Any] = {}
        given = {**self.hidden, **self.constants}
        for name in sorted(taken.difference(supplied)):
            if (setting := self._setting(name)) is not None:
                settings[name] = setting
            elif name in given:
                constants[name] = given[name]
        if lacking := _required(function) - {*supplied, *settings, *constants}:
            known = sorted({*supplied, *self.settings, *given})
            raise SpecError(
                f"{place}: {function_name(function)} needs {name!r}{did_you_mean(name, known)}; "
                f"available are {', '.join(known)}; give it in global_config, as an iterator, or "
                "with a default"
                for name in sorted(lacking)
            )
        return kind(function, tuple(n for n in supplied if n in taken), settings, constants)

    def _setting(self, name: str) -> str | None:
        """Return the sweep's name of a setting; hyperparameters match in any spelling."""
        canonical = hp.canonical_name(name)
        own = canonical if canonical in self.settings.values() else None
        return self.settings.get(name, own)


def _required(function: Callable[..., Any]) -> set[str]:
    """Return the names of the arguments that have no default."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.default is p.empty} & declared(function)


@dataclass(frozen=True, eq=False)
class BatchFunction(ByName):
    """The ``base_bfn`` of a script, as a batch function.

    Attributes:
        test_set: X_te and y_te, if the script gives them; they replace its test batches.
        idle: axes that no function takes, declared here so that the sweep accepts them.
    """

    test_set: tuple[Any, Any] | None = None
    idle: tuple[str, ...] = ()

    needs: ClassVar[tuple[str, ...]] = ("gen", "split")

    @property
    def __signature__(self) -> inspect.Signature:
        """The arguments that the sweep and the train loop pass, by their names."""
        return _keyword_signature(*super().__signature__.parameters, *self.idle)

    def __call__(self, **offered: Any) -> Any:
        """Return ``batch_fn(step) -> (X, y)``."""
        device = offered["gen"].device
        if offered["split"] == "test" and self.test_set is not None:
            X, y = (torch.as_tensor(part) for part in self.test_set)
            return fixed(X.to(device), y.to(device))
        with training_on(device):
            batch_fn = self.func(**self.arguments(offered, device))
        return functools.partial(_draw, batch_fn, device) if callable(batch_fn) else batch_fn


def _draw(batch_fn: Callable[[int], Any], device: torch.device, step: int) -> Any:
    with training_on(device):
        return batch_fn(step)


@dataclass(frozen=True, eq=False)
class Grab(ByName):
    """A function in a script's ``otherreturns``, as a grab."""

    needs: ClassVar[tuple[str, ...]] = ("device",)

    def __call__(self, **offered: Any) -> Any:
        """Measure."""
        device = torch.device(offered["device"])
        with training_on(device):
            return self.func(**self.arguments(offered, device))


@dataclass(frozen=True, eq=False)
class Model(ByName):
    """The ``MODEL_CLASS`` of a script, as a MODEL."""

    def __call__(self, **offered: Any) -> Any:
        """Build the model, with copies of any modules among the constants."""
        return self.func(**on_device(self.arguments(offered, torch.device("cpu")), "cpu"))


@dataclass(frozen=True, eq=False)
class PostInit(ByName):
    """The ``POST_INIT_FN`` of a script, as a PARAMETRIZATION that applies gamma itself."""

    @property
    def __signature__(self) -> inspect.Signature:
        """The model, its optimizer, gamma, and the settings that the function takes.

        OPTIMIZER is among them: modelscape's functions set the lr for the optimizer at hand.
        """
        positional = [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            for name in ("model", "opt")
        ]
        names = ("gamma", "optimizer", *self.settings.values())
        return inspect.Signature([*positional, *_keyword_signature(*names).parameters.values()])

    def __call__(self, model: nn.Module, opt: torch.optim.Optimizer, **offered: Any) -> None:
        """Initialise the model, and set the lr of each of its parameters.

        Raises:
            SpecError: if the function returns another model or optimizer.
        """
        supplied = {"model": model, "opt": opt, "optimizer": opt}
        supplied |= {"lr": opt.param_groups[0]["lr"], "gamma": offered["gamma"]}
        returned = self.func(**self.arguments(offered, torch.device("cpu"), supplied))
        pair = returned if isinstance(returned, tuple) and len(returned) == 2 else None
        if pair is not None and not (pair[0] is model and pair[1] is opt):
            raise SpecError(
                f"POST_INIT_FN {function_name(self.func)}: returned another model or optimizer; "
                "it should change those that it is given, in place"
            )


def as_built(
    model: nn.Module, opt: torch.optim.Optimizer, gamma: float, optimizer: Any = None
) -> None:
    """Leave a model as it was built: modelscape's MODEL_CLASS without a POST_INIT_FN.

    GAMMA rescales the lr alone: a parametrization that takes gamma divides the outputs itself. One
    that takes optimizer sets the lr for any, as functions of modelscape do.
    """


@dataclass(frozen=True, eq=False)
class SqueezedLoss:
    """A loss of torch, applied to outputs and targets without dimensions of size one."""

    func: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, output: Tensor, y: Tensor) -> Tensor:
        """Return the loss of one config, a scalar."""
        if isinstance(self.func, nn.Module):
            self.func.to(output.device)  # class weights, for example
        return self.func(output.squeeze(), y.squeeze())
