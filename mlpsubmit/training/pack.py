"""A pack: all that is in training together, as parts that shrink, are saved and restored alike."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlpsubmit.protocol import DIVERGED, BatchFn
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.training.accel.compile import let_be_imported, pays
from mlpsubmit.training.batches import Batch, Batches, LastBatch
from mlpsubmit.training.initial_output import InitialOutput
from mlpsubmit.training.loss_history import Finished, LossHistory
from mlpsubmit.training.losses import stacked_loss
from mlpsubmit.training.measurements import Grabber, resolve
from mlpsubmit.training.monitor import STATE_FORMAT, StateError, map_tensors
from mlpsubmit.training.optimizers import build_optimizer
from mlpsubmit.training.parametrizations import effective_lr, parametrize
from mlpsubmit.training.result import Trained
from mlpsubmit.training.schedules import Schedule
from mlpsubmit.training.seeds import generator_states, set_generator_states, streams
from mlpsubmit.training.stack import (
    Stack,
    behaviour,
    check_equal_behaviour,
    check_equal_structure,
)

__all__ = ["Pack"]


class Pack:
    """K configs in training.

    Args:
        models, batch_fns, settings, trials, test_fns, grabs, contexts, generators, device: as
            :func:`mlpsubmit.training.train` takes them, with one of ``settings``, ``trials`` and
            ``contexts`` per config.
        state: what :meth:`state_dict` returned earlier, or None to start from the beginning.

    Attributes:
        start: the step to begin with.
        generators: what the batch functions draw from.
        train, test: the batches; None where there is no test set.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        batch_fns: Sequence[BatchFn],
        settings: Sequence[Hyperparameters],
        *,
        trials: Sequence[int],
        test_fns: Sequence[BatchFn] | None,
        grabs: Mapping[str, Callable[..., Any]],
        contexts: Sequence[Mapping[str, Any]],
        generators: Sequence[torch.Generator],
        device: torch.device,
        state: dict[str, Any] | None,
    ) -> None:
        common = settings[0]
        online, traced = common.online, not common.onlythresholds
        self.start, self.generators = 0, list(generators)
        if state is not None:
            _check_state(state, len(models), len(self.generators))
            # The fixed sets are drawn anew, so from where they were drawn from the first time.
            set_generator_states(self.generators, state["generators_at_start"])
        self._generators_at_start = generator_states(self.generators)

        arguments = resolve(grabs, contexts)
        wanted = frozenset[str]().union(*(taken for one in arguments for taken in one.values()))
        models, init_model, factors = _parametrized(
            models, settings, trials, contexts, "model0" in wanted
        )
        keep_initial = init_model is not None or (online and common.centered)
        self.stack = Stack(models, device, common.precision, keep_initial)

        self.train = self._batches(batch_fns, common, fixed=not online)
        if online:  # else the initial networks are evaluated once
            self.stack.merge_initial(self.train.sources)
        tested = not online or not wanted.isdisjoint({"X_te", "y_te"})
        self.test = self._batches(test_fns, common, test=True) if test_fns and tested else None
        fixed_sets = (None, None) if online else (self._fixed(self.train), self._fixed(self.test))
        self.initial_output = InitialOutput(self.stack, common.centered, *fixed_sets)
        self._loss = stacked_loss(common.loss)
        if common.compile is True or (common.compile == "auto" and self._compiling_pays(common)):
            let_be_imported(common.loss)
            self.stack.compile(True)
        self.optimizer, views = build_optimizer(self.stack, settings, factors)
        self.history = LossHistory(settings, device, tested=self.test is not None and not online)
        self.grab_at = Schedule(common.grab_every, common.max_iter) if traced else None
        slots = None if self.grab_at is None else len(self.grab_at.steps)
        self.grabber = Grabber(grabs, contexts, arguments, self.stack, views, init_model, slots)
        # Without thresholds, those of a trace that do not diverge end at its last grab.
        stops_between = slots != common.max_iter and bool(common.thresholds)
        looks_back = online and not wanted.isdisjoint({"X_tr", "y_tr"})
        self.last = LastBatch(device) if looks_back and (stops_between or not traced) else None
        if state is not None:
            self._load(state)

    def _batches(
        self,
        functions: Sequence[BatchFn],
        common: Hyperparameters,
        fixed: bool = True,
        test: bool = False,
    ) -> Batches:
        return Batches(
            functions,
            fixed=fixed,
            loss=common.loss,
            model=self.stack.models[0],
            device=self.stack.device,
            dtype=self.stack.parameters[0].dtype,
            what="test batch function" if test else "batch function",
        )

    def _compiling_pays(self, common: Hyperparameters) -> bool:
        """Tell whether so much is to be trained that a compilation is repaid."""
        # Per weight and sample 2 operations forward, 4 backward, and online 2 for f0.
        return pays(
            self.stack.models[0],
            self.stack.device,
            operations=8.0 * self.weights * common.n_samples * common.max_iter,
        )

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return self.stack.device

    @property
    def size(self) -> int:
        """How many configs the stack still has."""
        return len(self.stack)

    @property
    def weights(self) -> int:
        """How many trained weights the stack has."""
        return sum(parameter.numel() for parameter in self.stack.parameters)

    # Evaluation

    def objective(self, batch: Batch) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the losses (K,) of the centred outputs on a batch, and every config's gradient."""
        return self.stack.losses_and_gradients(batch, self.initial_output.train(batch), self._loss)

    @property
    def functions(self) -> list[Any]:
        """Which functions of the user's each step calls, the model told by its behaviour."""
        return [*self.train.functions, self._loss, behaviour(self.stack.models[0])]

    @property
    def buffers(self) -> list[Tensor]:
        """What a step changes in place, but for generators: the same memory until a shrink."""
        state = self.optimizer.state_dict()
        return [*self.stack.tensors, *_flat(state), *self.history.vectors]

    @torch.no_grad()
    def test_losses(self) -> Tensor:
        """Return the losses (K,) of the centred outputs on the test set."""
        assert self.test is not None
        batch = self.test.draw(0)
        return self._loss(self.stack(batch) - self.initial_output.test(), batch.targets)

    # What happens at a read-back

    def close_finished(self, step: int) -> None:
        """Read the block that ends with this step; measure and close the configs that stopped.

        This is a GPU-CPU sync point.
        """
        finished = self.history.read(step)
        lacking = self.history.lacks_test(finished)
        self.history.close(finished, self.test_losses() if lacking else None)
        for one in finished:
            if not one.diverged:
                self._measure_final(one)
        self.grabber.flush()

    def _measure_final(self, one: Finished) -> None:
        """Call the grabs with final weights and the last batch, unless a trace already has that."""
        slot, step = 0, one.last_step
        if self.grab_at is not None:
            if step in self.grab_at:
                return
            # There is a slot after this step: every schedule ends with the last step of all.
            slot = int(self.grab_at.steps.searchsorted(step))
        train = self.last.batch if self.last else self._fixed(self.train)
        self.grabber.measure(step, slot, [one.position], train, self._fixed(self.test))

    def _fixed(self, batches: Batches | None) -> Batch | None:
        return batches.draw(0) if batches is not None and batches.fixed else None

    def shrink(self) -> None:
        """Leave out the configs that have stopped, once they are at least half of the stack."""
        keep = self.history.open
        if 0 < len(keep) <= len(self.stack) // 2:
            for part in (self.train, self.test, self.last, self.initial_output, self.optimizer):
                if part is not None:
                    part.shrink(keep)
            self.history.shrink(keep)
            self.stack.shrink(keep)

    def measure(self, step: int, batch: Batch, active: Tensor) -> None:
        """Call the grabs for the configs that made this step (a GPU-CPU sync point)."""
        assert self.grab_at is not None
        slot = int(self.grab_at.steps.searchsorted(step))
        rows = [row for row, moved in enumerate(active.tolist()) if moved]
        self.grabber.measure(step, slot, rows, batch, self._fixed(self.test))

    def results(self) -> Trained:
        """Return the results, and give every model its own weights."""
        self.stack.release()
        history, none = self.history, np.zeros(0, np.int64)
        traced = self.grab_at is not None
        return Trained(
            status=history.status,
            steps=history.steps,
            timekeys=history.timekeys,
            train_loss=history.train_trace if traced else history.final_train,
            test_loss=history.test_trace if traced else history.final_test,
            step=history.record_at.steps if traced else none,
            eval_step=history.eval_at.steps if traced else none,
            grab_step=none if self.grab_at is None else self.grab_at.steps,
            grabs=self.grabber.results((history.status == DIVERGED).tolist()),
        )

    # Saving and restoring

    def _parts(self) -> dict[str, Any]:
        parts = ("stack", "initial_output", "optimizer", "history", "grabber", "last")
        return {name: getattr(self, name) for name in parts if getattr(self, name) is not None}

    def state_dict(self, start: int) -> dict[str, Any]:
        """Return all that is needed to continue with a step (a GPU-CPU sync point)."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        state = {
            "format": STATE_FORMAT,
            "models": len(self.stack.models),
            "start": start,
            "compiled": self.stack.compiled,
            "generators": generator_states(self.generators),
            "generators_at_start": self._generators_at_start,
            "global_generator": torch.get_rng_state(),
            "parts": parts,
        }
        return dict(map_tensors(state, lambda tensor: tensor.detach().to("cpu", copy=True)))

    def _load(self, state: dict[str, Any]) -> None:
        if state["compiled"] and not self.stack.compiled:
            raise StateError(
                "saved state: it was trained with COMPILE, which rounds otherwise; discard the "
                "state to train from the beginning"
            )
        self.stack.compile(state["compiled"])  # where it did not work then, it may now
        self.start = state["start"]
        for name, part in self._parts().items():
            part.load_state_dict(state["parts"][name])
        for batches in (self.train, self.test):
            if batches is not None and len(self.stack) < len(self.stack.models):
                batches.shrink(self.stack.configs)
        set_generator_states(self.generators, state["generators"])
        # Of no use to what draws from the generators it is given; a grab may do otherwise.
        torch.set_rng_state(state["global_generator"].clone())


def _parametrized(
    models: Sequence[nn.Module],
    settings: Sequence[Hyperparameters],
    trials: Sequence[int],
    contexts: Sequence[Mapping[str, Any]],
    wants_init_model: bool,
) -> tuple[Sequence[nn.Module], nn.Module | None, list[dict[str, float]]]:
    """Parametrize every model; return them, a copy of the first one, and lr factors."""
    check_equal_structure(models)
    check_equal_behaviour(models)  # now: a callable parametrization may bind functions to each
    # Copied before a callable parametrization can bind functions to the first one's layers.
    init_model = copy.deepcopy(models[0]) if wants_init_model else None
    factors = []
    for i, (h, trial, context) in enumerate(zip(settings, trials, contexts, strict=True)):
        for model in (models[i], init_model) if i == 0 and init_model is not None else (models[i],):
            r = parametrize(
                model.cpu(),
                h.parametrization,
                gamma=h.gamma,
                lr=effective_lr(h.lr, h.gamma),
                generator=torch.Generator().manual_seed(streams(h.seed, trial).weights),
                context=context,
            )
        factors.append(r)
    return models, init_model, factors


def _flat(state: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested dictionaries and lists."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (dict, list)):
        for entry in state.values() if isinstance(state, dict) else state:
            yield from _flat(entry)


def _check_state(state: dict[str, Any], models: int, generators: int) -> None:
    got = {
        "format": state.get("format"),
        "models": state.get("models"),
        "generators": len(state.get("generators", ())),
    }
    wanted = {"format": STATE_FORMAT, "models": models, "generators": generators}
    for name, value in wanted.items():
        if got[name] != value:
            raise StateError(
                f"saved state: its {name} is {got[name]}, but this training wants {value}; "
                "discard the state to train from the beginning"
            )
