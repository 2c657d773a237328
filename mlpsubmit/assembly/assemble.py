"""From the configs of a pack to the arguments of the train loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mlpsubmit.arguments import declared, function_name, further_arguments, needed, takes_all
from mlpsubmit.assembly.batch_streams import BatchStream, SharedBatches, settings_of, sharing_key
from mlpsubmit.assembly.build_model import bound, build_model
from mlpsubmit.assembly.layer_roles import check_layers
from mlpsubmit.errors import SpecError, collected, did_you_mean
from mlpsubmit.grabs.named_grabs import matrix_choice, named_grab
from mlpsubmit.protocol import FOR_BATCHES, BatchFn
from mlpsubmit.spec.accepted import POSITIONAL
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.keys import values_of
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.comparison import Signature, StackingError, signature
from mlpsubmit.training.culprits import FAILURES
from mlpsubmit.training.guard import Guard, WriteError, arrays_of
from mlpsubmit.training.loop import train
from mlpsubmit.training.module_tensors import own_tensors
from mlpsubmit.training.monitor import Monitor
from mlpsubmit.training.oom import ran_out_of_memory
from mlpsubmit.training.pack import Parametrized, parametrized
from mlpsubmit.training.parametrizations import Factors
from mlpsubmit.training.precision import functions_dtype
from mlpsubmit.training.result import Trained
from mlpsubmit.training.saved_networks import SavedNetworks, load_weights, measure
from mlpsubmit.training.seeds import streams

__all__ = ["StackInputs", "assemble", "bound_lr_schedule", "named_grabs", "refuse_without_test_set"]


@dataclass
class StackInputs:
    """The arguments of :func:`~mlpsubmit.training.loop.train` for configs that are stacked.

    Attributes:
        reason: why it is not one stack with the first one of the pack; empty for the first.
        model0: a module made as the first model, where a grab takes ``model0``.
        rows: the row of each config among the configs of the pack.
        factors: per config, those of the parametrization by parameter name.
        test_fns: one per config, or none where no test set is needed.
        generators: all that draw during the training.
    """

    grabs: Mapping[str, Callable[..., Any]]
    device: torch.device
    reason: str = ""
    model0: nn.Module | None = None
    rows: list[int] = field(default_factory=list)
    models: list[nn.Module] = field(default_factory=list)
    factors: list[dict[str, Factors]] = field(default_factory=list)
    batch_fns: list[BatchFn] = field(default_factory=list)
    test_fns: list[BatchFn] = field(default_factory=list)
    hyperparameters: list[Hyperparameters] = field(default_factory=list)
    trials: list[int] = field(default_factory=list)
    contexts: list[Mapping[str, Any]] = field(default_factory=list)
    generators: list[torch.Generator] = field(default_factory=list)

    def add(
        self,
        row: int,
        config: Config,
        network: _Network,
        stream: BatchStream,
        test_fn: BatchFn | None,
    ) -> None:
        """Add a config."""
        hyperparameters = network.hyperparameters
        if self.hyperparameters:  # of functions that are equal, the first serves all
            hyperparameters = hyperparameters.model_copy(
                update={"loss": self.hyperparameters[0].loss}
            )
        self.rows.append(row)
        self.models.append(network.model)
        self.factors.append(network.factors)
        self.batch_fns.append(stream)
        if test_fn is not None:
            self.test_fns.append(test_fn)
        self.hyperparameters.append(hyperparameters)
        self.trials.append(config.trial)
        if stream.generator not in self.generators:
            self.generators.append(stream.generator)
        supplied: dict[str, Any] = {"bsz": hyperparameters.n_samples}
        if any("gen" in declared(grab) for grab in self.grabs.values()):
            seed = streams(hyperparameters.seed, config.trial).grabs
            supplied["gen"] = torch.Generator(self.device).manual_seed(seed)
            self.generators.append(supplied["gen"])
        self.contexts.append({**network.context, **supplied})

    def train(self, monitor: Monitor | None = None) -> Trained:
        """Run the train loop on the stack."""
        return train(
            self.models,
            self.batch_fns,
            self.hyperparameters,
            trials=self.trials,
            test_fns=self.test_fns or None,
            grabs=self.grabs,
            contexts=self.contexts,
            generators=self.generators,
            device=self.device,
            monitor=monitor,
            known=Parametrized(self.factors, self.model0),
        )

    def measure(self, saved: SavedNetworks) -> Trained:
        """Call the grabs on networks that were saved when the stack was trained."""
        return measure(
            self.models,
            self.batch_fns,
            self.hyperparameters,
            saved,
            trials=self.trials,
            test_fns=self.test_fns or None,
            grabs=self.grabs,
            contexts=self.contexts,
            generators=self.generators,
            device=self.device,
            known=Parametrized(self.factors, self.model0),
        )


@dataclass
class _Network:
    """The model of one config, after every function that makes or changes it.

    Attributes:
        hyperparameters: of the config, with the arguments of LOSS bound to it.
    """

    context: Mapping[str, Any]
    hyperparameters: Hyperparameters
    model: nn.Module
    factors: dict[str, Factors]

    @classmethod
    def of(
        cls, sweep: Sweep, config: Config, context: Mapping[str, Any], first: tuple[Any, Any]
    ) -> _Network:
        """Build the model of a config for batches of the shapes of its first one."""
        model = build_model(config, context, *first)
        given = {n: context[n] for n in (*config.point, *sweep.arguments) if n in context}
        h = config.hyperparameters
        # GAMMA is left to parametrize(), which treats a function that declares it differently.
        hs = h.model_copy(update={"parametrization": bound(h.parametrization, given, {})})
        factors = parametrized(model, hs, config.trial, context)
        _load_initial(sweep, config, model)
        h = h.model_copy(
            update={
                "loss": bound(h.loss, given, context),
                "lr_schedule": bound_lr_schedule(sweep, config, context),
            }
        )
        return cls(context, h, model, factors)

    @property
    def written_here(self) -> bool:
        """Whether no function of the user's made the model or its loss."""
        h = self.hyperparameters
        return not any(map(callable, (h.model, h.parametrization, h.loss)))

    def signature(self) -> Signature:
        """Return what is compared: everything but tensors that the losses depend on."""
        return signature(self.model, self.hyperparameters.loss)


def bound_lr_schedule(sweep: Sweep, config: Config, context: Mapping[str, Any]) -> Any:
    """Return LR_SCHEDULE, a callable with the arguments bound that it declares after the step.

    Args:
        context: everything that is offered by name.
    """
    given = {n: context[n] for n in (*config.point, *sweep.arguments) if n in context}
    schedule = config.hyperparameters.lr_schedule
    return bound(schedule, given, context, len(POSITIONAL["lr_schedule"]))


def _load_initial(sweep: Sweep, config: Config, model: nn.Module) -> None:
    """Give a model the trained weights that its config begins from, if it does.

    Raises:
        SpecError: where they are of another model.
    """
    source = config.hyperparameters.init_weights
    if source is None:
        return
    if sweep.initial is None:
        raise SpecError(f"INIT_WEIGHTS={source!r}: only a launch finds that run; launch the sweep")
    weights = sweep.initial.weights(sweep.product.shape, config.index)
    own = {name: tuple(tensor.shape) for name, tensor in own_tensors(model).items()}
    given = {name: array.shape for name, array in weights.items()}
    if given and given != own:
        name = next(n for n in {**own, **given} if own.get(n) != given.get(n))
        raise SpecError(
            f"INIT_WEIGHTS={source!r}: its {name} has {_shape(given.get(name))}, and that of the "
            f"model here {_shape(own.get(name))} ({config!r}); WIDTH, DEPTH, MODEL and the data "
            "must be those of a network of equal shapes"
        )
    load_weights(model, weights)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "no such tensor" if shape is None else f"shape {shape}"


def assemble(
    sweep: Sweep,
    configs: Sequence[Config],
    entries: Sequence[Mapping[str, Any]],
    device: torch.device,
    on_failure: Callable[[int, BaseException], None] | None = None,
) -> list[StackInputs]:
    """Build models and batch functions for the configs of a pack.

    Args:
        configs: the K configs.
        entries: for each config the entries of the data function, tensors on the device.
        on_failure: called with the row and the exception of a config whose functions raise, which
            is then left out. By default, and if memory runs out, the exception is raised.

    Returns:
        One stack if all shapes agree and all models compute the same function of their weights;
        else one for each group that agrees, in order of their first config.

    Raises:
        SpecError: where a function needs an argument that nothing provides.
        StackingError: where making one model changes what another one computes.
        WriteError: where one changes a data entry.
    """
    with functions_dtype(configs[0].hyperparameters.precision):
        return _stacks(sweep, configs, entries, device, on_failure)


@contextlib.contextmanager
def _naming_unread(
    sweep: Sweep, entry: Mapping[str, Any], context: Mapping[str, Any]
) -> Iterator[None]:
    """Name the data entries that no function takes, where the batch function lacks an argument."""
    try:
        yield
    except SpecError as error:
        unread = sorted(name for name in entry if not sweep.accepted.takes(name))
        if not unread or declared(sweep.batchfn) <= {*context, *FOR_BATCHES}:
            raise
        hint = f"no function of the spec takes the data entries {', '.join(unread)}"
        raise SpecError([f"{message}; {hint}" for message in error.errors]) from error


def _stacks(
    sweep: Sweep,
    configs: Sequence[Config],
    entries: Sequence[Mapping[str, Any]],
    device: torch.device,
    on_failure: Callable[[int, BaseException], None] | None,
) -> list[StackInputs]:
    grabs = named_grabs(sweep)
    distinct = {id(entry): entry for entry in entries}.values()
    guards = [Guard(arrays_of(entry), sampled=True) for entry in distinct]
    measures_test = any(map(_needs_test, grabs.values()))
    needs_model0 = any(takes_all(grab) or "model0" in declared(grab) for grab in grabs.values())
    shared: dict[bytes, SharedBatches] = {}
    stacks: dict[Any, StackInputs] = {}
    networks: list[_Network] = []
    signatures: list[Signature] = []
    gammas = {*values_of(sweep, "gamma")}  # of other packs too: the first one tells
    rows: list[int] = []
    for row, (config, entry) in enumerate(zip(configs, entries, strict=True)):
        try:
            hyperparameters = config.hyperparameters
            context = settings_of(sweep, config, entry, device)
            seeds = streams(hyperparameters.seed, config.trial)
            batches = shared.setdefault(
                sharing_key(sweep.batchfn, context, entry, seeds.train),
                SharedBatches(sweep.batchfn, context, seeds, device),
            )
            if hyperparameters.n_test == 0:
                refuse_without_test_set(grabs)
            needs_test = measures_test and hyperparameters.n_test > 0
            with _naming_unread(sweep, entry, context):
                first = batches.first
                test_fn = batches.test if needs_test or hyperparameters.test_every else None
            network = _Network.of(sweep, config, context, first)
            own = network.signature() if len(configs) > 1 else None  # one is like itself
            key = (own, _shapes(first), test_fn and _shapes(test_fn(0)))
            if key not in stacks:
                if hyperparameters.model != "mlp":  # the library's own has them in order
                    check_layers(network.model, first[0], **_treatment(hyperparameters, gammas))
                reason = _difference(next(iter(stacks), key), key)
                stacks[key] = StackInputs(grabs, device, reason)
                if needs_model0:
                    stacks[key].model0 = _Network.of(sweep, config, context, first).model
            stacks[key].add(row, config, network, batches.of_stack(key), test_fn)
        except FAILURES as error:
            if on_failure is None or ran_out_of_memory(error):
                raise
            on_failure(row, error)
        else:
            rows.append(row)
            networks.append(network)
            if own is not None:
                signatures.append(own)
    if written := [name for guard in guards for name in guard.changed()]:
        model_name = getattr(sweep.base.model, "__name__", sweep.base.model)
        raise WriteError(
            f"batchfn {function_name(sweep.batchfn)}, or MODEL {model_name}, changes the data "
            f"entry {written[0]} in place, which all configs read; try {written[0]}.clone() first"
        )
    _check_independent(rows, networks, signatures)
    return [stack for stack in stacks.values() if stack.rows]


def _treatment(hyperparameters: Hyperparameters, gammas: Set[float]) -> dict[str, bool]:
    """Return what is done to the read-in and the read-out of a model of the user's."""
    own = hyperparameters.parametrization
    divides = callable(own) and "gamma" in further_arguments(own)
    named = not callable(own) and own != "sp"
    return {"parametrized": named, "scaled": gammas != {1.0} and not divides}


def _difference(one: tuple[Any, ...], other: tuple[Any, ...]) -> str:
    """Return why the configs of two keys are not one stack; nothing if they are."""
    if one == other:
        return ""
    return one[0].difference(other[0]) if one[0] != other[0] else "the shapes of their data differ"


def _check_independent(
    rows: Sequence[int], networks: Sequence[_Network], before: Sequence[Signature]
) -> None:
    """Refuse models for which a function of the user's has changed something outside of its own.

    What MODEL writes into a global or a class is that of the last config, for all of them.

    Raises:
        StackingError: with the configs for which it was the same.
    """
    if len(networks) < 2 or all(network.written_here for network in networks):
        return
    for network, own in zip(networks, before, strict=True):
        now = network.signature()
        if now.content != own.content:
            distinct = list(dict.fromkeys(before))
            each = list(zip(rows, before, strict=True))
            groups = [[row for row, signed in each if signed == one] for one in distinct]
            raise StackingError(
                f"making one model changes another ({own.difference(now)})",
                groups if len(groups) > 1 else None,
            )


def _shapes(tensors: Any) -> tuple[Any, ...]:
    """Return shapes and dtypes of tensors; the train loop checks that a batch is a pair of them."""
    parts = tensors if isinstance(tensors, (tuple, list)) else ()
    return tuple((tuple(getattr(p, "shape", ())), getattr(p, "dtype", None)) for p in parts)


def _needs_test(grab: Callable[..., Any]) -> bool:
    """Return whether a grab takes the test set."""
    return takes_all(grab) or not declared(grab).isdisjoint({"X_te", "y_te"})


def refuse_without_test_set(grabs: Mapping[str, Callable[..., Any]]) -> None:
    """Refuse grabs that need the test set, where N_TEST=0.

    Raises:
        SpecError: naming the first.
    """
    taking = [n for n, grab in grabs.items() if not needed(grab).isdisjoint({"X_te", "y_te"})]
    if taking:
        raise SpecError(
            f"grab {taking[0]!r} takes the test set (X_te, y_te), and N_TEST=0 is none; set "
            "N_TEST, or measure on X_tr and y_tr"
        )


def named_grabs(sweep: Sweep) -> dict[str, Callable[..., Any]]:
    """Return all grabs of a sweep: its functions, and those named in OTHER_MODEL_GRABS.

    Raises:
        SpecError: listing every bad alias, name, argument and choice of matrix.
    """
    base = sweep.base
    functions = {**base.other_model_grabs, **sweep.grabs}
    errors = _alias_errors(base, functions)
    grabs = {}
    for alias, function in functions.items():
        with collected(errors, f"grab {alias!r}: "):
            choice = matrix_choice(base.other_model_gram.get(alias, False))
            arguments = base.other_model_kwargs.get(alias, {})
            grabs[alias] = named_grab(function, arguments=arguments, **choice)
    if errors:
        raise SpecError(errors)
    return grabs


def _alias_errors(base: Hyperparameters, grabs: Mapping[str, Any]) -> list[str]:
    """Return an error for each alias with arguments or a matrix, but without a grab."""
    return [
        f"{setting.upper()}: no grab is called {alias!r}{did_you_mean(alias, grabs)}; "
        f"there are {', '.join(sorted(grabs)) or 'none'}"
        for setting in ("other_model_kwargs", "other_model_gram")
        for alias in getattr(base, setting)
        if alias not in grabs
    ]
