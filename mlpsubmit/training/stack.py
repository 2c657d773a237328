"""K models of equal structure as one: every parameter stacked along a first dimension."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mlpsubmit.errors import SpecError, UserError
from mlpsubmit.training.accel.compile import Compiled
from mlpsubmit.training.accel.mlp import ClosedForm
from mlpsubmit.training.accel.native_mlp import NativeMLP
from mlpsubmit.training.batches import Batch, BatchError, column
from mlpsubmit.training.comparison import StackingError, signature
from mlpsubmit.training.draws import Draws
from mlpsubmit.training.guard import Guard, WriteError
from mlpsubmit.training.losses import StackedLoss, takes_params, with_params
from mlpsubmit.training.modes import Modes
from mlpsubmit.training.module_tensors import (
    detached_tensors,
    own_buffers,
    own_tensors,
    point_at,
    put_back,
    showing,
)
from mlpsubmit.training.monitor import StateError
from mlpsubmit.training.oom import ran_out_of_memory
from mlpsubmit.training.parts import Part, map_tensors
from mlpsubmit.training.precision import autocast
from mlpsubmit.training.seeds import Streams, streams
from mlpsubmit.training.stackable import first_difference
from mlpsubmit.training.undisturbed import undisturbed
from mlpsubmit.training.unvectorised import unvectorised

__all__ = ["Stack"]

# An operation without a rule for vmap, such as CPU attention, is computed row by row. torch would
# ask the user to file an issue with it.
_functorch: Any = torch._C._functorch  # which has no types
_functorch._set_vmap_fallback_warning_enabled(False)


class Stack(Part):
    """The networks of a pack, evaluated and differentiated together.

    The plain way is ``vmap`` over ``functional_call``, and autograd; a single model is called as it
    is, so that it may do whatever PyTorch allows. The weights are in the stacked tensors; the
    parameters of each model are views into them, so that a model always shows its config's current
    weights.

    A training step runs in training mode, any other evaluation in eval mode. A forward pass may
    change buffers (running statistics, counters). Those of a training step stay, for the configs
    that make it; those of any other evaluation do not.

    Args:
        models: K modules of equal structure and tensor shapes.
        device: of the stacked tensors.
        precision: bf16 evaluates the networks under autocast.
        accelerated: whether MLPs are computed in closed form.
        seeds: per model, those of its config's random streams.

    Attributes:
        aliased: whether tensors of a model share memory.
        draws: what the models draw in their forward passes.
        models: all K models, also those whose rows have been left out.
        configs: per row of the stack, the config whose model it is.
        names: of the trained parameters.
        own_names: of all parameters, and of the buffers that no parametrization has added.
        tensors: parameters and buffers by name, each (K, ...).
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        device: torch.device,
        precision: str,
        accelerated: bool = True,
        seeds: Sequence[Streams] | None = None,
    ) -> None:
        self.models, self.configs = list(models), list(range(len(models)))
        self._parameter_names = [name for name, _ in models[0].named_parameters()]
        self.names = [name for name, p in models[0].named_parameters() if p.requires_grad]
        if not self.names:
            raise SpecError("MODEL: none of its parameters requires a gradient; nothing to train")
        self.device, self._precision, self._output_checked = device, precision, False
        # Not a copy: a callable parametrization may have bound functions to this very module.
        self._template = models[0]
        # Determined once: looking for tied weights costs a tenth of a small network's step.
        every = [
            *(name for name, _ in models[0].named_parameters(remove_duplicate=False)),
            *(name for name, _ in models[0].named_buffers(remove_duplicate=False)),
        ]
        self._tied = len(every) > len(detached_tensors(models[0]))
        self._modes = Modes(models[0])
        #: By config, those of the models that have been measured.
        self._modes_of = {0: self._modes}
        # Before the weights leave the models, whose multipliers it reads.
        self._closed_form = ClosedForm.of(models, precision, device) if accelerated else None
        self._compiled: Compiled[tuple[Tensor, list[Tensor], list[Tensor]]] | None = None
        self._alone = self._closed_form is None and len(models) == 1
        self.aliased = False
        #: How gradients are computed, unless compiling fails.
        self._planned = self.method
        seeds = [streams(0, k) for k in range(len(models))] if seeds is None else seeds
        recurrent = any(isinstance(m, nn.RNNBase) and m.dropout > 0 for m in models[0].modules())
        self.draws = Draws(seeds, self._alone, device, recurrent)
        #: The buffers that a forward pass may change, and those that one in training mode has
        #: changed: None before the first one.
        self._buffers = own_buffers(models[0])
        self.own_names = list(own_tensors(models[0]))
        self._changing: set[str] | None = None if self._buffers else set()
        #: What they were before the last training step.
        self._before: dict[str, Tensor] = {}
        self.tensors: dict[str, Tensor] = {}
        if self._alone:  # its own tensors, which may share memory with others
            models[0].to(device)
            self.aliased = signature(models[0]).aliased
            self._set({name: t.unsqueeze(0) for name, t in detached_tensors(models[0]).items()})
            return
        tensors = [detached_tensors(model) for model in models]
        # Stacked where the models are, tensor by tensor onto the device: no second copy there.
        self._set({name: torch.stack([t[name] for t in tensors]).to(device) for name in tensors[0]})

    def __len__(self) -> int:
        return len(self.configs)

    def row(self, row: int) -> Stack:
        """Return a stack of one row, whose tensors are views; evaluate it, and nothing else."""
        single, config = copy.copy(self), self.configs[row]
        single.models, single.configs, single._compiled = [self.models[config]], [config], None
        single.draws = self.draws.row(row)
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

    @property
    def evaluation_streams(self) -> Sequence[Streams | None]:
        """Per row, what its network may draw from in eval mode; None where it draws nothing."""
        if self._closed_form is not None:
            return [None] * len(self)
        return self.draws.rows

    def evaluate(
        self, tensors: dict[str, Tensor], batch: Batch, rows: Sequence[int] | None = None
    ) -> Tensor:
        """Return the outputs (K, n, ...) with other parameters and buffers, each (K, ...).

        In eval mode; no buffer changes.

        Args:
            rows: of the stack, whose draws the models get; None for all of them, in order.
        """
        if self._closed_form is not None:
            return self._closed_form.outputs(tensors, batch)
        with self._modes.evaluating(), self.draws.evaluation(rows):
            return self._forward(self._copies(tensors), batch.X, batch.shared)

    def _copies(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors with copies of the buffers that a forward pass may change."""
        names = self._buffers if self._changing is None else self._changing
        return {**tensors, **{name: tensors[name].clone() for name in names}}

    def probe(self, X: Tensor) -> Tensor:
        """Return the outputs (n, ...) of the first row on inputs (n, ...), and leave no trace.

        In training mode: that shows what a step changes and draws.

        Raises:
            BatchError: for outputs that are no tensor of real numbers.
            WriteError: for a forward pass that changes its inputs.
        """
        guard = Guard({"X": X}, sampled=True)
        with undisturbed(self._template):  # with gradients, which a model may need inside
            if self._closed_form is not None:
                output = self.evaluate(self.tensors, Batch(X, X, shared=True))
            else:
                with self.draws.watched("in_steps"):
                    output = self._forward(self._copies(self.tensors), X, True, trains=True)
                if self.draws.in_steps:
                    with self._modes.evaluating(), self.draws.watched("in_evaluations"):
                        self._forward(self._copies(self.tensors), X, True)
            output = output[0].detach()
        if guard.changed():
            raise WriteError(
                f"MODEL {type(self._template).__name__}: its forward pass changes its input X in "
                "place; all configs and the initial network read it too; try X = X.clone(), or "
                "operations out of place (no inplace=True, no +=)"
            )
        return output

    def _check_output(self, output: Any) -> None:
        """Refuse outputs of the first forward pass that are no real numbers."""
        self._output_checked = True
        name = f"MODEL {type(self._template).__name__}: its forward pass returned"
        if not isinstance(output, Tensor):
            raise BatchError(
                f"{name} {type(output).__name__}; valid is a tensor (n, ...) of floating-point "
                "numbers; of several, return the one that the loss is computed of"
            )
        got = f"shape {tuple(output.shape)} and {str(output.dtype).removeprefix('torch.')}"
        if output.numel() == 0:
            raise BatchError(f"{name} {got}; valid are 1 output or more")
        if not output.is_floating_point() or output.ndim == 0:
            raise BatchError(
                f"{name} {got}; valid is a tensor (n, ...) of floating-point numbers; of complex "
                "numbers, return .abs(), or real and imaginary part as two columns"
            )

    @property
    def scaling(self) -> Collection[str]:
        """The names of the tensors that :meth:`scaled` multiplies outputs by."""
        return () if self._closed_form is None else (self._closed_form.multiplier,)

    def scaled(self, outputs: Tensor) -> Tensor:
        """Return outputs (K, n, ...) times the tensors :attr:`scaling`, which they lack."""
        form = self._closed_form
        return outputs if form is None else form.scaled(self.tensors, outputs)

    def bound(self, loss: StackedLoss, tensors: Mapping[str, Tensor] | None = None) -> StackedLoss:
        """Return a loss of outputs and targets alone, given the parameters if it takes them.

        Args:
            tensors: (K, ...) by name, the parameters among them; by default the current ones.
        """
        if not takes_params(loss):
            return loss
        tensors = self.tensors if tensors is None else tensors
        return with_params(loss, {name: tensors[name] for name in self._parameter_names})

    def losses_and_gradients(
        self,
        batch: Batch,
        initial_output: Tensor | float,
        loss: StackedLoss,
        kept: list[Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return losses (K,) of the outputs, and the gradients of the trained parameters.

        Args:
            initial_output: (K, n, ...), subtracted from the outputs, or a number.
            loss: from outputs (K, n, ...) and targets to losses (K,), each of its own config's.
            kept: takes the outputs minus ``initial_output``, where these are in memory.
        """
        if self._closed_form is not None:
            losses, found = self._closed_form.losses_and_gradients(
                self.tensors, batch, initial_output, loss, kept
            )
            return losses, [found[name] for name in self.names]
        if self._compiled is not None and self.draws.in_steps:
            self._plain_again()
        if self._compiled is not None:
            losses, found_gradients, found_outputs = self._compiled(
                *(self.tensors, batch.X, batch.targets, batch.shared, initial_output, loss),
                kept is not None,
            )
            if kept is not None:
                kept += found_outputs
            return losses, found_gradients
        names = self._buffers if self._changing is None else self._changing
        self._before = {name: self.tensors[name].clone() for name in names}
        trained, params = self.parameters, self.tensors
        if self._alone:
            own = dict(self._template.named_parameters())
            trained = [own[name] for name in self.names]
            params = {name: parameter.unsqueeze(0) for name, parameter in own.items()}
        with contextlib.ExitStack() as drawing:
            drawing.enter_context(self.draws.step())
            outputs = self._forward(self.tensors, batch.X, batch.shared, trains=True)
            if not self._alone:  # alone, the backward pass may repeat a part of the forward pass
                drawing.close()
            outputs = outputs - initial_output
            if kept is not None:
                kept.append(outputs.detach())
            losses = self.bound(loss, params)(outputs, batch.targets)
            # No two configs share a weight, so the gradient of the sum holds that of each loss.
            with self._vectorising():
                gradients = torch.autograd.grad(losses.sum(), trained, materialize_grads=True)
        return losses, [g.unsqueeze(0) if self._alone else g for g in gradients]

    @torch.no_grad()
    def keep_buffers(self, active: Tensor) -> None:
        """Undo what the last step changed in the buffers of configs that are not active, (K,)."""
        for name in self._changing or ():
            now = self.tensors[name]
            now.copy_(torch.where(column(active, now), now, self._before[name]))

    @contextlib.contextmanager
    def measuring(self, row: int) -> Iterator[None]:
        """Put the model of a row into eval mode, and restore all that a forward pass may change."""
        config = self.configs[row]
        model = self.models[config]
        if config not in self._modes_of:
            self._modes_of[config] = Modes(model)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._modes_of[config].evaluating())
            if self._buffers or self.draws.in_steps:
                stack.enter_context(undisturbed(model))
            if self.draws.in_steps:
                stack.enter_context(self.draws.showing(row))
            yield

    @property
    def method(self) -> str:
        """How gradients are computed, which decides how they round."""
        if self._closed_form is not None:
            return self._closed_form.method
        if self._alone:
            return "the model itself"
        compiled = self._compiled is not None and self._compiled.works
        return "torch.compile" if compiled else "autograd"

    def compile(self) -> None:
        """Compile :meth:`losses_and_gradients`, unless it has a closed form or changes buffers.

        Nor if it draws, which the first batch shows at the latest. Each size of the stack is
        compiled by itself: torch gives up where one function has many.
        """
        if self._closed_form is not None or self._changing != set() or self.draws.in_steps:
            return
        if self._alone and signature(self._template).alone:
            return
        self._alone = False
        self._compiled = Compiled(self._pure_losses_and_gradients, self._template)
        self._planned = self.method

    def _plain_again(self) -> None:
        """Undo :meth:`compile`."""
        self._compiled, self._alone = None, self.draws.alone

    def _pure_losses_and_gradients(
        self,
        tensors: dict[str, Tensor],
        X: Tensor,
        targets: Tensor,
        shared: bool,
        initial_output: Tensor | float,
        loss: StackedLoss,
        keeps: bool,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Differentiate without autograd's state, which cannot be compiled.

        Args:
            keeps: whether the third result has the outputs, else nothing.
        """

        def summed(trained: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, list[Tensor]]]:
            with autocast(self._precision, self.device):
                outputs = self._plain({**tensors, **trained}, X, shared).to(X.dtype)
            outputs = outputs - initial_output
            losses = self.bound(loss, {**tensors, **trained})(outputs, targets)
            return losses.sum(), (losses, [outputs] if keeps else [])

        trained = {name: tensors[name].detach() for name in self.names}
        gradients, (losses, outputs) = torch.func.grad(summed, has_aux=True)(trained)
        return losses, [gradients[name] for name in self.names], outputs

    def _forward(
        self, tensors: dict[str, Tensor], X: Tensor, shared: bool, *, trains: bool = False
    ) -> Tensor:
        first = trains and self._changing is None
        # By their content: BatchNorm changes its statistics without a new version.
        before = {name: tensors[name].clone() for name in self._buffers if first}
        watched = self._watched(tensors)
        versions = [tensor._version for tensor in watched]
        with autocast(self._precision, self.device):
            forward = self._called if self._alone else self._vectorised
            output = forward(tensors, X, shared)
        pairs = zip(self._buffers, watched, versions, strict=False)
        changed = {name for name, tensor, version in pairs if tensor._version != version}
        if first:
            same = (torch.equal(tensors[name], before[name]) for name in self._buffers)
            changed |= {name for name, equal in zip(self._buffers, same, strict=True) if not equal}
            self._changing = changed
        elif self._changing is not None and (late := sorted(changed - self._changing)):
            raise SpecError(
                f"MODEL: its forward pass changes the buffer {late[0]}, which the first one left "
                "as it was; let it change the same buffers at every step"
            )
        return output.to(X.dtype)

    def _watched(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the tensors whose versions show which buffers a forward pass has changed."""
        if not self._buffers:
            return []
        own = dict(self._template.named_buffers()) if self._alone else tensors
        return [own[name] for name in self._buffers]

    def _vectorised(self, tensors: dict[str, Tensor], X: Tensor, shared: bool) -> Tensor:
        with self._vectorising():
            return self._plain(tensors, X, shared)

    def _plain(self, tensors: dict[str, Tensor], X: Tensor, shared: bool) -> Tensor:
        if len(self.models) == 1:
            only = {name: tensor[0] for name, tensor in tensors.items()}
            return self._forward_one(only, X if shared else X[0]).unsqueeze(0)
        # Where it is not known that they draw, a draw raises: it would be one for all.
        randomness = "different" if self.draws.active else "error"
        in_dims = (0, None if shared else 0)
        output: Tensor = torch.vmap(self._forward_one, in_dims, randomness=randomness)(tensors, X)
        return output

    @contextlib.contextmanager
    def _vectorising(self) -> Iterator[None]:
        """Let what fails for several models at once be tried with each alone."""
        try:
            yield
        except Exception as error:
            alone = len(self.models) == 1
            if alone or isinstance(error, UserError) or ran_out_of_memory(error):
                raise
            raise StackingError(unvectorised(error, "MODEL")) from error

    def _forward_one(self, tensors: dict[str, Tensor], X: Tensor) -> Tensor:
        current = dict(tensors)  # which torch updates where the module has replaced a tensor
        output: Tensor = functional_call(self._template, current, (X,), tie_weights=self._tied)
        if not self._output_checked:
            self._check_output(output)
        if replaced := [name for name in self._buffers if current[name] is not tensors[name]]:
            raise StackingError(f"the forward pass replaces the buffer {replaced[0]}")
        return output

    def _called(self, tensors: dict[str, Tensor], X: Tensor, shared: bool) -> Tensor:
        """Call the only model itself, with these tensors (1, ...) in place of its own."""
        model = self._template
        named = [*model.named_parameters(), *model.named_buffers()]
        others = {name: own for name, own in named if tensors[name] is not self.tensors[name]}
        registered = [(module._buffers, dict(module._buffers)) for module in model.modules()]
        with showing(others, tensors, in_place=self.aliased):
            try:
                output: Tensor = model(X if shared else X[0])
            finally:
                for now, before in registered if self._buffers else ():
                    put_back(now, before)
        if not self._output_checked:
            self._check_output(output)
        return output.unsqueeze(0)

    def _set(self, tensors: dict[str, Tensor]) -> None:
        """Make these (K, ...) tensors the weights, and the models views into them."""
        self.tensors = tensors
        for name in self.names:
            tensors[name].requires_grad_()
        if self._alone:  # they are views of the model's already
            return
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
        if not self._alone:
            self._release(range(len(self.configs)))
        # vmap refers to this object and this object to vmap: without this, the weights would stay
        # until the next garbage collection.
        self.tensors = {}

    def _release(self, rows: Iterable[int]) -> None:
        for row in rows:
            model = self.models[self.configs[row]]
            point_at(
                model, {name: tensor.clone() for name, tensor in detached_tensors(model).items()}
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state for :meth:`load_state_dict`, with the weights of all models."""
        left_out = sorted(set(range(len(self.models))) - set(self.configs))
        return {
            "configs": list(self.configs),
            "planned": self._planned,
            "method": self.method,
            "draws": bool(self.draws.in_steps),
            "tensors": dict(self.tensors),
            "left_out": {config: detached_tensors(self.models[config]) for config in left_out},
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from a saved state.

        Raises:
            StateError: where its tensors have other shapes, or its gradients another method.
        """
        own = {name: tuple(tensor.shape[1:]) for name, tensor in self.tensors.items()}
        saved = {name: tuple(tensor.shape[1:]) for name, tensor in state["tensors"].items()}
        if (name := first_difference(own, saved)) is not None:
            raise StateError(
                f"saved state: its weights {name} have shape {saved.get(name)}, but the models "
                f"have {own.get(name)}; discard the state to train from the beginning"
            )
        if self._compiled is not None and state["draws"]:
            self._plain_again()
        if self._closed_form is not None:
            self._closed_form.continue_by(state["method"])
        # With COMPILE="auto" a longer training may be compiled where a shorter one was not.
        newly_compiled = self._planned == "torch.compile" != state["planned"]
        if newly_compiled or state["method"] not in (self.method, "autograd"):
            raise StateError(
                f"saved state: its gradients come from {state['method']}, those of this training "
                f"from {self.method}, which rounds differently; "
                f"{_way_back(state['method'], self.method)}, or discard the state to train from "
                "the beginning"
            )
        if state["method"] == "autograd":  # compiling has failed then, but might work now
            self._closed_form = self._compiled = None
        if self._alone:
            for name, tensor in self.tensors.items():
                tensor.detach().copy_(state["tensors"][name])
            return
        state = map_tensors(state, lambda tensor: tensor.to(device, copy=True))
        self.configs = list(state["configs"])
        for config, tensors in state["left_out"].items():
            point_at(self.models[config], tensors)
        self._set(dict(state["tensors"]))


def _way_back(saved: str, own: str) -> str:
    """Return what to do so that gradients come from the saved method instead of another."""
    if {saved, own} & {"autograd", "torch.compile", "the model itself"}:
        return "set COMPILE as it was"
    if saved == NativeMLP.method:
        return (
            "here the functions in C are not compiled, unlike where it began (mlpsubmit doctor "
            "shows why): continue on a machine like that"
        )
    return "continue on a device of the same kind, with the same versions of torch and Triton"
