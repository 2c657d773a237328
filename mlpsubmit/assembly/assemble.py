"""From the configs of a pack to the arguments of the train loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mlpsubmit.arguments import declared, function_name, takes_all
from mlpsubmit.assembly.batch_streams import BatchStream, SharedBatches, settings_of, sharing_key
from mlpsubmit.assembly.build_model import build_model, check_layer_order
from mlpsubmit.errors import SpecError, collected, did_you_mean
from mlpsubmit.grabs.named_grabs import matrix_choice, named_grab
from mlpsubmit.protocol import BatchFn
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.guard import Guard, WriteError, arrays_of
from mlpsubmit.training.loop import train
from mlpsubmit.training.monitor import Monitor
from mlpsubmit.training.result import Trained
from mlpsubmit.training.seeds import streams
from mlpsubmit.training.stack import behaviour

__all__ = ["StackInputs", "assemble", "named_grabs"]


@dataclass
class StackInputs:
    """The arguments of :func:`~mlpsubmit.training.loop.train` for configs that are stacked.

    Attributes:
        rows: the row of each config among the configs of the pack.
        test_fns: one per config, or none where no test set is needed.
        generators: all that draw during the training.
    """

    grabs: Mapping[str, Callable[..., Any]]
    device: torch.device
    rows: list[int] = field(default_factory=list)
    models: list[nn.Module] = field(default_factory=list)
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
        context: Mapping[str, Any],
        model: nn.Module,
        stream: BatchStream,
        test_fn: BatchFn | None,
    ) -> None:
        """Add a config."""
        hyperparameters = config.hyperparameters
        self.rows.append(row)
        self.models.append(model)
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
        self.contexts.append({**context, **supplied})

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
        )


def assemble(
    sweep: Sweep,
    configs: Sequence[Config],
    entries: Sequence[Mapping[str, Any]],
    device: torch.device,
) -> list[StackInputs]:
    """Build models and batch functions for the configs of a pack.

    Args:
        configs: the K configs.
        entries: for each config the entries of the data function, tensors on the device.

    Returns:
        One stack if all shapes agree and all models compute the same function of their weights;
        else one for each group that agrees, in order of their first config.

    Raises:
        SpecError: where a function needs an argument that nothing provides.
        WriteError: where one changes a data entry.
    """
    grabs = named_grabs(sweep)
    distinct = {id(entry): entry for entry in entries}.values()
    guards = [Guard(arrays_of(entry), sampled=True) for entry in distinct]
    needs_test = any(map(_needs_test, grabs.values()))
    shared: dict[bytes, SharedBatches] = {}
    stacks: dict[Any, StackInputs] = {}
    for row, (config, entry) in enumerate(zip(configs, entries, strict=True)):
        hyperparameters = config.hyperparameters
        context = settings_of(sweep, config, entry, device)
        seeds = streams(hyperparameters.seed, config.trial)
        batches = shared.setdefault(
            sharing_key(sweep.batchfn, context, entry, seeds.train),
            SharedBatches(sweep.batchfn, context, seeds, device),
        )
        first = batches.first
        test_fn = batches.test if needs_test or not hyperparameters.online else None
        model = build_model(config, context, *first)
        key = (_model_key(model), _shapes(first), test_fn and _shapes(test_fn(0)))
        if key not in stacks:
            check_layer_order(model, first[0])
            stacks[key] = StackInputs(grabs, device)
        stacks[key].add(row, config, context, model, batches.of_stack(key), test_fn)
    if written := [name for guard in guards for name in guard.changed()]:
        model_name = getattr(sweep.base.model, "__name__", sweep.base.model)
        raise WriteError(
            f"batchfn {function_name(sweep.batchfn)}, or MODEL {model_name}, changes the data "
            f"entry {written[0]} in place, which all configs read; try {written[0]}.clone() first"
        )
    return list(stacks.values())


def _model_key(model: nn.Module) -> tuple[Any, ...]:
    """Return a value that is equal for models that can be stacked: shapes, dtypes, functions."""
    tensors = [*model.parameters(), *model.buffers()]
    return _shapes(tensors), tuple(behaviour(model).items())


def _shapes(tensors: Any) -> tuple[Any, ...]:
    """Return shapes and dtypes of tensors; the train loop checks that a batch is a pair of them."""
    parts = tensors if isinstance(tensors, (tuple, list)) else ()
    return tuple((tuple(getattr(p, "shape", ())), getattr(p, "dtype", None)) for p in parts)


def _needs_test(grab: Callable[..., Any]) -> bool:
    """Return whether a grab takes the test set, which online training does not need itself."""
    return takes_all(grab) or not declared(grab).isdisjoint({"X_te", "y_te"})


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
