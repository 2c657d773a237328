"""Batch functions of configs: the arguments they get, and the streams that configs share."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mlpsubmit.arguments import call, declared, function_name, most_by_position, pick
from mlpsubmit.assembly.shared_samples import warn_of_shared_samples
from mlpsubmit.errors import SpecError
from mlpsubmit.protocol import BatchFn, LooksAhead
from mlpsubmit.spec.fingerprint import digest
from mlpsubmit.spec.hyperparameters import OUTSIDE_RESULTS, canonical_name
from mlpsubmit.spec.keys import taken_of_axes
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.batches import BatchError, pair_of
from mlpsubmit.training.culprits import FAILURES
from mlpsubmit.training.guard import Guard, WriteError
from mlpsubmit.training.seeds import Streams

__all__ = [
    "BatchStream",
    "SharedBatches",
    "data_arguments",
    "make_batches",
    "offered_settings",
    "settings_of",
    "sharing_key",
]

#: Inputs X (n, ...) and targets y (n,) or (n, d_out).
Pair: TypeAlias = tuple[Tensor, Tensor]


# ---- arguments -----------------------------------------------------------------------------------


def settings_of(
    sweep: Sweep, config: Config, entry: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """Return everything that batch functions, models and grabs of a config are offered by name.

    Raises:
        SpecError: where a data entry has the name of an axis or a fixed argument.
    """
    if twice := sorted(set(entry) & {*config.point, *sweep.arguments}):
        raise SpecError(
            f"the data function {function_name(sweep.data or sweep.batchfn)} returned entries "
            f"called {', '.join(twice)}, which the spec sets too, as an axis or an argument; "
            "rename one of the two"
        )
    settings = offered_settings(sweep, config)
    return {**config.hyperparameters.datasethps, **settings, **entry, "device": device}


def offered_settings(sweep: Sweep, config: Config) -> dict[str, Any]:
    """Return the settings of a config that functions may depend on, by name.

    Of the others some are part of its key if a function declares them; ``**kwargs`` declare none.
    """
    outside = OUTSIDE_RESULTS - taken_of_axes(sweep)
    return {n: v for n, v in config.settings.items() if canonical_name(n) not in outside}


def data_arguments(sweep: Sweep, config: Config) -> dict[str, Any]:
    """Return the arguments with which the data function is called for a config.

    It gets the datasethps, settings and axes that it declares; ``**kwargs`` gets datasethps alone,
    so that data is not computed anew for every config.

    Raises:
        SpecError: where it needs an argument that nothing provides.
    """
    if sweep.data is None:
        return {}
    hps = config.hyperparameters.datasethps
    names = declared(sweep.data)
    offered = offered_settings(sweep, config)
    settings = {name: value for name, value in offered.items() if name in names}
    taken = pick(sweep.data, {**hps, **settings, "gen": None})
    if "gen" in taken and "gen" not in names:
        del taken["gen"]
    return taken


def _supplied(
    context: Mapping[str, Any], generator: torch.Generator | None, split: str
) -> dict[str, Any]:
    size = context["n_samples"] if split == "train" else context["n_test"]
    return {"bsz": size, "gen": generator, "split": split, "X": None, "y": None}


def make_batches(sweep: Sweep, config: Config, entry: Mapping[str, Any]) -> None:
    """Call the batch function of a config to check its arguments; draw no batch.

    Raises:
        SpecError: from the batch function, or where it needs an argument that nothing provides.
    """
    cpu = torch.device("cpu")
    context = settings_of(sweep, config, entry, cpu)
    _made(sweep.batchfn, {**context, **_supplied(context, torch.Generator(cpu), "train")})


# ---- streams -------------------------------------------------------------------------------------


@dataclass(eq=False)
class BatchStream:
    """One stream of training batches: a batch function that several configs may share.

    Attributes:
        first: the batch of step 0, drawn before the training to get the shapes.
        rest: draws the batches of all later steps.
    """

    generator: torch.Generator
    first: Pair
    rest: BatchFn
    __name__: str  # for messages
    _guard: Guard = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._guard = Guard(dict(zip("Xy", self.first, strict=True)), sampled=True)

    def __call__(self, step: int) -> Pair:
        """Draw the batch of a step.

        Raises:
            WriteError: where the first batch has been written to since it was drawn.
        """
        # A recording (training.accel) passes an object for "any later step", which is no int.
        if type(step) is not int or step > 0:
            return self.rest(step)
        if written := self._guard.changed():
            raise WriteError(
                f"batchfn {self.__name__} changes the {written[0]} that it has returned before, in "
                "place; try .clone() of what it returns"
            )
        return self.first


class StreamAhead(BatchStream):
    """A stream of a batch function that looks ahead (:class:`~mlpsubmit.protocol.LooksAhead`)."""

    rest: Any

    @property
    def buffers(self) -> list[Tensor]:
        """What a step changes in place."""
        return list(self.rest.buffers)

    def load(self, step: int, block: int) -> None:
        """Upload what the steps need, from one on to the end of its block."""
        self.rest.load(step, block)

    def next(self) -> Pair:
        """Draw the batch of the next step."""
        X, y = self.rest.next()
        return X, y


class SharedBatches:
    """The batches of all configs of a pack that draw the same ones.

    Args:
        context: everything that the batch function is offered.
    """

    def __init__(
        self,
        batchfn: Callable[..., Any],
        context: Mapping[str, Any],
        seeds: Streams,
        device: torch.device,
    ) -> None:
        self._batchfn, self._context = batchfn, context
        self._seeds, self._device = seeds, device
        self._of_stacks: dict[Hashable, BatchStream] = {}
        self._error: BaseException | None = None

    @functools.cached_property
    def first(self) -> Pair:
        """The first training batch, or the training set."""
        return self._unused.first

    @functools.cached_property
    def test(self) -> BatchFn:
        """The function that yields the test set, which is drawn once."""
        batch_fn = _made(self._batchfn, self._offered(self._seeds.test, "test"))

        def drawn(step: int) -> Any:
            found = batch_fn(step)
            if not self._context["online"]:
                warn_of_shared_samples(self._batchfn, self.first, found)
            return found

        test_fn: Any = functools.cache(drawn)
        test_fn.__name__ = function_name(self._batchfn)
        made: BatchFn = test_fn
        return made

    def of_stack(self, stack: Hashable) -> BatchStream:
        """Return the training batches for the configs of a stack.

        Stacks train one after another, so each needs a stream that nothing has drawn from: the
        first one gets the stream that gave the shapes.
        """
        if stack not in self._of_stacks:
            stream = self._new_stream() if self._of_stacks else self._unused
            self._of_stacks[stack] = stream
        return self._of_stacks[stack]

    @functools.cached_property
    def _unused(self) -> BatchStream:
        if self._error is not None:  # raised for another config of the pack
            raise self._error
        try:
            return self._new_stream()
        except FAILURES as error:
            self._error = error
            raise

    def _offered(self, seed: int, split: str) -> dict[str, Any]:
        generator = torch.Generator(self._device).manual_seed(seed)
        return {**self._context, **_supplied(self._context, generator, split)}

    def _new_stream(self) -> BatchStream:
        batchfn, offered = self._batchfn, self._offered(self._seeds.train, "train")
        batch_fn = _made(batchfn, offered)
        first = _batch(batchfn, batch_fn, self._device)
        _check_size(batchfn, len(first[0]), offered["bsz"])
        if not offered["online"]:
            # The fixed set comes back as X and y to a function that takes them, as in MLPscape.
            if {"X", "y"} <= declared(batchfn):
                again = _made(batchfn, {**offered, "X": first[0], "y": first[1]})
                _compare(batchfn, first, _batch(batchfn, again, self._device))
            batch_fn = lambda step: first  # noqa: E731
        kind = StreamAhead if isinstance(batch_fn, LooksAhead) else BatchStream
        return kind(offered["gen"], first, batch_fn, function_name(batchfn))


def sharing_key(
    batchfn: Callable[..., Any], context: Mapping[str, Any], entry: Mapping[str, Any], seed: int
) -> bytes:
    """Return a hash that is equal for configs that draw the same batches."""
    own = {name: value for name, value in context.items() if name not in entry}
    taken = pick(batchfn, {**own, **dict.fromkeys(entry), **_supplied(context, None, "train")})
    for name in ("gen", "device", "X", "y"):
        taken.pop(name, None)
    return digest(seed, id(entry), taken)


def _check_size(batchfn: Callable[..., Any], size: int, bsz: int) -> None:
    """Refuse other numbers of samples than asked for: results would have a wrong label.

    Test sets may be smaller: N_TEST is more than many data have.
    """
    if "bsz" in declared(batchfn) and size != bsz:
        raise SpecError(
            f"batchfn {function_name(batchfn)}: got {size:,} samples; should be bsz = {bsz:,}, "
            f"which is N_SAMPLES; set N_SAMPLES={size}, or, if the function decides how many there "
            "are, leave bsz out of its arguments"
        )


def _compare(batchfn: Callable[..., Any], first: Pair, again: Pair) -> None:
    """Warn of a batch function that does not return the training set it is given."""
    for name, one, other in zip("Xy", first, again, strict=True):
        if one is other:  # the usual case; a comparison would take the memory of two more
            continue
        same = one.shape == other.shape
        if not (same and torch.allclose(one.double(), other.double(), rtol=1e-6, equal_nan=True)):
            warnings.warn(
                f"batchfn {function_name(batchfn)}: offline, its first result is the training set, "
                f"which it is then given as X and y, to return as they are; it returned another "
                f"{name}, which is not used",
                stacklevel=2,
            )


def _made(batchfn: Callable[..., Any], offered: Mapping[str, Any]) -> BatchFn:
    batch_fn = call(batchfn, offered)
    if not callable(batch_fn):
        raise SpecError(
            f"batchfn {function_name(batchfn)}: returned {type(batch_fn).__name__}; a batch "
            "function should return a function batch_fn(step) -> (X, y)"
        )
    if most_by_position(batch_fn) < 1:
        raise SpecError(
            f"batchfn {function_name(batchfn)}: returned {function_name(batch_fn)}(), which does "
            "not take step; it should be a function of the step, as in lambda step: (X, y)"
        )
    made: BatchFn = batch_fn
    return made


def _batch(batchfn: Callable[..., Any], batch_fn: BatchFn, device: torch.device) -> Pair:
    """Draw the first batch and check that it is a pair of tensors."""
    name = function_name(batchfn)
    try:
        X, y = (part.to(device) for part in pair_of(batch_fn(0), f"batchfn {name}: batch_fn(0)"))
    except BatchError as error:
        raise SpecError(str(error)) from error
    if X.ndim < 2 or y.ndim not in (1, 2) or len(X) != len(y) or X.numel() == 0 or y.numel() == 0:
        raise SpecError(
            f"batchfn {name}: got X of shape {tuple(X.shape)} and y of shape {tuple(y.shape)}; "
            "should be X (n, ...) of at least two dimensions and y (n,) or (n, d_out), none of "
            "them empty"
        )
    return X, y
