"""Steps by replay: on a GPU a whole step is recorded once as a CUDA graph, then launched as one.

At small widths a step on a GPU consists of many short operations, and waits for the processor to
launch each of them. A recorded step is launched at once. It repeats the same operations on the same
memory, and runs none of the Python code that they came from, so it can stand for a step only where

- the batch functions do not look at the step, and neither they nor the model nor the loss keep
  anything between two calls but generators that the training knows of;
- nothing on the way waits for the device;
- the same arithmetic, on the same memory, is what comes next: until the stack shrinks.

All of that is tried before anything is recorded, and the first steps after it are made both by
replay and afresh. Where they differ in a single bit, or anything else does not work, the steps go
on as they are written, and a line says why. What counts until then is what was made afresh: results
do not depend on whether a recording was tried.

A batch function that keeps something is called once per step, as ever. One that keeps nothing is
called twice more, to no effect: its generators are put back.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mlpsubmit.spec.fingerprint import digest
from mlpsubmit.spec.hyperparameters import OPTIMIZERS, Hyperparameters
from mlpsubmit.training.accel.cuda_graph import CudaRecorder, Recorder
from mlpsubmit.training.batches import Batch, Batches
from mlpsubmit.training.seeds import generator_states, set_generator_states

__all__ = ["Replayed", "StepFn", "replayed", "wanted"]

#: Makes a step: its batch, and (K,) bool, who makes it.
StepFn = Callable[[int], tuple[Batch, Tensor]]

#: Steps from which on a recording repays the time that it takes, some tenths of a second.
WORTHWHILE_STEPS = 500

#: Weights of a stack up to which the launches of a step take longer than its arithmetic.
LARGEST_RECORDED = 1 << 26

#: Steps in a row that are made both ways before a recording is trusted.
CHECKED_STEPS = 2


class Recordable(Protocol):
    """What a recording asks of a pack in training.

    Attributes:
        start: the step to begin with.
        train: its batches.
        generators: what the batch functions draw from.
    """

    start: int
    train: Batches
    generators: list[torch.Generator]

    @property
    def device(self) -> torch.device:
        """Where it trains."""

    @property
    def size(self) -> int:
        """How many configs its stack still has."""

    @property
    def weights(self) -> int:
        """How many trained weights its stack has."""

    @property
    def buffers(self) -> list[Tensor]:
        """What a step changes in place, but for generators: the same memory until a shrink."""

    @property
    def functions(self) -> list[Any]:
        """What each step calls of the user's functions."""


def replayed(step_fn: StepFn, pack: Recordable, common: Hyperparameters) -> StepFn:
    """Return what makes the steps of a pack: by replay where that pays, else ``step_fn`` itself.

    Args:
        step_fn: makes a step as it is written, all that it changes in place.
        common: hyperparameters of the pack. COMPILE=False rules replay out; True demands that it
            is tried whatever it pays.
    """
    steps = common.max_iter - pack.start
    if pack.device.type == "cuda" and wanted(common, steps, pack.weights):
        return Replayed(step_fn, pack, CudaRecorder(pack.device))
    return step_fn


def wanted(common: Hyperparameters, steps: int, weights: int) -> bool:
    """Say whether replay is to be tried on a GPU.

    Args:
        steps: how many are still to be made.
        weights: of the whole stack.
    """
    if common.optimizer not in OPTIMIZERS:  # it asks at each step whether its config still moves
        return False
    pays = steps >= WORTHWHILE_STEPS and weights <= LARGEST_RECORDED
    return pays if common.compile == "auto" else bool(common.compile)


class Replayed:
    """Makes the steps of a pack by replaying a recorded one, once that has proved itself.

    Args:
        step_fn: makes a step as it is written.
        pack: what is in training.
        recorder: what the device offers.
    """

    def __init__(self, step_fn: StepFn, pack: Recordable, recorder: Recorder) -> None:
        self.train_step, self._pack, self._recorder = step_fn, pack, recorder
        self._pure = self._refused = False
        self._begin()

    def __call__(self, step: int) -> tuple[Batch, Tensor]:
        """Make a step. What is returned is valid until the next one."""
        if self._size != self._pack.size and not self._refused:
            self._begin()
        return self._stage(self, step)

    def _begin(self) -> None:
        self._size, self._agreed = self._pack.size, 0
        self._replay: Callable[[], tuple[Batch, Tensor]] | None = None  # frees its memory
        # A plain function: a bound method would keep all this alive until the collector comes.
        self._stage: Callable[[Replayed, int], tuple[Batch, Tensor]] = Replayed._first

    def _refuse(self, step: int, reason: str) -> None:
        print(f"from step {step} on, steps are not replayed: {reason}", flush=True)
        self._refused, self._replay, self._stage = True, None, Replayed._afresh

    def _afresh(self, step: int) -> tuple[Batch, Tensor]:
        return self.train_step(step)

    def _first(self, step: int) -> tuple[Batch, Tensor]:
        """Make a step that takes the first losses, and checks the shapes of batches."""
        self._stage = Replayed._watched
        return self.train_step(step)

    def _watched(self, step: int) -> tuple[Batch, Tensor]:
        """Make a step, and find out whether a replay could have made it."""
        generators = self._pack.generators
        before, content = generator_states(generators), self._content()
        with self._recorder.watched() as waits:
            made = self.train_step(step)
        after = generator_states(generators)
        self._drawn_from = [
            generator
            for generator, was, state in zip(generators, before, after, strict=True)
            if not torch.equal(was, state)
        ]
        set_generator_states(generators, before)
        kept = content is None or content != self._content()
        set_generator_states(generators, after)
        self._stage = Replayed._recorded
        if waits:
            self._refuse(step, f"they wait for the device, in {waits[0]}")
        elif kept:
            self._refuse(
                step, "a batch function, the model or the loss may keep a state of its own"
            )
        return made

    def _content(self) -> bytes | None:
        """Hash what the user's functions can keep; None where that cannot be told."""
        if self._pure:  # has been found already: what is left is a part of that
            return b""
        with contextlib.suppress(Exception):
            return digest(self._pack.functions, _global_generators(self._pack.device))
        return None

    def _recorded(self, step: int) -> tuple[Batch, Tensor]:
        """Record a step, and make it both ways."""
        self._pure = True
        before = _State(self._pack)
        reason = None if self._ignores_step() else "a batch function looks at its step"
        before.put_back(self._pack)
        if reason is None:
            reason = _failure(partial(self._record, step))
            before.put_back(self._pack)
        if reason is not None:
            self._refuse(step, reason)
            return self.train_step(step)
        self._stage = Replayed._both_ways
        return self._both_ways(step)

    def _ignores_step(self) -> bool:
        try:
            self._pack.train.draw(_Unseen())
        except (_LookedAt, Exception):  # it has worked with the last step
            return False
        return True

    def _record(self, step: int) -> None:
        self._replay = self._recorder.record(partial(self.train_step, step), self._drawn_from)

    def _both_ways(self, step: int) -> tuple[Batch, Tensor]:
        """Make a step by replay and, from where that began, afresh, which is what counts."""
        assert self._replay is not None
        before, results = _State(self._pack), list[Tensor]()
        reason = _failure(partial(self._try_replay, results))
        before.put_back(self._pack)
        made = list[tuple[Batch, Tensor]]()
        reason = reason or _failure(lambda: made.append(self.train_step(step)))
        if reason is None and not _same(results, _results(self._pack, made[0])):
            reason = "a replayed step differs from the same step made afresh"
        self._agreed += 1
        if self._agreed == CHECKED_STEPS:
            self._stage = Replayed._replayed
        if reason is not None:
            self._refuse(step, reason)
        if made:
            return made[0]
        before.put_back(self._pack)  # without the memory that the recording held
        return self.train_step(step)

    def _try_replay(self, results: list[Tensor]) -> None:
        assert self._replay is not None
        results += [tensor.clone() for tensor in _results(self._pack, self._replay())]

    def _replayed(self, step: int) -> tuple[Batch, Tensor]:
        assert self._replay is not None
        return self._replay()


class _State:
    """Copies of all that a step changes."""

    def __init__(self, pack: Recordable) -> None:
        self._buffers = [buffer.clone() for buffer in pack.buffers]
        self._generators = generator_states(pack.generators)

    def put_back(self, pack: Recordable) -> None:
        """Let everything be as it was."""
        for buffer, copy in zip(pack.buffers, self._buffers, strict=True):
            buffer.copy_(copy)
        set_generator_states(pack.generators, self._generators)


def _results(pack: Recordable, made: tuple[Batch, Tensor]) -> list[Tensor]:
    """Return all that came of a step."""
    batch, active = made
    drawn = () if pack.train.fixed else (batch.X, batch.y)
    return [*pack.buffers, *generator_states(pack.generators), *drawn, active]


def _same(ours: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Compare bit by bit: NaN equals itself, zero does not equal minus zero."""
    pairs = zip(ours, others, strict=True)
    return all(a.shape == b.shape and torch.equal(_bits(a), _bits(b)) for a, b in pairs)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def _failure(work: Callable[[], Any]) -> str | None:
    """Do something; return why it did not work, if so."""
    try:
        work()
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        return f"{type(error).__name__}: {first_line}"
    return None


def _global_generators(device: torch.device) -> list[Any]:
    """Return the states of the generators that anything can draw from without being given one."""
    states = [random.getstate(), np.random.get_state(), torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


class _LookedAt(BaseException):
    """Something was done with an :class:`_Unseen`. No Exception: a function might catch it."""


def _caught(*args: Any, **kwargs: Any) -> Any:
    raise _LookedAt


#: Stands for a step, and lets nothing be done with it but to be handed on. It is no int: what takes
#: an int and asks it for nothing, as torch's functions do, raises an error of its own.
_Unseen: Any = type(
    "_Unseen",
    (),
    dict.fromkeys(
        {name for name in dir(int) if name not in vars(object)}
        | {"__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"}
        | {"__hash__", "__str__", "__repr__", "__format__", "__getattribute__"},
        _caught,
    ),
)
