"""K models of equal structure as one: every parameter stacked along a first dimension."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mlpsubmit.errors import SpecError
from mlpsubmit.spec.fingerprint import digest
from mlpsubmit.training.accel.compile import Compiled
from mlpsubmit.training.accel.mlp import ClosedForm
from mlpsubmit.training.batches import Batch
from mlpsubmit.training.losses import StackedLoss
from mlpsubmit.training.monitor import StateError
from mlpsubmit.training.parts import Part, map_tensors
from mlpsubmit.training.precision import autocast

__all__ = ["Stack", "behaviour", "check_stackable", "point_at"]

#: The attributes that torch keeps in every module; all others are the model's own.
_OF_TORCH = frozenset(vars(nn.Module()))


class Stack(Part):
    """The networks of a pack, evaluated and differentiated together.

    The plain way is ``vmap`` over ``functional_call``, and autograd. The weights are in the stacked
    tensors; the parameters of each model are views into them, so that a model always shows its
    config's current weights.

    Args:
        models: K modules of equal structure and tensor shapes.
        device: of the stacked tensors.
        precision: bf16 evaluates the networks under autocast.
        accelerated: whether MLPs are computed in closed form.

    Attributes:
        models: all K models, also those whose rows have been left out.
        configs: per row of the stack, the config whose model it is.
        names: of the trained parameters.
        tensors: parameters and buffers by name, each (K, ...).
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        device: torch.device,
        precision: str,
        accelerated: bool = True,
    ) -> None:
        self.models, self.configs = list(models), list(range(len(models)))
        self.names = [name for name, p in models[0].named_parameters() if p.requires_grad]
        if not self.names:
            raise SpecError("MODEL: none of its parameters requires a gradient; nothing to train")
        self.device, self._precision = device, precision
        # Not a copy: a callable parametrization may have bound functions to this very module.
        self._template = models[0]
        # Determined once: looking for tied weights costs a tenth of a small network's step.
        every = list(models[0].named_parameters(remove_duplicate=False))
        self._tied = len(every) > len(list(models[0].parameters()))
        self._forward_shared = torch.vmap(self._forward_one, in_dims=(0, None))
        self._forward_stacked = torch.vmap(self._forward_one, in_dims=(0, 0))
        # Before the weights leave the models, whose multipliers it reads. It has no bf16.
        possible = accelerated and precision != "bf16"
        self._closed_form = ClosedForm.of(models) if possible else None
        self._compiled: Compiled[tuple[Tensor, list[Tensor]]] | None = None
        tensors = [_tensors(model) for model in models]
        # Stacked where the models are, tensor by tensor onto the device: no second copy there.
        self.tensors: dict[str, Tensor] = {}
        self._set({name: torch.stack([t[name] for t in tensors]).to(device) for name in tensors[0]})

    def __len__(self) -> int:
        return len(self.configs)

    def row(self, row: int) -> Stack:
        """Return a stack of one row, whose tensors are views; evaluate it, and nothing else."""
        single = copy.copy(self)
        single.configs, single._compiled = [self.configs[row]], None
        single.tensors = {name: tensor[row : row + 1] for name, tensor in self.tensors.items()}
        return single

    @property
    def parameters(self) -> list[Tensor]:
        """The trained parameters, each (K, ...): leaves that require gradients."""
        return [self.tensors[name] for name in self.names]

    def copy(self) -> dict[str, Tensor]:
        """Return a copy of the parameters and buffers, each (K, ...)."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def __call__(self, batch: Batch) -> Tensor:
        """Return the outputs (K, n, ...) with the current weights."""
        return self.evaluate(self.tensors, batch)

    def evaluate(self, tensors: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the outputs (K, n, ...) with other parameters and buffers, each (K, ...)."""
        if self._closed_form is not None:
            return self._closed_form.outputs(tensors, batch.X, batch.shared)
        return self._forward(tensors, batch.X, batch.shared)

    @property
    def scaling(self) -> Collection[str]:
        """The names of the tensors that :meth:`scaled` multiplies outputs by."""
        return () if self._closed_form is None else (ClosedForm.OUTPUT_SCALE,)

    def scaled(self, outputs: Tensor) -> Tensor:
        """Return outputs (K, n, ...) times the tensors :attr:`scaling`, which they lack."""
        form = self._closed_form
        return outputs if form is None else form.scaled(self.tensors, outputs)

    def losses_and_gradients(
        self, batch: Batch, initial_output: Tensor | float, loss: StackedLoss
    ) -> tuple[Tensor, list[Tensor]]:
        """Return losses (K,) of the outputs, and the gradients of the trained parameters.

        Args:
            initial_output: (K, n, ...), subtracted from the outputs, or a number.
            loss: from outputs (K, n, ...) and targets to losses (K,), each of its own config's.
        """
        if self._closed_form is not None:
            losses, found = self._closed_form.losses_and_gradients(
                self.tensors, batch, initial_output, loss
            )
            return losses, [found[name] for name in self.names]
        if self._compiled is not None:
            return self._compiled(
                self.tensors, batch.X, batch.targets, batch.shared, initial_output, loss
            )
        # No two configs share a weight, so the gradient of the sum holds that of each loss.
        losses = loss(self(batch) - initial_output, batch.targets)
        gradients = torch.autograd.grad(losses.sum(), self.parameters, materialize_grads=True)
        return losses, list(gradients)

    @property
    def method(self) -> str:
        """How gradients are computed, which decides how they round."""
        if self._closed_form is not None:
            return "the closed form"
        compiled = self._compiled is not None and self._compiled.works
        return "torch.compile" if compiled else "autograd"

    def compile(self) -> None:
        """Compile :meth:`losses_and_gradients`, unless it has a closed form.

        Each size of the stack is compiled by itself: torch gives up where one function has many.
        """
        if self._closed_form is None:
            self._compiled = Compiled(self._pure_losses_and_gradients, self._template)

    def _pure_losses_and_gradients(
        self,
        tensors: dict[str, Tensor],
        X: Tensor,
        targets: Tensor,
        shared: bool,
        initial_output: Tensor | float,
        loss: StackedLoss,
    ) -> tuple[Tensor, list[Tensor]]:
        """Differentiate without autograd's state, which cannot be compiled."""

        def summed(trained: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            outputs = self._forward({**tensors, **trained}, X, shared)
            losses = loss(outputs - initial_output, targets)
            return losses.sum(), losses

        trained = {name: tensors[name].detach() for name in self.names}
        gradients, losses = torch.func.grad(summed, has_aux=True)(trained)
        return losses, [gradients[name] for name in self.names]

    def _forward(self, tensors: dict[str, Tensor], X: Tensor, shared: bool) -> Tensor:
        forward = self._forward_shared if shared else self._forward_stacked
        with autocast(self._precision, self.device):
            output: Tensor = forward(tensors, X)
        return output.to(X.dtype)

    def _forward_one(self, tensors: dict[str, Tensor], X: Tensor) -> Tensor:
        output: Tensor = functional_call(self._template, tensors, (X,), tie_weights=self._tied)
        return output

    def _set(self, tensors: dict[str, Tensor]) -> None:
        """Make these (K, ...) tensors the weights, and the models views into them."""
        self.tensors = tensors
        for name in self.names:
            tensors[name].requires_grad_()
        for row, config in enumerate(self.configs):
            point_at(self.models[config], {k: v.detach()[row] for k, v in tensors.items()})

    def shrink(self, keep: Sequence[int]) -> None:
        """Keep these rows; the models of the others keep their weights."""
        rows = torch.tensor(list(keep), device=self.device)
        method, self._compiled = self.method, None
        self._release(set(range(len(self.configs))) - set(keep))
        self.configs = [self.configs[row] for row in keep]
        self._set({name: tensor.detach()[rows] for name, tensor in self.tensors.items()})
        if method == "torch.compile":
            self.compile()

    def release(self) -> None:
        """Give every model its own weights: views would keep the whole stack alive."""
        self._release(range(len(self.configs)))
        # vmap refers to this object and this object to vmap: without this, the weights would stay
        # until the next garbage collection.
        self.tensors = {}

    def _release(self, rows: Iterable[int]) -> None:
        for row in rows:
            model = self.models[self.configs[row]]
            point_at(model, {name: tensor.clone() for name, tensor in _tensors(model).items()})

    def state_dict(self) -> dict[str, Any]:
        """Return the state for :meth:`load_state_dict`, with the weights of all models."""
        left_out = sorted(set(range(len(self.models))) - set(self.configs))
        return {
            "configs": list(self.configs),
            "method": self.method,
            "tensors": dict(self.tensors),
            "left_out": {config: _tensors(self.models[config]) for config in left_out},
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from a saved state.

        Raises:
            StateError: where its tensors have other shapes, or its gradients another method.
        """
        own = {name: tuple(tensor.shape[1:]) for name, tensor in self.tensors.items()}
        saved = {name: tuple(tensor.shape[1:]) for name, tensor in state["tensors"].items()}
        if (name := _first_difference(own, saved)) is not None:
            raise StateError(
                f"saved state: its weights {name} have shape {saved.get(name)}, but the models "
                f"have {own.get(name)}; discard the state to train from the beginning"
            )
        if state["method"] not in (self.method, "autograd"):
            raise StateError(
                f"saved state: its gradients come from {state['method']}, those of this training "
                f"from {self.method}, which rounds differently; set COMPILE as it was, or discard "
                "the state to train from the beginning"
            )
        if state["method"] == "autograd":  # compiling has failed then, but might work now
            self._closed_form = self._compiled = None
        state = map_tensors(state, lambda tensor: tensor.to(device, copy=True))
        self.configs = list(state["configs"])
        for config, tensors in state["left_out"].items():
            point_at(self.models[config], tensors)
        self._set(dict(state["tensors"]))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model, detached."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


def point_at(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Make the parameters and buffers of a model these tensors, without copying; return it."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.data = tensors[name]
    return model


def _first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Return the first key for which two dictionaries differ, or that only one of them has."""
    return next((key for key in {**one, **other} if one.get(key) != other.get(key)), None)


def check_stackable(models: Sequence[nn.Module]) -> None:
    """Refuse models that cannot be stacked.

    Raises:
        SpecError: naming the first tensor or module that differs, or dropout.
    """
    if len(set(map(id, models))) < len(models):
        raise SpecError("models: the same module occurs twice; every config needs its own")
    for path, module in models[0].named_modules():
        random = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        if random and module.training:
            raise SpecError(
                f"MODEL: its module {path!r} ({type(module).__name__}) draws random numbers in "
                "the forward pass, which is not supported; leave it out"
            )
    first, first_behaviour = _shapes(models[0]), behaviour(models[0])
    for config, model in enumerate(models[1:], start=1):
        other = _shapes(model)
        if (name := _first_difference(first, other)) is not None:
            raise SpecError(
                f"models: {name} is {first.get(name, 'missing')} in model 0 but "
                f"{other.get(name, 'missing')} in model {config}; models trained together "
                "need equal structures and shapes"
            )
        if (path := _first_difference(first_behaviour, behaviour(model))) is not None:
            where = f"module {path!r}" if path else "the model itself"
            raise SpecError(
                f"models: {where} differs between model 0 and model {config} in its class or "
                "in an attribute that is not a tensor; models trained together must compute "
                "the same function of their weights: train these separately"
            )


def _shapes(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    return {name: (tuple(t.shape), str(t.dtype)) for name, t in _tensors(model).items()}


def behaviour(model: nn.Module) -> dict[str, bytes]:
    """Return, per submodule, a hash of its class and of its attributes that are not tensors.

    Models for which these agree compute the same function of their tensors, so that one of them
    can be the template of a stack.
    """
    return {path: _content(module) for path, module in model.named_modules()}


def _content(module: nn.Module) -> bytes:
    own = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    # Of a bound method only the function counts: the tensors of its module may differ.
    unbound = {name: getattr(value, "__func__", value) for name, value in own.items()}
    return digest(type(module), module.training, unbound)
