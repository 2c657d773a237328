"""Replay: on a GPU a whole step is recorded once as a CUDA graph, and then launched as one.

At small widths a step on a GPU consists of many short kernels, and waits for the CPU to launch each
of them. A recorded step takes one launch, and two more per generator that it draws from: for its
seed and its offset. So :data:`STRIDE` steps are recorded together, besides a single one, and
replayed wherever nothing is looked at between them. In a stride, the batch of a step is drawn while
the GPU makes the step before.

A recording repeats the same operations on the same memory and runs none of their Python code, so it
equals eager steps only where

- the batch functions do not use the step, or look ahead (:class:`~mlpsubmit.protocol.LooksAhead`),
  and neither they nor the model nor the loss keep state between calls but the generators given to
  the training;
- no operation waits for the device;
- shapes and memory stay the same: until the stack shrinks.

All of that is checked before anything is recorded, and the first steps after the recording are made
both by replay and eagerly, one at a time and STRIDE at once. Where these differ in a single bit, or
anything fails, training goes on with eager steps, and one line of output names the reason. Until
then the results are those of the eager steps, so that they do not depend on whether a recording was
tried.

A batch function that keeps state is called once per step. One that keeps none is called some times
more, without effect: the states of its generators are restored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from mlpsubmit.display.output import echo
from mlpsubmit.spec.fingerprint import digest
from mlpsubmit.spec.hyperparameters import OPTIMIZERS, Hyperparameters
from mlpsubmit.training.accel.cuda_graph import CudaRecorder
from mlpsubmit.training.batches import Aside, Batch, Batches
from mlpsubmit.training.seeds import generator_states, global_states, set_generator_states

__all__ = ["ReplayedSteps", "StepFn", "StepsFn", "replay_wanted", "replayed"]

T = TypeVar("T")

#: Makes a step; returns its batch, and (K,) bool, the configs that made it.
StepFn = Callable[[int], tuple[Batch, Tensor]]

#: Makes one step, or several up to another one that is given; returns the last step that it has
#: made, and what the step function returns of it.
StepsFn = Callable[[int, int], tuple[int, Batch, Tensor]]

#: Steps from which on a recording is repaid. On an H100, that of one step of 16 narrow networks
#: took as long as 40 eager steps; by estimate, that of a stride and its check take twice as long.
WORTHWHILE_STEPS = 200

#: Weights of a stack up to which launching the kernels of a step can take longer than running them:
#: on an H100 at width 8192, with 1024 samples in TF32, the GPU was idle for most of the time.
LARGEST_RECORDED = 1 << 27

#: Single steps, and strides, that are made both ways before only their recording is used.
CHECKED_STEPS, CHECKED_STRIDES = 2, 1

#: Steps that are recorded together: a divisor of a block.
STRIDE = 8


class Recordable(Protocol):
    """The part of a pack that replay depends on.

    Attributes:
        start: the first step to make.
        train: the batches.
        device: where it trains.
    """

    start: int
    train: Batches
    device: torch.device

    @property
    def size(self) -> int:
        """The number of rows of the stack."""

    @property
    def weights(self) -> int:
        """The number of trained weights of the stack."""

    @property
    def buffers(self) -> list[Tensor]:
        """The tensors that a step may change in place: the same memory until a shrink."""

    @property
    def functions(self) -> list[Any]:
        """The user's functions that each step calls, and a hash of the model's state."""

    @property
    def generators(self) -> list[torch.Generator]:
        """The generators that a step draws from."""

    @property
    def obstacle(self) -> str | None:
        """Why steps cannot be recorded, where that is known."""


def replayed(
    step_fn: StepFn, pack: Recordable, common: Hyperparameters, *, shared: bool = False
) -> StepsFn:
    """Return a function that makes steps: by replay where that pays, else one by one.

    Args:
        step_fn: makes a step eagerly; everything that it changes, it changes in place.
        common: hyperparameters of the pack. COMPILE=False turns replay off; True tries it even
            where it does not pay.
        shared: whether others use the device at the same time.
    """
    steps = common.max_iter - pack.start
    if pack.device.type == "cuda" and replay_wanted(common, steps, pack.weights):
        return ReplayedSteps(step_fn, pack, CudaRecorder(pack.device, shared))
    return lambda step, until: (step, *step_fn(step))


def replay_wanted(common: Hyperparameters, steps: int, weights: int) -> bool:
    """Return whether to try replay on a GPU.

    Args:
        steps: still to be made.
        weights: trained weights of the whole stack.
    """
    if common.optimizer not in OPTIMIZERS:  # those of torch.optim wait for the device
        return False
    pays = steps >= WORTHWHILE_STEPS and weights <= LARGEST_RECORDED
    return pays if common.compile == "auto" else bool(common.compile)


class ReplayedSteps:
    """Makes the steps of a pack by replaying recorded ones, once these have passed all checks.

    Args:
        step_fn: makes a step eagerly.
        pack: the pack in training.
        recorder: records on its device.
    """

    def __init__(self, step_fn: StepFn, pack: Recordable, recorder: CudaRecorder) -> None:
        self._step_fn, self._pack, self._recorder = step_fn, pack, recorder
        #: Whether the user's functions keep no state; whether replay has been given up.
        self._pure, self._refused = False, False
        #: Rows of the stack that the recordings are for, and calls made with that many.
        self._size, self._calls = 0, 0
        #: The generators that a step draws from.
        self._drawn_from: list[torch.Generator] = []
        #: By their number of steps, the recordings and how often each is still to be checked.
        self._recordings: dict[int, Callable[[], tuple[Batch, Tensor]]] = {}
        self._unchecked: dict[int, int] = {}

    def __call__(self, step: int, until: int) -> tuple[int, Batch, Tensor]:
        """Make a step, or STRIDE of them if that goes no further than ``until``.

        Returns:
            the last step made, and its results, which are valid until the next call.
        """
        if self._size != self._pack.size:
            self._size, self._calls = self._pack.size, 0
            self._recordings = {}  # frees their memory
        self._calls += 1
        # The first step differs from later ones: first losses, checks of the batches' shapes.
        if self._calls == 1 or self._refused:
            return (step, *self._step_fn(step))
        if self._calls == 2:
            return (step, *self._watched(step))
        if self._calls == 3:
            self._record(step)
        is_stride = until - step + 1 >= STRIDE and not self._unchecked.get(1)
        count = STRIDE if is_stride else 1
        if not self._recordings:
            return (step, *self._step_fn(step))
        if self._unchecked[count]:
            self._unchecked[count] -= 1
            return (step + count - 1, *self._both_ways(step, count))
        return (step + count - 1, *self._recordings[count]())

    def _refuse(self, step: int, reason: str) -> None:
        echo(f"from step {step} on, steps are not replayed: {reason}")
        self._refused, self._recordings = True, {}

    def _watched(self, step: int) -> tuple[Batch, Tensor]:
        """Make a step, and find out whether it could have been replayed."""
        generators = self._pack.generators
        before, content = generator_states(generators), self._content()
        with self._recorder.watched() as waits:
            made = self._aside(partial(self._step_fn, step))
        after = generator_states(generators)
        self._drawn_from = [
            generator
            for generator, was, state in zip(generators, before, after, strict=True)
            if not torch.equal(was, state)
        ]
        set_generator_states(generators, before)
        keeps_state = content is None or content != self._content()
        set_generator_states(generators, after)
        if self._pack.obstacle is not None:
            self._refuse(step, self._pack.obstacle)
        elif waits:
            self._refuse(step, f"they wait for the device, in {waits[0]}")
        elif keeps_state:
            self._refuse(
                step, "a batch function, the model or the loss may keep state between calls"
            )
        self._pure = not keeps_state
        return made

    def _content(self) -> bytes | None:
        """Return a hash of the state of the user's functions; None where it cannot be hashed."""
        if self._pure:  # found before a shrink, which only removes functions
            return b""
        with contextlib.suppress(Exception):
            return digest(self._pack.functions, global_states(self._pack.device))
        return None

    def _steps(self, step: int, count: int) -> tuple[Batch, Tensor]:
        """Make some steps eagerly; return the results of the last one."""
        for earlier in range(step, step + count - 1):
            self._step_fn(earlier)
        return self._step_fn(step + count - 1)

    def _aside(self, work: Callable[[], T]) -> T:
        """Make steps whose batches are drawn aside, as in a recording."""
        self._pack.train.aside = self._recorder.aside()
        try:
            return work()
        finally:
            self._pack.train.aside = Aside()

    def _record(self, step: int) -> None:
        """Record a step and a stride, which changes nothing."""
        before = _Snapshot(self._pack)
        reason = None if self._ignores_step() else "a batch function uses its step"
        before.restore(self._pack)
        if reason is None:
            counts = (1, STRIDE)
            works = [partial(self._aside, partial(self._steps, step, n)) for n in counts]
            made, reason = _tried(lambda: self._recorder.record(works, self._drawn_from))
            before.restore(self._pack)
            self._recordings = dict(zip(counts, made, strict=True)) if made else {}
            self._unchecked = {1: CHECKED_STEPS, STRIDE: CHECKED_STRIDES}
        if reason is not None:
            self._refuse(step, reason)

    def _ignores_step(self) -> bool:
        try:
            self._pack.train.draw(_OpaqueStep())
        except (_StepUsed, Exception):  # of any kind: with a number, the last step has worked
            return False
        return True

    def _both_ways(self, step: int, count: int) -> tuple[Batch, Tensor]:
        """Make steps by replay, and again eagerly from the same state; keep the eager results."""
        before = _Snapshot(self._pack)
        replayed, reason = _tried(partial(self._replayed_results, count))
        before.restore(self._pack)
        made, failure = _tried(partial(self._steps, step, count))
        reason = reason or failure
        if replayed and made and not _same(replayed, _results(self._pack, made)):
            reason = "a replayed step differs from the same step made eagerly"
        if reason is not None:
            self._refuse(step, reason)
        if made is None:
            before.restore(self._pack)  # without the memory that the recordings held
            return self._steps(step, count)
        return made

    def _replayed_results(self, count: int) -> list[Tensor]:
        return [tensor.clone() for tensor in _results(self._pack, self._recordings[count]())]


class _Snapshot:
    """A copy of everything that a step changes."""

    def __init__(self, pack: Recordable) -> None:
        self._buffers = [buffer.clone() for buffer in pack.buffers]
        self._generators = generator_states(pack.generators)

    def restore(self, pack: Recordable) -> None:
        """Restore the state."""
        for buffer, copy in zip(pack.buffers, self._buffers, strict=True):
            buffer.copy_(copy)
        set_generator_states(pack.generators, self._generators)


def _results(pack: Recordable, made: tuple[Batch, Tensor]) -> list[Tensor]:
    """Return everything that a step has computed."""
    batch, active = made
    drawn = () if pack.train.fixed else (batch.X, batch.y)
    return [*pack.buffers, *generator_states(pack.generators), *drawn, active]


def _same(ours: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Return whether all bits are equal: NaN equals itself, zero differs from minus zero."""
    pairs = zip(ours, others, strict=True)
    return all(a.shape == b.shape and torch.equal(_bits(a), _bits(b)) for a, b in pairs)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def _tried(work: Callable[[], T]) -> tuple[T | None, str | None]:
    """Call a function; return its result, or the error that it raises."""
    try:
        return work(), None
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        return None, f"{type(error).__name__}: {first_line}"


class _StepUsed(BaseException):
    """An :class:`_OpaqueStep` was used. Not an Exception, which a function might catch."""


def _raise_used(*args: Any, **kwargs: Any) -> Any:
    raise _StepUsed


#: Takes the place of a step, and can only be passed on: every operation raises. It is not an int:
#: functions that take one without calling its methods, as those of torch, raise a TypeError.
_OpaqueStep: Any = type(
    "_OpaqueStep",
    (),
    dict.fromkeys(
        {name for name in dir(int) if name not in vars(object)}
        | {"__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"}
        | {"__hash__", "__str__", "__repr__", "__format__", "__getattribute__"},
        _raise_used,
    ),
)
