"""What a script's functions become: parts of a sweep that call them as MLPscape does.

A sweep knows its axes and hyperparameters by names of its own; a script's functions know them as
the script spells them, and know what else stands in its configuration. Each object here declares
the sweep's names, and calls the function with the script's.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mlpsubmit.arguments import function_name
from mlpsubmit.batchfns.fixed_batch import fixed
from mlpsubmit.compat.tensors import on_device, training_on
from mlpsubmit.errors import SpecError

__all__ = ["BatchFunction", "ByName", "Grab", "Model", "PostInit", "SqueezedLoss", "as_built"]


@dataclass(frozen=True, eq=False)
class ByName:
    """A function of a script, and where its arguments come from.

    Attributes:
        func: the function, or a class.
        supplied: those of its arguments that the train loop supplies.
        settings: those that the sweep knows, {as the function calls it: name in the sweep}.
        constants: those that are the same for every config, by name; their tensors on the CPU.
    """

    func: Callable[..., Any]
    supplied: tuple[str, ...]
    settings: Mapping[str, str]
    constants: Mapping[str, Any]

    #: What the object itself needs of the train loop.
    needs: ClassVar[tuple[str, ...]] = ()

    @property
    def __signature__(self) -> inspect.Signature:
        """What is wanted of the sweep and the train loop, by their names."""
        names = dict.fromkeys((*self.needs, *self.supplied, *self.settings.values()))
        return inspect.Signature(
            [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_copies"}

    def arguments(
        self,
        offered: Mapping[str, Any],
        device: torch.device,
        supplied: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return what the function is called with, tensors on a device.

        Args:
            offered: what the sweep, and by default the train loop, give by their names.
            supplied: what the train loop gives, where it does so apart.
        """
        apart = offered if supplied is None else supplied
        given = {name: apart[name] for name in self.supplied}
        given |= {name: on_device(offered[own], device) for name, own in self.settings.items()}
        return {**self.constants_on(device), **given}

    def constants_on(self, device: torch.device) -> dict[str, Any]:
        """Return the constants; what has to move to a device moves there once."""
        copies: dict[torch.device, Any] = self.__dict__.setdefault("_copies", {})
        if device not in copies:
            copies[device] = on_device(dict(self.constants), device)
        moved: dict[str, Any] = copies[device]
        return moved


@dataclass(frozen=True, eq=False)
class BatchFunction(ByName):
    """The ``base_bfn`` of a script, as a batch function.

    Attributes:
        test_set: X_te and y_te, where the script gives them; they stand in for its test batches.
        idle: axes that no function takes; the results have them all the same.
    """

    test_set: tuple[Any, Any] | None
    idle: tuple[str, ...]

    needs: ClassVar[tuple[str, ...]] = ("gen", "split")

    @property
    def __signature__(self) -> inspect.Signature:
        """What is wanted of the sweep and the train loop, by their names."""
        known = list(super().__signature__.parameters.values())
        idle = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in self.idle]
        return inspect.Signature(known + idle)

    def __call__(self, **offered: Any) -> Any:
        """Return ``batch_fn(step) -> (X, y)``."""
        device = offered["gen"].device
        if offered["split"] == "test" and self.test_set is not None:
            X, y = (torch.as_tensor(part) for part in self.test_set)
            return fixed(X.to(device), y.to(device))
        with training_on(device):
            batch_fn = self.func(**self.arguments(offered, device))
        return functools.partial(_drawn, batch_fn, device) if callable(batch_fn) else batch_fn


def _drawn(batch_fn: Callable[[int], Any], device: torch.device, step: int) -> Any:
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
        """Build the network, with modules of its own where constants are some."""
        return self.func(**on_device(self.arguments(offered, torch.device("cpu")), "cpu"))


@dataclass(frozen=True, eq=False)
class PostInit(ByName):
    """The ``POST_INIT_FN`` of a script, as a PARAMETRIZATION that deals with gamma itself."""

    @property
    def __signature__(self) -> inspect.Signature:
        """The model, its optimizer, gamma, and what the function takes of the sweep."""
        kind, further = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        names = dict.fromkeys(("gamma", *self.settings.values()))
        return inspect.Signature(
            [inspect.Parameter(name, kind) for name in ("model", "optimizer")]
            + [inspect.Parameter(name, further) for name in names]
        )

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, **offered: Any) -> None:
        """Initialise the model, and set the step sizes of its parameters.

        Raises:
            SpecError: where the function replaces one of the two, instead of changing it.
        """
        given = {"model": model, "opt": optimizer, "optimizer": optimizer}
        given |= {"lr": optimizer.param_groups[0]["lr"], "gamma": offered["gamma"]}
        returned = self.func(**self.arguments(offered, torch.device("cpu"), given))
        pair = returned if isinstance(returned, tuple) and len(returned) == 2 else None
        if pair is not None and not (pair[0] is model and pair[1] is optimizer):
            raise SpecError(
                f"POST_INIT_FN {function_name(self.func)}: returned another model or optimizer; "
                "it should change those that it is given, in place"
            )


def as_built(model: nn.Module, optimizer: torch.optim.Optimizer, gamma: float) -> None:
    """Leave a model as it was built: modelscape's MODEL_CLASS without a POST_INIT_FN.

    GAMMA rescales the learning rate alone, for whoever takes gamma divides the outputs himself.
    """


@dataclass(frozen=True, eq=False)
class SqueezedLoss:
    """A loss of torch, of outputs and targets without dimensions of size one."""

    func: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, output: Tensor, y: Tensor) -> Tensor:
        """Return the loss of one config."""
        if isinstance(self.func, nn.Module):
            self.func.to(output.device)  # class weights, for example
        return self.func(output.squeeze(), y.squeeze())
