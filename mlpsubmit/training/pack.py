"""A pack: K configs in training together, in parts that are shrunk, saved and restored."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from mlpsubmit.arguments import function_name
from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import DIVERGED, BatchFn
from mlpsubmit.spec.hyperparameters import OUTSIDE_RESULTS, STACKED, Hyperparameters, validate
from mlpsubmit.training.accel.compile import compile_wanted, make_importable
from mlpsubmit.training.batches import Batch, Batches
from mlpsubmit.training.clipping import GradientClipping
from mlpsubmit.training.comparison import StackingError, signature
from mlpsubmit.training.culprits import FAILURES, raise_attributed
from mlpsubmit.training.guard import Guard, WriteError, arrays_of
from mlpsubmit.training.initial_output import InitialOutput
from mlpsubmit.training.loss_history import LossHistory
from mlpsubmit.training.losses import stacked_loss
from mlpsubmit.training.lr_factors import with_lr_factors
from mlpsubmit.training.lr_schedules import LRSchedule
from mlpsubmit.training.measurements import Grabber, resolve
from mlpsubmit.training.metrics import MetricHistory, Outputs
from mlpsubmit.training.models import MLP
from mlpsubmit.training.monitor import STATE_FORMAT, StateError
from mlpsubmit.training.oom import ran_out_of_memory
from mlpsubmit.training.optimizers.build import build_optimizer
from mlpsubmit.training.optimizers.update_rules import update_rule, warn_of_missing_theory
from mlpsubmit.training.parametrizations import Factors, effective_lr, parametrize
from mlpsubmit.training.parts import Part, map_tensors
from mlpsubmit.training.result import Trained
from mlpsubmit.training.seeds import (
    generator_states,
    global_states,
    saved_global_states,
    set_generator_states,
    set_global_states,
    streams,
)
from mlpsubmit.training.stack import Stack
from mlpsubmit.training.stackable import check_stackable
from mlpsubmit.training.weight_history import WeightHistory

__all__ = ["Pack", "Parametrized", "parametrized", "per_config"]


@dataclass(frozen=True)
class Parametrized:
    """What is known of models that have been parametrized, and compared, before the training.

    Attributes:
        factors: per model, those of the parametrization by parameter name.
        model0: a module made as the first model, for grabs that take ``model0``.
    """

    factors: Sequence[dict[str, Factors]]
    model0: nn.Module | None


def per_config(
    hyperparameters: Hyperparameters | Mapping[str, Any] | Sequence[Hyperparameters], count: int
) -> list[Hyperparameters]:
    """Return one set of hyperparameters per config.

    Args:
        hyperparameters: one for all, or one per config.
        count: K, the number of configs.

    Raises:
        SpecError: naming what differs though all configs of a pack share it.
    """
    if isinstance(hyperparameters, Mapping):
        hyperparameters = validate(hyperparameters)
    if isinstance(hyperparameters, Hyperparameters):
        return [hyperparameters] * count
    settings = list(hyperparameters)
    errors = [
        f"{name.upper()} differs between configs trained together: {values}; only "
        f"{', '.join(sorted(STACKED)).upper()} may"
        for name in Hyperparameters.model_fields.keys() - STACKED - OUTSIDE_RESULTS
        if (values := _differing([getattr(one, name) for one in settings]))
    ]
    if errors:
        raise SpecError(sorted(errors))
    return settings


def _differing(values: list[Any]) -> str:
    """Return the first two values that differ, for a message, or nothing."""
    differing = (v for v in values[1:] if v is not values[0] and v != values[0])
    return next((f"{values[0]!r} and {v!r}" for v in differing), "")


class Pack:
    """K configs in training.

    Args:
        models, batch_fns, settings, trials, test_fns, grabs, contexts, generators, device, known:
            as :func:`mlpsubmit.training.train` takes them, with one of ``settings``, ``trials`` and
            ``contexts`` per config.
        state: a state that :meth:`state_dict` returned, or None to start from the beginning.

    Attributes:
        start: the first step to make.
        device: where it trains.
        stack: the networks.
        train, test: the batches; ``test`` is None where there is no test set or no use for it.
        inputs: guards the tensors among the contexts, such as the data entries.
        initial_output: f0, which is subtracted from the outputs.
        clipping: of the gradients.
        lr_schedule: the factors of the learning rates.
        optimizer: the stacked optimizer.
        history: the losses.
        metrics: the metrics, and the thresholds on them.
        grabber: the measurements.
        weight_history: the weights that are kept.
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
        known: Parametrized | None,
        state: dict[str, Any] | None,
    ) -> None:
        common, self.device = settings[0], device
        self.start, self._given = 0, list(generators)
        if state is not None:
            _check_state(state, len(models), len(self._given))
            # The fixed sets are drawn again, from the generators' original states.
            set_generator_states(self._given, state["generators_at_start"])
        self._generators_at_start = generator_states(self._given)
        #: What the first step must not change, once its batch has been drawn.
        self._drawn_before = self._loss_may_draw = False
        self._unchanged: tuple[dict[str, Any], Guard] | None = None
        arguments = resolve(grabs, contexts)
        taken = frozenset[str]().union(*(names for one in arguments for names in one.values()))

        # The networks, and a module that can show them at initialisation.
        model0 = known.model0 if known else None
        if known is None and "model0" in taken:
            model0 = _copied(models[0])  # before a callable parametrization binds functions to it
            parametrized(model0, settings[0], trials[0], contexts[0])
        factors = known.factors if known else _parametrized(models, settings, trials, contexts)
        check_stackable(models, compared=known is not None)
        if model0 is not None:
            model0.eval()
        seeds = [streams(h.seed, trial) for h, trial in zip(settings, trials, strict=True)]
        fast = common.compile is not False
        self.stack = Stack(models, device, common.precision, fast, seeds)
        # Copied before anything evaluates the networks: a forward pass may change a buffer.
        keeps_initial = model0 is not None or (common.online and common.centered)
        initial_weights = self.stack.copy() if keeps_initial else None

        # The batches; a test set is drawn for test losses and for grabs.
        has_test_loss = common.test_every is not None
        needs_test = has_test_loss or not taken.isdisjoint({"X_te", "y_te"})
        self.inputs = Guard(_inputs(contexts), sampled=True, whole=True)
        d_in = models[0].d_in if isinstance(models[0], MLP) else None
        self._build_batches(batch_fns, test_fns if needs_test else None, common, d_in)

        # The losses of the centred outputs, and their gradients.
        self.initial_output = InitialOutput(
            self.stack,
            initial_weights,
            centered=common.centered,
            train=self.train,
            test=self.test if has_test_loss else None,
        )
        self._loss, self._loss_name = stacked_loss(common.loss), _name_of(common.loss)
        self._model_name, self._blocks = type(models[0]).__name__, 0
        if compile_wanted(common, models[0], device, self.weights):
            make_importable(getattr(common.loss, "func", common.loss))
            self.stack.compile()

        # Updates, records, measurements.
        factors = with_lr_factors(settings, factors, self.stack.names)
        self.clipping = GradientClipping(settings, self.stack, factors)
        self.lr_schedule = LRSchedule(settings, self.stack)
        self.optimizer, opts = build_optimizer(self.stack, settings, factors)
        warn_of_missing_theory(settings)
        tested = has_test_loss and self.test is not None
        self.history = LossHistory(settings, self.stack, tested)
        self.metrics = MetricHistory(settings, self.history, self.stack)
        show_initial = None if model0 is None else partial(self.initial_output.show, model0)
        self.grabber = Grabber(
            grabs,
            contexts,
            arguments,
            common,
            self.stack,
            opts,
            show_initial,
            self.train,
            self.test,
        )
        self.weight_history = WeightHistory(common.save_weights, self.stack, common.max_iter)
        if state is not None:
            self._load_state_dict(state)

    def _build_batches(
        self,
        batch_fns: Sequence[BatchFn],
        test_fns: Sequence[BatchFn] | None,
        common: Hyperparameters,
        d_in: int | None,
    ) -> None:
        batches = partial(
            Batches,
            loss=common.loss,
            metrics=[m.function for m in common.measured.values() if isinstance(m.function, str)],
            model=self.stack.probe,
            inputs=self.inputs,
            device=self.device,
            dtype=self.stack.parameters[0].dtype,
        )
        fixed = not common.online
        self.train = batches(batch_fns, d_in=d_in, fixed=fixed, what="batch function")
        self.test: Batches | None = None
        if test_fns:
            d_in = self.train.d_in
            self.test = batches(test_fns, d_in=d_in, fixed=True, what="test batch function")

    def draw(self, step: int) -> tuple[Batch, Tensor | float]:
        """Return the batch of a step, and f0 (K, n, ...) on it, or a number."""
        return self.train.aside(partial(self._draw, step))

    def _draw(self, step: int) -> tuple[Batch, Tensor | float]:
        batch = self.train.draw(step)
        if not self._drawn_before:
            guard = Guard({"X": batch.X, "y": batch.y}, sampled=True)
            self._drawn_before, self._unchanged = True, (global_states(self.device), guard)
        with self._attributing(batch, 0.0):
            return batch, self.initial_output.train(batch)

    def objective(
        self, batch: Batch, initial_output: Tensor | float, kept: list[Tensor] | None = None
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the losses (K,) of the centred outputs on a batch, and their clipped gradients.

        Args:
            initial_output: f0 on the batch.
            kept: takes the outputs (K, n, ...), if there are metrics. Where a kernel computes the
                step, that is a second forward pass.

        Raises:
            StackingError: where the first call draws from a global generator, for several models.
            WriteError: where MODEL or LOSS changes the batch.
        """
        wanted = kept if self.metrics.measured else None
        with self._attributing(batch, initial_output):
            found = self.stack.losses_and_gradients(batch, initial_output, self._loss, wanted)
            if wanted is not None and not wanted:
                with torch.no_grad():
                    wanted.append(self.stack(batch) - initial_output)
        losses, gradients = found[0], self.clipping(found[1])
        written = batch.written
        if self._unchanged is not None:
            (states, guard), self._unchanged = self._unchanged, None
            after = global_states(self.device)
            if len(self.stack.models) > 1:
                self._refuse_global_draws(states, after)
            self._loss_may_draw = states != after
            # By checksums the first time (a GPU-CPU sync point), else by version counters.
            written = written or "".join(guard.changed()[:1])
        if written:
            self._refuse_write(written)
        return losses, gradients

    @contextlib.contextmanager
    def _attributing(self, batch: Batch, initial_output: Tensor | float) -> Iterator[None]:
        """Attribute an error of the networks to the configs that fail alone, too."""
        try:
            yield
        except FAILURES as error:
            if not ran_out_of_memory(error) and not _is_capturing(self.device):
                self._raise_by_config(batch, initial_output)
            raise

    def _refuse_global_draws(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        drawn = [name for name, state in after.items() if state != before[name]]
        if drawn:
            raise StackingError(
                f"MODEL or LOSS draws random numbers from the global generator of {drawn[0]}"
            )

    def _raise_by_config(self, batch: Batch, initial_output: Tensor | float) -> None:
        """Evaluate the configs one by one, and raise the errors of those that fail alone, too."""
        errors: dict[int, BaseException] = {}
        for row, config in enumerate(self.stack.configs if len(self.stack.models) > 1 else ()):
            single, f0, this = batch, initial_output, slice(row, row + 1)
            if not batch.shared:
                single = Batch(batch.X[this], batch.y[this], False)
            if isinstance(f0, Tensor):
                f0 = f0[this]
            try:
                self.stack.row(row).losses_and_gradients(single, f0, self._loss)
            except StackingError:
                continue  # not of this config: it has to train alone
            except FAILURES as error:
                errors[config] = error
        if errors:
            raise_attributed(errors)

    @torch.no_grad()
    def evaluate_test(self) -> tuple[Tensor, Outputs]:
        """Return the losses (K,) on the test set, and the centred outputs with their targets."""
        assert self.test is not None
        batch = self.test.draw(0)
        outputs = self.stack(batch) - self.initial_output.test()
        # Else evaluations would take draws from the training.
        apart = self.stack.draws.showing(0) if self._loss_may_draw else contextlib.nullcontext()
        with apart:
            losses = self.stack.bound(self._loss)(outputs, batch.targets)
        if written := batch.written:
            self._refuse_write(written)
        return losses, (outputs, batch.targets)

    def _refuse_write(self, name: str) -> NoReturn:
        who = "LOSS " + self._loss_name if name == "y" else f"MODEL {self._model_name}"
        raise WriteError(
            f"{who} changes {name} in place: all configs and all later steps read it too; try "
            f"{name} = {name}.clone(), or operations out of place"
        )

    def end_block(self) -> None:
        """Refuse to go on where fixed sets or inputs have been written to.

        By version counters; after 1, 2, 4, 8, ... blocks by checksums of a sample; and at the end,
        before a shrink and before a state is saved by checksums of the whole. Those are a GPU-CPU
        sync point.

        Raises:
            WriteError: naming the tensor, and all functions that get it.
        """
        self._blocks += 1
        if not self.history.open:
            self._check_inputs(_changed_anywhere)
        elif self._blocks & (self._blocks - 1):
            self._check_inputs(Guard.written)
        else:
            self._check_inputs(Guard.changed)

    def _check_inputs(self, changed: Callable[[Guard], list[str]]) -> None:
        sets = {"training set": self.train, "test set": self.test}
        for what, batches in sets.items():
            for name in [] if batches is None else changed(batches.guard):
                self._refuse_unknown_write(f"{name} of the {what}")
        for name in changed(self.inputs):
            self._refuse_unknown_write(name)

    def _refuse_unknown_write(self, name: str) -> NoReturn:
        functions = [f"MODEL {self._model_name}", f"LOSS {self._loss_name}"]
        functions += [f"batch function {one}" for one in self.train.names]
        functions += [f"grab {name!r}" for name in self.grabber.grabs]
        raise WriteError(
            f"{name} was changed in place during the training, by one of: "
            f"{', '.join(dict.fromkeys(functions))}; others read it too; try .clone(), or .copy() "
            "of an array, before the change"
        )

    def shrink(self) -> None:
        """Leave out the configs that have stopped, once they are at least half of the stack."""
        keep = self.history.open
        if 0 < len(keep) <= len(self.stack) // 2:
            self._check_inputs(_changed_anywhere)  # the fixed sets are copied, and guarded anew
            for part in (*self._parts.values(), self.train, self.test):
                if part is not None:
                    part.shrink(keep)

    def results(self) -> Trained:
        """Return the results, and give every model its own weights."""
        weights = self.weight_history.results()
        self.stack.release()
        history, traced = self.history, self.grabber.schedule is not None
        grabbed_at = self.grabber.schedule if self.grabber.grabs else None
        none, kept_at = np.zeros(0, np.int64), self.weight_history.schedule
        return Trained(
            status=history.status,
            steps=history.steps,
            timekeys=history.timekeys,
            train_loss=history.train_trace if traced else history.final_train,
            test_loss=history.test_trace if traced else history.final_test,
            step=history.record_at.steps if traced else none,
            eval_step=history.eval_at.steps if traced else none,
            grab_step=none if grabbed_at is None else grabbed_at.steps,
            metrics=self.metrics.results,
            metric_timekeys=self.metrics.timekeys,
            grabs=self.grabber.results((history.status == DIVERGED).tolist()),
            entries=self.grabber.entries,
            weights_step=none if kept_at is None else kept_at.steps,
            weights=weights,
        )

    # The part that replay depends on

    @property
    def generators(self) -> list[torch.Generator]:
        """The generators that a step draws from: those given, and those of the models."""
        return [*self._given, *self.stack.draws.generators]

    @property
    def obstacle(self) -> str | None:
        """Why steps cannot be recorded, where that is known."""
        return self.stack.draws.obstacle or self.metrics.obstacle

    @property
    def size(self) -> int:
        """The number of rows of the stack."""
        return len(self.stack)

    @property
    def weights(self) -> int:
        """The number of trained weights of the stack."""
        return sum(parameter.numel() for parameter in self.stack.parameters)

    @property
    def functions(self) -> list[Any]:
        """The user's functions that each step calls, and a hash of the model's state."""
        own = [*self.train.functions, self._loss, *self.metrics.functions]
        return [*own, hash(signature(self.stack.models[0]))]

    @property
    def buffers(self) -> list[Tensor]:
        """The tensors that a step may change in place: the same memory until a shrink."""
        found: list[Tensor] = []
        parts = (self.optimizer, self.history, self.metrics, self.grabber)
        changed = [part.on_device for part in parts]
        further = [self.initial_output.weights, self.lr_schedule.buffers, self.train.buffers]
        state = [self.stack.tensors, *further, changed]
        map_tensors(state, lambda tensor: found.append(tensor.detach()))
        return found

    # Saving and restoring

    @property
    def _parts(self) -> dict[str, Part]:
        names = ("stack", "initial_output", "clipping", "optimizer", "history", "metrics")
        parts = {name: getattr(self, name) for name in (*names, "grabber", "weight_history")}
        return parts | {"draws": self.stack.draws}

    def state_dict(self, start: int) -> dict[str, Any]:
        """Return all that is needed to continue with a step (a GPU-CPU sync point)."""
        self._check_inputs(_changed_anywhere)  # a resumed training draws them anew
        state = {
            "format": STATE_FORMAT,
            "models": len(self.stack.models),
            "start": start,
            "generators": generator_states(self._given),
            "generators_at_start": self._generators_at_start,
            "global_generators": saved_global_states(self.device),
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
        }
        return dict(map_tensors(state, lambda tensor: tensor.detach().to("cpu", copy=True)))

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = state["start"]
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name], self.device)
        self.history.extend()  # of a shorter training, or with fewer thresholds
        self.metrics.extend()
        self.grabber.extend()
        self.weight_history.extend()
        for batches in (self.train, self.test):
            if batches is not None and len(self.stack) < len(self.stack.models):
                batches.shrink(self.stack.configs)
        set_generator_states(self._given, state["generators"])
        # Batch functions draw from the generators they are given, but a model alone and an
        # optimizer of the user's have none.
        set_global_states(self.device, state["global_generators"])


def _inputs(contexts: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return each array among the contexts once, by its name."""
    seen, found = set[int](), dict[str, Tensor]()
    for config, context in enumerate(contexts):
        for name, tensor in arrays_of(context).items():
            if id(context[name]) not in seen:
                seen.add(id(context[name]))
                found[f"{name} of model {config}" if name in found else name] = tensor
    return found


def _changed_anywhere(guard: Guard) -> list[str]:
    return guard.changed(whole=True)


def _name_of(setting: Any) -> str:
    return setting if isinstance(setting, str) else function_name(setting)


def _is_capturing(device: torch.device) -> bool:
    """Return whether a CUDA graph is being recorded: then any further work is part of it."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def parametrized(
    model: nn.Module, h: Hyperparameters, trial: int, context: Mapping[str, Any]
) -> dict[str, Factors]:
    """Parametrize a model in place; return its factors by parameter name."""
    if h.precision == "fp64":
        model.double()
    return parametrize(
        model.cpu(),
        h.parametrization,
        gamma=h.gamma,
        lr=effective_lr(h.lr, h.gamma, update_rule(h)),
        generator=torch.Generator().manual_seed(streams(h.seed, trial).weights),
        context=context,
        update=update_rule(h),
    )


def _parametrized(models: Sequence[nn.Module], *others: Sequence[Any]) -> list[dict[str, Factors]]:
    """Parametrize every model; those that fail are named by the exception."""
    factors, errors = list[dict[str, Factors]](), dict[int, BaseException]()
    for config, one in enumerate(zip(models, *others, strict=True)):
        try:
            factors.append(parametrized(*one))
        except FAILURES as error:
            errors[config] = error
    if errors:
        raise_attributed(errors)
    return factors


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise SpecError(
            f"a grab takes model0, but the model {type(model).__name__} cannot be copied "
            f"({type(error).__name__}); leave model0 out of the grab"
        ) from error


def _check_state(state: dict[str, Any], models: int, generators: int) -> None:
    got = {**state, "generators": len(state.get("generators", ()))}
    expected = {"format": STATE_FORMAT, "models": models, "generators": generators}
    for name, value in expected.items():
        if got.get(name) != value:
            raise StateError(
                f"saved state: its {name} is {got.get(name)}, but this training expects {value}; "
                "discard the state to train from the beginning"
            )
