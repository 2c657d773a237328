"""From the configs of a sweep to what the train loop takes: models, batch functions, contexts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mlpsubmit.calling import call, declared, function_name, pick
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.fingerprint import digest
from mlpsubmit.hyperparameters import OPTIMIZERS, Hyperparameters
from mlpsubmit.sweep import Config, Sweep
from mlpsubmit.training.loop import BatchFn, Trained, train
from mlpsubmit.training.models import MLP
from mlpsubmit.training.monitor import Monitor
from mlpsubmit.training.optimizers import optimizer_class
from mlpsubmit.training.seeds import streams, weights_rng

__all__ = ["Stack", "assemble", "data_arguments", "probe"]


@dataclass
class Stack:
    """Configs whose tensors have equal shapes, ready to train together.

    Attributes:
        positions: where each config stands in the pack.
    """

    grabs: Mapping[str, Callable[..., Any]]
    device: torch.device
    positions: list[int] = field(default_factory=list)
    models: list[nn.Module] = field(default_factory=list)
    batch_fns: list[BatchFn] = field(default_factory=list)
    test_fns: list[BatchFn] = field(default_factory=list)
    hyperparameters: list[Hyperparameters] = field(default_factory=list)
    trials: list[int] = field(default_factory=list)
    contexts: list[Mapping[str, Any]] = field(default_factory=list)
    generators: list[torch.Generator] = field(default_factory=list)

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


@dataclass(eq=False)
class _Source:
    """One stream of batches, shared by the configs of a pack that would draw the same.

    ``first`` is its first batch, drawn to learn the shapes and handed out again at step 0.
    """

    factory: Callable[..., Callable[[int], tuple[Tensor, Tensor]]]
    generator: torch.Generator
    first: tuple[Tensor, Tensor]
    rest: BatchFn

    def __post_init__(self) -> None:
        self.__name__ = function_name(self.factory)  # what messages call it

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.first if step == 0 else self.rest(step)


def assemble(
    sweep: Sweep,
    configs: Sequence[Config],
    entries: Sequence[Mapping[str, Any]],
    device: torch.device,
) -> list[Stack]:
    """Build models and batch functions for the configs of a pack.

    Args:
        configs: the K configs.
        entries: for each config what the data function returned, its tensors on the device.

    Returns:
        One stack where all shapes agree; else one for each combination of shapes, in order of
        their first config.

    Raises:
        SpecError: where a function needs an argument that nothing provides.
    """
    grabs = named_grabs(sweep)
    train_sources: dict[bytes, _Source] = {}
    test_fns: dict[bytes, BatchFn] = {}
    stacks: dict[Any, Stack] = {}
    wants_test = _wants_test(sweep, grabs)
    for position, (config, entry) in enumerate(zip(configs, entries, strict=True)):
        hyperparameters = config.hyperparameters
        context = {**hyperparameters.datasethps, **config.settings, **entry, "device": device}
        seeds = streams(hyperparameters.seed, config.trial)
        key = _sharing_key(sweep.batchfn, context, seeds.train, entry)
        if key not in train_sources:
            train_sources[key] = _train_source(sweep.batchfn, context, seeds.train, device)
        source = train_sources[key]
        model = build_model(config, context, *source.first)
        shapes = _shapes(model, source.first)
        stack = stacks.setdefault(shapes, Stack(grabs, device))
        if wants_test or not hyperparameters.online:
            if key not in test_fns:
                test_fns[key] = _test_fn(sweep.batchfn, context, seeds.test, device)
            stack.test_fns.append(test_fns[key])
        stack.positions.append(position)
        stack.models.append(model)
        stack.batch_fns.append(source)
        stack.hyperparameters.append(hyperparameters)
        stack.trials.append(config.trial)
        stack.contexts.append(context)
        if source.generator not in stack.generators:
            stack.generators.append(source.generator)
    return list(stacks.values())


def _sharing_key(
    batchfn: Callable[..., Any], context: Mapping[str, Any], seed: int, entry: Mapping[str, Any]
) -> bytes:
    """Return what decides which batches a config draws: configs that agree in it share them."""
    own = {name: value for name, value in context.items() if name not in entry}
    taken = pick(batchfn, {**own, **dict.fromkeys(entry), **_supplied(context, None, "train")})
    for name in ("gen", "device", "X", "y"):
        taken.pop(name, None)
    return digest(seed, id(entry), taken)


def _supplied(
    context: Mapping[str, Any], generator: torch.Generator | None, split: str
) -> dict[str, Any]:
    size = context["n_samples"] if split == "train" else context["n_test"]
    return {"bsz": size, "gen": generator, "split": split, "X": None, "y": None}


def _train_source(
    batchfn: Callable[..., Any], context: Mapping[str, Any], seed: int, device: torch.device
) -> _Source:
    generator = torch.Generator(device).manual_seed(seed)
    offered = {**context, **_supplied(context, generator, "train")}
    batch_fn = _made(batchfn, offered)
    first = _batch(batchfn, batch_fn, device)
    if not context["online"]:
        # The fixed set comes back as X and y to a function that takes them, as in MLPscape.
        if {"X", "y"} <= declared(batchfn):
            batch_fn = _made(batchfn, {**offered, "X": first[0], "y": first[1]})
            first = _batch(batchfn, batch_fn, device)
        else:
            fixed = first
            batch_fn = lambda step: fixed  # noqa: E731
    return _Source(batchfn, generator, first, batch_fn)


def _test_fn(
    batchfn: Callable[..., Any], context: Mapping[str, Any], seed: int, device: torch.device
) -> BatchFn:
    generator = torch.Generator(device).manual_seed(seed)
    batch_fn = _made(batchfn, {**context, **_supplied(context, generator, "test")})
    return _named(functools.cache(batch_fn), batchfn)  # drawn once, however many share it


def _named(batch_fn: Any, batchfn: Callable[..., Any]) -> BatchFn:
    batch_fn.__name__ = function_name(batchfn)
    named: BatchFn = batch_fn
    return named


def _made(batchfn: Callable[..., Any], offered: Mapping[str, Any]) -> BatchFn:
    batch_fn = call(batchfn, offered)
    if not callable(batch_fn):
        raise SpecError(
            f"batchfn {function_name(batchfn)}: returned {type(batch_fn).__name__}; a batch "
            "function should return a function batch_fn(step) -> (X, y)"
        )
    made: BatchFn = batch_fn
    return made


def _batch(
    batchfn: Callable[..., Any], batch_fn: BatchFn, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Draw the first batch and check that it is a pair of tensors."""
    batch = batch_fn(0)
    name = function_name(batchfn)
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = f"{len(batch)} values" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise SpecError(f"batchfn {name}: batch_fn(0) gave {got}; it should give a pair (X, y)")
    X, y = (torch.as_tensor(part, device=device) for part in batch)
    if X.ndim < 2 or y.ndim not in (1, 2) or len(X) != len(y):
        raise SpecError(
            f"batchfn {name}: got X of shape {tuple(X.shape)} and y of shape {tuple(y.shape)}; "
            "should be X (n, ...) of at least two dimensions and y (n,) or (n, d_out)"
        )
    return X, y


def build_model(config: Config, context: Mapping[str, Any], X: Tensor, y: Tensor) -> nn.Module:
    """Build the network of one config for batches of the shapes of X and y.

    MODEL gets what it declares out of ``d_in`` (entries of one sample), ``input_shape``,
    ``d_out`` and every setting of the config.

    Raises:
        SpecError: where it returns no module, or where d_out cannot be told from y.
    """
    hyperparameters = config.hyperparameters
    factory = MLP if hyperparameters.model == "mlp" else hyperparameters.model
    shape = tuple(X.shape[1:])
    sizes = {"d_in": X[0].numel(), "input_shape": shape, "d_out": _outputs(hyperparameters, y)}
    with weights_rng(hyperparameters.seed, config.trial):
        model = call(factory, {**context, **sizes})
    if not isinstance(model, nn.Module):
        raise SpecError(
            f"MODEL {function_name(factory)}: returned {type(model).__name__}; should be an "
            "nn.Module"
        )
    return model


def _outputs(hyperparameters: Hyperparameters, y: Tensor) -> int:
    if hyperparameters.d_out is not None:
        return hyperparameters.d_out
    if y.ndim == 2:
        return int(y.shape[1])
    if hyperparameters.loss == "cross_entropy":
        raise SpecError(
            "D_OUT: not set, and LOSS='cross_entropy' with class labels y (n,) does not say how "
            "many classes there are; set D_OUT to their number"
        )
    return 1


def _shapes(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Any, ...]:
    tensors = [*model.parameters(), *model.buffers(), *batch]
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)


def _wants_test(sweep: Sweep, grabs: Mapping[str, Callable[..., Any]]) -> bool:
    """Tell whether a grab asks for the test set, which online training does not need itself."""
    offered = {"X_te": None, "y_te": None}
    return any(set(offered) & set(_takes(grab)) for grab in grabs.values())


def _takes(grab: Callable[..., Any]) -> set[str]:
    names = declared(grab)
    everything = dict.fromkeys([*names, "X_te", "y_te"])
    return set(pick(grab, everything))


def named_grabs(sweep: Sweep) -> dict[str, Callable[..., Any]]:
    """Return the grabs of a sweep: its functions, and those that OTHER_MODEL_GRABS names."""
    from mlpsubmit.grabs import by_name

    grabs = {
        alias: by_name(grab) if isinstance(grab, str) else grab
        for alias, grab in {**sweep.base.other_model_grabs, **sweep.grabs}.items()
    }
    _check_aliases(sweep.base, grabs)
    for alias, arguments in sweep.base.other_model_kwargs.items():
        grabs[alias] = functools.partial(grabs[alias], **arguments)
    for alias, gram in sweep.base.other_model_gram.items():
        if gram:
            grabs[alias] = functools.partial(_of_gram, grabs[alias])
    return grabs


def _check_aliases(base: Hyperparameters, grabs: Mapping[str, Any]) -> None:
    settings = {"OTHER_MODEL_KWARGS": base.other_model_kwargs}
    settings["OTHER_MODEL_GRAM"] = base.other_model_gram
    mistakes = [
        f"{setting}: no grab is called {alias!r}{did_you_mean(alias, grabs)}; "
        f"there are {', '.join(sorted(grabs)) or 'none'}"
        for setting, aliases in settings.items()
        for alias in aliases
        if alias not in grabs
    ]
    if mistakes:
        raise SpecError(mistakes)


def _of_gram(grab: Callable[..., Any], model: nn.Module, **offered: Any) -> Any:
    """Give a grab that takes a weight matrix the Gram matrix W^T W of the read-in layer."""
    from mlpsubmit.grabs import by_name

    gram = by_name("readin_gram")(model)
    return call(grab, {**offered, "model": model, "W": gram})


def data_arguments(sweep: Sweep, config: Config) -> dict[str, Any]:
    """Return the arguments with which the data function is called for a config.

    It gets what it declares out of datasethps, the settings and the axes; ``**kwargs`` gets
    datasethps alone, so that data is not computed anew for every config.

    Raises:
        SpecError: where it needs an argument that nothing provides, or datasethps has one that it
            does not take.
    """
    if sweep.data is None:
        return {}
    hps = config.hyperparameters.datasethps
    names = declared(sweep.data)
    settings = {name: value for name, value in config.settings.items() if name in names}
    taken = pick(sweep.data, {**hps, **settings, "gen": None})
    unknown = set(hps) - set(taken)
    if unknown:
        raise SpecError(
            f"datasethps: {function_name(sweep.data)} takes no {', '.join(sorted(unknown))}; "
            f"it takes {', '.join(sorted(names - {'gen'}))}"
        )
    if "gen" in taken and "gen" not in names:
        del taken["gen"]
    return taken


def probe(sweep: Sweep) -> None:
    """Draw one small batch of the first config on the CPU, so that wrong shapes show at launch.

    Left out where batches need what a data function computes: that runs on workers alone.

    Raises:
        SpecError: or whatever else the functions of the spec raise.
    """
    config = next(iter(sweep))
    named_grabs(sweep)
    if config.hyperparameters.optimizer not in OPTIMIZERS:
        optimizer_class(config.hyperparameters.optimizer)
    if sweep.data is not None:
        data_arguments(sweep, config)
        return
    small = config.replaced(
        n_samples=2, n_test=2, width=min(config.hyperparameters.width, 16), max_iter=1
    )
    for stack in assemble(sweep, [small], [{}], torch.device("cpu")):
        stack.grabs = {}
        stack.train()
