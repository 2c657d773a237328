"""From the configs of a sweep to what the train loop takes: models, batch functions, contexts."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mlpsubmit.arguments import call, declared, function_name, pick
from mlpsubmit.errors import SpecError, did_you_mean
from mlpsubmit.grabs.named import matrix_choice, named_grab
from mlpsubmit.protocol import BatchFn, is_layer
from mlpsubmit.spec.fingerprint import digest
from mlpsubmit.spec.hyperparameters import Hyperparameters
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.loop import train
from mlpsubmit.training.models import MLP
from mlpsubmit.training.monitor import Monitor
from mlpsubmit.training.result import Trained
from mlpsubmit.training.seeds import streams, weights_rng
from mlpsubmit.training.stack import behaviour

__all__ = ["Stack", "assemble", "data_arguments", "make_batches", "named_grabs", "settings_of"]


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
        # What stands for any step but the first is no int, and cannot be looked at otherwise.
        return self.first if type(step) is int and step == 0 else self.rest(step)


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
        One stack where all shapes agree and all models compute the same function of their
        weights; else one for each that differs, in order of their first config.

    Raises:
        SpecError: where a function needs an argument that nothing provides.
    """
    grabs = named_grabs(sweep)
    drawn: dict[bytes, _Source] = {}
    sources: dict[tuple[Any, bytes], _Source] = {}
    test_fns: dict[bytes, BatchFn] = {}
    stacks: dict[Any, Stack] = {}
    wants_test = _wants_test(sweep, grabs)
    for position, (config, entry) in enumerate(zip(configs, entries, strict=True)):
        hyperparameters = config.hyperparameters
        context = settings_of(sweep, config, entry, device)
        seeds = streams(hyperparameters.seed, config.trial)
        key = _sharing_key(sweep.batchfn, context, seeds.train, entry)
        if key not in drawn:
            drawn[key] = _train_source(sweep.batchfn, context, seeds.train, device)
        if (wants_test or not hyperparameters.online) and key not in test_fns:
            test_fns[key] = _test_fn(sweep.batchfn, context, seeds.test, device)
        test_fn = test_fns.get(key)
        model = build_model(config, context, *drawn[key].first)
        shapes = _likeness(model, drawn[key].first), test_fn and _shapes(test_fn(0))
        if shapes not in stacks:
            _check_order(model, drawn[key].first[0])
            stacks[shapes] = Stack(grabs, device)
        stack = stacks[shapes]
        if (shapes, key) not in sources:
            # Stacks train one after another, so that each needs a source that nothing has drawn
            # from: the one that told the shapes serves the first of them.
            first_use = all(other != key for _, other in sources)
            sources[shapes, key] = (
                drawn[key]
                if first_use
                else _train_source(sweep.batchfn, context, seeds.train, device)
            )
        source = sources[shapes, key]
        if test_fn is not None:
            stack.test_fns.append(test_fn)
        stack.positions.append(position)
        stack.models.append(model)
        stack.batch_fns.append(source)
        stack.hyperparameters.append(hyperparameters)
        stack.trials.append(config.trial)
        if source.generator not in stack.generators:
            stack.generators.append(source.generator)
        stack.contexts.append({**context, "bsz": hyperparameters.n_samples})
        if any("gen" in declared(grab) for grab in grabs.values()):
            own = torch.Generator(device).manual_seed(seeds.grabs)
            stack.contexts[-1] = {**stack.contexts[-1], "gen": own}
            stack.generators.append(own)
    return list(stacks.values())


def settings_of(
    sweep: Sweep, config: Config, entry: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """Return all that batch functions, models and grabs of a config are offered by name.

    Raises:
        SpecError: where a data entry has the name of an axis or a fixed argument.
    """
    if twice := sorted(set(entry) & {*config.point, *sweep.arguments}):
        raise SpecError(
            f"the data function {function_name(sweep.data or sweep.batchfn)} returned entries "
            f"called {', '.join(twice)}, which the spec sets too, as an axis or an argument; "
            "rename one of the two"
        )
    return {**config.hyperparameters.datasethps, **config.settings, **entry, "device": device}


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
            _compare(batchfn, first, _batch(batchfn, batch_fn, device))
        fixed = first
        batch_fn = lambda step: fixed  # noqa: E731
    return _Source(batchfn, generator, first, batch_fn)


def _compare(
    batchfn: Callable[..., Any], first: tuple[Tensor, Tensor], again: tuple[Tensor, Tensor]
) -> None:
    """Warn of a batch function that makes something else of the training set it has made."""
    for name, one, other in zip("Xy", first, again, strict=True):
        if one is other:  # as it should be; a comparison would take the memory of two more
            continue
        same = one.shape == other.shape
        if not (same and torch.allclose(one.double(), other.double(), rtol=1e-6, equal_nan=True)):
            warnings.warn(
                f"batchfn {function_name(batchfn)}: offline, its first result is the training set, "
                f"which it is then given as X and y, to return as they are; it returned another "
                f"{name}, which is not used",
                stacklevel=2,
            )


def _test_fn(
    batchfn: Callable[..., Any], context: Mapping[str, Any], seed: int, device: torch.device
) -> BatchFn:
    generator = torch.Generator(device).manual_seed(seed)
    batch_fn = _made(batchfn, {**context, **_supplied(context, generator, "test")})
    return _named(functools.cache(batch_fn), batchfn)  # drawn once, however many share it


def make_batches(sweep: Sweep, config: Config, entry: Mapping[str, Any]) -> None:
    """Call the batch function of a config for what it says of its arguments; draw no batch.

    Raises:
        SpecError: from the batch function, or where it needs an argument that nothing provides.
    """
    cpu = torch.device("cpu")
    context = settings_of(sweep, config, entry, cpu)
    _made(sweep.batchfn, {**context, **_supplied(context, torch.Generator(cpu), "train")})


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


def _check_order(model: nn.Module, X: Tensor) -> None:
    """Refuse a model whose layers are defined in another order than the signal passes them.

    A parametrization takes the first one for the read-in and the last one for the read-out.

    Raises:
        SpecError: naming both orders.
    """
    defined: dict[nn.Module, str] = {
        module: name for name, module in model.named_modules() if is_layer(module)
    }
    passed: dict[nn.Module, None] = {}
    hooks = [m.register_forward_hook(lambda m, *_: passed.update({m: None})) for m in defined]
    try:
        with torch.no_grad():
            model(X[:1].to("cpu", torch.float32))
    except Exception:
        return  # the train loop says what does not fit, and for which batch
    finally:
        for hook in hooks:
            hook.remove()
    names = [defined[layer] for layer in passed]
    expected = [name for layer, name in defined.items() if layer in passed]
    if names != expected:
        raise SpecError(
            f"MODEL {type(model).__name__}: its layers are defined in the order "
            f"{', '.join(expected)}, but the signal passes {', '.join(names)}; define them in the "
            "order of the signal, for the first is the read-in and the last the read-out"
        )


def _likeness(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Any, ...]:
    """Return what must agree for configs to be stacked: shapes, and what the model computes."""
    tensors = [*model.parameters(), *model.buffers(), *batch]
    shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)
    return shapes, tuple(behaviour(model).items())


def _shapes(batch: Any) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a test batch; whether it is one, the train loop will say."""
    parts = batch if isinstance(batch, (tuple, list)) else ()
    return tuple(tuple(getattr(part, "shape", ())) for part in parts)


def _wants_test(sweep: Sweep, grabs: Mapping[str, Callable[..., Any]]) -> bool:
    """Tell whether a grab asks for the test set, which online training does not need itself."""
    offered = {"X_te": None, "y_te": None}
    return any(set(offered) & set(_takes(grab)) for grab in grabs.values())


def _takes(grab: Callable[..., Any]) -> set[str]:
    names = declared(grab)
    everything = dict.fromkeys([*names, "X_te", "y_te"])
    return set(pick(grab, everything))


def named_grabs(sweep: Sweep) -> dict[str, Callable[..., Any]]:
    """Return the grabs of a sweep: its functions, and those that OTHER_MODEL_GRABS names.

    Raises:
        SpecError: listing every alias, name, argument and choice of matrix that does not fit.
    """
    base = sweep.base
    functions = {**base.other_model_grabs, **sweep.grabs}
    errors = _alias_errors(base, functions)
    grabs = {}
    for alias, function in functions.items():
        try:
            choice = matrix_choice(base.other_model_gram.get(alias, False))
            arguments = base.other_model_kwargs.get(alias, {})
            grabs[alias] = named_grab(function, arguments=arguments, **choice)
        except SpecError as error:
            errors += [f"grab {alias!r}: {message}" for message in error.errors]
    if errors:
        raise SpecError(errors)
    return grabs


def _alias_errors(base: Hyperparameters, grabs: Mapping[str, Any]) -> list[str]:
    """Return an error for each alias with arguments or a matrix, but without a grab."""
    settings = {"OTHER_MODEL_KWARGS": base.other_model_kwargs}
    settings["OTHER_MODEL_GRAM"] = base.other_model_gram
    return [
        f"{setting}: no grab is called {alias!r}{did_you_mean(alias, grabs)}; "
        f"there are {', '.join(sorted(grabs)) or 'none'}"
        for setting, aliases in settings.items()
        for alias in aliases
        if alias not in grabs
    ]


def data_arguments(sweep: Sweep, config: Config) -> dict[str, Any]:
    """Return the arguments with which the data function is called for a config.

    It gets what it declares out of datasethps, the settings and the axes; ``**kwargs`` gets
    datasethps alone, so that data is not computed anew for every config.

    Raises:
        SpecError: where it needs an argument that nothing provides.
    """
    if sweep.data is None:
        return {}
    hps = config.hyperparameters.datasethps
    names = declared(sweep.data)
    settings = {name: value for name, value in config.settings.items() if name in names}
    taken = pick(sweep.data, {**hps, **settings, "gen": None})
    if "gen" in taken and "gen" not in names:
        del taken["gen"]
    return taken
