"""Optimizers over stacked parameters: one update for all configs, each with its own settings.

The formulas are those of torch.optim. A config that does not move at a step (``active`` False) has
its step size, and with it its weight decay, multiplied by zero, and its gradient, which may be NaN,
replaced by zero: its weights stay as they are, without the host knowing.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mlpsubmit.arguments import function_name
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.spec.hyperparameters import OPTIMIZERS, Hyperparameters
from mlpsubmit.training.batches import column
from mlpsubmit.training.monitor import map_tensors
from mlpsubmit.training.parametrizations import effective_lr
from mlpsubmit.training.stack import Stack

__all__ = ["OptimizerView", "StackedOptimizer", "build_optimizer", "optimizer_class"]

#: Losses (K,) and gradients, computed anew at the weights as they are now.
Closure = Callable[[], tuple[Tensor, Sequence[Tensor]]]


class StackedOptimizer(Protocol):
    """What the loop asks of an optimizer."""

    def step(self, gradients: Sequence[Tensor], active: Tensor, closure: Closure) -> None:
        """Update the parameters of the configs (K,) that move."""

    def shrink(self, keep: Sequence[int]) -> None:
        """Keep the configs at these positions."""

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` takes."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""


class OptimizerView:
    """What a grab sees as ``opt``: the step sizes of one config, as in a torch.optim optimizer.

    Attributes:
        param_groups: one dictionary per parameter, with ``params`` (a list of that parameter),
            ``lr`` (its step size, with GAMMA and the parametrization in it) and ``name``.
    """

    def __init__(self, model: nn.Module, rates: Mapping[str, float]) -> None:
        self.param_groups: list[dict[str, Any]] = [
            {"params": [parameter], "lr": rates[name], "name": name}
            for name, parameter in model.named_parameters()
            if name in rates
        ]


def build_optimizer(
    stack: Stack,
    hyperparameters: Sequence[Hyperparameters],
    factors: Sequence[Mapping[str, float]],
) -> tuple[StackedOptimizer, list[OptimizerView]]:
    """Return the optimizer of a pack, and what grabs see of it, per config.

    Args:
        stack: K networks.
        hyperparameters: K, equal but for what a pack may hold per config.
        factors: K times, per parameter name, the parametrization's learning-rate factor.

    Raises:
        SpecError: for a torch.optim class with K > 1, or settings it does not take.
    """
    rates = [
        {name: effective_lr(h.lr, h.gamma) * r[name] for name in stack.names}
        for h, r in zip(hyperparameters, factors, strict=True)
    ]
    views = [OptimizerView(m, rate) for m, rate in zip(stack.models, rates, strict=True)]
    common = hyperparameters[0]
    if common.optimizer not in OPTIMIZERS:
        return TorchOptimizer(stack, common, rates), views
    if common.optimizer_kwargs:
        raise SpecError(
            f"OPTIMIZER_KWARGS: got {common.optimizer_kwargs!r} with OPTIMIZER="
            f"{common.optimizer!r}; they are for a torch.optim class; try MOMENTUM, NESTEROV, "
            "WEIGHT_DECAY, BETAS and EPS"
        )
    if common.optimizer == "sgd":
        return _SGD(stack, hyperparameters, rates), views
    return _Adam(stack, hyperparameters, rates, decoupled=common.optimizer == "adamw"), views


class _Stacked:
    """Step sizes (P, K) and weight decays (K,) of the P parameters, and any further state."""

    #: Names of the attributes that are tensors (K, ...) or lists of P such tensors.
    _PER_CONFIG: tuple[str, ...] = ("_decay",)

    def __init__(
        self,
        stack: Stack,
        hyperparameters: Sequence[Hyperparameters],
        rates: Sequence[Mapping[str, float]],
    ) -> None:
        first = stack.parameters[0]
        self._stack = stack
        self._like: dict[str, Any] = {"device": first.device, "dtype": first.dtype}
        self._sizes = torch.tensor([[r[n] for r in rates] for n in stack.names], **self._like)
        decays = [h.weight_decay for h in hyperparameters]
        self._decays = any(decays)
        self._decay = torch.tensor(decays, **self._like)

    def _each(
        self, gradients: Sequence[Tensor], active: Tensor
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield number, parameter (K, ...), gradient (K, ...) and step size (K, 1, ...)."""
        sizes = (self._sizes * active).unbind(0)
        for i, (p, g) in enumerate(zip(self._stack.parameters, gradients, strict=True)):
            yield i, p, torch.where(column(active, g), g, 0.0), column(sizes[i], p)

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(p, requires_grad=False) for p in self._stack.parameters]

    def shrink(self, keep: Sequence[int]) -> None:
        rows = torch.tensor(list(keep), device=self._sizes.device)
        self._sizes = self._sizes[:, rows]
        for name in self._PER_CONFIG:
            value = getattr(self, name)
            kept = [tensor[rows] for tensor in value] if isinstance(value, list) else value[rows]
            setattr(self, name, kept)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("_sizes", *self._PER_CONFIG)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self._sizes.device
        for name, value in map_tensors(state, lambda t: t.to(device, copy=True)).items():
            setattr(self, name, value)


class _SGD(_Stacked):
    """g += wd p; b = momentum b + g; p -= lr b, or p -= lr (g + momentum b) for Nesterov."""

    _PER_CONFIG = ("_decay", "_momentum", "_buffers")

    def __init__(
        self,
        stack: Stack,
        hyperparameters: Sequence[Hyperparameters],
        rates: Sequence[Mapping[str, float]],
    ) -> None:
        super().__init__(stack, hyperparameters, rates)
        momenta = [h.momentum for h in hyperparameters]
        self._nesterov = hyperparameters[0].nesterov
        self._momentum = torch.tensor(momenta, **self._like)
        self._buffers = self._zeros() if any(momenta) else []

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], active: Tensor, closure: Closure) -> None:
        for i, p, g, size in self._each(gradients, active):
            if self._decays:
                g = torch.addcmul(g, p, column(self._decay, p))
            if self._buffers:
                momentum, buffer = column(self._momentum, p), self._buffers[i]
                buffer.mul_(momentum).add_(g)
                g = torch.addcmul(g, buffer, momentum) if self._nesterov else buffer
            p.addcmul_(g, size, value=-1)


class _Adam(_Stacked):
    """Adam (Kingma and Ba, arXiv:1412.6980), or with decoupled decay AdamW (arXiv:1711.05101).

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
    p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps).
    """

    _PER_CONFIG = ("_decay", "_means", "_squares")

    def __init__(
        self,
        stack: Stack,
        hyperparameters: Sequence[Hyperparameters],
        rates: Sequence[Mapping[str, float]],
        decoupled: bool,
    ) -> None:
        super().__init__(stack, hyperparameters, rates)
        self._decoupled = decoupled
        self._betas, self._eps = hyperparameters[0].betas, hyperparameters[0].eps
        self._means, self._squares = self._zeros(), self._zeros()
        # Steps made, on the device: a step that is replayed counts too.
        exact = torch.float32 if self._decay.device.type == "mps" else torch.float64
        self._made = torch.zeros((), dtype=exact, device=self._decay.device)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], active: Tensor, closure: Closure) -> None:
        beta1, beta2 = self._betas
        self._made += 1
        rest1, root2 = 1 - beta1**self._made, (1 - beta2**self._made).sqrt()
        for i, p, g, size in self._each(gradients, active):
            mean, square = self._means[i], self._squares[i]
            if self._decays and self._decoupled:
                p.mul_(1 - size * column(self._decay, p))
            elif self._decays:
                g = torch.addcmul(g, p, column(self._decay, p))
            mean.lerp_(g, 1 - beta1)
            square.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            step = square.sqrt().div_(root2).add_(self._eps)
            p.addcmul_(torch.div(mean, step, out=step), size / rest1, value=-1)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "_made": self._made}


class TorchOptimizer:
    """Any class of torch.optim, for one config: over the model's parameters, views of the stack.

    Whether the config still moves has to be known on the host: a sync point per step.
    """

    def __init__(
        self, stack: Stack, common: Hyperparameters, rates: Sequence[Mapping[str, float]]
    ) -> None:
        cls = optimizer_class(common.optimizer)
        if len(stack) > 1:
            raise SpecError(
                f"OPTIMIZER={function_name(cls)} trains one config at a time, but {len(stack)} are "
                f"to be trained together; set PACK_SIZE=1, or use one of {', '.join(OPTIMIZERS)}"
            )
        named = dict(stack.models[0].named_parameters())
        self._parameters = [named[name] for name in stack.names]
        groups = [
            {"params": [named[name] for name in stack.names if rates[0][name] == lr], "lr": lr}
            for lr in dict.fromkeys(rates[0].values())
        ]
        self._optimizer = cls(groups, **_settings(cls, common))
        closure = inspect.signature(self._optimizer.step).parameters.get("closure")
        self._needs_closure = closure is not None and closure.default is inspect.Parameter.empty

    def step(self, gradients: Sequence[Tensor], active: Tensor, closure: Closure) -> None:
        if not bool(active):  # a GPU-CPU sync point
            return
        self._take(gradients)
        if not self._needs_closure:
            self._optimizer.step()
            return

        def again() -> Tensor:
            losses, gradients = closure()
            self._take(gradients)
            return losses[0].detach()

        self._optimizer.step(again)

    def _take(self, gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient[0].contiguous()  # LBFGS takes views of it

    def shrink(self, keep: Sequence[int]) -> None:
        raise AssertionError("a single config is never shrunk away")

    def state_dict(self) -> dict[str, Any]:
        return dict(self._optimizer.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(copy.deepcopy(state))  # it moves what it has to


def optimizer_class(optimizer: Any) -> Any:
    """Return the class of torch.optim that OPTIMIZER names, or the callable that it is.

    Raises:
        SpecError: where torch.optim has none of that name.
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


def _settings(cls: Any, common: Hyperparameters) -> dict[str, Any]:
    """Return the arguments of an optimizer class: OPTIMIZER_KWARGS, and what else is set."""
    parameters = inspect.signature(cls).parameters
    settings = dict(common.optimizer_kwargs)
    unknown = [name for name in settings if name not in parameters]
    errors = [f"OPTIMIZER_KWARGS: {function_name(cls)} takes no {name!r}" for name in unknown]
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
