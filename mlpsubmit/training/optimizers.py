"""Optimizers over stacked parameters: one update for all configs, each with its own settings.

The formulas are those of torch.optim. For a config that is not active at a step, the learning rate
is multiplied by zero, and with it the weight decay, and the gradient, which may be NaN, is replaced
by zero: its weights stay as they are, without a GPU-CPU sync point.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlpsubmit.arguments import function_name
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.spec.hyperparameters import OPTIMIZERS, Hyperparameters
from mlpsubmit.training.accel.kernels import sgd_step
from mlpsubmit.training.batches import column
from mlpsubmit.training.parametrizations import Factors, effective_lr
from mlpsubmit.training.parts import Part
from mlpsubmit.training.stack import Stack

__all__ = [
    "OptimizerView",
    "StackedOptimizer",
    "build_optimizer",
    "optimizer_class",
    "update_rule",
    "warn_of_missing_theory",
]

#: The optimizers whose learning-rate factors are known, and whose updates they share.
_UPDATES: dict[Any, str] = {
    "sgd": "sgd",
    "adam": "adam",
    "adamw": "adam",
    torch.optim.SGD: "sgd",
    torch.optim.Adam: "adam",
    torch.optim.AdamW: "adam",
}

#: Those whose weight decay is a penalty that enters the gradient before it is normalised.
_COUPLED = ("adam", torch.optim.Adam)

#: Computes losses (K,) and gradients at the current weights.
Closure = Callable[[], tuple[Tensor, Sequence[Tensor]]]


class StackedOptimizer(Part):
    """The interface of an optimizer."""

    def step(self, gradients: Sequence[Tensor], active: Tensor, closure: Closure) -> None:
        """Update the parameters of the active configs.

        Args:
            gradients: one (K, ...) per trained parameter.
            active: (K,) bool.
            closure: computes losses and gradients again, for optimizers that need them.
        """
        raise NotImplementedError


class OptimizerView:
    """The argument ``opt`` of a grab: the learning rates of one config, as in torch.optim.

    Attributes:
        param_groups: one dictionary per parameter, with ``params`` (a list of that parameter),
            ``lr`` (including the factors of GAMMA and the parametrization) and ``name``.
    """

    def __init__(self, model: nn.Module, lrs: Mapping[str, float]) -> None:
        self.param_groups: list[dict[str, Any]] = [
            {"params": [parameter], "lr": lrs[name], "name": name}
            for name, parameter in model.named_parameters()
            if name in lrs
        ]
        self._lrs = self._shown()

    @property
    def changed(self) -> bool:
        """Whether someone has changed a learning rate or a group."""
        return self._shown() != self._lrs

    def _shown(self) -> list[Any]:
        return [(group.get("name"), group.get("lr")) for group in self.param_groups]


def build_optimizer(
    stack: Stack,
    hyperparameters: Sequence[Hyperparameters],
    factors: Sequence[Mapping[str, Factors]],
) -> tuple[StackedOptimizer, list[OptimizerView]]:
    """Return the optimizer of a pack, and per config the argument ``opt`` of its grabs.

    Args:
        stack: K networks.
        hyperparameters: K, equal but for what may differ in a pack.
        factors: K times, per parameter name, those of the parametrization.

    Raises:
        SpecError: for a torch.optim class with K > 1, or settings that it does not take.
    """
    bases = [effective_lr(h.lr, h.gamma, update_rule(h)) for h in hyperparameters]
    lrs = [
        {name: base * own[name].lr for name in stack.names}
        for base, own in zip(bases, factors, strict=True)
    ]
    views = [OptimizerView(model, one) for model, one in zip(stack.models, lrs, strict=True)]
    common = hyperparameters[0]
    if common.optimizer not in OPTIMIZERS:
        return TorchOptimizer(stack, common, bases[0], factors[0]), views
    if common.optimizer_kwargs:
        raise SpecError(
            f"OPTIMIZER_KWARGS: got {common.optimizer_kwargs!r} with OPTIMIZER="
            f"{common.optimizer!r}; they are for a torch.optim class; try MOMENTUM, NESTEROV, "
            "WEIGHT_DECAY, BETAS and EPS"
        )
    if common.optimizer == "sgd":
        return _SGD(stack, hyperparameters, lrs), views
    return _Adam(stack, hyperparameters, lrs, bases, factors), views


def update_rule(hyperparameters: Hyperparameters) -> str:
    """Return ``"sgd"`` or ``"adam"``, by whose updates learning rates are scaled.

    Callable parametrizations set factors of SGD's learning rates. These serve, for lack of theory,
    any optimizer that is not known here.
    """
    if callable(hyperparameters.parametrization):
        return "sgd"
    return _known_update(hyperparameters.optimizer) or "sgd"


def _known_update(optimizer: Any) -> str | None:
    cls = getattr(optimizer, "func", optimizer)
    return _UPDATES.get(cls) if isinstance(cls, (str, type)) else None


def warn_of_missing_theory(hyperparameters: Sequence[Hyperparameters]) -> None:
    """Warn of settings of a pack for which no scaling with the width is known."""
    common = hyperparameters[0]
    parametrization, optimizer = common.parametrization, common.optimizer
    named = f"OPTIMIZER={optimizer if isinstance(optimizer, str) else function_name(optimizer)}"
    update, text = _known_update(optimizer), ""
    if callable(parametrization):
        takes_it = "optimizer" in [*inspect.signature(parametrization).parameters][2:]
        if update != "sgd" and not takes_it:
            text = (
                f"PARAMETRIZATION {function_name(parametrization)} with {named}: the learning-rate "
                "factors that it sets, and that of GAMMA, are used as for SGD, so the best LR may "
                "change with WIDTH and GAMMA; if it takes an argument `optimizer`, it gets this "
                "setting, and can set other factors"
            )
    elif update is None and (parametrization != "sp" or any(h.gamma != 1 for h in hyperparameters)):
        text = (
            f"PARAMETRIZATION={parametrization!r} with {named}: mlpsubmit has no learning-rate "
            "factors for it and uses those of SGD, so the best LR may change with WIDTH and GAMMA; "
            f"use one of {', '.join(OPTIMIZERS)}"
        )
    elif update == "adam" and parametrization != "sp" and _has_penalty(hyperparameters):
        text = (
            f"WEIGHT_DECAY with {named}: a penalty in the gradient, which Adam normalises, does "
            f"not scale with the width as PARAMETRIZATION={parametrization!r} should; use "
            "OPTIMIZER='adamw', whose decay is decoupled"
        )
    if text:
        # From this line whoever calls, so that Python shows the same text once.
        warnings.warn(text, stacklevel=1)


def _has_penalty(hyperparameters: Sequence[Hyperparameters]) -> bool:
    """Return whether a weight decay enters gradients that Adam normalises."""
    optimizer = hyperparameters[0].optimizer
    further = [hyperparameters[0].optimizer_kwargs, getattr(optimizer, "keywords", {})]
    given = [h.weight_decay for h in hyperparameters] + [f.get("weight_decay") for f in further]
    return getattr(optimizer, "func", optimizer) in _COUPLED and any(given)


class _Stacked(StackedOptimizer):
    """Learning rates (K, P) of the P parameters, weight decays (K,), and any further state."""

    PER_ROW: tuple[str, ...] = ("lrs", "weight_decays")

    def __init__(
        self,
        stack: Stack,
        hyperparameters: Sequence[Hyperparameters],
        lrs: Sequence[Mapping[str, float]],
    ) -> None:
        first = stack.parameters[0]
        self._stack = stack
        self._like: dict[str, Any] = {"device": first.device, "dtype": first.dtype}
        self._zero = torch.zeros((), **self._like)  # a number would be copied there at every use
        self.lrs = torch.tensor([[one[name] for name in stack.names] for one in lrs], **self._like)
        decays = [h.weight_decay for h in hyperparameters]
        self._has_decay = any(decays)
        self.weight_decays = torch.tensor(decays, **self._like)

    def _each(
        self, gradients: Sequence[Tensor], active: Tensor
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield index, parameter (K, ...), gradient (K, ...) and learning rate (K, 1, ...).

        The gradient includes the weight decay.
        """
        lrs = (self.lrs * active.unsqueeze(1)).unbind(1)
        for i, (p, g) in enumerate(zip(self._stack.parameters, gradients, strict=True)):
            g = torch.where(column(active, g), g, self._zero)
            if self._has_decay:
                g = torch.addcmul(g, p, column(self.weight_decays, p))
            yield i, p, g, column(lrs[i], p)

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(p, requires_grad=False) for p in self._stack.parameters]


class _SGD(_Stacked):
    """g += wd p; b = momentum b + g; p -= lr b, or p -= lr (g + momentum b) for Nesterov."""

    PER_ROW = (*_Stacked.PER_ROW, "momenta", "buffers")

    def __init__(
        self,
        stack: Stack,
        hyperparameters: Sequence[Hyperparameters],
        lrs: Sequence[Mapping[str, float]],
    ) -> None:
        super().__init__(stack, hyperparameters, lrs)
        momenta = [h.momentum for h in hyperparameters]
        self._nesterov = hyperparameters[0].nesterov
        self.momenta = torch.tensor(momenta, **self._like)
        self.buffers = self._zeros() if any(momenta) else []
        plain = not (self.buffers or self._has_decay)
        fusible = plain and hyperparameters[0].compile is not False
        fusible &= all(p.is_contiguous() for p in stack.parameters)
        self._kernel = sgd_step(stack.device) if fusible else None

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], active: Tensor, closure: Closure) -> None:
        if self._kernel is not None:
            for p, g, lr in zip(self._stack.parameters, gradients, self.lrs.unbind(1), strict=True):
                self._kernel(p, g, lr, active)
            return
        for i, p, g, lr in self._each(gradients, active):
            if self.buffers:
                momentum, buffer = column(self.momenta, p), self.buffers[i]
                buffer.mul_(momentum).add_(g)
                g = torch.addcmul(g, buffer, momentum) if self._nesterov else buffer
            p.addcmul_(g, lr, value=-1)


class _Adam(_Stacked):
    """Adam (Kingma and Ba, arXiv:1412.6980), or with decoupled decay AdamW (arXiv:1711.05101).

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
    p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps).
    """

    PER_ROW = (*_Stacked.PER_ROW, "decays", "eps", "first_moments", "second_moments")
    SAVED = ("steps",)

    def __init__(
        self,
        stack: Stack,
        hyperparameters: Sequence[Hyperparameters],
        lrs: Sequence[Mapping[str, float]],
        bases: Sequence[float],
        factors: Sequence[Mapping[str, Factors]],
    ) -> None:
        super().__init__(stack, hyperparameters, lrs)
        common = hyperparameters[0]
        self._betas, names = common.betas, stack.names
        eps = [[common.eps * own[name].eps for name in names] for own in factors]
        # Positive also where it underflows: a gradient that is always zero makes no update.
        smallest = torch.finfo(self.lrs.dtype).tiny
        self.eps = torch.tensor(eps, **self._like).clamp_(min=smallest)
        # The part of a parameter that a decoupled decay takes at each step (K, P).
        self._decoupled = self._has_decay and common.optimizer == "adamw"
        self._has_decay &= not self._decoupled
        decays = [
            [base * own[name].decay * h.weight_decay for name in names]
            for h, base, own in zip(hyperparameters, bases, factors, strict=True)
        ]
        self.decays = torch.tensor(decays, **self._like)
        self.first_moments, self.second_moments = self._zeros(), self._zeros()
        # Counted on the device, so that a replayed step counts too.
        exact = torch.float32 if self.lrs.device.type == "mps" else torch.float64
        self.steps = torch.zeros((), dtype=exact, device=self.lrs.device)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], active: Tensor, closure: Closure) -> None:
        beta1, beta2 = self._betas
        self.steps += 1
        correction1, root2 = 1 - beta1**self.steps, (1 - beta2**self.steps).sqrt()
        eps = self.eps.unbind(1)
        if self._decoupled:
            kept = (1 - self.decays * active.unsqueeze(1)).unbind(1)
            for p, factor in zip(self._stack.parameters, kept, strict=True):
                p.mul_(column(factor, p))
        for i, p, g, lr in self._each(gradients, active):
            m, v = self.first_moments[i], self.second_moments[i]
            m.lerp_(g, 1 - beta1)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            denominator = v.sqrt().div_(root2).add_(column(eps[i], v))
            update = torch.div(m, denominator, out=denominator)
            p.addcmul_(update, lr / correction1, value=-1)


class TorchOptimizer(StackedOptimizer):
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
        self._parameters = [named[name] for name in stack.names]
        is_adam = _known_update(common.optimizer) == "adam"
        # As few groups as possible: some optimizers take one only.
        own = [factors[name] if is_adam else Factors(factors[name].lr) for name in stack.names]
        distinct = list(dict.fromkeys(own))
        groups = [
            {
                "params": [p for p, other in zip(self._parameters, own, strict=True) if other == f],
                "lr": base * f.lr,
            }
            for f in distinct
        ]
        self._optimizer = cls(groups, **_settings(cls, common, base))
        if is_adam:
            for group, factor in zip(self._optimizer.param_groups, distinct, strict=True):
                group["eps"] *= factor.eps
                if isinstance(self._optimizer, torch.optim.AdamW) and factor.lr:
                    group["weight_decay"] *= factor.decay / factor.lr
        closure = inspect.signature(self._optimizer.step).parameters.get("closure")
        self._needs_closure = closure is not None and closure.default is inspect.Parameter.empty

    def step(self, gradients: Sequence[Tensor], active: Tensor, closure: Closure) -> None:
        if not bool(active):  # a GPU-CPU sync point
            return
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
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient[0].contiguous()  # LBFGS flattens it as a view

    def state_dict(self) -> dict[str, Any]:
        return dict(self._optimizer.state_dict())

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
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
