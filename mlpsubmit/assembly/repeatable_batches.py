"""Find batch functions whose batch of a step depends on more than step and gen.

A resumed training calls a new batch function at the step of the checkpoint, with gen in the state
that was saved. So a few batches are drawn in order, and each anew by a function that has drawn
nothing but the first.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import math
import random
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpsubmit.assembly.batch_streams import BatchStream, SharedBatches, settings_of
from mlpsubmit.assembly.global_draws import draws_error, watching
from mlpsubmit.assembly.held_state import Held, closure_of, described, difference, held, keeps_state
from mlpsubmit.errors import SpecError
from mlpsubmit.spec.libraries import is_library
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.batches import pair_of
from mlpsubmit.training.culprits import FAILURES
from mlpsubmit.training.global_state import global_state_kept
from mlpsubmit.training.guard import Guard, WriteError
from mlpsubmit.training.seeds import streams

__all__ = ["HINT", "check_batches"]

#: Where a batch function is to keep what it needs.
HINT = (
    "compute it from step, and draw from gen: the order of an epoch from a generator that is "
    "seeded with the epoch"
)

#: The most steps at which a batch function is called out of order.
_REVISITED = 6

#: Instructions that store what outlives a call, and methods that do: of lists, sets, mappings.
_STORES = frozenset({"STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF", "STORE_SUBSCR"})
_CHANGES = frozenset(
    {"append", "appendleft", "extend", "insert", "pop", "popleft", "add", "update", "setdefault"}
    | {"next", "send", "copy_", "random_", "normal_", "shuffle", "cache", "lru_cache"}
)

#: What cannot change but through an instruction or method above.
_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, range, torch.Tensor, np.ndarray),
    *(np.generic, type, torch.device, torch.dtype),
)


class _Step(int):
    """A step, or a multiple of one, that notes the steps at which something may happen.

    These follow from the numbers with which a function compares or divides it: for
    ``step * bsz % n`` that is where it reaches n, and where it returns to 0.
    """

    _noted: set[int]
    _scale: int
    _shift: int

    def __new__(cls, value: int, noted: set[int], scale: int = 1, shift: int = 0) -> _Step:
        """Return scale times a step plus shift, which is the value."""
        step = super().__new__(cls, value)
        step._noted, step._scale, step._shift = noted, scale, shift
        return step

    __hash__ = int.__hash__

    def __mul__(self, k: Any) -> Any:
        if type(k) is not int or k <= 0:
            return int(self) * k
        return _Step(int(self) * k, self._noted, self._scale * k, self._shift * k)

    __rmul__ = __mul__

    def __add__(self, k: Any) -> Any:
        if type(k) is not int:
            return int(self) + k
        return _Step(int(self) + k, self._noted, self._scale, self._shift + k)

    __radd__ = __add__

    def note(self, other: Any) -> None:
        if type(other) is int and other > 0:
            reached = -((self._shift - other) // self._scale)
            self._noted |= {reached, other // math.gcd(self._scale, other)}


def _noting(operation: str) -> Any:
    plain = getattr(int, operation)

    def noting(self: _Step, other: Any) -> Any:
        self.note(other)
        return plain(int(self), other)

    return noting


for _operation in ("mod", "floordiv", "divmod", "eq", "ne", "lt", "le", "gt", "ge"):
    setattr(_Step, f"__{_operation}__", _noting(f"__{_operation}__"))


@dataclass
class _Draw:
    """A draw of a batch function.

    Attributes:
        before: the state of gen before it.
        batch: the batch, and gen after it.
        holds: what the batch function holds after it.
    """

    step: int
    before: Tensor
    batch: Held
    holds: Held


def check_batches(
    sweep: Sweep, config: Config, entry: Mapping[str, Any], device: torch.device, name: str
) -> None:
    """Refuse a batch function whose batch of a step depends on more than step and gen.

    The batches of the first steps are drawn in order, and then of the steps at which something may
    happen. A function that has drawn the first batch only, as in a resumed training, has to draw
    the same from the same state of gen.
    """
    settings = config.hyperparameters
    seeds = streams(settings.seed, config.trial)
    context = settings_of(sweep, config, entry, device)
    drawn: dict[str, set[str]] = {}

    def new() -> BatchStream:
        return SharedBatches(sweep.batchfn, context, seeds, device).of_stack(None)

    with torch.random.fork_rng(devices=[]), watching(drawn, name):
        in_order = new()
        draws = list(_draws_in_order(in_order, settings.max_iter, name)) if settings.online else []
    if drawn[name] and _depends_on_global(new, [draw.step for draw in draws] or [1, 2], name):
        raise draws_error(name, drawn[name])
    if not settings.online and difference(held(in_order.first), held(new().first)) is not None:
        raise SpecError(
            f"{name}: its training set is another one when it is drawn again, as it is for a "
            f"resumed training; {HINT}"
        )
    # What changes from one step to the next shows in the third; but for what has a period of two,
    # such as itertools.cycle([a, b]): that shows in the second.
    for draw in [*draws[2 : 3 + 2 * _REVISITED : 2], *draws[1:2]]:
        resumed = new()
        resumed.generator.set_state(draw.before)
        batch, _ = _batch_of(resumed, draw.step, name)
        place = difference(draw.holds, held(resumed.rest))
        if difference(draw.batch, batch) is not None:
            what = described(place) if place else "what it keeps between calls"
            raise SpecError(
                f"{name}: batch_fn({draw.step}) depends on more than step and gen ({what}), so "
                f"that a resumed training would draw another batch; {HINT}"
            )
        if place is not None:
            raise SpecError(keeps_state(name, place, HINT))


def _depends_on_global(new: Callable[[], BatchStream], steps: Iterable[int], name: str) -> bool:
    """Return whether batches change with the seeds of the global generators.

    Those of a teacher network do not where its weights are drawn from gen after ``nn.Linear`` has
    initialised them.
    """

    def batches(seed: int) -> Held:
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        stream = new()
        return held([stream.first, *(_batch_of(stream, step, name)[1] for step in steps)])

    with global_state_kept():
        return difference(batches(1), batches(2)) is not None


def _draws_in_order(stream: BatchStream, max_iter: int, name: str) -> Iterator[_Draw]:
    """Draw the batches of steps 1, 2 and 3, and of pairs of steps at which something may happen.

    Raises:
        WriteError: where a draw changes the batch before it.
    """
    noted: set[int] = set()
    earlier = Guard(dict(zip("Xy", stream.first, strict=True)), sampled=True)

    def draw(step: int) -> _Draw:
        nonlocal earlier
        before = stream.generator.get_state()
        batch, (X, y) = _batch_of(stream, _Step(step, noted), name)
        if written := earlier.changed():
            raise WriteError(
                f"{name} changes the {written[0]} that it has returned before, in place; try "
                ".clone() of what it returns"
            )
        earlier = Guard({"X": X, "y": y}, sampled=True)
        return _Draw(step, before, batch, held(stream.rest))

    stores = _may_store(stream.rest)
    if not stores and not _holds_objects(stream.rest, stream.generator):
        return
    yield from map(draw, (1, 2, 3))
    if not stores:
        return
    numbers = [*sorted(noted), *sorted(_numbers_in(stream.rest) - noted)]
    later = [m for m in numbers if 3 <= m < max_iter - 1][:_REVISITED]
    with contextlib.suppress(*FAILURES):  # a function may fail there; the training will report it
        for m in sorted(later):
            yield draw(m)
            yield draw(m + 1)


def _may_store(function: Any) -> bool:
    """Return whether a function has code that may change what outlives a call.

    Others are not called at steps that a short training does not reach: they may act on them.
    """
    return any(
        step.opname in _STORES or step.argval in _CHANGES
        for code in _codes_of(function)
        for step in dis.get_instructions(code)
    ) or any(
        isinstance(part, functools._lru_cache_wrapper) for part in closure_of(function).values()
    )


def _holds_objects(value: Any, gen: torch.Generator, depth: int = 6) -> bool:
    """Return whether a function holds or uses an object, other than gen, that may change."""
    if isinstance(value, types.ModuleType):
        return not is_library(value.__name__)
    if value is gen or isinstance(value, _PLAIN) or depth == 0:
        return depth == 0
    parts: Iterable[Any]
    if isinstance(value, types.FunctionType):
        parts = [*closure_of(value).values(), *(value.__defaults__ or ())]
        if not is_library(value.__module__ or ""):
            names = {
                step.argval
                for code in _codes_of(value.__code__)
                for step in dis.get_instructions(code)
                if step.opname == "LOAD_GLOBAL"  # not the names of attributes
            }
            parts = [*parts, *(v for n, v in value.__globals__.items() if n in names)]
    elif isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, types.BuiltinFunctionType):
        parts = [value.__self__]
    elif type(value) in (tuple, list, set, frozenset):
        parts = value
    elif type(value) is dict:
        parts = value.values()
    else:
        return True
    return any(_holds_objects(part, gen, depth - 1) for part in parts)


def _codes_of(function: Any, seen: set[int] | None = None) -> Iterator[types.CodeType]:
    """Yield the code of a function, and of those that it is given or defines, each once."""
    seen = set() if seen is None else seen
    if id(function) in seen:
        return
    seen.add(id(function))
    parts: list[Any] = []
    if isinstance(function, types.CodeType):
        yield function
        parts = [const for const in function.co_consts if isinstance(const, types.CodeType)]
    elif isinstance(function, types.FunctionType):
        own = [] if is_library(function.__module__ or "") else [function.__code__]
        parts = [*own, *closure_of(function).values()]
    elif isinstance(function, functools.partial):
        parts = [function.func, *function.args]
    else:
        call = getattr(function, "__func__", None) or vars(type(function)).get("__call__")
        parts = [call] if isinstance(call, types.FunctionType) else []
    for part in parts:
        yield from _codes_of(part, seen)


def _numbers_in(value: Any, depth: int = 6) -> set[int]:
    """Return the integers in the code of a function and in its closure: ``step in {20, 40}``."""
    if type(value) is int or depth == 0:
        return {value} if depth else set()
    parts: Iterable[Any] = ()
    if isinstance(value, types.CodeType):
        parts = value.co_consts
    elif isinstance(value, (tuple, list, set, frozenset, dict)) and len(value) < 100:
        parts = [part for part in value if not callable(part)]
    elif isinstance(value, types.FunctionType):
        own = inspect.getclosurevars(value).nonlocals.values()
        parts = [value.__code__, *(one for one in own if not callable(one))]
    elif isinstance(value, functools.partial):
        parts = (value.func, *value.args)
    elif callable(value):
        call = getattr(value, "__func__", None) or vars(type(value)).get("__call__")
        parts = [call] if isinstance(call, types.FunctionType) else []
        parts = [*parts, *(one for one in _plain_attributes(value) if not callable(one))]
    return set().union(*(_numbers_in(part, depth - 1) for part in parts))


def _plain_attributes(value: Any) -> Iterable[Any]:
    holder = getattr(value, "__self__", value)
    return getattr(holder, "__dict__", {}).values()


def _batch_of(stream: BatchStream, step: int, name: str) -> tuple[Held, tuple[Tensor, Tensor]]:
    X, y = pair_of(stream.rest(step), f"{name}: batch_fn({int(step)})")
    return held([X, y, stream.generator]), (X, y)
