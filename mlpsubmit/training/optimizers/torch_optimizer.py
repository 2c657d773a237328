"""Any class of torch.optim, for one config."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mlpsubmit.arguments import function_name
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.spec.hyperparameters import OPTIMIZERS, Hyperparameters
from mlpsubmit.training.optimizers.stacked import Closure, PackOptimizer
from mlpsubmit.training.optimizers.update_rules import known_update
from mlpsubmit.training.parametrizations import Factors
from mlpsubmit.training.stack import Stack

__all__ = ["TorchOptimizer", "optimizer_class"]


class TorchOptimizer(PackOptimizer):
    """Any class of torch.optim, for one config: over the model's parameters, views of the stack.

    The host has to know whether the config is active: a GPU-CPU sync point per step.
    """

    def __init__(
        self,
        stack: Stack,
        common: Hyperparameters,
        base: float,
        factors: Mapping[str, Factors],
    ) -> None:
        cls = optimizer_class(common.optimizer)
        if len(stack) > 1:
            raise SpecError(
                f"OPTIMIZER={function_name(cls)} trains one config at a time, but {len(stack)} are "
                f"to be trained together; set PACK_SIZE=1, or use one of {', '.join(OPTIMIZERS)}"
            )
        named = dict(stack.models[0].named_parameters())
        # Those of learning rate zero are left out, so that nothing else of them changes either.
        self._trained = [i for i, name in enumerate(stack.names) if factors[name].lr]
        names = [stack.names[i] for i in self._trained]
        self._parameters = [named[name] for name in names]
        is_adam = known_update(common.optimizer) == "adam"
        # As few groups as possible: some optimizers take one only.
        own = [factors[name] if is_adam else Factors(factors[name].lr) for name in names]
        distinct = list(dict.fromkeys(own))
        groups = [
            {
                "params": [p for p, other in zip(self._parameters, own, strict=True) if other == f],
                "lr": base * f.lr,
            }
            for f in distinct
        ]
        if not groups:
            raise SpecError(
                f"LR_FACTORS={common.lr_factors!r} leaves no parameter for "
                f"OPTIMIZER={function_name(cls)} to train; leave one out, or use one of "
                f"{', '.join(OPTIMIZERS)}"
            )
        self._optimizer = cls(groups, **_settings(cls, common, base))
        self._lrs = [base * f.lr for f in distinct]
        if is_adam:
            for group, factor in zip(self._optimizer.param_groups, distinct, strict=True):
                group["eps"] *= factor.eps
                if isinstance(self._optimizer, torch.optim.AdamW):
                    group["weight_decay"] *= factor.decay / factor.lr
        closure = inspect.signature(self._optimizer.step).parameters.get("closure")
        self._needs_closure = closure is not None and closure.default is inspect.Parameter.empty

    def step(
        self,
        gradients: Sequence[Tensor],
        active: Tensor,
        closure: Closure,
        scale: Tensor | None = None,
    ) -> None:
        """Update the parameters of the config if it is active."""
        if not bool(active):  # a GPU-CPU sync point
            return
        if scale is not None:
            for group, lr in zip(self._optimizer.param_groups, self._lrs, strict=True):
                group["lr"] = lr * float(scale)  # another sync point
        self._set_gradients(gradients)
        if not self._needs_closure:
            self._optimizer.step()
            return

        def again() -> Tensor:
            losses, gradients = closure()
            self._set_gradients(gradients)
            return losses[0].detach()

        self._optimizer.step(again)

    def _set_gradients(self, gradients: Sequence[Tensor]) -> None:
        for i, parameter in zip(self._trained, self._parameters, strict=True):
            parameter.grad = gradients[i][0].contiguous()  # LBFGS flattens it as a view

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer itself."""
        return dict(self._optimizer.state_dict())

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from a saved state."""
        self._optimizer.load_state_dict(copy.deepcopy(state))  # it moves the tensors itself


def optimizer_class(optimizer: Any) -> Any:
    """Return the class of torch.optim that OPTIMIZER names; a callable is returned as it is.

    Raises:
        SpecError: where torch.optim has no such class.
    """
    if not isinstance(optimizer, str):
        return optimizer
    found = getattr(torch.optim, optimizer, None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        known = [n for n in dir(torch.optim) if isinstance(getattr(torch.optim, n), type)]
        raise SpecError(
            f"OPTIMIZER: torch.optim has no optimizer {optimizer!r}"
            f"{did_you_mean(optimizer, known)}; valid are {', '.join(OPTIMIZERS)}, or a class "
            "of torch.optim"
        )
    return found


def _settings(cls: Any, common: Hyperparameters, lr: float) -> dict[str, Any]:
    """Return the arguments of an optimizer class: OPTIMIZER_KWARGS, and settings not at default.

    The groups have learning rates of their own, but the class may require ``lr``.
    """
    parameters = inspect.signature(cls).parameters
    settings = dict(common.optimizer_kwargs)
    unknown = [name for name in settings if name not in parameters]
    errors = [f"OPTIMIZER_KWARGS: {function_name(cls)} takes no {name!r}" for name in unknown]
    if "lr" in settings:
        raise SpecError("OPTIMIZER_KWARGS: has 'lr', but the learning rate is the setting LR")
    if "lr" in parameters:
        settings["lr"] = lr
    for name in ("momentum", "nesterov", "weight_decay", "betas", "eps"):
        value = getattr(common, name)
        if value == type(common).model_fields[name].default or name in settings:
            continue
        settings[name] = value
        if name not in parameters:
            errors.append(f"{name.upper()}: {function_name(cls)} takes none")
    if errors:
        valid = ", ".join(name for name in parameters if name != "params")
        raise SpecError([f"{message}; valid are {valid}" for message in errors])
    return settings
