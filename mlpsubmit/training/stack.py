"""K models of equal structure as one: every parameter stacked along a first dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mlpsubmit.errors import SpecError
from mlpsubmit.spec.fingerprint import digest
from mlpsubmit.training.accel.compile import Compiled
from mlpsubmit.training.accel.mlp import Perceptrons
from mlpsubmit.training.batches import Batch
from mlpsubmit.training.initial_weights import Initial
from mlpsubmit.training.losses import StackedLoss
from mlpsubmit.training.monitor import StateError, map_tensors
from mlpsubmit.training.precision import autocast

__all__ = ["Stack", "behaviour", "check_equal_behaviour", "check_equal_structure"]

#: What torch itself keeps in a module; everything else is the user's.
_OF_TORCH = frozenset(vars(nn.Module()))


class Stack:
    """The networks of a pack, evaluated together: ``vmap`` over ``functional_call``.

    The weights live in the stacked tensors; the parameters of each model are views into them, so
    that a model always shows its config's current weights.

    Args:
        models: K modules of equal structure and tensor shapes.
        device: where the stacked tensors live.
        precision: bf16 evaluates them under autocast.
        keep_initial: whether to keep a copy of the initial weights.
    """

    def __init__(
        self, models: Sequence[nn.Module], device: torch.device, precision: str, keep_initial: bool
    ) -> None:
        check_equal_structure(models)
        self.models = list(models)
        #: Which of the models each row of the stack is.
        self.configs = list(range(len(models)))
        # Not a copy: a callable parametrization may have bound functions to this very module.
        self._template = models[0]
        # Looking for tied weights costs a tenth of a small network's step.
        self._tied = _has_tied_weights(models[0])
        self.device, self._precision = device, precision
        # Before the weights leave the models: it reads their multipliers.
        self._perceptrons = None if precision == "bf16" else Perceptrons.of(models)
        self._compiled: Compiled[tuple[Tensor, list[Tensor]]] | None = None
        self._shared = torch.vmap(self._one, in_dims=(0, None))
        self._stacked = torch.vmap(self._one, in_dims=(0, 0))
        trained = [name for name, p in models[0].named_parameters() if p.requires_grad]
        if not trained:
            raise SpecError("MODEL: none of its parameters requires a gradient; nothing to train")
        self.names = trained
        tensors = [_tensors(model) for model in models]
        # Stacked where the models are, row by row onto the device: no second copy there.
        self._set({name: torch.stack([t[name] for t in tensors]).to(device) for name in tensors[0]})
        del tensors
        self._initial = Initial(self._all) if keep_initial else None

    @property
    def parameters(self) -> list[Tensor]:
        """The trained parameters, each (K, ...): leaves that require gradients."""
        return [self._all[name] for name in self.names]

    def __len__(self) -> int:
        return len(self.configs)

    def __call__(self, batch: Batch) -> Tensor:
        """Return the outputs (K, n, ...) of the networks as they are now."""
        return self._evaluate(self._all, batch)

    @torch.no_grad()
    def at_initialisation(self, batch: Batch) -> Tensor:
        """Return the outputs (K, n, ...) of the networks as they were at initialisation."""
        initial = self._initial
        if initial is None or not initial.merged:
            return self._evaluate(initial.tensors if initial else self._all, batch)
        X = batch.X if batch.shared else batch.X[initial.first]
        outputs = initial.gather(self._evaluate(initial.tensors, Batch(X, batch.y, batch.shared)))
        return (
            outputs if self._perceptrons is None else self._perceptrons.scaled(self._all, outputs)
        )

    def merge_initial(self, sources: Sequence[int]) -> None:
        """Let configs that begin alike share one evaluation of the initial network from now on.

        Args:
            sources: K numbers: configs of which they agree have equal batches at every step.
        """
        if self._initial is not None:
            ignored = () if self._perceptrons is None else self._perceptrons.scaling
            self._initial.merge(sources, ignored)

    def losses_and_gradients(
        self, batch: Batch, initial_output: Tensor | float, loss: StackedLoss
    ) -> tuple[Tensor, list[Tensor]]:
        """Return losses (K,) of the outputs, and the gradients of the trained parameters.

        Args:
            initial_output: (K, n, ...), what is subtracted from the outputs, or a number.
            loss: from outputs (K, n, ...) and targets to losses (K,), each of its own config's.
        """
        if self._perceptrons is not None:
            return self._by_formulas(self._perceptrons, batch, initial_output, loss)
        if self._compiled is not None:
            return self._compiled(
                self._all, batch.X, batch.targets, batch.shared, initial_output, loss
            )
        # No two configs share a weight, so the gradient of the sum holds that of each loss.
        losses = loss(self(batch) - initial_output, batch.targets)
        gradients = torch.autograd.grad(losses.sum(), self.parameters, materialize_grads=True)
        return losses, list(gradients)

    def compile(self, on: bool) -> None:
        """Compile what :meth:`losses_and_gradients` does, where it goes through autograd, or not.

        Each size of the stack is compiled by itself: torch gives up where one function has many.
        """
        wanted = on and self._perceptrons is None
        self._compiled = Compiled(self._by_transformation, self._template) if wanted else None

    @property
    def compiled(self) -> bool:
        """Whether losses and gradients are compiled, as far as that has worked."""
        return self._compiled is not None and self._compiled.works

    @property
    def tensors(self) -> list[Tensor]:
        """All that a step may change in place: parameters and buffers, each (K, ...), detached.

        Those of the initial networks too, whose forward pass may change a buffer.
        """
        initial = [] if self._initial is None else self._initial.tensors.values()
        return [*(tensor.detach() for tensor in self._all.values()), *initial]

    def _by_formulas(
        self,
        perceptrons: Perceptrons,
        batch: Batch,
        initial_output: Tensor | float,
        loss: StackedLoss,
    ) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            signals = perceptrons.forward(self._all, batch.X, batch.shared)
        output = signals[-1].requires_grad_()
        losses = loss(output - initial_output, batch.targets)
        (d_output,) = torch.autograd.grad(losses.sum(), output)
        with torch.no_grad():
            found = perceptrons.gradients(self._all, signals, d_output)
        return losses, [found[name] for name in self.names]

    def _by_transformation(
        self,
        tensors: Mapping[str, Tensor],
        X: Tensor,
        targets: Tensor,
        shared: bool,
        initial_output: Tensor | float,
        loss: StackedLoss,
    ) -> tuple[Tensor, list[Tensor]]:
        """Do without the state of autograd, which cannot be compiled."""

        def summed(trained: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            losses = loss(
                self._forward({**tensors, **trained}, X, shared) - initial_output, targets
            )
            return losses.sum(), losses

        trained = {name: tensors[name].detach() for name in self.names}
        gradients, losses = torch.func.grad(summed, has_aux=True)(trained)
        return losses, [gradients[name] for name in self.names]

    def _evaluate(self, tensors: dict[str, Tensor], batch: Batch) -> Tensor:
        if self._perceptrons is not None:
            return self._perceptrons.outputs(tensors, batch.X, batch.shared)
        return self._forward(tensors, batch.X, batch.shared)

    def _forward(self, tensors: dict[str, Tensor], X: Tensor, shared: bool) -> Tensor:
        networks = self._shared if shared else self._stacked
        with autocast(self._precision, self.device):
            output: Tensor = networks(tensors, X)
        return output.to(X.dtype)

    def _one(self, tensors: dict[str, Tensor], X: Tensor) -> Tensor:
        output: Tensor = functional_call(self._template, tensors, (X,), tie_weights=self._tied)
        return output

    def _set(self, tensors: dict[str, Tensor]) -> None:
        """Make these (K, ...) tensors the weights, and the models views into them."""
        self._all = tensors
        for name in self.names:
            tensors[name].requires_grad_()
        for row, config in enumerate(self.configs):
            _point(self.models[config], {k: v.detach()[row] for k, v in tensors.items()})

    def show_initial(self, init_model: nn.Module, row: int) -> nn.Module:
        """Make a module of the same structure a view of one row's initial weights."""
        assert self._initial is not None
        network = self._initial.of[row]
        weights = {name: tensor[network] for name, tensor in self._initial.tensors.items()}
        # A multiplier that is kept no longer is that of now: it is not trained.
        return _point(init_model, {k: v.detach()[row] for k, v in self._all.items()} | weights)

    def shrink(self, keep: Sequence[int]) -> None:
        """Keep the configs at these positions; the models of the others keep their weights."""
        rows = torch.tensor(list(keep), device=self.device)
        self._release(set(range(len(self.configs))) - set(keep))
        self.configs = [self.configs[row] for row in keep]
        if self._initial is not None:
            self._initial.shrink(keep)
        self._set({name: tensor.detach()[rows] for name, tensor in self._all.items()})
        self.compile(self.compiled)

    def release(self) -> None:
        """Give every model its own weights: views would keep the whole stack alive."""
        self._release(range(len(self.configs)))
        # vmap holds this object, and it holds vmap: without this the weights would wait for the
        # collector.
        self._all, self._initial = {}, None

    def _release(self, rows: Any) -> None:
        for row in rows:
            model = self.models[self.configs[row]]
            _point(model, {name: tensor.clone() for name, tensor in _tensors(model).items()})

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`load_state_dict` takes: also the weights of those that have left."""
        left = set(range(len(self.models))) - set(self.configs)
        return {
            "configs": list(self.configs),
            "weights": dict(self._all),
            "initial": self._initial and self._initial.state_dict(),
            "left": {config: _tensors(self.models[config]) for config in sorted(left)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        own = {name: tuple(tensor.shape[1:]) for name, tensor in self._all.items()}
        saved = {name: tuple(tensor.shape[1:]) for name, tensor in state["weights"].items()}
        for name in own | saved:
            if own.get(name) != saved.get(name):
                raise StateError(
                    f"saved state: its weights {name} have shape {saved.get(name)}, but the models "
                    f"have {own.get(name)}; discard the state to train from the beginning"
                )
        state = map_tensors(state, lambda tensor: tensor.to(self.device, copy=True))
        self.configs = list(state["configs"])
        if self._initial is not None:
            self._initial.load_state_dict(state["initial"])
        for config, tensors in state["left"].items():
            _point(self.models[config], tensors)
        self._set(dict(state["weights"]))


def _has_tied_weights(model: nn.Module) -> bool:
    every = len(list(model.named_parameters(remove_duplicate=False)))
    return every != len(list(model.parameters()))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model, detached."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


def _point(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Let the parameters and buffers of a model be these tensors, without copying."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.data = tensors[name]
    return model


def check_equal_structure(models: Sequence[nn.Module]) -> None:
    """Refuse models that cannot be stacked.

    Raises:
        SpecError: naming the first tensor that differs, or dropout.
    """
    if not models:
        raise SpecError("models: got none; give at least one")
    if len(set(map(id, models))) < len(models):
        raise SpecError("models: the same module stands twice; every config needs its own")
    for path, module in models[0].named_modules():
        random = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        if random and module.training:
            raise SpecError(
                f"MODEL: its module {path!r} ({type(module).__name__}) draws random numbers in "
                "the forward pass, which is not supported; leave it out"
            )
    first = _shapes(models[0])
    for config, model in enumerate(models[1:], start=1):
        other = _shapes(model)
        for name in first | other:
            if first.get(name) != other.get(name):
                raise SpecError(
                    f"models: {name} is {first.get(name, 'missing')} in model 0 but "
                    f"{other.get(name, 'missing')} in model {config}; models trained together "
                    "need equal structures and shapes"
                )


def behaviour(model: nn.Module) -> dict[str, bytes]:
    """Return, per submodule, a hash of its class and of its attributes that are no tensors.

    Models for which these agree compute the same function of their tensors, so that one of them
    can stand for all in a stack.
    """
    return {path: _content(module) for path, module in model.named_modules()}


def _content(module: nn.Module) -> bytes:
    own = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    # A function bound to a module is told by the function: its tensors may differ.
    unbound = {name: getattr(value, "__func__", value) for name, value in own.items()}
    return digest(type(module), module.training, unbound)


def check_equal_behaviour(models: Sequence[nn.Module]) -> None:
    """Refuse models that compute different functions of their tensors.

    Raises:
        SpecError: naming the first module that differs.
    """
    first = behaviour(models[0])
    for config, model in enumerate(models[1:], start=1):
        other = behaviour(model)
        for path in first | other:
            if first.get(path) != other.get(path):
                where = f"module {path!r}" if path else "the model itself"
                raise SpecError(
                    f"models: {where} differs between model 0 and model {config} in its class or "
                    "in an attribute that is no tensor; models trained together must compute the "
                    "same function of their weights: train these apart"
                )


def _shapes(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    return {name: (tuple(t.shape), str(t.dtype)) for name, t in _tensors(model).items()}
