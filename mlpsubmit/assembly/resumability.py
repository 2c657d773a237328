"""Find functions of the user's that keep state which no checkpoint holds.

An interrupted and resumed training has to equal an undisturbed one. So a few steps are made both
ways, and all that the user's functions hold afterwards is compared, with the weights, losses and
batches. The resumed one runs second in the same process: what an earlier training has left in
globals may not matter either.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import io
import math
import random
import types
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpsubmit.arguments import function_name
from mlpsubmit.assembly.assemble import StackInputs, assemble, named_grabs
from mlpsubmit.assembly.batch_streams import BatchStream, SharedBatches, settings_of
from mlpsubmit.assembly.held_state import Held, difference, held
from mlpsubmit.errors import SpecError, UserError
from mlpsubmit.spec.hyperparameters import OPTIMIZERS
from mlpsubmit.spec.libraries import is_library
from mlpsubmit.spec.sweep import Config, Sweep
from mlpsubmit.training.batches import pair_of
from mlpsubmit.training.culprits import FAILURES
from mlpsubmit.training.global_state import global_state_kept
from mlpsubmit.training.guard import Guard, WriteError
from mlpsubmit.training.monitor import Monitor
from mlpsubmit.training.optimizers import optimizer_class
from mlpsubmit.training.seeds import global_states, streams

__all__ = ["check_resumable", "own_functions"]

#: Steps of the undisturbed training, and those after which the other one is interrupted.
_STEPS, _SAVED_AFTER = 4, 2

_CPU = torch.device("cpu")

#: Samples per batch, where the functions can do with so few.
_SAMPLES = 32

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

_HINTS = {
    "OPTIMIZER": "keep it in self.state or param_groups, or return it from state_dict() and set it "
    "in load_state_dict()",
    "MODEL": "make it a buffer: self.register_buffer(name, tensor), changed in place",
    "LOSS": "compute the loss from its arguments alone",
    "batchfn": "compute it from step, and draw from gen: the order of an epoch from a generator "
    "that is seeded with the epoch",
    "grab": "compute it from its arguments; model0 is the network at initialisation",
    "PARAMETRIZATION": "compute it from its arguments",
}


def check_resumable(
    sweep: Sweep,
    config: Config,
    entry: Mapping[str, Any],
    device: torch.device,
    grabs: Collection[str] = (),
) -> None:
    """Train a few steps of a config, undisturbed and interrupted, and compare.

    Args:
        entry: the entries of the data function, tensors on the device.
        grabs: those to call, too.

    Raises:
        SpecError: naming the function, what it keeps, and where to keep it.
        WriteError: where a batch function changes what it has returned before.
    """
    own = own_functions(sweep, config, grabs)
    if not own:
        return
    settings = config.hyperparameters
    few = {name: min(getattr(settings, name), _SAMPLES) for name in ("n_samples", "n_test")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at these sizes more threads only wait for each other
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a training gives the same ones
            try:
                _check(sweep, config.replaced(**few), entry, device, own)
            except FAILURES:  # perhaps from a function that needs more samples
                _check(sweep, config, entry, device, own)
    finally:
        torch.set_num_threads(threads)


def own_functions(sweep: Sweep, config: Config, grabs: Collection[str]) -> dict[str, Any]:
    """Return the functions of a config that are not the library's, by how messages call them."""
    settings, named = config.hyperparameters, named_grabs(sweep)
    functions = {"batchfn": sweep.batchfn, "PARAMETRIZATION": settings.parametrization}
    functions |= {"MODEL": settings.model, "LOSS": settings.loss}
    own = {f"{k} {function_name(f)}": f for k, f in functions.items() if _is_own(f)}
    own |= {f"grab {name!r}": named[name] for name in grabs if _is_own(named[name])}
    if settings.optimizer not in OPTIMIZERS:
        cls = optimizer_class(settings.optimizer)
        own[f"OPTIMIZER {function_name(cls)}"] = cls
    return own


def _is_own(function: Any, depth: int = 5) -> bool:
    """Return whether a function, or one that it calls for its user, is no library's."""
    if not callable(function) or depth == 0:
        return False
    inner = function if hasattr(function, "__qualname__") else type(function)
    if not is_library(inner.__module__ or ""):
        return True
    inside = [getattr(function, name, None) for name in ("func", "__wrapped__", "__self__")]
    if isinstance(function, functools.partial):
        inside += [*function.args, *function.keywords.values()]
    return any(_is_own(part, depth - 1) for part in [*inside, *_closure_of(function)])


def _check(
    sweep: Sweep,
    config: Config,
    entry: Mapping[str, Any],
    device: torch.device,
    own: Mapping[str, Any],
) -> None:
    name = f"batchfn {function_name(sweep.batchfn)}"
    if name in own:
        _check_batches(sweep, config, entry, device, name)
    if own.keys() <= {name}:
        return
    straight, saver = _Run(own), _Saver()
    straight.train(sweep, config, entry, device, saver)
    straight.check_draws()
    resumed = _Run(own)
    try:
        resumed.train(sweep, config, entry, device, _Saver(saver.saved))
    except UserError:
        raise
    except Exception as error:
        raise SpecError(
            f"{' or '.join(own)}: a training that is resumed from a checkpoint raises "
            f"{type(error).__name__}: {error}"
        ) from error
    straight.compare(resumed)


# ---- the training --------------------------------------------------------------------------------


class _Saver(Monitor):
    """Saves the state once, as a checkpoint does; or restores a saved one."""

    def __init__(self, saved: bytes | None = None) -> None:
        self.saved, self._restored, self._steps = saved, saved, 0

    def restore(self) -> dict[str, Any] | None:
        if self._restored is None:
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(self._restored), weights_only=True)
        return state

    def due(self) -> bool:
        self._steps += 1
        return self._restored is None and self._steps == _SAVED_AFTER

    def save(self, state: dict[str, Any]) -> None:
        stream = io.BytesIO()
        torch.save(state, stream)
        self.saved = stream.getvalue()


@dataclass
class _Run:
    """A short training of one config.

    Attributes:
        own: the user's functions, by how messages call them.
        held: what each of them holds at the end, object by object.
        results: what the training has computed, by name.
        drawn: per function, the global generators that it has drawn from; "" of all.
    """

    own: Mapping[str, Any]
    held: dict[str, list[Held]] = field(default_factory=dict)
    results: dict[str, Held] = field(default_factory=dict)
    drawn: dict[str, set[str]] = field(default_factory=dict)

    def train(
        self,
        sweep: Sweep,
        config: Config,
        entry: Mapping[str, Any],
        device: torch.device,
        saver: _Saver,
    ) -> None:
        """Make the steps, and read what the functions hold."""
        optimizers: list[Any] = []
        short: dict[str, Any] = {
            "max_iter": _STEPS,
            "compile": "auto",
            "onlythresholds": False,
            "grab_every": _STEPS - 1,
            "loss_checkpoints": (),
            "percent_thresholds": None,
        }
        if config.hyperparameters.optimizer not in OPTIMIZERS:
            cls = optimizer_class(config.hyperparameters.optimizer)
            short["optimizer"] = _keeping(cls, optimizers)
        with torch.random.fork_rng(devices=[]), _watching(self.drawn, ""):
            (stack,) = assemble(sweep, [config.replaced(**short)], [entry], device)
            stack.grabs = {
                name: self._watched(grab, f"grab {name!r}")
                for name, grab in stack.grabs.items()
                if f"grab {name!r}" in self.own
            }
            trained = stack.train(saver)
        self._read(stack, optimizers)
        self.results = {
            "its weights": held(stack.models[0].state_dict()),
            "its losses": held([trained.train_loss[:, -1], trained.test_loss[:, -1:]]),
            "the generators of its batches": held(stack.generators),
        }
        grabs = {name: values[:, -1] for name, values in trained.grabs.items()}
        self.results |= {f"grab {name!r}": held(value) for name, value in grabs.items()}

    def _watched(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with _watching(self.drawn, name):
                return function(*args, **kwargs)

        return watched

    def _read(self, stack: StackInputs, optimizers: list[Any]) -> None:
        for name, function in self.own.items():
            # Functions that make these are called anew; what they leave behind shows in results.
            made = {"OPTIMIZER": optimizers, "MODEL": stack.models}
            objects = made.get(name.partition(" ")[0], [function])
            if not name.startswith(("batchfn", "PARAMETRIZATION")):
                self.held[name] = [held(one) for one in objects]

    def check_draws(self) -> None:
        """Refuse draws from global generators, but for an optimizer's from torch's.

        That one is saved in checkpoints; and an optimizer of the user's trains one config at a
        time, so that nothing else draws between its steps.
        """
        everything = self.drawn.pop("", set())
        for name, drawn in self.drawn.items():
            if drawn:
                raise _draws(name, drawn)
        others = [name for name in self.own if not name.startswith(("batchfn", "grab"))]
        if any(name.startswith("OPTIMIZER") for name in others):
            everything -= {"torch"}
        if everything:
            raise _draws(" or ".join(others), everything)

    def compare(self, resumed: _Run) -> None:
        """Refuse what the interruption has changed."""
        for name, objects in self.held.items():
            for one, other in zip(objects, resumed.held[name], strict=True):
                if (place := difference(one, other)) is not None:
                    raise SpecError(_keeps_state(name, place))
        for what, one in self.results.items():
            if difference(one, resumed.results[what]) is not None:
                # The batches were compared before.
                others = [n for n in self.own if not n.startswith(("batchfn", "grab"))]
                names = [what] if what in self.own else others or [*self.own]
                hints = dict.fromkeys(_HINTS[name.partition(" ")[0]] for name in names)
                raise SpecError(
                    f"{' or '.join(names)} keeps state that is not in a checkpoint: a training "
                    f"that is resumed after {_SAVED_AFTER} steps differs from an undisturbed one "
                    f"in {'its results' if what in self.own else what}; {'; or '.join(hints)}"
                )


def _keeping(cls: Any, kept: list[Any]) -> Any:
    """Return a constructor of an optimizer that keeps the instances."""

    @functools.wraps(cls, updated=())
    def constructed(*args: Any, **kwargs: Any) -> Any:
        kept.append(cls(*args, **kwargs))
        return kept[-1]

    return constructed


def _keeps_state(name: str, place: str) -> str:
    kind, _, own = name.partition(" ")
    return (
        f"{kind} {own}: {_place(place)} changes during the training but is not in a checkpoint, "
        f"so that a resumed training would differ; {_HINTS[kind]}"
    )


def _place(place: str) -> str:
    if place.startswith("."):
        return f"its attribute {place[1:]!r}"
    return place.strip() or "its state"


# ---- the global generators -----------------------------------------------------------------------


class _watching:  # noqa: N801
    """Notes which global generators are drawn from within the context."""

    def __init__(self, drawn: dict[str, set[str]], name: str) -> None:
        self._drawn = drawn.setdefault(name, set())

    def __enter__(self) -> None:
        self._before = global_states(_CPU)

    def __exit__(self, *_: object) -> None:
        after = global_states(_CPU)
        self._drawn |= {name for name, state in after.items() if state != self._before[name]}


def _draws(name: str, drawn: Collection[str]) -> SpecError:
    if name.startswith(("batchfn", "grab")):
        instead = (
            "draw from the argument gen: torch.randn(..., generator=gen), and weights of a module "
            "by nn.init.normal_(..., generator=gen)"
        )
    else:
        instead = "draw from a generator of its own whose state its state_dict() holds, or none"
    return SpecError(
        f"{name} draws from the global generator of {' and '.join(sorted(drawn))}, whose state "
        f"depends on what else has run: trials may see the same draws, and results do not repeat; "
        f"{instead}, or, for NumPy, np.random.default_rng(int(torch.randint(2**31, (), "
        "generator=gen)))"
    )


# ---- batch functions -----------------------------------------------------------------------------


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


def _check_batches(
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

    with torch.random.fork_rng(devices=[]), _watching(drawn, name):
        in_order = new()
        draws = list(_draws_in_order(in_order, settings.max_iter, name)) if settings.online else []
    if drawn[name] and _depends_on_global(new, [draw.step for draw in draws] or [1, 2], name):
        raise _draws(name, drawn[name])
    if not settings.online and difference(held(in_order.first), held(new().first)) is not None:
        raise SpecError(
            f"{name}: its training set is another one when it is drawn again, as it is for a "
            f"resumed training; {_HINTS['batchfn']}"
        )
    # Not the first two: what changes from one step to the next shows in the third.
    for draw in draws[2 : 3 + 2 * _REVISITED : 2]:
        resumed = new()
        resumed.generator.set_state(draw.before)
        batch, _ = _batch_of(resumed, draw.step, name)
        place = difference(draw.holds, held(resumed.rest))
        if difference(draw.batch, batch) is not None:
            what = _place(place) if place else "what it keeps between calls"
            raise SpecError(
                f"{name}: batch_fn({draw.step}) depends on more than step and gen ({what}), so "
                f"that a resumed training would draw another batch; {_HINTS['batchfn']}"
            )
        if place is not None:
            raise SpecError(_keeps_state(name, place))


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
    ) or any(isinstance(part, functools._lru_cache_wrapper) for part in _closure_of(function))


def _holds_objects(value: Any, gen: torch.Generator, depth: int = 6) -> bool:
    """Return whether a function holds or uses an object, other than gen, that may change."""
    if isinstance(value, types.ModuleType):
        return not is_library(value.__name__)
    if value is gen or isinstance(value, _PLAIN) or depth == 0:
        return depth == 0
    parts: Iterable[Any]
    if isinstance(value, types.FunctionType):
        parts = [*_closure_of(value), *(value.__defaults__ or ())]
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
        parts = [*own, *_closure_of(function)]
    elif isinstance(function, functools.partial):
        parts = [function.func, *function.args]
    else:
        call = getattr(function, "__func__", None) or vars(type(function)).get("__call__")
        parts = [call] if isinstance(call, types.FunctionType) else []
    for part in parts:
        yield from _codes_of(part, seen)


def _closure_of(function: Any) -> list[Any]:
    found = []
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # not assigned yet
            found.append(cell.cell_contents)
    return found


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
